"""What our plug-in changes in a stock server."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout_server.plugin import longest_sleep_ms, wait_without_spinning


@pytest.mark.parametrize(("idle_s", "sleep_ms"), [(0.0, 1), (0.001, 1), (0.2, 20), (1.0, 100), (3600.0, 100)])
def test_a_reader_sleeps_a_tenth_of_what_it_has_waited_at_most_a_tenth_of_a_second(idle_s, sleep_ms):
    assert longest_sleep_ms(idle_s) == sleep_ms


def test_a_reader_looks_again_soon_whatever_becomes_of_the_writers_message(monkeypatch):
    from vllm.distributed.device_communicators import shm_broadcast

    class Condition:
        def __init__(self, busy_loop_s=1):
            self.busy_loop_s, self.last_read, self.slept = busy_loop_s, time.monotonic() - 0.3, []

        def wait(self, timeout_ms=None):
            self.slept.append(timeout_ms)

    monkeypatch.setattr(shm_broadcast, "SpinCondition", Condition)
    wait_without_spinning()
    wait_without_spinning()  # vLLM may load a plug-in more than once
    condition = shm_broadcast.SpinCondition()
    condition.wait(timeout_ms=5000)
    condition.wait()
    condition.wait(timeout_ms=2)
    assert condition.busy_loop_s == 0.001
    assert condition.slept[2] == 2 and all(30 <= slept <= 100 for slept in condition.slept[:2])


SERVER = """
import multiprocessing, time
from rollout_server.plugin import end_with_the_server

def engine(door):
    end_with_the_server()
    door.send("waits")
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=engine, args=(theirs,))
    process.start()
    ours.recv()
    print(process.pid, flush=True)
    time.sleep(600)
"""


def test_an_engine_ends_with_its_server_even_where_that_is_killed(tmp_path):
    (tmp_path / "server.py").write_text(SERVER)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        engine = Path("/proc") / server.stdout.readline().strip()
        assert (engine / "stat").exists()
        server.kill()
    end = time.monotonic() + 10
    while engine.exists() and ") Z " not in (engine / "stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
