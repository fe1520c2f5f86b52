"""One group of a run for a person: what was asked, written, compared, judged and made of it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from trainer.audit_marks import pair_name
from trainer.config import RunSettings
from trainer.material import Material
from trainer.prompts import PromptStream
from trainer.record import KeptCompletion, Record, RecordedGroup
from wire.errors import ConfigError
from wire.judgement import Verdict

WIDTH = 116


def group_lines(record: Record, occurrence: int, load: Callable[[RunSettings], Material]) -> list[str]:
    """The group at this place of the prompt stream; of one that is not trained on (yet), what is known.

    Args:
        record: the run's.
        occurrence: the place.
        load: the prompts and the tokenizer of a run with these settings.

    Raises:
        ConfigError: the ledger knows nothing of it; or whatever `load` raises.
    """
    groups = [group for group in record.groups if group.occurrence == occurrence]
    completions, verdicts = record.completions(occurrence), record.verdicts(occurrence)
    dropped = record.dropped(occurrence)
    if not (groups or completions or verdicts or dropped):
        last = max((group.occurrence for group in record.groups), default=-1)
        raise ConfigError(f"group {occurrence}: the ledger knows nothing of it; the last that was trained on is {last}")
    settings = record.lives[-1].settings
    material = load(settings)
    stream = PromptStream(material.prompts, settings.seed)
    stream.seek(occurrence)
    lines = [f"group {occurrence}"]
    for turn in next(stream).conversation:
        lines += ["", f"{turn['role']}:", *_indented(turn["content"])]
    for version, reason in dropped:
        lines += ["", f"passed over for step {version.label}: {reason}"]
    for group in groups:
        lines += ["", *_facts(group)]
    numbers = groups[-1].numbers if groups else None
    num = groups[-1].num_completions if numbers else max(completions, default=-1) + 1
    for k in range(num):
        lines += ["", *_completion(k, completions.get(k), numbers, material)]
    return [*lines, "", *(_judged(numbers, verdicts) if numbers else _loose(verdicts))]


def _indented(text: str) -> list[str]:
    return [
        f"    {line}" for row in text.splitlines() or [""] for line in textwrap.wrap(row, WIDTH) or [""]
    ]  # a text that is all on one line stays readable


def _facts(group: RecordedGroup) -> Iterator[str]:
    yield f"trained on in step {group.trained.version.label}, at place {group.trained.turn}"
    if group.numbers is None:
        yield "its numbers cannot be read"
        return
    numbers = group.numbers
    scored_by = numbers["scored_by"] or "weights of before or after a step"
    yield f"written by {', '.join(numbers['versions'])}; KL measured by {scored_by}"


def _completion(
    k: int, kept: KeptCompletion | None, numbers: dict[str, Any] | None, material: Material
) -> Iterator[str]:
    yield f"completion {k}"
    if kept is None:
        yield "    its text is pruned"
    else:
        with suppress(ValueError):  # altered; the audit names it
            completion = kept.completion
            spans = ", ".join(f"{span.version} [{span.start}, {span.end})" for span in completion.versions)
            yield from _indented(material.decode(completion.token_ids))
            yield f"    -- {len(completion.token_ids)} tokens by {spans} at {completion.replica}"
    if numbers is not None:
        yield from (f"    -- {line}" for line in _numbers_of(k, numbers))


def _numbers_of(k: int, numbers: dict[str, Any]) -> Iterator[str]:
    names = ("verdict_scores", "scores", "kl", "length_terms", "rewards", "advantages")
    values = [numbers[name][k] if k < len(numbers[name]) else None for name in names]
    score, after, kl, term, reward, advantage = ("none" if value is None else f"{value:.4g}" for value in values)
    yield f"score {score}, after its penalty {after}, KL {kl}, length {term}: reward {reward}, advantage {advantage}"
    if not numbers["finished"][k]:
        yield "cut at the length limit"
    if k in numbers["unjudged"]:
        yield "gave the judge nothing to judge"
    elif numbers["same_as"][k] != k:
        yield f"judged as completion {numbers['same_as'][k]}, whose answer is the same"


def _judged(numbers: dict[str, Any], verdicts: dict[str, Verdict]) -> Iterator[str]:
    rows = zip(numbers["pairs"], numbers["judged"], numbers["marks"]["verdict_keys"], strict=True)
    for pair, (scores, ranking, missing), key in rows:
        said = f"missing: {missing}" if missing else f"scores {_scores(scores)}, ranking {ranking}"
        yield f"verdict on {pair_name(pair)}: {said}"
        if key in verdicts:
            yield from _indented(verdicts[key].text)


def _loose(verdicts: dict[str, Verdict]) -> Iterator[str]:
    """Verdicts of a group that is not trained on: it is not written down whom they are on."""
    for verdict in verdicts.values():
        yield f"a verdict: {verdict.missing or f'scores {_scores(verdict.scores)}, ranking {verdict.ranking}'}"
        yield from _indented(verdict.text)


def _scores(scores: Any) -> str:
    return " and ".join(f"{score:g}" for score in scores or ()) or "none"
