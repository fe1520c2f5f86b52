"""The parts of the end-to-end benchmark that need no servers: counters, marks, processor time, ratios."""

import json
import multiprocessing
import os
import time

import pytest

from benchmarks.end_to_end import counter, ends_of_steps, result
from benchmarks.processor_time import MACHINE, ProcessorTime, used_between

PAGE = """# TYPE reward_verdicts counter
reward_verdicts_total{outcome="given"} 61.0
reward_verdicts_total{outcome="unreadable"} 3.0
reward_verdicts_created 1.7e+09
reward_verdict_tokens_sum 5400.5
"""


def test_a_counter_is_the_sum_of_its_samples_and_of_no_other():
    assert counter(PAGE, "reward_verdicts_total") == 64
    assert counter(PAGE, "reward_verdicts_total", 'outcome="given"') == 61
    assert counter(PAGE, "reward_verdict_tokens_sum") == 5400.5
    assert counter(PAGE, "reward_verdicts") == 0


def test_ratios_are_medians_of_those_within_a_round():
    rates = {
        "trl_stock": [50.0, 40.0, 90.0],
        "trl_servers": [100.0, 200.0, 50.0],
        "on_policy": [110.0, 240.0, 10.0],
        "max_lag_1": [200.0, 300.0, 60.0],
    }
    found = result(rates)
    assert found["ratios_by_round"]["vs_trl_same_servers"] == [2.0, 1.5, 1.2]
    assert found["vs_trl_same_servers"] == 1.5
    assert found["on_policy_vs_trl_same_servers"] == 1.1
    assert found["vs_trl_stock"] == 4.0
    assert found["episodes_per_minute"]["max_lag_1"] == [200, 300, 60]


def test_a_ratio_whose_side_did_not_run_is_left_out():
    assert "vs_trl_stock" not in result({"trl_servers": [1.0], "max_lag_1": [2.0]})


def test_the_ends_of_steps_are_read_from_the_marks(tmp_path):
    marks = [{"step": step, "time": 100.0 + step, "completions": 64 * step} for step in (1, 2)]
    (tmp_path / "marks.jsonl").write_text("".join(json.dumps(mark) + "\n" for mark in marks))
    assert ends_of_steps(tmp_path) == {1: 101.0, 2: 102.0}


def test_the_ends_of_a_runs_steps_are_read_from_its_events(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "runs")) as writer:
        for step in (1, 2):
            writer.add_scalar("episode", 64 * step, step, walltime=200.0 + step)
    assert ends_of_steps(tmp_path) == {1: 201.0, 2: 202.0}


def test_what_was_used_between_two_times_is_interpolated():
    samples = [(0.0, {"a": 0.0}), (10.0, {"a": 5.0, "b": 2.0}), (20.0, {"a": 6.0, "b": 4.0})]
    assert used_between(samples, 0.0, 20.0) == {"a": 6.0, "b": 4.0}
    assert used_between(samples, 5.0, 15.0) == pytest.approx({"a": 3.0, "b": 2.0})
    assert used_between(samples, -5.0, 50.0) == {"a": 6.0, "b": 4.0}


def burn(started, goal):
    """Use processor time in a process of its own until told to end."""
    while not goal.is_set():
        sum(range(10_000))
        if time.process_time() > 0.2:
            started.set()


def test_a_child_that_has_ended_still_counts():
    context = multiprocessing.get_context("spawn")
    burnt, goal = context.Event(), context.Event()
    with ProcessorTime({os.getpid(): lambda _, is_first: "self" if is_first else "child"}, interval_s=0.01) as used:
        start = time.time()
        child = context.Process(target=burn, args=(burnt, goal))
        child.start()
        assert burnt.wait(60.0)
        middle = len(used._samples)
        while len(used._samples) < middle + 2:  # one sample at least was begun after the child had used that much
            assert used._thread.is_alive()
            time.sleep(0.001)
        goal.set()
        child.join(60.0)
        found = used.between(start, time.time())
    assert found["child"] >= 0.15 and found["self"] >= 0
    assert found[MACHINE] > 0
