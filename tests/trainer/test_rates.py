"""The file of rates, and what it comes to with a run's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config import RunSettings
from trainer.group import Group
from trainer.measured_rates import ACCUMULATES, SCORES, SENDS, STEPS, RateMeter
from trainer.prompts import Prompt
from trainer.rates import Rates, load_rates, make_layout, verdicts_per_group
from wire.errors import ConfigError
from wire.generation import Completion, VersionSpan
from wire.judgement import GroupVerdict, PlacedVerdict, Verdict
from wire.waits import Wait

ROOT = Path(__file__).parents[2]
LEAST = "completion_tokens: 600\ntoken_s: 0.02\nverdict_s: 30\nstep_s: 20\n"
RATES = Rates(completion_tokens=600, token_s=0.02, verdict_s=30, step_s=20)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "rates").glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_rates_can_be_read(path: Path) -> None:
    assert load_rates(str(path)).verdict_s > 0


def test_what_a_file_leaves_out_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(LEAST + "reference_s: 1e-3\n")  # which YAML takes for text
    assert load_rates(str(path)) == Rates(
        completion_tokens=600, token_s=0.02, verdict_s=30, step_s=20, reference_s=0.001
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "verdict_seconds: 3\n", "unknown rate 'verdict_seconds'"),
        (LEAST.replace("step_s: 20\n", ""), "step_s is missing; it has no default"),
        (LEAST.replace("20", "quick"), "step_s: invalid value 'quick'; give a float"),
        (LEAST.replace("20", "0"), r"step_s \(0\) must be positive"),
        (LEAST.replace("20", ".nan"), r"step_s \(nan\) must be positive"),
        (LEAST + "genrm_slots: 1.5\n", r"genrm_slots: invalid value 1\.5; give a int"),
        (LEAST + "genrm_slots: true\n", "genrm_slots: invalid value True"),
        (LEAST + "push_beside: 1\n", "push_beside: invalid value 1; give a bool"),
        (LEAST + "verdict_tail: 0.5\n", r"verdict_tail \(0.5\) must be at least 1"),
        (LEAST + "push_s: -1\n", r"push_s \(-1\) must be at least 0"),
        ("- 1\n", "must hold `name: value` lines"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_rates(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rates nowhere\.yaml: No such file"):
        load_rates("nowhere.yaml")


@pytest.mark.parametrize(
    ("pairing", "verdicts"), [("single", 4), ("ring", 4), ("all_pairs", 6), ("both_orders", 12), ("ring_extra", 5)]
)
def test_verdicts_of_a_group_are_those_of_the_pairing(pairing: str, verdicts: int) -> None:
    calls = 5 if pairing == "ring_extra" else 0
    settings = RunSettings(device="cpu", judge_pairing=pairing, judge_calls_per_group=calls)
    assert verdicts_per_group(settings) == verdicts


def test_a_layout_is_what_settings_and_rates_come_to() -> None:
    settings = RunSettings(device="cpu", replicas=3, rollout_urls=["http://a"], judge_servers=2, judge_votes=2,
                           judge_temperature=0.6, num_learner_ranks=2)  # fmt: skip
    layout = make_layout(settings, RATES)
    assert (layout.prompts, layout.per_step, layout.verdicts) == (8, 32, 8)
    assert (layout.replicas, layout.writing, layout.judging) == (4, 4 * 128, 2 * 64)
    own = Rates(
        completion_tokens=600, token_s=0.02, verdict_s=30, step_s=20, replica_slots=8, replica_tokens_s=100.0,
        genrm_servers=3, genrm_slots=5,
    )  # fmt: skip
    layout = make_layout(settings, own)
    assert (layout.writing, layout.judging) == (32, 15)
    assert layout.completion.mean == pytest.approx(0.08 * layout.tokens.mean)  # 8 slots share 100 tokens a second


def test_a_joined_judge_of_unknown_size_is_asked_about() -> None:
    with pytest.raises(ConfigError, match="how many GenRM servers stand behind http://b"):
        make_layout(RunSettings(device="cpu", reward_url="http://b"), RATES)


def test_replicas_that_will_be_found_cannot_be_reckoned_with() -> None:
    settings = RunSettings(device="cpu", replicas=0, ray_address="auto")
    with pytest.raises(ConfigError, match="how many replicas will be found in the cluster"):
        make_layout(settings, RATES)


def group_of(occurrence: int) -> Group:
    """Two completions of 100 and 200 tokens; a verdict of 30 s."""
    completions = [
        Completion(i, (7,) * n, (-0.5,) * n, True, (VersionSpan("0.0", 0, n),)) for i, n in enumerate((100, 200))
    ]
    verdict = Verdict(scores=(1.0, 2.0), ranking=4, seconds=30.0, completion_tokens=500)
    lost = Verdict(missing="timeout", seconds=900.0)
    placed = [PlacedVerdict(first=0, second=1, verdict=v) for v in (verdict, lost)]
    zeros = [0.0, 0.0]
    return Group(
        prompt=Prompt(occurrence, (), (1,)), completions=completions, texts=["a", "b"],
        verdict=GroupVerdict(scores=(1.0, 2.0), verdicts=tuple(placed)), scores_K=zeros, rewards_K=zeros, kl_K=zeros,
        entropy_K=zeros, length_terms_K=zeros, seconds={"generate": 99.0},
    )  # fmt: skip


def test_a_run_measures_its_rates_and_preflight_can_read_them(tmp_path: Path) -> None:
    meter, path = RateMeter(RunSettings(device="cpu")), tmp_path / "run" / "rates.yaml"
    assert not meter.write(path) and not path.exists()
    for who, peer, reason, seconds in [
        ("group 4", "replica http://a", "writes", 8.0),  # 200 tokens: 40 ms a token
        ("group 5", "replica http://a", "writes", 8.0),
        ("learner", "learner 0", ACCUMULATES, 8.0),  # a step that was begun early
        ("learner", "learner 0", ACCUMULATES, 7.0),
        ("learner", "learner 0", STEPS, 5.0),
        ("learner", "learner 0", SCORES, 1.0),
        ("learner", "learner 0", SENDS, 3.0),
        ("learner", "learner 1", STEPS, 99.0),  # the ranks step together: one speaks for all
        ("driver", "disk", "saves", 99.0),
    ]:
        meter.hear(Wait(who, peer, reason, since=10.0), 10.0 + seconds)
    meter.note([group_of(4), group_of(5)])
    assert meter.write(path)
    rates = load_rates(str(path))
    assert rates.completion_tokens == 150 and rates.token_s == pytest.approx(0.04)
    assert (rates.verdict_s, rates.verdict_tokens) == (30.0, 500.0)  # the one that was lost took no time of a judge
    assert (rates.step_s, rates.reference_s, rates.push_s) == (20.0, 0.25, 3.0)
