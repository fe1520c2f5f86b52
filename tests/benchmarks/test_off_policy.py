"""The arithmetic of the off-policy benchmark, and what it reads of runs; no run is started."""

import json
from argparse import Namespace

import pytest

from benchmarks.off_policy import flags_of, ran_in, read
from benchmarks.off_policy_table import CONTENDERS, LAG_CORRECTED, LAG_UNCORRECTED, ON_POLICY, Ran, result, table
from trainer.config import RunSettings
from wire.settings import parse_settings

ARGS = Namespace(episodes=1920, lag=4, eval_prompts=64, learning_rate=1e-3)


def ran(contender, truth_after, *, seed=1, lag_mean=0.0, lag_max=0, ess=1.0, seconds=50.0):
    return Ran(contender, seed, 1920, 2.0, truth_after, lag_mean, lag_max, ess, 0.1, seconds)


def test_the_spread_is_the_standard_deviation_of_the_on_policy_runs_alone():
    fresh = [ran(ON_POLICY, truth) for truth in (3.0, 4.0, 5.0)]
    far = [ran(LAG_CORRECTED, truth) for truth in (0.0, 6.5)]
    found = result([*fresh, *far, ran(LAG_UNCORRECTED, 2.5)])
    assert found == {
        "on_policy": 4.0,
        "lag_corrected": 3.25,
        "lag_uncorrected": 2.5,
        "spread": 1.0,
        "within_spread": True,
    }


@pytest.mark.parametrize(("corrected", "within"), [(2.9, False), (3.0, True), (5.0, True), (5.1, False)])
def test_within_is_as_far_as_the_spread_on_either_side(corrected, within):
    fresh = [ran(ON_POLICY, truth) for truth in (3.0, 4.0, 5.0)]
    assert result([*fresh, ran(LAG_CORRECTED, corrected)])["within_spread"] is within


def test_too_few_runs_say_nothing():
    assert result([])["within_spread"] is None
    found = result([ran(ON_POLICY, 4.0), ran(LAG_CORRECTED, 4.0)])
    assert found["spread"] is None and found["within_spread"] is None and found["lag_uncorrected"] is None
    assert result([ran(ON_POLICY, 4.0), ran(ON_POLICY, 4.2)])["within_spread"] is None


def test_a_line_of_the_table_has_the_means_over_its_seeds_and_the_largest_lag():
    runs = [
        ran(LAG_CORRECTED, 4.0, lag_mean=3.5, lag_max=4, ess=0.90, seconds=40.0),
        ran(LAG_CORRECTED, 4.2, lag_mean=3.7, lag_max=3, ess=0.94, seconds=60.0, seed=2),
    ]
    header, fresh, corrected = table([*runs, ran(ON_POLICY, 4.1)])
    assert fresh.split() == ["on_policy", "1", "2.000", "4.100", "-", "0.00", "0", "1.000", "0.100", "50"]
    assert corrected.split() == ["lag_corrected", "2", "2.000", "4.100", "0.141", "3.60", "4", "0.920", "0.100", "50"]
    assert corrected.index("lag_corrected") == 0 and len(header) == len(corrected)


def test_the_contenders_are_what_the_trainer_takes_and_differ_in_lag_and_weights_alone():
    parsed = {
        name: vars(parse_settings(RunSettings, [*flags_of(name, ARGS), "--device", "cpu"], strict_file=True)[0])
        for name in CONTENDERS
    }
    assert [(of["max_lag"], of["importance_weights"]) for of in parsed.values()] == [
        (0, "token"), (4, "token"), (4, "none"),
    ]  # fmt: skip
    common = [
        {name: value for name, value in of.items() if name not in ("max_lag", "importance_weights")}
        for of in parsed.values()
    ]
    assert common[0] == common[1] == common[2]


def test_only_whole_lines_of_runs_with_the_same_settings_are_read(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert read(path, ARGS) == []
    one, other = ran(ON_POLICY, 4.0), ran(LAG_CORRECTED, 4.1)
    fewer = Namespace(**vars(ARGS) | {"episodes": 640})
    lines = [
        {"flags": flags_of(ON_POLICY, ARGS), "ran": vars(one)},
        {"flags": flags_of(LAG_CORRECTED, fewer), "ran": vars(other)},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"flags": [')
    assert read(path, ARGS) == [one]
    assert read(path, fewer) == [other]


def test_what_a_run_left_is_read_from_its_folder(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    summary = {
        "episodes": 128, "held_out_truth_before": 2.0, "held_out_truth_after": 3.0,
        "seconds": {"start": 9.0, "held_out": 7.0, "wait": 3.0, "step": 2.0, "publish": 1.0},
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "steps.jsonl").write_text('{"step": 1, "lags": [0, 0]}\n{"step": 2, "lags": [1, 2]}\n')
    with SummaryWriter(str(tmp_path / "runs")) as writer:
        for step, ess in ((1, 1.0), (2, 0.5)):
            writer.add_scalar("sampling/ess", ess, step)
            writer.add_scalar("sampling/logp_diff_std", 0.25, step)
    found = ran_in(tmp_path, LAG_CORRECTED, 3)
    assert found == Ran(
        LAG_CORRECTED, 3, 128, 2.0, 3.0, lag_mean=0.75, lag_max=2, ess=0.75, logp_diff_std=0.25, seconds=6
    )
