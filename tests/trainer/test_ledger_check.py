"""What is wrong in a ledger is named; the ledgers are written by the real one and then altered."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.trainer.test_ledger import group, opened, state
from trainer.ledger_check import main, problems
from trainer.ledger_past import LEDGER_FILE
from trainer.stats import StepStats
from wire.generation import PolicyVersion

Steps = list[tuple[list[int], str]]  # of each step: the places trained on, and who wrote them


async def write(folder: Path, steps: Steps, *, after: int | None = None, dropped: dict[int, int] | None = None) -> None:
    """A life of two prompts a step, resumed from the checkpoint of step `after`; `dropped`: step -> place."""
    restored = None if after is None else state(after, 2 * after)
    ledger = opened(folder, restored, resumed=after is not None)
    version = ledger.version
    async with ledger:
        for places, label in steps:
            version = PolicyVersion(version.lineage, version.step + 1)
            drops = [((dropped or {})[version.step], "no scores")] if version.step in (dropped or {}) else []
            groups = [group(place, label=label) for place in places]
            await ledger.record_step(version, groups, StepStats(), dropped=drops)


@pytest.fixture
async def ledger(tmp_path: Path) -> Path:
    """Two lineages: 0.1, 0.2 and 0.3, which died; then 1.3 and 1.4 after 0.2. Place 5 was dropped."""
    await write(tmp_path, [([0, 1], "0.0"), ([2, 3], "0.0"), ([4, 5], "0.1")])
    await write(tmp_path, [([4, 6], "0.1"), ([7, 8], "1.3")], after=2, dropped={3: 5})
    return tmp_path / LEDGER_FILE


def altered(path: Path, *statements: str) -> list[str]:
    """The problems after these changes, with a max_lag of 1."""
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)
    return problems(path, max_lag=1)


def test_a_ledger_in_which_a_lineage_died_is_whole(ledger: Path) -> None:
    assert problems(ledger, max_lag=1) == []


async def test_one_that_has_made_no_step_yet_is_whole(tmp_path: Path) -> None:
    await write(tmp_path, [])
    assert problems(tmp_path / LEDGER_FILE, max_lag=0) == []


async def test_a_lineage_that_was_only_begun_leaves_what_it_branches_off(ledger: Path) -> None:
    await write(ledger.parent, [], after=2)  # lineage 2, from 0.2: 1.3 and 1.4 are dead
    assert altered(ledger, "DELETE FROM trained WHERE lineage = 1") == []
    assert altered(ledger, "DELETE FROM trained WHERE lineage = 0 AND step = 2") == [
        "step 0.2 was made of groups [], where a step is made of 2"
    ]


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM steps WHERE lineage = 1 AND step = 3", "step 3 is missing"),
        ("INSERT INTO steps VALUES (1, 2, '{}')", "step 2 was made 2 times: 0.2, 1.2"),
        ("DELETE FROM trained WHERE occurrence = 7", "step 1.4 was made of groups [1], where a step is made of 2"),
        ("DELETE FROM trained WHERE occurrence = 7", "prompt 7 was skipped"),
        ("DELETE FROM dropped", "prompt 5 was skipped"),
        ("INSERT INTO dropped VALUES (0, 3, 9, '')", ""),  # of the dead part
        (
            "UPDATE trained SET occurrence = 2 WHERE occurrence = 7",
            "prompt 2 was trained on in step 0.2 and trained on in step 1.4",
        ),
        (
            "UPDATE dropped SET occurrence = 3",
            "prompt 3 was trained on in step 0.2 and dropped for step 1.3",
        ),
        (
            "UPDATE trained SET place = 1 - place + 10 WHERE step = 4",
            "prompt 7 was overtaken by 1 later ones, with a lookahead of 0",
        ),
        ("DELETE FROM steps WHERE step = 4", "groups were trained on in step 1.4, which was never made"),
        (
            "UPDATE trained SET numbers = replace(numbers, '1.3', '1.1') WHERE step = 4",
            "prompt 7, trained on in step 1.4, was written by 1.1: a lag of 2, where max_lag is 1",
        ),
        (
            "UPDATE trained SET numbers = replace(numbers, '1.3', '0.3') WHERE step = 4",
            "prompt 8, trained on in step 1.4, was written by 0.3, which is no ancestor",
        ),
        (
            "UPDATE trained SET numbers = replace(numbers, '1.3', '1.4') WHERE step = 4",
            "prompt 8, trained on in step 1.4, was written by 1.4, which is no ancestor",
        ),
        (
            'UPDATE trained SET numbers = replace(numbers, \'"versions": ["1.3"\', \'"versions": ["1.3", "0.3"\')',
            "prompt 7, trained on in step 1.4, was written by 0.3, which is no ancestor",
        ),
        (
            "UPDATE trained SET numbers = '{}' WHERE occurrence = 8",
            "prompt 8, trained on in step 1.4, has numbers that cannot be read: KeyError('oldest')",
        ),
        ("DELETE FROM lineages WHERE lineage = 0", "lineage 1 branches off lineage 0, which was never begun"),
        ("UPDATE lineages SET step = 7 WHERE parent = 0", "lineage 1 branches off 0.7, which was never made"),
        ("DELETE FROM lineages", "no lineage was ever begun"),
    ],
)
def test_each_defect_is_named(ledger: Path, statement: str, problem: str) -> None:
    found = altered(ledger, statement)
    assert problem in found if problem else not found


async def test_with_a_lookahead_one_may_be_late_and_the_last_ones_may_be_missing_yet(tmp_path: Path) -> None:
    await write(tmp_path, [([1, 2], "0.0"), ([0, 4], "0.0")])
    path = tmp_path / LEDGER_FILE
    assert problems(path, max_lag=1, lookahead=2) == []
    assert problems(path, max_lag=1, lookahead=1) == ["prompt 0 was overtaken by 2 later ones, with a lookahead of 1"]
    await write(tmp_path, [([6, 7], "0.1"), ([8, 9], "0.2")], after=2)
    assert problems(path, max_lag=2, lookahead=2) == ["prompt 3 was skipped", "prompt 5 was skipped"]


def test_the_program_prints_a_line_for_each_and_its_exit_code_says_it(
    ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(ledger.parent)
    assert main([folder, "--max_lag", "1"]) == 0
    assert main([folder, "--max_lag", "0"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "nothing is wrong",
        "prompt 2, trained on in step 0.2, was written by 0.0: a lag of 1, where max_lag is 0",
        "prompt 3, trained on in step 0.2, was written by 0.0: a lag of 1, where max_lag is 0",
        "prompt 4, trained on in step 1.3, was written by 0.1: a lag of 1, where max_lag is 0",
        "prompt 6, trained on in step 1.3, was written by 0.1: a lag of 1, where max_lag is 0",
    ]
    assert main([f"{folder}/elsewhere", "--max_lag", "1"]) == 1
