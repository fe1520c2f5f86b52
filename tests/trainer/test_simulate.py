"""The real driver over stand-ins on a virtual clock, and preflight's predictions against it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.capacity import expected_step_s
from trainer.config import RunSettings
from trainer.main import main
from trainer.rates import Rates, make_layout
from trainer.simulate import simulate
from wire.errors import ServiceError
from wire.settings import run_program
from wire.waits import WAITS

RATES = Rates(
    completion_tokens=600, completion_spread=0.6, token_s=0.025, verdict_s=10, verdict_spread=0.9, verdict_tail=10,
    step_s=10, reference_s=0.02, push_s=2,
)  # fmt: skip
# Layouts: settings, changes of the rates, steps.
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, float], int]] = {
    "generation-bound": (
        {"replicas": 4, "rollout_max_num_seqs": 2, "gradient_accumulation_steps": 64}, {"verdict_s": 5}, 14,
    ),
    "judge-bound": (
        {"replicas": 4, "judge_max_num_seqs": 8, "gradient_accumulation_steps": 64}, {}, 14,
    ),
    "learner-bound": ({"replicas": 4, "gradient_accumulation_steps": 16}, {"step_s": 200, "reference_s": 0.3}, 20),
    "balanced": (
        {"replicas": 4, "rollout_max_num_seqs": 2, "judge_max_num_seqs": 8, "gradient_accumulation_steps": 64},
        {"step_s": 230}, 14,
    ),
    "latency-bound": ({"replicas": 4, "gradient_accumulation_steps": 16}, {}, 80),
    "the original's": ({"replicas": 1}, {"verdict_s": 40, "step_s": 25, "reference_s": 0.25}, 150),
    "the original's, begun early": (
        {"replicas": 1, "early_gradients": True}, {"verdict_s": 40, "step_s": 25, "reference_s": 0.25}, 150,
    ),
    "balanced, begun early": (
        {
            "replicas": 4, "rollout_max_num_seqs": 2, "judge_max_num_seqs": 8, "gradient_accumulation_steps": 64,
            "early_gradients": True,
        },
        {"step_s": 230}, 14,
    ),
    "learner-bound, begun early": (
        {"replicas": 4, "gradient_accumulation_steps": 16, "early_gradients": True},
        {"step_s": 200, "reference_s": 0.3}, 20,
    ),
    "latency-bound, begun early in large parts": (
        {"replicas": 4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "early_gradients": True},
        {}, 80,
    ),
}  # fmt: skip


def settings_of(**changes: Any) -> RunSettings:
    patient = {"rollout_timeout_s": 1e6, "judge_timeout_s": 1e6}
    return RunSettings(device="cpu", **{**patient, **changes})


@pytest.mark.parametrize("max_lag", [0, 1])
@pytest.mark.parametrize("name", LAYOUTS)
def test_preflight_expects_what_the_simulation_does(name: str, max_lag: int) -> None:
    changes, other_rates, steps = LAYOUTS[name]
    settings, rates = settings_of(max_lag=max_lag, **changes), replace(RATES, **other_rates)
    simulated = simulate(settings, rates, steps=steps)["seconds_per_step"]
    assert expected_step_s(make_layout(settings, rates)) == pytest.approx(simulated, rel=0.10)


def without_real_time(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "real_seconds"}


def test_a_simulation_repeats_itself_and_another_seed_is_another() -> None:
    one, again, other = (simulate(settings_of(seed=seed), RATES, steps=10) for seed in (1, 1, 2))
    assert without_real_time(one) == without_real_time(again)
    assert one["seconds"] != other["seconds"]


def test_without_chance_a_step_takes_the_sum_of_its_stages() -> None:
    rates = replace(RATES, completion_spread=0.0, verdict_spread=0.0, push_beside=False)
    summary = simulate(settings_of(max_lag=0), rates, steps=6)
    # Four groups are scored together, four completions of each.
    assert summary["seconds_per_step"] == pytest.approx(600 * 0.025 + 10 + 16 * 0.02 + 10 + 2, abs=0.3)
    assert summary["lag_mean"] == 0
    assert summary["learner"]["step"] == pytest.approx(10 / summary["seconds_per_step"])


def test_the_lag_is_used_and_kept() -> None:
    assert 0.5 < simulate(settings_of(max_lag=1), RATES, steps=12)["lag_mean"] <= 1


def test_slots_are_kept_and_a_bottleneck_is_always_in_use() -> None:
    changes, other, _ = LAYOUTS["generation-bound"]
    summary = simulate(settings_of(**changes), replace(RATES, **other), steps=12)
    assert 0.95 < summary["utilisation"]["fleet"] <= 1.0 + 1e-9
    # Four times the servers of another part change nothing.
    more = simulate(settings_of(judge_servers=4, **changes), replace(RATES, **other), steps=12)
    assert more["seconds"] == pytest.approx(summary["seconds"], rel=0.03)


@pytest.mark.parametrize(("name", "max_lag"), [("generation-bound", 0), ("judge-bound", 0), ("latency-bound", 1)])
def test_evaluating_ten_times_as_often_as_by_default_costs_less_than_3_percent(name: str, max_lag: int) -> None:
    changes, other, _ = LAYOUTS[name]
    runs = [
        simulate(settings_of(max_lag=max_lag, eval_steps=every, **changes), replace(RATES, **other), steps=30)
        for every in (0, 5)
    ]
    without, beside = (run["episodes_per_second"] for run in runs)
    assert beside == pytest.approx(without, rel=0.03)
    assert runs[0]["evaluations"]["finished"] == 0 and runs[1]["evaluations"]["finished"] >= 1


SMALL = {"gradient_accumulation_steps": 16, "replicas": 2, "judge_max_num_seqs": 4, "num_eval_prompts": 7}
FULL = {"generation-bound": "fleet", "judge-bound": "judge"}  # the part that training never leaves idle


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_evaluation_ends_before_the_next_whatever_training_keeps_full_and_costs_less_than_3_percent(
    name: str,
) -> None:
    """32 completions a step, an evaluation every 20: its share is 16 answers, or 8 comparisons of two verdicts."""
    changes, other, _ = LAYOUTS[name]

    def run(eval_steps: int, eval_share: float) -> dict[str, Any]:
        settings = settings_of(**{**changes, **SMALL}, max_lag=1, eval_steps=eval_steps, eval_share=eval_share)
        return simulate(settings, replace(RATES, **other), steps=44)

    without, beside = run(0, 0.0), run(20, 0.025)
    assert beside["episodes_per_second"] >= 0.97 * without["episodes_per_second"]
    assert beside["evaluations"]["skipped"] == 0 and beside["evaluations"]["finished"] >= 1
    assert max(beside["evaluations"]["steps"]) <= 20
    if name in FULL:
        assert without["utilisation"][FULL[name]] > 0.98
        assert run(20, 0.0)["evaluations"]["finished"] == 0  # where all give way, none ends before training does


def test_a_deadline_that_is_too_short_ends_the_simulation_as_it_would_the_run() -> None:
    with pytest.raises(ServiceError, match="was not answered within 3 s"):
        simulate(settings_of(rollout_timeout_s=3.0), RATES, steps=4)


def test_an_instrument_hears_the_waits_on_the_virtual_clock() -> None:
    ends: list[float] = []

    @contextmanager
    def instrument(settings: RunSettings) -> Iterator[None]:
        with WAITS.heard_by(lambda wait, end: ends.append(end)):
            yield

    summary = simulate(settings_of(), RATES, steps=6, instrument=instrument)
    assert len(ends) > 6 * 16 and max(ends) >= summary["seconds"]


def test_the_program_simulates_without_model_data_or_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = tmp_path / "rates.yaml"
    rates.write_text("completion_tokens: 600\ntoken_s: 0.02\nverdict_s: 10\nstep_s: 10\n")
    flags = ["--device=cpu", f"--simulate={rates}", "--simulate_steps=6", f"--output_dir={tmp_path / 'run'}"]
    assert main([*flags, "--replicas=64", "--model_name_or_path=./nowhere"]) == 0
    printed = capsys.readouterr().out
    assert "bottleneck" in printed and "simulated" in printed and "waits for genrm" in printed
    folder = tmp_path / "run" / "simulation"
    assert json.loads((folder / "summary.json").read_text())["steps"] == 6
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    rows = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert {"replica sim://replica-63", "genrm sim://genrm-0", "learner 0"} <= rows


def test_rates_that_are_not_there_end_the_program_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_program(lambda: main(["--device=cpu", "--simulate=nowhere.yaml"]))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: rates nowhere.yaml: No such file or directory\n"
