"""The memory of a run, over its lives."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint import DriverState
from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger import Ledger
from trainer.ledger_past import LEDGER_FILE
from trainer.prompts import Prompt
from trainer.stats import StepStats
from wire.errors import ConfigError, ServiceError
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import GroupVerdict, MissingReason, Verdict

VERDICT = Verdict(scores=(4.0, 2.0), ranking=2, text="the first says more", completion_tokens=11, server="http://g")


def settings_for(folder: Path, *, resumed: bool = True, **changes: Any) -> RunSettings:
    resume = "latest" if resumed else None
    return RunSettings(device="cpu", output_dir=str(folder), resume_from_checkpoint=resume, **changes)


def state(step: int, next_prompt: int, *, lineage: int = 0, deterministic: bool = False) -> DriverState:
    return DriverState(lineage, step, next_prompt, 16, 1, 42, deterministic)


def opened(folder: Path, restored: DriverState | None = None, **changes: Any) -> Ledger:
    return Ledger.open(settings_for(folder, **changes), restored, lambda _: None)


def completion(index: int, *labels: str, base: int = 7) -> Completion:
    labels = labels or ("0.0",)
    spans = tuple(VersionSpan(label, 2 * i, 2 * i + 2) for i, label in enumerate(labels))
    num = 2 * len(labels)
    return Completion(index, tuple(range(base, base + num)), (-0.1234567890123,) * num, True, spans, "http://r")


def group(occurrence: int, rewards: Sequence[float] = (1.0, 3.0), label: str = "0.0") -> Group:
    completions = [completion(index, label) for index in range(len(rewards))]
    zeros = [0.0] * len(rewards)
    verdict = GroupVerdict(scores=tuple(rewards), verdicts=())
    return Group(
        Prompt(occurrence, (), (5,)), completions, ["x"] * len(rewards), verdict, rewards, rewards, zeros, zeros, zeros,
        {}, advantages_K=[-2.0, 2.0],
    )  # fmt: skip


async def life(ledger: Ledger, *steps: Sequence[int], loss: float = 0.5) -> PolicyVersion:
    """Train a step on each of these prompts; returns the last version."""
    version = ledger.version
    async with ledger:
        for occurrences in steps:
            version = PolicyVersion(version.lineage, version.step + 1)
            await ledger.record_step(version, [group(o) for o in occurrences], StepStats(loss=loss), dropped=[])
    return version


async def test_what_was_paid_for_is_there_at_the_next_start_to_the_last_bit(tmp_path: Path) -> None:
    written = completion(1, "0.0", "0.1")
    async with opened(tmp_path, resumed=False) as ledger:
        memory = ledger.recall(12, oldest_step=0)
        assert not memory.completions and memory.recall(2**62, 1) is None
        memory.wrote(written)
        memory.note(2**62, 1, VERDICT)
    ledger = opened(tmp_path)
    memory = ledger.recall(12, oldest_step=0)
    assert memory.completions == {1: written} and memory.recall(2**62, 1) == VERDICT
    assert memory.recall(2**62, 0) is None and not ledger.recall(12, 0).completions
    assert ledger.metrics() == {
        "sample/reused_completions": 1, "sample/discarded_completions": 0, "sample/reused_verdicts": 1,
    }  # fmt: skip


async def test_a_run_that_is_no_resume_begins_anew(tmp_path: Path) -> None:
    async with opened(tmp_path, resumed=False) as ledger:
        ledger.recall(0, 0).wrote(completion(0))
    await life(opened(tmp_path, resumed=False), [0, 1])
    assert opened(tmp_path, resumed=False).version == PolicyVersion(0, 0)
    assert not opened(tmp_path).recall(0, 0).completions


@pytest.mark.parametrize("reason", ["timeout", "server_lost", "refused"])
async def test_a_verdict_that_was_lost_to_time_is_asked_for_again(tmp_path: Path, reason: MissingReason) -> None:
    async with opened(tmp_path, resumed=False) as ledger:
        ledger.recall(3, 0).note(1, 0, Verdict(missing=reason))
        ledger.recall(3, 0).note(2, 0, Verdict(missing="unreadable", text="hm"))
    memory = opened(tmp_path).recall(3, 0)
    assert memory.recall(1, 0) is None
    known = memory.recall(2, 0)
    assert known is not None and known.missing == "unreadable"


async def test_the_lineage_goes_on_where_no_weights_beyond_the_checkpoint_were_made(tmp_path: Path) -> None:
    await life(opened(tmp_path, resumed=False), [0, 1], [2, 3])
    assert opened(tmp_path, state(2, 4)).version == PolicyVersion(0, 2)


async def test_a_new_lineage_begins_where_some_were_and_its_number_was_never_used(tmp_path: Path) -> None:
    await life(opened(tmp_path, resumed=False), [0, 1], [2, 3])
    assert await life(opened(tmp_path, state(1, 2)), [2, 3], [4, 5]) == PolicyVersion(1, 3)
    third = opened(tmp_path, state(1, 2))
    assert third.version == PolicyVersion(2, 1)
    assert [third.lineage.holds(PolicyVersion.parse(label)) for label in ("0.1", "0.2", "1.2", "2.2")] == [
        True, False, False, True,
    ]  # fmt: skip


async def test_completions_of_a_dead_lineage_are_not_used_and_its_verdicts_are(tmp_path: Path) -> None:
    first = opened(tmp_path, resumed=False)
    await life(first, [0, 1], [2, 3])
    async with opened(tmp_path, state(2, 4)) as ledger:
        memory = ledger.recall(4, 0)
        memory.wrote(completion(0, "0.1", "0.2"))
        memory.wrote(completion(1, "0.1"))
        memory.note(5, 0, VERDICT)
    ledger = opened(tmp_path, state(1, 2))
    memory = ledger.recall(4, 0)
    assert set(memory.completions) == {1} and memory.recall(5, 0) == VERDICT
    assert ledger.counts["discarded_completions"] == 1


async def test_a_checkpoint_whose_ledger_is_gone_begins_a_new_lineage(tmp_path: Path) -> None:
    assert opened(tmp_path, state(5, 9, lineage=3)).version == PolicyVersion(4, 5)


async def test_a_deterministic_run_repeats_its_steps_in_the_same_lineage(tmp_path: Path) -> None:
    settings = {"deterministic": True, "max_lag": 0}
    await life(opened(tmp_path, resumed=False, **settings), [0, 1], [2, 3])
    ledger = opened(tmp_path, state(1, 2, deterministic=True), **settings)
    assert ledger.version == PolicyVersion(0, 1)
    assert await life(ledger, [2, 3], [4, 5]) == PolicyVersion(0, 3)
    rows = _rows(tmp_path, "SELECT step, occurrence FROM trained ORDER BY step, place")
    assert rows == [(1, 0), (1, 1), (2, 2), (2, 3), (3, 4), (3, 5)]


@pytest.mark.parametrize(("occurrences", "loss"), [([3, 2], 0.5), ([2, 3], 0.5000001)])
async def test_a_repeated_step_that_is_not_what_it_was_ends_the_run(
    tmp_path: Path, occurrences: list[int], loss: float
) -> None:
    settings = {"deterministic": True, "max_lag": 0}
    await life(opened(tmp_path, resumed=False, **settings), [0, 1], [2, 3])
    ledger = opened(tmp_path, state(1, 2, deterministic=True), **settings)
    with pytest.raises(ServiceError, match=r"step 2 was made before and is not what it was"):
        await life(ledger, occurrences, loss=loss)


async def test_only_between_deterministic_lives_are_steps_repeated(tmp_path: Path) -> None:
    await life(opened(tmp_path, resumed=False), [0, 1], [2, 3])
    settings = {"deterministic": True, "max_lag": 0}
    assert opened(tmp_path, state(1, 2), **settings).version == PolicyVersion(1, 1)


async def test_under_other_settings_nothing_old_is_used_and_it_is_said(tmp_path: Path) -> None:
    async with opened(tmp_path, resumed=False) as ledger:
        memory = ledger.recall(3, 0)
        memory.wrote(completion(0))
        memory.note(1, 0, VERDICT)
    said: list[str] = []
    ledger = Ledger.open(settings_for(tmp_path, judge_max_tokens=77), None, said.append)
    memory = ledger.recall(3, 0)
    assert set(memory.completions) == {0} and memory.recall(1, 0) is None
    assert said[0] == "ledger: earlier verdicts are not used, for other than then is judge_max_tokens"
    assert not opened(tmp_path, temperature=0.9).recall(3, 0).completions


async def test_what_no_checkpoint_needs_is_forgotten_and_what_was_trained_is_not(tmp_path: Path) -> None:
    async with opened(tmp_path, resumed=False) as ledger:
        for occurrence in range(4):
            memory = ledger.recall(occurrence, 0)
            memory.wrote(completion(0))
            memory.note(occurrence, 0, VERDICT)
        await ledger.record_step(PolicyVersion(0, 1), [group(0), group(2)], StepStats(), dropped=[(1, "no scores")])
        await ledger.prune(2)
    assert _rows(tmp_path, "SELECT occurrence FROM completions") == [(2,), (3,)]
    assert _rows(tmp_path, "SELECT occurrence FROM verdicts") == [(2,), (3,)]
    assert _rows(tmp_path, "SELECT occurrence FROM trained") == [(0,), (2,)]
    assert _rows(tmp_path, "SELECT step, occurrence, reason FROM dropped") == [(1, 1, "no scores")]


async def test_a_ledger_that_cannot_be_written_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    async with opened(tmp_path, resumed=False) as ledger:
        _rows(tmp_path, "DROP TABLE verdicts")
        ledger.recall(0, 0).note(1, 0, VERDICT)
        with pytest.raises(ServiceError, match=r"ledger\.sqlite could not be written: no such table: verdicts"):
            await ledger.record_step(PolicyVersion(0, 1), [group(0)], StepStats(), dropped=[])


async def test_a_value_that_no_database_can_hold_ends_the_run_and_is_not_waited_for(tmp_path: Path) -> None:
    async with opened(tmp_path, resumed=False) as ledger:
        ledger.recall(0, 0).note(2**64, 0, VERDICT)
        with pytest.raises(ServiceError, match=r"could not be written: Python int too large"):
            await ledger.record_step(PolicyVersion(0, 1), [group(0)], StepStats(), dropped=[])


async def test_a_ledger_that_cannot_be_opened_any_more_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    ledger = opened(tmp_path, resumed=False)
    shutil.rmtree(tmp_path)
    async with ledger:
        with pytest.raises(ServiceError, match=r"could not be written: unable to open database file"):
            await ledger.record_step(PolicyVersion(0, 1), [group(0)], StepStats(), dropped=[])


async def test_what_is_no_ledger_is_a_mistake_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_text("a letter to the editor, long enough to be taken for a header")
    with pytest.raises(ConfigError, match=r"ledger\.sqlite is no ledger .*move it away"):
        opened(tmp_path)


def _write_until_killed(folder: str) -> None:
    async def go() -> None:
        async with Ledger.open(settings_for(Path(folder), resumed=False), None, lambda _: None) as ledger:
            for occurrence in range(10**6):
                ledger.recall(occurrence, 0).wrote(completion(0))
                await ledger.record_step(PolicyVersion(0, occurrence + 1), [group(occurrence)], StepStats(), dropped=[])

    asyncio.run(go())


def test_a_kill_leaves_a_whole_ledger_in_which_each_step_came_after_its_completions(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_write_until_killed, args=(str(tmp_path),))
    process.start()
    try:
        while not _num_steps(tmp_path) > 20:
            assert process.is_alive()
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
    assert _rows(tmp_path, "PRAGMA integrity_check") == [("ok",)]
    trained = {row[0] for row in _rows(tmp_path, "SELECT occurrence FROM trained")}
    written = {row[0] for row in _rows(tmp_path, "SELECT occurrence FROM completions")}
    assert trained == set(range(_num_steps(tmp_path))) and trained <= written


def _num_steps(folder: Path) -> int:
    try:
        return int(_rows(folder, "SELECT count(*) FROM steps")[0][0])
    except sqlite3.OperationalError:  # it is not there yet
        return 0


def _rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    database = sqlite3.connect(folder / LEDGER_FILE, isolation_level=None)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()
