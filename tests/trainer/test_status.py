"""The live table: what the driver writes, and what a person sees of it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reward_server.asking import JUDGES
from rollout_server.client import WRITES
from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.membership import Replica, State
from trainer import status
from trainer.config import RunSettings
from trainer.pace import Rate
from trainer.pipeline import IN_THE_MAKING
from trainer.ranks import STEPS
from trainer.status_file import StatusFile, process_boot
from trainer.status_table import duration, lines
from wire.errors import ConfigError
from wire.generation import PolicyVersion
from wire.waits import Waits

WIDTH = 100
ROOT = Path(__file__).parents[2]
A, B = "http://10.0.0.7:8000", "http://10.0.0.8:8000"
SERVER = {
    "url": "http://10.0.0.9:8200",
    "state": "ready",
    "in_flight": 6,
    "answers": 1200,
    "losses": 1,
    "started": True,
}


def settings_of(folder: Path, **changes: Any) -> RunSettings:
    return RunSettings(device="cpu", output_dir=str(folder), num_learner_ranks=2, **changes)


def services() -> tuple[Any, list[Replica]]:
    """A real fleet of two, one of which is lost, and what else the file asks."""
    fleet = Fleet(RolloutSettings(device="cpu"), "token")
    fleet.version = PolicyVersion(0, 12)
    replicas = [
        Replica(A, 1, state=State.READY, version=PolicyVersion(0, 12), num_tokens=1000),
        Replica(B, 1, state=State.LOST, reason=f"{B}/is_paused did not answer within 30 s"),
    ]
    for replica in replicas:
        fleet.membership.enter(replica)
    starting = {"url": "replica-2", "state": "starting", "started": True, "reason": "starts again in 12 s"}
    started = SimpleNamespace(state=lambda: [starting])
    info = {"queue_depth": 3, "servers": [SERVER]}
    judge = SimpleNamespace(url="http://10.0.0.9:8100")
    return SimpleNamespace(fleet=fleet, replicas=started, judge=judge, judge_info=info), replicas


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


async def until_written(folder: Path, task: asyncio.Task[Any] | None = None) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while not (folder / "status.json").exists():
            assert task is None or not task.done(), task
            await asyncio.sleep(0.005)
    return written(folder)


class Clock:
    """The loop's clock, in the test's hands."""

    def __init__(self) -> None:
        self.now = 500.0

    def time(self) -> float:
        return self.now


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock.time, raising=False)
    yield clock
    monkeypatch.undo()


async def full_table(folder: Path, clock: Clock) -> list[str]:
    """Of a run in its middle."""
    waits = Waits()
    file = StatusFile(settings_of(folder), waits)
    file.services, (replica, _) = services()
    file.groups = lambda: {"alive": 8, "ready": 2}
    file.stages = lambda: {"replicas": 4, "the judge": 2, "the learner": 0}
    file.metrics = lambda: {"sample/lag_mean": 0.75, "sample/lag_max": 1.0, "objective/scores": 3.456}
    waits.begin("group 12", IN_THE_MAKING, who="driver")
    for number in range(9):
        waits.begin(f"replica {A}", WRITES, who=f"group {number}")
    clock.now += 60
    waits.begin("judge http://10.0.0.9:8100", JUDGES, who="group 12")
    waits.begin("learner 0", STEPS, who="learner")
    file.snapshot()
    clock.now += 10
    replica.num_tokens += 5000
    file.services.judge_info = {"queue_depth": 4, "servers": [SERVER | {"answers": 1225}]}
    file.services.fleet.version = PolicyVersion(0, 13)
    file.warnings = lambda: ["kl>50 since step 9"]
    file.hears(lambda _: None)("replica http://10.0.0.8:8000 is lost: " + 30 * "it is long ago ")
    return lines(json.loads(json.dumps(file.snapshot())), WIDTH)


async def test_the_table_shows_the_run_each_part_the_queue_and_who_waits_for_whom(tmp_path: Path, clock: Clock) -> None:
    table = await full_table(tmp_path, clock)
    text = "\n".join(table)
    assert max(map(len, table)) <= WIDTH
    # 32 completions a step in 10 s; 50,000 - 416 are left
    assert table[0] == "step 13/1563 · version 0.13 · 416 of 50,000 episodes · 4 h 18 min left"
    assert table[1] == "3.20 episodes/s · 500 tokens/s · lag 0.8, at most 1 · score 3.46"
    assert table[3] == "WARNING kl>50 since step 9"
    assert [line.split() for line in table if line.startswith(("http", "replica-"))] == [
        [B, "lost", "70", "s", "-", "0", "0"],
        ["replica-2", "starting", "-", "-", "-", "-"],
        [A, "ready", "70", "s", "0.12", "0", "500"],
        ["http://10.0.0.9:8200", "ready", "6", "1,225", "2.50", "1"],
    ]
    assert f"    {B}/is_paused did not answer within 30 s" in table and "    starts again in 12 s" in table
    assert "JUDGE http://10.0.0.9:8100, 4 calls wait there" in table
    assert "LEARNER rank 0: steps, 10 s" in table and "LEARNER rank 1: nothing, -" in table
    assert "QUEUE   groups: 8 alive · 2 ready (4 at replicas, 2 at judge)" in table
    assert "  driver -> group 12 (is in the making, 70 s) -> judge http://10.0.0.9:8100 (judges, 10 s)" in table
    assert f"     9  replica: {WRITES}" in text and f"oldest   70 s: group 0 -> replica {A}" in text
    assert "replica http://10.0.0.8:8000 is lost: it is long ago" in text


async def test_before_the_parts_are_up_the_table_says_so_and_what_starts(tmp_path: Path, clock: Clock) -> None:
    waits = Waits()
    waits.begin("replica 0", "starts", who="driver")
    clock.now += 5
    table = lines(StatusFile(settings_of(tmp_path), waits).snapshot(), WIDTH)
    assert "REPLICAS   none yet" in table and "JUDGE      not up yet" in table
    assert "  driver -> replica 0 (starts, 5 s)" in table


async def test_many_replicas_are_summed_up_and_those_in_trouble_come_first(tmp_path: Path, clock: Clock) -> None:
    file = StatusFile(settings_of(tmp_path), Waits())
    file.services, _ = services()
    for number in range(40):
        file.services.fleet.membership.enter(Replica(f"http://r{number}:1", 1, state=State.READY))
    table = lines(file.snapshot(), WIDTH)
    rows = [line for line in table if line.startswith(("http://10.0.0.7", "http://10.0.0.8:", "http://r", "replica-"))]
    assert len(rows) == 16 and rows[0].startswith(B)
    assert "and 27 more ready" in table


async def test_a_genrm_server_that_starts_says_what_it_waits_for(tmp_path: Path, clock: Clock) -> None:
    file = StatusFile(settings_of(tmp_path), Waits())
    file.services, _ = services()
    new = {"url": "judge-1", "state": "starting", "in_flight": 0, "answers": 0, "losses": 0}
    new["doing"] = "fetches: 12.3 GB of 99.8 GB, 410 MB/s, 3 min 34 s left"
    file.services.judge_info = {"queue_depth": 3, "servers": [SERVER | {"doing": ""}, new]}
    drawn = lines(file.snapshot(), WIDTH)
    at = next(number for number, line in enumerate(drawn) if line.startswith("judge-1"))
    assert drawn[at + 1] == f"    {new['doing']}" and drawn[at + 2].startswith(SERVER["url"])


async def test_what_a_rank_did_last_is_known_by_when_it_ended(tmp_path: Path, clock: Clock) -> None:
    waits = Waits()
    file = StatusFile(settings_of(tmp_path), waits)
    wait = waits.begin("learner 1", STEPS, who="learner")
    with waits.heard_by(file._hear):
        waits.end(wait)
    clock.now += 7
    assert file.snapshot()["learner"][1] == {"rank": 1, "does": None, "since_s": 7.0}


async def test_the_file_is_written_at_once_and_says_how_the_run_ended(tmp_path: Path) -> None:
    for error, end in (
        (None, "done"),
        (ValueError("no luck"), "ValueError: no luck"),
        (asyncio.CancelledError(), "stopped"),
    ):
        waits = Waits()
        (tmp_path / "status.json").unlink(missing_ok=True)
        try:
            async with StatusFile(settings_of(tmp_path), waits, interval_s=0.01) as file:
                assert (await until_written(tmp_path))["run"]["end"] is None
                assert file.path == tmp_path / "status.json"
                if error is not None:
                    raise error
        except (ValueError, asyncio.CancelledError):
            pass
        assert written(tmp_path)["run"]["end"] == end
        assert waits._listeners == [] and os.listdir(tmp_path) == ["status.json"]


async def test_a_disk_that_takes_nothing_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    async with StatusFile(settings_of(tmp_path / "file"), Waits(), interval_s=0.001) as file:
        for _ in range(5):
            await asyncio.sleep(0.005)
        assert file._ticker is not None and not file._ticker.done()


def test_a_rate_is_of_the_last_seconds_and_begins_anew_with_a_count_that_does() -> None:
    rate = Rate(10.0)
    assert rate.per_s is None
    rate.note(0.0, 100)
    assert rate.per_s is None
    rate.note(1.0, 150)
    assert rate.per_s == 50
    for second in range(2, 40):
        rate.note(float(second), 150)
    assert rate.per_s == 0
    rate.note(40.0, 10)
    assert rate.per_s is None
    rate.note(42.0, 30)
    assert rate.per_s == 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0 s"),
        (99.0, "99 s"),
        (119.0, "2 min"),
        (3599.0, "1 h 00 min"),
        (3900.0, "1 h 05 min"),
        (273_600.0, "3 d 4 h"),
    ],
)
def test_times_are_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


# --- is the driver there?


def run_of(**changes: Any) -> dict[str, Any]:
    """This process as a driver that wrote just now."""
    pid = os.getpid()
    return {
        "output_dir": "runs/a",
        "host": socket.gethostname(),
        "pid": pid,
        "boot": process_boot(pid),
        "started": 1000.0,
        "written": 5000.0,
        "end": None,
    } | changes


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_first_line_says_loudly_that_the_driver_is_gone_or_silent() -> None:
    pid = os.getpid()
    assert status.heading(run_of(), 5001.0) == (
        f"runs/a on {socket.gethostname()}, process {pid}, for 1 h 07 min",
        True,
    )
    gone = dead_process()
    assert status.heading(run_of(pid=gone), 5035.0) == (
        f"!!! runs/a: the driver was last heard of 35 s ago; process {gone} is gone", False
    )  # fmt: skip
    assert status.heading(run_of(boot=1), 5001.0) == (  # another process has its number by now
        f"!!! runs/a: the driver was last heard of 1 s ago; process {pid} is gone", False
    )  # fmt: skip
    line, is_well = status.heading(run_of(), 5035.0)
    assert f"last heard of 35 s ago; process {pid} lives and is silent" in line and not is_well
    line, is_well = status.heading(run_of(host="node-7", pid=1, boot=1), 5035.0)
    assert "last heard of 35 s ago; it runs on node-7" in line and not is_well
    assert status.heading(run_of(host="node-7", pid=1, boot=1), 5002.0)[1]


@pytest.mark.parametrize(
    ("end", "words"),
    [("done", "the run is done"), ("stopped", "the run was stopped"), ("ServiceError: x", "the run ended: S")],
)
def test_a_run_that_ended_is_no_alarm(end: str, words: str) -> None:
    line, is_well = status.heading(run_of(end=end, pid=dead_process()), 9000.0)
    assert words in line and line.endswith("1 h 07 min ago") and is_well


async def test_the_program_prints_once_or_until_the_run_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with StatusFile(settings_of(tmp_path), Waits(), interval_s=0.01):
        await until_written(tmp_path)
        assert status.main([str(tmp_path), "--once"]) == 0
    first = capsys.readouterr().out
    assert f"process {os.getpid()}, for 0 s" in first and "\x1b" not in first
    assert status.main([str(tmp_path), "--interval", "0.01"]) == 0
    assert "the run is done" in capsys.readouterr().out
    state = written(tmp_path)
    state["run"] |= {"end": None, "pid": dead_process(), "written": time.time() - 35}
    (tmp_path / "status.json").write_text(json.dumps(state))
    assert status.main([str(tmp_path), "--once"]) == 1
    assert "!!! " in capsys.readouterr().out


def test_a_terminal_is_drawn_over_within_its_size_and_an_alarm_stands_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = asyncio.run(snapshot_of(tmp_path)) | {"run": run_of(written=time.time() - 35, pid=dead_process())}
    pictures = iter([state, state | {"run": run_of(end="done")}])
    monkeypatch.setattr(status, "read_status", lambda _: next(pictures))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(status.shutil, "get_terminal_size", lambda _: os.terminal_size((60, 5)))
    assert status.show(tmp_path, once=False, interval_s=0.001) == 0
    _, first, second = capsys.readouterr().out.split(status.HOME)[1:]
    assert first.startswith("\x1b[1;37;41m!!! ") and second.startswith("runs/a on ")
    for picture in (first, second):
        assert picture.count(status.END_OF_LINE) == 4 and picture.endswith(status.BELOW)


async def snapshot_of(folder: Path) -> dict[str, Any]:
    return StatusFile(settings_of(folder), Waits()).snapshot()


def test_what_is_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"status.json: No such file or directory; give the output_dir of a run"):
        status.main([str(tmp_path), "--once"])
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(ConfigError, match="is no status of a run"):
        status.main([str(tmp_path), "--once"])
    with pytest.raises(ConfigError, match=r"--interval \(0\) must be positive"):
        status.main([str(tmp_path), "--interval", "0"])
    program = [sys.executable, "-m", "trainer.status", str(tmp_path / "nowhere")]
    found = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stderr.count("\n"), found.stdout) == (2, 1, "")
