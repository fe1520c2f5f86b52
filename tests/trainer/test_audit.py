"""What was altered in a ledger is named, and nothing else is; the real one writes the ledgers, of real groups."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from reward_server.group import judge_group
from reward_server.scheme import Scheme
from reward_server.seeds import digest
from tests.trainer.test_ledger import state
from trainer.advantages import assemble_rewards, step_advantages
from trainer.audit import audit, main
from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger import Ledger
from trainer.ledger_past import LEDGER_FILE
from trainer.prompts import Prompt, hash_seed
from trainer.provenance import number_marks, step_digest
from trainer.record import recorded
from trainer.shaping import characters_of, group_length_terms
from trainer.stats import StepStats
from wire.errors import ConfigError
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import GroupVerdict, MissingReason, Verdict

K = 4
SETTINGS: dict[str, Any] = {
    "rloo_k": K, "max_lag": 1, "missing_eos_penalty": 1.0, "answer_length_weight": 0.5, "overlong_weight": 0.25,
    "overlong_cache": 3, "response_length": 6, "kl_coef": 0.1,
}  # fmt: skip


def settings_for(folder: Path, *, resumed: bool = False, **changes: Any) -> RunSettings:
    resume = "latest" if resumed else None
    return RunSettings(device="cpu", output_dir=str(folder), resume_from_checkpoint=resume, **(SETTINGS | changes))


def text_of(occurrence: int, k: int) -> str:
    """The last two of a group of four are the same; of every third group the first has nothing to judge."""
    if k == 0 and occurrence % 3 == 0:
        return ""
    return f"answer {occurrence} {min(k, 2)} " + "o" * min(k, 2)


async def made(
    ledger: Ledger,
    occurrence: int,
    label: str,
    settings: RunSettings,
    missing: Mapping[int, MissingReason] | None = None,
) -> Group:
    """A group as the collector makes it, of a judge whose verdicts are drawn from the answers; `missing`: by call."""
    memory, calls = ledger.recall(occurrence, 0), itertools.count()

    async def judge_pair(first: str, second: str | None, seed: int, vote: int) -> Verdict:
        key = digest(first, second, seed, vote)
        drawn = int(key[:8], 16)
        scores = (1.0 + drawn % 5, 1.0 + drawn // 5 % 5)[: 1 if second is None else 2]
        ranking = None if second is None else 1 + drawn % 6
        verdict = Verdict(
            scores=scores, ranking=ranking, text=f"on {first} and {second}", key=key, seconds=time.perf_counter()
        )
        reason = (missing or {}).get(next(calls))
        if reason is not None:
            verdict = Verdict(missing=reason, text="hm", key=key)
        memory.note(seed, vote, verdict)
        return verdict

    completions, texts = [], [text_of(occurrence, k) for k in range(K)]
    for k in range(K):
        num = 4 + k % 3
        spans = (VersionSpan(label, 0, num),)
        logprobs = tuple(-0.1 * (k + 1) - 0.01 * t for t in range(num))
        ids = tuple(range(10 * occurrence + k, 10 * occurrence + k + num))
        completions.append(Completion(k, ids, logprobs, num < 6, spans, "http://r"))
        memory.wrote(completions[-1])
    verdict = await judge_group(
        judge_pair,
        [asyncio.sleep(0, text) for text in texts],
        hash_seed(settings.seed, "train", occurrence),
        Scheme.of(settings),
    )
    return assembled(occurrence, completions, texts, verdict, settings)


def assembled(
    occurrence: int,
    completions: Sequence[Completion],
    texts: Sequence[str],
    verdict: GroupVerdict,
    settings: RunSettings,
) -> Group:
    kl = [0.25 * (k - 1) for k in range(K)]
    terms = group_length_terms(
        [characters_of(text) for text in texts],
        [len(c.token_ids) for c in completions],
        [score is not None and k not in verdict.unjudged for k, score in enumerate(verdict.scores)],
        settings,
    )
    scores, rewards = assemble_rewards(verdict.scores, [c.finished for c in completions], kl, terms, settings)
    prompt = Prompt(occurrence, ({"role": "user", "content": "?"},), (5,))
    scored_by = PolicyVersion.parse(completions[0].versions[0].version)
    return Group(prompt, completions, texts, verdict, scores, rewards, kl, [1.0] * K, terms, {}, scored_by=scored_by)


async def life(settings: RunSettings, *steps: Sequence[int], restored: Any = None, prune: int = 0) -> None:
    """Steps of these prompts, each written by the version it trains."""
    ledger = Ledger.open(settings, restored, lambda _: None)
    version = ledger.version
    async with ledger:
        for occurrences in steps:
            groups = [await made(ledger, o, version.label, settings) for o in occurrences]
            version = PolicyVersion(version.lineage, version.step + 1)
            stats = StepStats(loss=0.25, grad_norm=1.5, num_tokens=77)
            await ledger.record_step(version, step_advantages(groups, settings), stats, dropped=[])
        if prune:
            await ledger.prune(prune)


@pytest.fixture
async def run(tmp_path: Path) -> Path:
    """0.1 and 0.2 of prompts 0 to 3, and 0.3, which died; then 1.3 and 1.4 after 0.2, with another kl_coef."""
    await life(settings_for(tmp_path), [0, 1], [2, 3], [4, 5])
    await life(settings_for(tmp_path, resumed=True, kl_coef=0.3), [4, 5], [6, 7], restored=state(2, 4))
    return tmp_path


def found(folder: Path, *statements: str | tuple[str, Sequence[Any]]) -> list[str]:
    """What the audit finds after these changes."""
    with closing(sqlite3.connect(folder / LEDGER_FILE, isolation_level=None)) as database:
        for statement in statements:
            database.execute(*((statement,) if isinstance(statement, str) else statement))
    with recorded(folder) as record:
        return audit(record).lines


def value(folder: Path, query: str) -> Any:
    with closing(sqlite3.connect(folder / LEDGER_FILE)) as database:
        return database.execute(query).fetchone()[0]


def numbers_of(folder: Path, occurrence: int) -> dict[str, Any]:
    query = f"SELECT numbers FROM trained WHERE occurrence = {occurrence} ORDER BY lineage DESC"
    numbers: dict[str, Any] = json.loads(value(folder, query))
    return numbers


def test_an_untouched_run_of_two_lives_has_nothing_wrong(run: Path) -> None:
    assert found(run) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_reward": True, "reward_clip_range": 1.0, "normalize_advantage": True, "advantage_clip_range": 1.5},
        {"mask_truncated_completions": True, "missing_eos_penalty": None},
        {"judge_pairing": "all_pairs", "judge_aggregation": "least_squares", "judge_votes": 2},
        {"judge_pairing": "ring_extra", "judge_calls_per_group": 6},
        {"judge_pairing": "single"},
    ],
    ids=["shaped", "masked", "least squares", "extra pairs", "single"],
)
async def test_neither_has_one_of_another_scheme_or_shaping(tmp_path: Path, changes: dict[str, Any]) -> None:
    await life(settings_for(tmp_path, **changes), [0, 1], [2, 3])
    assert found(tmp_path) == []


@pytest.mark.parametrize("place", [0, 3])
def test_an_altered_token_is_named(run: Path, place: int) -> None:
    where = f"occurrence = 6 AND place = {place}"
    ids = array("i", value(run, f"SELECT token_ids FROM completions WHERE {where}"))
    ids[1] += 1
    assert found(run, (f"UPDATE completions SET token_ids = ? WHERE {where}", (ids.tobytes(),))) == [
        f"prompt 6 (step 1.4), completion {place}: tokens are not what was trained on"
    ]


def test_an_altered_log_prob_is_named(run: Path) -> None:
    where = "occurrence = 2 AND place = 1"
    logprobs = array("d", value(run, f"SELECT logprobs FROM completions WHERE {where}"))
    logprobs[-1] += 1e-12
    assert found(run, (f"UPDATE completions SET logprobs = ? WHERE {where}", (logprobs.tobytes(),))) == [
        "prompt 2 (step 0.2), completion 1: logprobs are not what was trained on"
    ]


def test_an_altered_version_is_named(run: Path) -> None:
    change = "UPDATE completions SET versions = replace(versions, '1.3', '0.2') WHERE occurrence = 7 AND place = 2"
    assert found(run, change) == ["prompt 7 (step 1.4), completion 2: versions are not what was trained on"]
    change = (
        'UPDATE trained SET numbers = replace(numbers, \'"oldest": "1.3"\', \'"oldest": "0.2"\') WHERE occurrence = 6'
    )
    assert "prompt 6 (step 1.4): oldest is 0.2, which is not what was trained on" in found(run, change)


def test_an_altered_end_and_a_missing_completion_are_named(run: Path) -> None:
    assert found(
        run,
        "UPDATE completions SET finished = 0 WHERE occurrence = 1 AND place = 0",
        "DELETE FROM completions WHERE occurrence = 1 AND place = 3",
    ) == [
        "prompt 1 (step 0.1), completion 0: finished is False, which is not what was trained on",
        "prompt 1 (step 0.1), completion 3: it is missing",
    ]


def altered_verdict(folder: Path, occurrence: int, **changes: Any) -> tuple[str, tuple[str, Sequence[Any]]]:
    """(the name of the pair, the statement) of a change to the first verdict of a group."""
    numbers = numbers_of(folder, occurrence)
    key, (first, second, vote) = numbers["marks"]["verdict_keys"][0], numbers["pairs"][0]
    text = value(folder, f"SELECT verdict FROM verdicts WHERE occurrence = {occurrence} AND verdict LIKE '%{key}%'")
    statement = "UPDATE verdicts SET verdict = ? WHERE verdict LIKE ?"
    now = json.dumps(json.loads(text) | changes)
    return f"completions {first} and {second} (vote {vote})", (statement, (now, f"%{key}%"))


def test_an_altered_verdict_is_named_with_both_values(run: Path) -> None:
    then = numbers_of(run, 5)["judged"][0]
    pair, change = altered_verdict(run, 5, scores=[1.5, 2.5], ranking=7)
    assert found(run, change) == [
        f"prompt 5 (step 1.3), verdict on {pair}: scores is [1.5, 2.5], and {then[0]} was trained on",
        f"prompt 5 (step 1.3), verdict on {pair}: ranking is 7, and {then[1]} was trained on",
    ]


def test_an_altered_word_of_the_judge_and_a_verdict_that_is_gone_are_named(run: Path) -> None:
    pair, change = altered_verdict(run, 5, text="the second is better")
    other, _ = altered_verdict(run, 3)
    key = numbers_of(run, 3)["marks"]["verdict_keys"][0]
    assert found(run, change, ("DELETE FROM verdicts WHERE verdict LIKE ?", (f"%{key}%",))) == [
        f"prompt 3 (step 0.2), verdict on {other}: it is missing",
        f"prompt 5 (step 1.3), verdict on {pair}: the text is not what the judge wrote",
    ]


def test_who_answered_and_how_long_it_took_may_differ(run: Path) -> None:
    _, change = altered_verdict(run, 5, seconds=9.0, server="http://other", attempts=2)
    assert found(run, change, "UPDATE completions SET replica = 'http://other'") == []


@pytest.mark.parametrize("field", ["verdict_scores", "scores", "rewards", "kl", "length_terms", "advantages"])
def test_an_altered_number_is_named_with_its_completion_and_nothing_else(run: Path, field: str) -> None:
    numbers = numbers_of(run, 7)
    numbers[field][1] = 2.125
    change = ("UPDATE trained SET numbers = ? WHERE occurrence = 7", (json.dumps(numbers),))
    assert found(run, change) == [
        f"prompt 7 (step 1.4), completion 1: {field} is 2.125, which is not what was trained on"
    ]


@pytest.mark.parametrize(
    ("field", "because"),
    [
        ("verdict_scores", "its verdicts give"),
        ("rewards", "score, KL and length give"),
        ("advantages", "the rewards give"),
        ("length_terms", "its length gives"),
    ],
)
def test_one_whose_marks_were_made_anew_does_not_add_up(run: Path, field: str, because: str) -> None:
    numbers = numbers_of(run, 7)
    numbers[field][1] = 2.125
    numbers["marks"] |= number_marks(numbers)
    lines = found(run, ("UPDATE trained SET numbers = ? WHERE occurrence = 7", (json.dumps(numbers),)))
    name = f"prompt 7 (step 1.4), completion 1: {field} is 2.125, and {because} "
    assert [line for line in lines if line.startswith(name)]
    assert lines[-1] == "step 1.4: its digest does not follow from its record and the step before it; one was replaced"


def test_pairs_that_the_seed_does_not_draw_are_named(run: Path) -> None:
    numbers = numbers_of(run, 7)
    first, second, vote = numbers["pairs"][0]
    numbers["pairs"][0] = [second, first, vote]
    numbers["marks"] |= number_marks(numbers)
    lines = found(run, ("UPDATE trained SET numbers = ? WHERE occurrence = 7", (json.dumps(numbers),)))
    assert lines[0].startswith(f"prompt 7 (step 1.4): the pairs [[{second}, {first}, 0], ")


@pytest.mark.parametrize("field", ["loss", "grad_norm", "learning_rate", "num_tokens"])
def test_an_altered_number_of_the_learner_is_named(run: Path, field: str) -> None:
    change = f"UPDATE steps SET stats = json_set(stats, '$.{field}', 3) WHERE lineage = 0 AND step = 2"
    assert found(run, change) == [f"step 0.2: {field} is 3, which is not what was written"]


def test_a_row_replaced_with_all_its_marks_shows_in_the_chain(run: Path) -> None:
    """The whole step is replaced by what is right in itself: the next step says that it was another."""
    numbers = numbers_of(run, 3)
    numbers["scored_by"] = None
    numbers["marks"] |= number_marks(numbers)
    text = json.dumps(numbers)
    change = ("UPDATE trained SET numbers = ? WHERE occurrence = 3", (text,))
    message = "its digest does not follow from its record and the step before it; one was replaced"
    assert found(run, change) == [f"step 0.2: {message}"]
    before = json.loads(value(run, "SELECT stats FROM steps WHERE lineage = 0 AND step = 1"))["digest"]
    stats = json.loads(value(run, "SELECT stats FROM steps WHERE lineage = 0 AND step = 2"))
    other = value(run, "SELECT numbers FROM trained WHERE occurrence = 2")
    stats["digest"] = step_digest(before, "0.2", stats, [(2, other), (3, text)])
    change = ("UPDATE steps SET stats = ? WHERE lineage = 0 AND step = 2", (json.dumps(stats),))
    assert found(run, change) == [f"step 1.3: {message}"]


async def test_of_what_is_pruned_the_numbers_are_checked_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await life(settings_for(tmp_path), [0, 1], [2, 3], prune=2)
    assert main([str(tmp_path)]) == 0
    *_, summary, verdict = capsys.readouterr().out.splitlines()
    assert summary.startswith("2 steps of 4 groups; of 2 the completions and verdicts are pruned, and these were ")
    assert verdict == "nothing is wrong"
    numbers = numbers_of(tmp_path, 0)
    numbers["judged"][0][0][0] += 1
    numbers["marks"] |= number_marks(numbers)
    lines = found(tmp_path, ("UPDATE trained SET numbers = ? WHERE occurrence = 0", (json.dumps(numbers),)))
    assert any("prompt 0 (step 0.1), completion" in line and "its verdicts give" in line for line in lines)


async def test_a_verdict_that_was_lost_is_not_missed_and_one_that_cannot_be_read_is_kept(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, judge_aggregation="least_squares")
    async with Ledger.open(settings, None, lambda _: None) as ledger:
        group = await made(ledger, 1, "0.0", settings, missing={0: "refused", 1: "unreadable"})
        groups = step_advantages([group], settings)
        await ledger.record_step(PolicyVersion(0, 1), groups, StepStats(), dropped=[(0, "no scores")])
    assert found(tmp_path) == []
    assert [judged[2] for judged in numbers_of(tmp_path, 1)["judged"]].count(None) == 1
    lines = found(tmp_path, "UPDATE verdicts SET verdict = replace(verdict, 'unreadable', 'too_long')")
    assert len(lines) == 1 and lines[0].endswith("missing is too_long, and unreadable was trained on")


async def test_the_bound_on_lag_is_the_runs_own(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, max_lag=0)
    ledger = Ledger.open(settings, None, lambda _: None)
    async with ledger:
        for step in (1, 2):
            groups = [await made(ledger, step - 1, "0.0", settings)]
            await ledger.record_step(PolicyVersion(0, step), step_advantages(groups, settings), StepStats(), dropped=[])
    assert found(tmp_path) == ["prompt 1, trained on in step 0.2, was written by 0.0: a lag of 1, where max_lag is 0"]


async def test_a_repeated_deterministic_step_has_the_same_digest(tmp_path: Path) -> None:
    settings = {"deterministic": True, "max_lag": 0}
    await life(settings_for(tmp_path, **settings), [0, 1], [2, 3])
    restored = state(1, 2, deterministic=True)
    await life(settings_for(tmp_path, resumed=True, **settings), [2, 3], [4, 5], restored=restored)
    assert found(tmp_path) == []


def test_numbers_that_cannot_be_read_are_named(run: Path) -> None:
    lines = found(run, 'UPDATE trained SET numbers = \'{"oldest": "1.3", "versions": []}\' WHERE occurrence = 7')
    assert lines == ["prompt 7 (step 1.4): its numbers cannot be read"]
    assert "step 0.2: its numbers cannot be read" in found(run, "UPDATE steps SET stats = '{}' WHERE step = 2")


def test_the_exit_code_says_it_and_what_is_no_run_is_a_mistake(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert "; the digest of step 1.4 is " in capsys.readouterr().out
    found(run, "UPDATE completions SET token_ids = logprobs WHERE occurrence = 6 AND place = 0")
    assert main([str(run)]) == 1
    assert capsys.readouterr().out.startswith("prompt 6 (step 1.4), completion 0: tokens are not what was trained on\n")
    with pytest.raises(ConfigError, match=r"cannot be read .*name the output_dir of a run"):
        main([str(run / "elsewhere")])
