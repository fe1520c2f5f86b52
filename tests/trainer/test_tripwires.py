"""Tripwires: how limits are written, when a warning begins and ends, when a run stops and what it leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.trainer.test_journal import group
from trainer.config import RunSettings
from trainer.metrics import step_metrics
from trainer.stats import StepStats
from trainer.tripwires import PATIENCE, QUANTITIES, STOP_AT, WARN_AT, Limit, Tripped, Tripwires, parse_limits
from trainer.verdicts import VerdictRecord
from wire.errors import ConfigError
from wire.generation import PolicyVersion
from wire.settings import parse_settings

KL, GAP = "objective/kl", "eval/judge_gap"


class Watched:
    """Tripwires, and what they said."""

    def __init__(self, warn_at: Sequence[str] = (), stop_at: Sequence[str] = ()) -> None:
        self.said: list[str] = []
        self.wires = Tripwires(warn_at, stop_at, self.said.append)
        self.step = 0

    def look(self, *values: float | None, metric: str = KL) -> Watched:
        """A step for each value; None is a step without one."""
        for value in values:
            self.step += 1
            self.wires.look(self.step, {} if value is None else {metric: value})
        return self


@pytest.mark.parametrize("text", ["kl>5", " kl > 5 ", "kl>5.0", "kl>5e0"])
def test_a_limit_is_written_in_one_way_and_spaces_do_not_count(text: str) -> None:
    assert parse_limits("warn_at", [text]) == [Limit("kl", ">", 5.0)]
    assert str(Limit("kl", ">", 5.0)) == "kl>5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kl", "'kl' is no limit; write NAME>VALUE or NAME<VALUE"),
        ("kl>=5", "'=5' is not a number"),
        ("kl>5>6", "is no limit"),
        ("", "is no limit"),
        (">5", "is no limit"),
        ("loss>5", "'loss' is not among kl, entropy, length, truncated, missing, logp_gap, judge_gap, "),
        ("kl>much", "'much' is not a number; write kl>VALUE"),
        ("kl>", "'' is not a number"),
        ("kl>nan", "'nan' is not a number"),
        ("kl>inf", "'inf' is not a number"),
        ("kl<1", "kl has no lower limit; write kl>VALUE"),
        ("truncated>50", "truncated is a share; give a number from 0 to below 1"),
    ],
)
def test_what_is_no_limit_is_refused_with_the_value_and_the_remedy(text: str, words: str) -> None:
    for setting in ("warn_at", "stop_at"):
        with pytest.raises(ConfigError) as error:
            RunSettings(device="cpu", **{"warn_at": [], "stop_at": [], setting: [text]}).check()  # type: ignore[arg-type]
        assert str(error.value).startswith(f"{setting} {text!r}") and words in str(error.value)


def test_two_limits_on_one_side_are_one_too_many_and_one_on_each_is_not() -> None:
    parse_limits("warn_at", ["entropy<0.1", "entropy>3", "length<5", "length>900"])
    with pytest.raises(ConfigError, match=r"warn_at has 2 limits kl>\.\.\.; give one"):
        parse_limits("warn_at", ["kl>5", "kl>6"])


@pytest.mark.parametrize(
    ("warn", "stop", "fits"),
    [
        ("kl>5", "kl>20", True),
        ("kl>5", "kl>5", True),
        ("kl>5", "kl>4", False),
        ("entropy<0.1", "entropy<0.05", True),
        ("entropy<0.1", "entropy<0.2", False),
        ("entropy<0.1", "entropy>0.05", True),  # another side
    ],
)
def test_a_run_warns_before_it_stops(warn: str, stop: str, fits: bool) -> None:
    settings = RunSettings(device="cpu", warn_at=[warn], stop_at=[stop])
    if fits:
        settings.check()
        return
    with pytest.raises(ConfigError) as error:
        settings.check()
    assert f"stop_at {stop} comes before warn_at {warn}" in str(error.value) and "give a stop limit" in str(error.value)


def test_limits_are_flags_and_lists_of_a_file_and_either_can_be_empty(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("device: cpu\nwarn_at: [kl>5, entropy<0.1]\nstop_at: []\n")
    settings, _ = parse_settings(RunSettings, ["--config", str(file)], strict_file=True)
    assert (settings.warn_at, settings.stop_at) == (["kl>5", "entropy<0.1"], [])
    flags = ["--config", str(file), "--warn_at", "none", "--stop_at", "kl>20", "length<3"]
    settings, _ = parse_settings(RunSettings, flags, strict_file=True)
    assert (settings.warn_at, settings.stop_at) == (["none"], ["kl>20", "length<3"])
    assert parse_limits("warn_at", settings.warn_at) == []
    with pytest.raises(ConfigError, match="'sun' is not among"):
        parse_settings(RunSettings, ["--config", str(file), "--stop_at", "sun>1"], strict_file=True)


def test_the_defaults_warn_of_every_quantity_and_stop_for_what_no_healthy_run_has() -> None:
    assert {limit.name for limit in parse_limits("warn_at", WARN_AT)} == set(QUANTITIES)
    healthy = {
        **{KL: 30.0, "policy/entropy_avg": 0.4, "sample/length_mean": 700.0, "sample/truncated": 0.2},
        **{"judge/missing": 0.02, "sampling/gap_std": 0.05, GAP: 0.05},
    }
    said: list[str] = []
    wires = Tripwires(WARN_AT, STOP_AT, said.append)
    for step in range(10):
        wires.look(step, healthy)
    assert said == [] and wires.summary() == []


def test_every_quantity_but_that_of_the_evaluation_is_a_metric_of_each_step() -> None:
    metrics = step_metrics([group()], StepStats(), kl_coef=0.01, lags=[0], episode=2, eps=1.0, stop_token_ids=())
    known = set(metrics) | set(VerdictRecord(max_unreadable=1.0).drain())
    assert {quantity.metric for quantity in QUANTITIES.values() if not quantity.metric.startswith("eval/")} <= known


def test_a_warning_is_said_once_when_it_begins_and_once_when_it_ends() -> None:
    watched = Watched(["kl>5"]).look(4, 6, 7, 8, 5, 4, 9)
    assert watched.said == [
        "warning: step 2: kl (objective/kl) is 6, above 5 (warn_at)",
        "warning over: step 5: kl is 5 again; kl>5 since step 2",
        "warning: step 7: kl (objective/kl) is 9, above 5 (warn_at)",
    ]
    assert watched.wires.warnings == ["kl>5 since step 7"]
    assert watched.wires.summary() == [
        {"name": "kl", "step": 2, "value": 6, "limit": 5.0, "kind": "warn"},
        {"name": "kl", "step": 7, "value": 9, "limit": 5.0, "kind": "warn"},
    ]


def test_a_step_without_a_value_neither_begins_nor_ends_a_warning_nor_counts_towards_a_stop() -> None:
    watched = Watched(["kl>5"], ["kl>10"]).look(None, math.nan, 11, None, math.nan, 11, None)
    assert len(watched.said) == 1 and len(watched.wires.warnings) == 1
    with pytest.raises(Tripped):
        watched.look(11)


@pytest.mark.parametrize(("limit", "bad", "metric"), [("kl>20", 21.5, KL), ("length<4", 2.0, "sample/length_mean")])
def test_three_steps_in_a_row_beyond_the_limit_stop_the_run(limit: str, bad: float, metric: str) -> None:
    watched = Watched(stop_at=[limit]).look(10, bad, bad, 10, bad, bad, metric=metric)
    with pytest.raises(Tripped) as error:
        watched.look(bad, metric=metric)
    (bound,) = parse_limits("stop_at", [limit])
    word = "above" if bound.side == ">" else "below"
    assert f"tripwire {bound.name} at step 7: {bound.name} ({metric}) is {bad:g}, {word} {bound.bound:g}" in str(
        error.value
    )
    assert f"for {PATIENCE} steps in a row" in str(error.value)
    assert watched.wires.summary()[-1] == {
        "name": bound.name, "step": 7, "value": bad, "limit": bound.bound, "kind": "stop"
    }  # fmt: skip


def test_an_evaluation_beyond_its_limit_stops_the_run_at_once() -> None:
    watched = Watched(stop_at=["judge_gap>0.2"]).look(0.19, None, None, 0.2, metric=GAP)
    with pytest.raises(Tripped, match=r"judge_gap \(eval/judge_gap\) is 0.21, above 0.2 \(stop_at\); look"):
        watched.look(0.21, metric=GAP)


def test_by_default_judges_that_surely_part_end_the_run_at_once_and_a_noisy_gap_does_not() -> None:
    wires = Tripwires(WARN_AT, STOP_AT, lambda _: None)
    for step in range(10):
        wires.look(step, {GAP: 0.3, "eval/judge_gap_low": 0.05})  # few prompts: it may be chance
    with pytest.raises(
        Tripped, match=r"tripwire judge_gap_low at step 10: judge_gap_low \(eval/judge_gap_low\) is 0.12"
    ):
        wires.look(10, {GAP: 0.2, "eval/judge_gap_low": 0.12})
    wires = Tripwires(WARN_AT, STOP_AT, lambda _: None)
    wires.look(1, {"eval/score_gap": 0.9, "eval/score_gap_low": 0.24})
    with pytest.raises(Tripped, match=r"tripwire score_gap_low at step 2: .* is 0.3, above 0.25 \(stop_at\); look"):
        wires.look(2, {"eval/score_gap": 0.8, "eval/score_gap_low": 0.3})


def test_an_infinite_value_is_beyond_every_limit_and_can_be_written_down() -> None:
    watched = Watched(["kl>5"]).look(math.inf)
    json.dumps(watched.wires.summary(), allow_nan=False)


class Learner:
    """Saves an empty folder; has taken as many steps as it is told."""

    num_steps = 0

    async def save(self, folder: str) -> None:
        (Path(folder) / "learner").mkdir()


class Journal:
    """Every step has the next of these values."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    @property
    def latest(self) -> Mapping[str, float]:
        return {KL: self.values.pop(0)}

    def summary(self) -> dict[str, Any]:
        return {"seconds": {"wait": 1.5}}


