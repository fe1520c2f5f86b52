"""Whose turn it is on a host's cores: a server and its session, a process's threads, and what is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from trainer.config import RunSettings
from wire.errors import ConfigError
from wire.niceness import check_niceness, session_gives_way, threads_give_way
from wire.process import ServerProcess

IDLE = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); print(flush=True)"
AUTOGROUP = Path("/proc/self/autogroup")
needs_autogroup = pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroup feature")


@pytest.fixture
def started() -> Iterator[Callable[[bool], int]]:
    """Starts a process with two threads, as the leader of a session or not; gives its id."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(is_leader: bool) -> int:
        command = [sys.executable, "-c", IDLE]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=is_leader))
        output = processes[-1].stdout
        assert output is not None and output.readline() == b"\n"  # both threads run
        return processes[-1].pid

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def priorities(pid: int) -> list[int]:
    """The niceness of each thread."""
    return [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")]


def session_niceness(pid: int | str) -> int:
    """That of the session `pid` belongs to."""
    return int(Path(f"/proc/{pid}/autogroup").read_text().split("nice")[1])


def test_every_thread_gives_way(started: Callable[[bool], int]) -> None:
    pid, own = started(False), os.getpriority(os.PRIO_PROCESS, 0)
    assert priorities(pid) == [own, own]
    threads_give_way(pid, own + 3)
    assert priorities(pid) == [own + 3, own + 3]


def test_a_thread_that_gives_way_further_is_left_there(started: Callable[[bool], int]) -> None:
    pid, own = started(False), os.getpriority(os.PRIO_PROCESS, 0)
    threads_give_way(pid, own + 5)
    threads_give_way(pid, own + 2)
    assert priorities(pid) == [own + 5, own + 5]


def test_a_process_that_is_gone_is_no_error(started: Callable[[bool], int]) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    threads_give_way(process.pid, 5)
    session_gives_way(process.pid, 5)


@needs_autogroup
def test_a_session_gives_way_by_its_leader(started: Callable[[bool], int]) -> None:
    pid = started(True)
    session_gives_way(pid, 7)
    assert session_niceness(pid) == 7


@needs_autogroup
def test_nobody_elses_session_is_touched(started: Callable[[bool], int]) -> None:
    pid, before = started(False), session_niceness("self")
    session_gives_way(pid, before + 5)
    assert session_niceness(pid) == session_niceness("self") == before


@needs_autogroup
def test_no_niceness_changes_nothing(started: Callable[[bool], int]) -> None:
    pid = started(True)
    session_gives_way(pid, 4)
    session_gives_way(pid, 0)
    assert session_niceness(pid) == 4


def test_a_server_and_what_it_starts_give_way(tmp_path: Path) -> None:
    own, pid_file = os.getpriority(os.PRIO_PROCESS, 0), tmp_path / "engine"
    engine = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {IDLE!r}]);"
    engine += f"open({str(pid_file)!r}, 'w').write(str(child.pid)); child.wait()"
    command = [sys.executable, "-c", engine]
    url, log = "http://127.0.0.1:1", tmp_path / "log"
    server = ServerProcess("server", command, dict(os.environ), log, url, niceness=own + 6)
    server.start()
    try:
        end = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert server.pid is not None
        assert set(priorities(server.pid)) == set(priorities(int(pid_file.read_text()))) == {own + 6}
        if AUTOGROUP.exists():
            assert session_niceness(server.pid) == own + 6
            assert session_niceness("self") != own + 6
    finally:
        server.stop(grace_s=0.2)


def test_a_replica_gives_way_as_its_settings_say(tmp_path: Path) -> None:
    settings = RolloutSettings(
        device="cpu", rollout_niceness=9, log_dir=str(tmp_path), token_file=str(tmp_path / "token")
    )
    assert replica_process(settings, 0)._niceness == 9


@pytest.mark.parametrize("niceness", [-1, 20])
def test_only_what_a_process_may_give_away(niceness: int) -> None:
    with pytest.raises(ConfigError, match=rf"a_setting \({niceness}\) must be 0, .* to 19, "):
        check_niceness("a_setting", niceness)
    with pytest.raises(ConfigError, match=rf"rollout_niceness \({niceness}\)"):
        RolloutSettings(rollout_niceness=niceness).check()
    with pytest.raises(ConfigError, match=rf"learner_niceness \({niceness}\)"):
        RunSettings(learner_niceness=niceness).check()
