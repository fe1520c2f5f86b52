"""The layouts of the pipeline's benchmark are what they claim to be."""

from __future__ import annotations

import pytest

from benchmarks.pipeline_layouts import Case, load_cases, run_case
from trainer.capacity import capacities
from trainer.rates import make_layout

CASES = {case.name: case for case in load_cases()}
BOTTLENECKS = {
    "balanced": "judge",
    "generation_bound": "fleet",
    "judge_bound": "judge",
    "latency_bound": "in flight",
    "learner_bound": "learner",
    "original": "in flight",
}


def test_all_layouts_are_known() -> None:
    assert sorted(CASES) == sorted(BOTTLENECKS)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_layout_is_bound_by_what_it_is_named_for(case: Case) -> None:
    layout = make_layout(case.settings, case.rates)
    parts = capacities(layout)
    least = min(parts, key=parts.__getitem__)
    assert least == BOTTLENECKS[case.name]
    assert 4 <= layout.replicas <= 64 and layout.max_lag == 1 and case.rates.verdict_tail == 10
    slots = {"fleet": layout.writing, "judge": layout.judging}.get(least)
    assert slots is None or layout.per_step >= 4 * slots
    if case.balanced:
        servers = [parts[name] for name in ("fleet", "judge", "learner")]
        assert max(servers) < 1.1 * min(servers)


def test_a_layout_reaches_its_capacity() -> None:
    outcome = run_case(CASES["latency_bound"], steps=30)
    assert outcome.of == "in flight" and 0.9 < outcome.efficiency < 1.1 and 0.9 < outcome.prediction < 1.1
