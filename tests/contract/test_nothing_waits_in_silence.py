"""Nothing waits in silence: every reason for waiting is brought about once, and the live table and the watchdog name
who is waited for, and why."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pytest

import trainer.ranks
from tests.contract.reasons import reasons_in_sources
from tests.contract.waits import RANKS, SCENARIOS
from trainer.config import RunSettings
from trainer.status_file import StatusFile
from trainer.status_table import lines
from trainer.watchdog import Watchdog
from wire.waits import WAITS, Wait

STAND_INS = "trainer.stand_ins"  # of a simulation
AT_ONCE = 1e-9  # seconds: every wait is old


def test_every_reason_in_the_sources_is_brought_about_here() -> None:
    sources = reasons_in_sources()
    simulated = sources.pop(STAND_INS)
    found = {(module, reason) for module, reasons in sources.items() for reason in reasons}
    assert found == set(SCENARIOS)
    assert set(RANKS) == set(trainer.ranks.REASONS)
    assert simulated <= set().union(*sources.values()), "a stand-in waits for what the part itself waits for"


async def begun(peer: str, reason: str) -> Wait:
    """The wait, once it has begun."""
    async with asyncio.timeout(20):
        while True:
            for wait in WAITS.current:
                if wait.peer.startswith(peer) and wait.reason == reason:
                    return wait
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(("module", "reason"), SCENARIOS)
async def test_a_wait_is_named_by_the_table_and_the_watchdog(
    module: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer, scenario = SCENARIOS[module, reason]
    given: dict[str, Any] = {"patches": monkeypatch, "folder": tmp_path}
    needed = inspect.signature(scenario).parameters
    async with scenario(**{name: value for name, value in given.items() if name in needed}):
        wait = await begun(peer, reason)
        said: list[str] = []
        Watchdog(AT_ONCE, 0.0, said.append).look()
        table = "\n".join(lines(StatusFile(RunSettings(output_dir=str(tmp_path))).snapshot(), width=1000))
        name = f"{wait.who} -> {wait.peer}"
    assert not WAITS.current
    assert any(f"{wait.peer} ({reason}" in line for line in said), said
    assert f"{wait.peer.split()[0]}: {reason} " in table and name in table, table
