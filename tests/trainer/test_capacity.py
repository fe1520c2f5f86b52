"""Preflight's formulas against brute force, and what it advises."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from statistics import fmean

import pytest

from trainer.capacity import (
    capacities,
    expected_episodes,
    expected_step_s,
    fleet_s,
    judge_s,
    latency_s,
    learner_s,
    mean_of,
    whole_batch,
)
from trainer.capacity_report import alternatives, best_split, capacity_lines
from trainer.config import RunSettings
from trainer.rates import Layout, Rates, make_layout

RATES = Rates(completion_tokens=600, token_s=0.02, verdict_s=20, verdict_spread=0.9, step_s=15, push_s=2)
CONSTANT = Rates(
    completion_tokens=500, completion_spread=0.0, token_s=0.02, verdict_s=30, verdict_spread=0.0, step_s=15,
    reference_s=0.5, push_s=2, push_beside=False,
)  # fmt: skip


def settings_of(**changes: object) -> RunSettings:
    return RunSettings(device="cpu", **changes)


def layout_of(rates: Rates = RATES, **changes: object) -> Layout:
    return make_layout(settings_of(**changes), rates)


def test_capacities_are_slots_over_mean_times() -> None:
    layout = layout_of(CONSTANT, replicas=2, rollout_max_num_seqs=3, judge_max_num_seqs=5)
    parts = capacities(layout)
    assert parts["fleet"] == pytest.approx(3600 * 6 / 10)
    assert parts["judge"] == pytest.approx(3600 * 5 / 30)
    assert parts["learner"] == pytest.approx(3600 * 16 / (16 * 0.5 + 15 + 2))


def test_without_chance_on_policy_a_step_is_the_sum_of_its_stages() -> None:
    layout = layout_of(CONSTANT, max_lag=0)
    assert expected_step_s(layout) == pytest.approx(10 + 30 + 4 * 0.5 + 15 + 2, rel=0.01)
    assert capacities(layout)["in flight"] == pytest.approx(3600 * 16 / latency_s(layout))
    assert expected_step_s(replace(layout, max_lag=1)) == pytest.approx(59 / 2, rel=0.02)  # Little's law


def test_passes_go_beside_a_push_where_the_learner_can() -> None:
    beside = layout_of(replace(CONSTANT, push_beside=True))
    assert learner_s(beside) == 15 + 8 and learner_s(replace(beside, push_beside=False)) == 15 + 8 + 2


def test_the_slowest_of_a_batch_is_what_drawing_gives() -> None:
    layout = layout_of()
    random = Random(3)

    def whole() -> float:
        latest = 0.0
        for _ in range(layout.prompts):
            written = [layout.completion.draw(random.getrandbits(60)) for _ in range(4)]
            pairs = [(a, (a + 1) % 4) for a in range(4)]
            judged = [max(written[a], written[b]) + layout.verdict.draw(random.getrandbits(60)) for a, b in pairs]
            latest = max(latest, *judged)
        return latest

    assert mean_of(*whole_batch(layout)) == pytest.approx(fmean(whole() for _ in range(3000)), rel=0.03)


def test_a_batch_that_waits_for_slots_takes_the_work_over_the_slots_and_a_tail() -> None:
    layout = layout_of(gradient_accumulation_steps=256, rollout_max_num_seqs=16)
    work, whole = fleet_s(layout), mean_of(*whole_batch(layout))
    assert work == pytest.approx(512 * layout.completion.mean / 16)
    assert work < whole < work + layout.completion.top + layout.verdict.top


def test_what_is_expected_is_never_more_than_a_part_allows() -> None:
    for changes in ({}, {"max_lag": 0}, {"max_lag": 3}, {"rollout_max_num_seqs": 1}, {"judge_max_num_seqs": 2}):
        layout = layout_of(**changes)
        assert expected_episodes(layout) <= 1.02 * min(capacities(layout).values())


def test_a_run_that_waits_for_latency_is_told_that_servers_do_not_help() -> None:
    lines = capacity_lines(settings_of(), RATES)
    assert any(line.startswith("bottleneck") and "adding servers changes nothing" in line for line in lines)
    helps = next(line for line in lines if line.startswith("would help"))
    assert "max_lag 2" in helps and "32 completions a step" in helps and "replicas" not in helps


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rollout_max_num_seqs": 1}, "bottleneck       the fleet"),
        ({"judge_max_num_seqs": 2}, "bottleneck       the judge"),
    ],
)
def test_a_bottleneck_is_named(changes: dict[str, int], name: str) -> None:
    rates = replace(RATES, verdict_spread=0.3)
    assert name in capacity_lines(settings_of(gradient_accumulation_steps=64, **changes), rates)


def test_a_slow_learner_is_the_bottleneck_and_servers_do_not_help() -> None:
    lines = capacity_lines(settings_of(), replace(RATES, step_s=900))
    assert "bottleneck       the learner; adding servers changes nothing" in lines


def test_gpus_are_split_so_that_the_slower_part_is_as_fast_as_can_be() -> None:
    layout = layout_of(replicas=9, rollout_max_num_seqs=8, judge_max_num_seqs=8, gradient_accumulation_steps=256)
    replicas, servers = best_split(layout, 1, 1)
    assert replicas + servers == 10 and servers > 1

    def slower(split: tuple[int, int]) -> float:
        there = replace(layout, replicas=split[0], genrm_servers=split[1])
        return max(fleet_s(there), judge_s(there))

    assert slower((replicas, servers)) == min(slower((10 - num, num)) for num in range(1, 10))
    settings = settings_of(judge_tensor_parallel_size=1)
    assert alternatives(layout, settings)["split"].gain > 0.5


def test_the_whole_run_is_added_up() -> None:
    lines = capacity_lines(settings_of(), replace(RATES, verdict_tokens=2000))
    assert "50000 verdicts, 100 M judge tokens" in lines[-1]
