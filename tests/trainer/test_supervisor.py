"""However the driver dies, nothing that it started outlives it. The driver here is a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from trainer.supervisor import RUN_ENV, Supervised, processes_of

ROOT = Path(__file__).parents[2]
SLEEP = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(0, flush=True); time.sleep(600)"
CHILD = f"""
import subprocess, sys, time
deaf = len(sys.argv) > 1
grandchild = subprocess.Popen([sys.executable, "-c", {DEAF!r} if deaf else {SLEEP!r}], start_new_session=True,
                              stdout=subprocess.PIPE)
if deaf:
    grandchild.stdout.readline()
print(grandchild.pid, flush=True)
time.sleep(600)
"""
DRIVER = f"""
import subprocess, sys, time
from trainer.supervisor import Supervised
unmarked = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
with Supervised() as supervised:
    child = subprocess.Popen([sys.executable, "-c", {CHILD!r}, *sys.argv[2:]], start_new_session=True,
                             stdout=subprocess.PIPE)
    print(unmarked.pid, child.pid, int(child.stdout.readline()), supervised.run_id, flush=True)
    if sys.argv[1] == "stay":
        time.sleep(600)
    if sys.argv[1] == "raise":
        raise SystemExit(3)
"""


class Run:
    """A driver with a child and a grandchild, and one process that it started before the run."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-c", DRIVER, *arguments]
        env = {name: value for name, value in os.environ.items() if name != RUN_ENV}
        self.driver = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
        assert self.driver.stdout is not None
        *pids, self.run_id = self.driver.stdout.readline().split()
        self.unmarked, self.child, self.grandchild = map(int, pids)

    def end(self) -> None:
        for pid in (self.driver.pid, self.unmarked, self.child, self.grandchild):
            if not is_gone(pid):
                os.kill(pid, signal.SIGKILL)
        self.driver.wait()
        assert self.driver.stdout is not None
        self.driver.stdout.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def call(*arguments: str) -> Run:
        runs.append(Run(*arguments))
        return runs[-1]

    yield call
    for run in runs:
        run.end()


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_driver_that_is_killed_takes_child_and_grandchild_with_it_and_nobody_else(start) -> None:
    run = start("stay")
    # The kernel shows a process without an environment for an instant in the middle of its exec.
    wait_until(lambda: {run.child, run.grandchild} <= set(processes_of(run.run_id)), timeout_s=5)
    assert run.unmarked not in set(processes_of(run.run_id))
    assert len({os.getsid(pid) for pid in (run.driver.pid, run.child, run.grandchild)}) == 3
    run.driver.kill()
    wait_until(lambda: is_gone(run.child) and is_gone(run.grandchild), timeout_s=15)
    assert not is_gone(run.unmarked)
    wait_until(lambda: not list(processes_of(run.run_id)), timeout_s=5)


def test_what_ignores_sigterm_is_killed_after_the_grace(start) -> None:
    run = start("stay", "deaf")
    run.driver.kill()
    wait_until(lambda: is_gone(run.child) and is_gone(run.grandchild), timeout_s=15)
    assert not is_gone(run.unmarked)


@pytest.mark.parametrize(("way", "code"), [("leave", 0), ("raise", 3)])
def test_an_orderly_end_waits_until_the_leftovers_are_gone(start, way: str, code: int) -> None:
    run = start(way)
    assert run.driver.wait(timeout=30) == code
    assert is_gone(run.child) and is_gone(run.grandchild) and not is_gone(run.unmarked)


def test_the_mark_is_in_the_environment_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_ENV, raising=False)
    monkeypatch.setenv("SPT_NOENV", "1")
    with Supervised() as supervised:
        assert os.environ[RUN_ENV] == supervised.run_id
    assert RUN_ENV not in os.environ
    assert supervised._supervisor is not None and supervised._supervisor.returncode == 0


def test_two_runs_have_different_marks() -> None:
    assert Supervised().run_id != Supervised().run_id
