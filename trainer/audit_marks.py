"""What of a ledger is not what was written: its digests held against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.ledger import LASTING
from trainer.provenance import (
    COMPLETION_FIELDS,
    PER_COMPLETION,
    PER_GROUP,
    STEP_NUMBERS,
    number_marks,
    said,
    short_digest,
    step_digest,
    step_marks,
)
from trainer.record import Record, RecordedGroup
from wire.generation import PolicyVersion

SAID = ("scores", "ranking", "missing")  # the entries of `provenance.said`


def altered_numbers(group: RecordedGroup) -> Iterator[str]:
    """The numbers of a group that are not those that were written; a completion's where row and field cross."""
    if group.numbers is None:
        yield f"{group.name}: its numbers cannot be read"
        return
    numbers, marks, now = group.numbers, group.numbers["marks"], number_marks(group.numbers)
    fields = [name for name, mark in now["fields"].items() if marks["fields"].get(name) != mark]
    rows = [k for k, mark in enumerate(now["rows"]) if k >= len(marks["rows"]) or marks["rows"][k] != mark]
    for name in fields:
        if name in PER_GROUP:
            yield f"{group.name}: {name} is {numbers[name]}, which is not what was trained on"
        for k in rows if name in PER_COMPLETION else ():
            value = numbers[name][k] if k < len(numbers[name]) else "missing"
            yield f"{group.name}, completion {k}: {name} is {value}, which is not what was trained on"
    if bool(rows) != any(name in PER_COMPLETION for name in fields) or len(marks["rows"]) != len(now["rows"]):
        yield f"{group.name}: its marks are not what was written"


def altered_completions(record: Record, group: RecordedGroup) -> Iterator[str]:
    """What is kept of the completions, where it is not what was trained on."""
    kept, marks = record.completions(group.occurrence), group.known["marks"]
    for k in range(group.num_completions):
        name = f"{group.name}, completion {k}"
        if k not in kept:
            if group.occurrence >= record.kept_from("completions"):
                yield f"{name}: it is missing"
            continue
        for field, mark in zip(COMPLETION_FIELDS, kept[k].marks, strict=True):
            if mark != marks[field][k]:
                yield f"{name}: {field} are not what was trained on"
        if kept[k].finished != group.known["finished"][k]:
            yield f"{name}: finished is {kept[k].finished}, which is not what was trained on"


def altered_verdicts(record: Record, group: RecordedGroup) -> Iterator[str]:
    """What is kept of the verdicts, where it is not what the scores were made of."""
    kept, numbers = record.verdicts(group.occurrence), group.known
    marks = numbers["marks"]
    rows = zip(numbers["pairs"], numbers["judged"], marks["verdict_keys"], marks["verdict_texts"], strict=True)
    for pair, judged, key, text in rows:
        name, verdict = f"{group.name}, verdict on {pair_name(pair)}", kept.get(key)
        if judged[2] not in LASTING:
            continue  # it was lost to time, and is not kept
        if verdict is None:
            if group.occurrence >= record.kept_from("verdicts"):
                yield f"{name}: it is missing"
            continue
        for field, now, then in zip(SAID, _plain(said(verdict)), judged, strict=True):
            if now != then:
                yield f"{name}: {field} is {now}, and {then} was trained on"
        if short_digest(verdict.text.encode(errors="surrogatepass")) != text:
            yield f"{name}: the text is not what the judge wrote"


def pair_name(pair: list[int | None]) -> str:
    """`completions 0 and 1 (vote 0)`."""
    first, second, vote = pair
    return (
        f"completion{'' if second is None else 's'} {first}{'' if second is None else f' and {second}'} (vote {vote})"
    )


def _plain(values: list[Any]) -> list[Any]:
    return [list(value) if isinstance(value, tuple) else value for value in values]


def altered_steps(record: Record, broken: set[PolicyVersion]) -> Iterator[str]:
    """Steps whose record is not what was written. Of a step in `broken` a group was named already."""
    digests: dict[int, str] = {}
    for version, numbers in record.step_numbers().items():
        name = f"step {version.label}"
        if numbers is None or not {*STEP_NUMBERS, "marks", "digest"} <= set(numbers):
            yield f"{name}: its numbers cannot be read"
            continue
        altered = [field for field, mark in step_marks(numbers).items() if numbers["marks"].get(field) != mark]
        for field in altered:
            yield f"{name}: {field} is {numbers[field]}, which is not what was written"
        rows = [(group.occurrence, group.trained.numbers) for group in record.groups_of(version)]
        expected = step_digest(digests.get(version.step - 1, ""), version.label, numbers, rows)
        if not altered and version not in broken and expected != numbers["digest"]:
            yield f"{name}: its digest does not follow from its record and the step before it; one was replaced"
        digests[version.step] = numbers["digest"]
