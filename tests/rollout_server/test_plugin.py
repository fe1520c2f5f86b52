"""What our plug-in changes in a stock server."""

import time

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
