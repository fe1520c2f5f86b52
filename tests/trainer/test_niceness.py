"""Whose turn it is on a host's cores: a process's threads, the session it leads, and what is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import RunSettings
from trainer.niceness import check_niceness
from wire.errors import ConfigError

AUTOGROUP = Path("/proc/self/autogroup")  # `/autogroup-25 nice 0`; empty in the session of a system's first process
needs_autogroup = pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroup feature")
PROGRAM = """
import os, threading
from trainer.niceness import rank_gives_way, session_gives_way
done = threading.Event()
threading.Thread(target=done.wait, daemon=True).start()  # a call that raises ends it all
{calls}
print(*[os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir("/proc/self/task")])
print(open("/proc/self/autogroup").read().strip() if os.path.exists("/proc/self/autogroup") else "")
done.set()
"""


def after(calls: str, *, is_leader: bool = False) -> tuple[list[int], str]:
    """The niceness of each thread of a process that made these calls, above this one's own, and what its session's is
    said to be."""
    command = [sys.executable, "-c", PROGRAM.format(calls=calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=is_leader, timeout=60)
    threads, session = done.stdout.split("\n")[:2]
    return [int(niceness) - os.getpriority(os.PRIO_PROCESS, 0) for niceness in threads.split()], session


def own(niceness: int) -> int:
    """So much above this process's own."""
    return os.getpriority(os.PRIO_PROCESS, 0) + niceness


def test_every_thread_of_a_rank_gives_way() -> None:
    assert after("")[0] == [0, 0]
    assert after(f"rank_gives_way({own(3)})")[0] == [3, 3]


def test_a_thread_that_gives_way_further_is_left_there() -> None:
    assert after(f"rank_gives_way({own(5)}); rank_gives_way({own(2)})")[0] == [5, 5]


@needs_autogroup
def test_a_session_gives_way_by_its_leader_and_servers_would_inherit_nothing() -> None:
    threads, session = after("session_gives_way(7)", is_leader=True)
    assert threads == [0, 0]
    assert session.endswith(" nice 7")


@needs_autogroup
def test_nobody_elses_session_is_touched() -> None:
    before = AUTOGROUP.read_text().strip()
    assert after("session_gives_way(9)")[1] == AUTOGROUP.read_text().strip() == before


@needs_autogroup
def test_no_niceness_changes_nothing() -> None:
    assert after("session_gives_way(4); session_gives_way(0)", is_leader=True)[1].endswith(" nice 4")


@pytest.mark.parametrize("niceness", [-1, 20])
def test_only_what_a_process_may_give_away(niceness: int) -> None:
    for check in (lambda: check_niceness(niceness), RunSettings(learner_niceness=niceness).check):
        with pytest.raises(ConfigError, match=rf"learner_niceness \({niceness}\) must be 0, .* to 19, "):
            check()


@pytest.mark.parametrize("niceness", [0, 19])
def test_the_ends_of_the_range_are_in_it(niceness: int) -> None:
    check_niceness(niceness)