async def test_a_stop_leaves_a_checkpoint_of_its_step_and_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import run

    settings = RunSettings(
        device="cpu", output_dir=str(tmp_path), total_episodes=160, warn_at=["kl>5"], stop_at=["kl>20"]
    )
    learner, journal, unused = Learner(), Journal([1, 6, 21, 22, 23, 24]), SimpleNamespace()
    material, parts, said = SimpleNamespace(prompts=[]), SimpleNamespace(learner=learner, adopted=dict), list[str]()
    work = run.Run(settings, material, "token", parts, said.append, unused, unused)  # type: ignore[arg-type]
    work._latest = lambda: journal.latest

    async def train(*_: Any, checkpoint: Any, version: PolicyVersion, **__: Any) -> PolicyVersion:
        """The loop's order: a step, then its checkpoint."""
        for step in range(1, 7):
            learner.num_steps = step
            version = PolicyVersion(0, step)
            await checkpoint(version, SimpleNamespace(next_occurrence=4 * step, taken_ahead=()))
        return version

    no_contest: Any = SimpleNamespace(begin_if_due=lambda _: None, summary=lambda: {"evaluations_skipped": 2})
    monkeypatch.setattr(run, "train", train)
    with pytest.raises(Tripped, match="tripwire kl at step 5"):
        await work._train(unused, unused, journal, no_contest)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    assert json.loads((tmp_path / "checkpoint-5" / "state.json").read_text())["next_prompt"] == 20
    assert said[0].startswith("warning: step 2") and said[-1].startswith("checkpoint of step 5")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["episodes"], summary["policy_version"]) == (5, 80, "0.5")
    assert [(trip["step"], trip["value"], trip["kind"]) for trip in summary["tripwires"]] == [
        (2, 6, "warn"), (5, 23, "stop")
    ]  # fmt: skip
    assert summary["stopped"].startswith("tripwire kl at step 5: kl (objective/kl) is 23, above 20")
    assert summary["seconds"] == {"wait": 1.5} and summary["evaluations_skipped"] == 2
