"""The limits of a fit judge: what they let through and what they stop, by the binomial distribution."""

import re
from math import ceil, comb, floor

import pytest

from reward_server.agreement import Figures
from reward_server.limits import CheckSettings, faults
from wire.errors import ConfigError

NUM_PAIRS, NUM_COMPARED, NUM_VERDICTS = 64, 60, 128


def figures(**changes):
    """A spotless judge, but for `changes`."""
    counts = {
        "num_pairs": NUM_PAIRS,
        "num_compared": NUM_COMPARED,
        "num_right": NUM_COMPARED,
        "num_undecided": 0,
        "num_flips": 0,
        "num_both_orders": NUM_PAIRS,
        "num_verdicts": NUM_VERDICTS,
        "num_ties": 0,
        "num_contradictions": 0,
        "missing": {},
        "seconds": 1.0,
        "tokens": 100.0,
    }
    return Figures(**counts | changes)


def at_most(k, n, p):
    """The chance that of n trials with chance p at most k succeed."""
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


def refused(**changes):
    return bool(faults(CheckSettings(), figures(**changes)))


def chance_to_pass_agreement(p):
    least = ceil(CheckSettings().check_min_agreement * NUM_COMPARED)
    assert not refused(num_right=least) and refused(num_right=least - 1)
    return 1 - at_most(least - 1, NUM_COMPARED, p)


def chance_to_pass(limit, n, p):
    return at_most(floor(getattr(CheckSettings(), limit) * n), n, p)


def test_the_table_of_the_limits_is_the_binomial_distribution():
    assert chance_to_pass_agreement(0.75) == pytest.approx(1 - 0.003, abs=5e-4)
    assert chance_to_pass_agreement(0.5) == pytest.approx(0.08, abs=5e-3)
    assert chance_to_pass("check_max_flips", NUM_PAIRS, 0.25) == pytest.approx(1 - 0.004, abs=5e-4)
    assert chance_to_pass("check_max_flips", NUM_PAIRS, 0.5) == pytest.approx(0.05, abs=5e-3)
    assert chance_to_pass("check_max_contradictions", NUM_VERDICTS, 0.1) > 0.999
    assert chance_to_pass("check_max_contradictions", NUM_VERDICTS, 0.5) < 0.001
    assert chance_to_pass("check_max_unreadable", NUM_VERDICTS, 0.01) > 0.999
    assert chance_to_pass("check_max_missing", NUM_VERDICTS, 0.04) == pytest.approx(1 - 0.002, abs=5e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_right": 35}, r"^agreement 58\.3% of 60 pairs, and check_min_agreement is 60\.0%: the judge or its chat"),
        ({"num_flips": 26}, r"^flips 40\.6%, and check_max_flips is 40\.0%: the judge decides by place"),
        ({"num_contradictions": 33}, r"^contradictions 25\.8%, and check_max_contradictions is 25\.0%"),
        (
            {"missing": {"unreadable": 7}},
            r"^unreadable 5\.5%, and check_max_unreadable is 5\.0%: judge_dialect 'boxed'",
        ),
        (
            {"missing": {"timeout": 12, "too_long": 1}},
            r"^missing 10\.2%, .*by reason: timeout 12, too_long 1; too_long:",
        ),
        ({"num_compared": 0, "num_right": 0}, "^agreement unknown: no pair has both"),
    ],
)
def test_each_figure_beyond_its_limit_is_named_with_the_limit_and_the_usual_causes(changes, message):
    (fault,) = faults(CheckSettings(), figures(**changes))
    assert re.search(message, fault)


def test_a_figure_at_its_limit_passes():
    assert not refused(num_right=36, num_flips=25, num_contradictions=29, missing={"unreadable": 6, "timeout": 6})


def test_all_faults_are_told_the_likeliest_root_first():
    found = faults(CheckSettings(), figures(num_right=30, num_flips=40, missing={"unreadable": 50}))
    assert [fault.split()[0] for fault in found] == ["unreadable", "missing", "flips", "agreement"]


def test_a_limit_can_be_moved_or_lifted():
    settings = CheckSettings(check_min_agreement=0.0, check_max_flips=1.0)
    assert not faults(settings, figures(num_compared=0, num_right=0, num_flips=64))
    assert faults(CheckSettings(check_min_agreement=1.01), figures())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"check_pairs": 0}, r"check_pairs \(0\) must be at least 1"),
        ({"check_max_flips": 1.5}, r"check_max_flips \(1\.5\) is a share"),
        ({"check_max_missing": float("nan")}, r"check_max_missing \(nan\) is a share"),
        ({"check_min_agreement": -0.1}, r"check_min_agreement \(-0\.1\) must be at least 0"),
        ({"judge_dialect": "klingon"}, "judge_dialect"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        CheckSettings(device="cpu", **changes).check()
