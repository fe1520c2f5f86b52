"""What the benchmark of the training signal claims."""

import json
import math
import sys

import numpy as np
import pytest

from benchmarks import signal as program
from benchmarks.planted_judge import NoisyJudge
from benchmarks.signal import bias_leak, jackknife, looks_of, mean_ratio, noise_ratio, signal
from benchmarks.signal_policy import World
from benchmarks.signal_schemes import DEFAULT, MATCHING, PUBLISHED, RING_LEAST_SQUARES, RING_MEAN, SINGLE, Bench


@pytest.fixture(scope="module")
def worlds():
    return [World.drawn(seed) for seed in range(4)]


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(1).normal(size=30)
    value, error = jackknife(lambda mask: float(values[mask].mean()), 30)
    assert value == pytest.approx(values.mean()) and error == pytest.approx(values.std(ddof=1) / math.sqrt(30))


def test_a_ratio_to_oneself_is_one_without_error(worlds):
    found = signal(RING_MEAN, 4, Bench(), worlds, 50)
    assert noise_ratio(found, found) == (1, 0)
    assert mean_ratio(found.tokens_W, found.tokens_W / 2) == (pytest.approx(2), pytest.approx(0))


def test_least_squares_keeps_more_completions_than_the_mean_at_the_same_calls_and_is_less_noisy(worlds):
    bench = Bench(missing=0.2)
    mean, fitted = (signal(way, 4, bench, worlds, 400) for way in (RING_MEAN, RING_LEAST_SQUARES))
    ratio, error = noise_ratio(fitted, mean)
    assert fitted.kept > mean.kept + 0.2 and list(fitted.tokens_W) == list(mean.tokens_W)
    assert ratio + 4 * error < 1


def test_neutral_verdicts_shrink_the_gradient_and_missing_ones_do_not(worlds):
    none, many = Bench(missing=0), Bench(missing=0.3)
    shrunk = {
        way.name: signal(way, 4, many, worlds, 400).gain_W.mean() / signal(way, 4, none, worlds, 400).gain_W.mean()
        for way in (PUBLISHED, RING_LEAST_SQUARES)
    }
    assert shrunk[PUBLISHED.name] < 0.8 and shrunk[RING_LEAST_SQUARES.name] > 0.88


def test_half_the_rings_calls_buy_more_signal_for_the_same_tokens(worlds):
    ratio, error = noise_ratio(*(signal(way, 4, Bench(), worlds, 600) for way in (MATCHING, PUBLISHED)))
    assert ratio + 3 * error < 1


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_the_default_lets_no_more_than_a_twentieth_of_a_point_of_the_liking_for_a_place_through(missing):
    assert bias_leak(DEFAULT, 4, Bench(missing=missing), 400, seed=1) <= 0.05


def test_the_leak_is_seen_where_there_is_one_and_none_where_there_is_no_place():
    assert bias_leak(PUBLISHED, 4, Bench(missing=0.2), 100, seed=2) > 0.08
    assert bias_leak(SINGLE, 4, Bench(missing=0.2), 20, seed=2) == 0
    assert bias_leak(PUBLISHED, 4, Bench(NoisyJudge(bias=0), missing=0.2), 20, seed=2) == 0


def test_a_flawless_judge_is_exact_and_never_flips():
    looks = looks_of(NoisyJudge(noise=0, mood=0, bias=0), seed=1, num=2000)
    assert looks["exact"] == 1 and looks["flips"] == 0 and 0.2 < looks["ties"] < 0.5


def test_the_program_ends_with_one_json_line(monkeypatch, capsys):
    flags = "--completions 2 --worlds 2 --groups 5 --seeds 2 --leak_groups 5 --mark 3.02"
    monkeypatch.setattr(program, "RATES", (0.04,))
    monkeypatch.setattr(program, "SETTLING_GROUPS", 5)
    monkeypatch.setattr(sys, "argv", ["signal", *flags.split()])
    program.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(figures[name] > 0 for name in ("tokens_ratio", "variance_ratio")) and figures["bias_leak"] >= 0
