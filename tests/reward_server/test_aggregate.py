"""From verdicts to scores, by identities, by brute force and by simulation."""

import random
from itertools import combinations, product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.aggregate import (
    AGGREGATIONS,
    LOWEST_SCORE,
    SUM_WEIGHT,
    TIE_BREAK,
    TIE_BREAK_LIMIT,
    least_squares_scores,
    mean_scores,
)
from reward_server.pairings import drawn_order, pairing_named
from trainer.rloo import leave_one_out
from wire.judgement import PlacedVerdict, Verdict

SCORE = st.integers(1, 5)
PAIR = st.tuples(SCORE, SCORE, st.integers(1, 6))
POINTS = st.floats(-1, 1)


def placed(first, second, scores, ranking=None, missing=None, vote=0):
    scores = None if missing else tuple(map(float, scores))
    verdict = Verdict(scores=scores, ranking=ranking, missing=missing)
    return PlacedVerdict(first=first, second=second, vote=vote, verdict=verdict)


def mean(num, verdicts, tie_break=TIE_BREAK):
    return mean_scores(num, verdicts, tie_break=tie_break).scores


def naive_mean(num, verdicts):
    """The mean of all individual scores a completion got, whatever its place."""
    got = [[] for _ in range(num)]
    for v in verdicts:
        for k, score in zip((v.first, v.second), v.verdict.scores, strict=True):
            got[k].append(score)
    return [fmean(scores) if scores else None for scores in got]


def plan(pairing, num, seed, calls=0):
    order = drawn_order(num, seed)
    return pairing_named(pairing, calls=calls).pairs(order, {k: str(k) for k in order})


def full_ring(order, pairs):
    following = order[1:] + order[:1]
    return [placed(a, b, pair[:2], pair[2]) for a, b, pair in zip(order, following, pairs, strict=True)]


@st.composite
def rings(draw, min_size=2):
    num = draw(st.integers(min_size, 6))
    order = draw(st.permutations(range(num)))
    return full_ring(order, draw(st.lists(PAIR, min_size=num, max_size=num)))


@st.composite
def designs(draw, max_votes=3):
    """2 to 6 completions and some ordered pairs of them, each with a number of votes."""
    num = draw(st.integers(2, 6))
    every = [(a, b) for a in range(num) for b in range(num) if a != b]
    votes = draw(st.lists(st.integers(0, max_votes), min_size=len(every), max_size=len(every)))
    return num, [(a, b, vote) for (a, b), count in zip(every, votes, strict=True) for vote in range(count)]


@given(aggregation=st.sampled_from(sorted(AGGREGATIONS)), design=designs(), data=st.data(), names=st.randoms())
def test_renaming_the_completions_renames_the_scores(aggregation, design, data, names: random.Random):
    num, pairs = design
    said = data.draw(st.lists(PAIR, min_size=len(pairs), max_size=len(pairs)))
    verdicts = [placed(a, b, (s1, s2), r, vote=vote) for (a, b, vote), (s1, s2, r) in zip(pairs, said, strict=True)]
    new = list(range(num))
    names.shuffle(new)
    renamed = [v.model_copy(update={"first": new[v.first], "second": new[v.second]}) for v in verdicts]
    names.shuffle(renamed)
    scores = AGGREGATIONS[aggregation](num, verdicts, tie_break=TIE_BREAK)
    moved = AGGREGATIONS[aggregation](num, renamed, tie_break=TIE_BREAK)
    assert [moved.scores[new[k]] for k in range(num)] == pytest.approx(scores.scores)
    if scores.standard_errors is not None:
        errors = [moved.standard_errors[new[k]] for k in range(num)]
        assert errors == pytest.approx(scores.standard_errors, abs=1e-6)


@given(
    aggregation=st.sampled_from(sorted(AGGREGATIONS)),
    worth=st.lists(st.floats(1, 5), min_size=3, max_size=8),
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
def test_the_order_of_the_ring_does_not_matter_when_verdicts_agree(aggregation, worth, seeds):
    scores = [
        AGGREGATIONS[aggregation](
            len(worth),
            [placed(a, b, (worth[a], worth[b])) for a, b in plan("ring", len(worth), seed)],
            tie_break=TIE_BREAK,
        ).scores
        for seed in seeds
    ]
    assert list(scores[0]) == pytest.approx(worth) == list(scores[1])


@given(
    pairing=st.sampled_from(["ring", "all_pairs", "both_orders", "ring_extra"]),
    seed=st.integers(0, 99),
    bias=POINTS,
    data=st.data(),
)
def test_in_the_mean_a_liking_for_one_place_cancels_whatever_the_pairing_and_the_votes(pairing, seed, bias, data):
    worth = data.draw(st.lists(st.floats(2, 4), min_size=2, max_size=8))
    verdicts = [
        placed(a, b, (worth[a] + bias, worth[b]), vote=vote)
        for a, b in plan(pairing, len(worth), seed, calls=10)
        for vote in range(data.draw(st.integers(1, 3)))
    ]
    assert list(mean(len(worth), verdicts, 0.0)) == pytest.approx([w + bias / 2 for w in worth])


def test_the_naive_mean_over_all_pairs_in_one_order_is_ruled_by_the_place():
    """What the mean over places and the pairing guard against: with four equals, a bias of 0.5 makes a ranking."""
    verdicts = [placed(a, b, (3.5, 3.0)) for a, b in combinations(range(4), 2)]
    assert naive_mean(4, verdicts) == pytest.approx([3.5, 3 + 1 / 3, 3 + 1 / 6, 3.0])
    balanced = [placed(a, b, (3.5, 3.0)) for a, b in plan("all_pairs", 4, seed=1)]
    assert len(balanced) == 6 and list(mean(4, balanced, 0.0)) == [3.25] * 4
    assert naive_mean(4, balanced) != [3.25] * 4


@given(verdicts=rings())
def test_a_broken_tie_never_outranks_a_real_point(verdicts):
    num = len(verdicts)
    assert_real_points_stay(num, verdicts)


@given(design=designs(), data=st.data())
def test_a_broken_tie_never_outranks_a_real_point_however_many_votes(design, data):
    num, pairs = design
    said = data.draw(st.lists(PAIR, min_size=len(pairs), max_size=len(pairs)))
    assert_real_points_stay(
        num, [placed(a, b, (s1, s2), r, vote=vote) for (a, b, vote), (s1, s2, r) in zip(pairs, said, strict=True)]
    )


def test_no_two_verdicts_on_a_pair_let_a_broken_tie_outrank_a_real_point():
    every = list(product(range(1, 6), range(1, 6), range(1, 7)))
    ties = [said for said in every if said[0] == said[1]]
    for (s1, s2, r), (z1, z2, z) in [*product(ties, every), *product(every, ties)]:
        assert_real_points_stay(2, [placed(0, 1, (s1, s2), r), placed(1, 0, (z1, z2), z)])


def assert_real_points_stay(num, verdicts):
    plain, broken, nearly = (mean(num, verdicts, t) for t in (0.0, TIE_BREAK, TIE_BREAK_LIMIT - 1e-6))
    for a in range(num):
        for b in range(num):
            if plain[a] is not None and plain[b] is not None and plain[a] >= plain[b] + 0.5:
                assert broken[a] > broken[b] and nearly[a] > nearly[b]


def test_the_worst_case_of_the_proof_is_met_at_the_limit():
    verdicts = [placed(0, 2, (4, 4), 6), placed(2, 0, (3, 3), 1), placed(1, 3, (3, 3), 1), placed(3, 1, (3, 3), 6)]
    at_limit = mean(4, verdicts, TIE_BREAK_LIMIT)
    assert at_limit[0] == pytest.approx(at_limit[1]) == pytest.approx(3.25)
    below = mean(4, verdicts)
    assert below[0] == pytest.approx(3.3) and below[1] == pytest.approx(3.2)


@given(score=SCORE, ranking=st.integers(1, 3))
def test_a_tie_is_broken_towards_the_ranking_and_by_as_much_either_way(score, ranking):
    verdicts = [placed(0, 1, (score, score), ranking), placed(1, 0, (score, score), 7 - ranking)]
    better, worse = mean(2, verdicts)
    assert better == pytest.approx(score + TIE_BREAK * (3.5 - ranking))
    assert worse == pytest.approx(max(LOWEST_SCORE, score - TIE_BREAK * (3.5 - ranking)))


@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
def test_unequal_scores_are_not_touched_by_the_ranking(aggregation):
    verdicts = [placed(0, 1, (5, 1), 6), placed(1, 0, (2, 4), 1)]
    assert AGGREGATIONS[aggregation](2, verdicts, tie_break=TIE_BREAK).scores == pytest.approx((4.5, 1.5))


@given(verdicts=rings(min_size=3), data=st.data())
def test_in_the_mean_a_missing_verdict_takes_the_score_of_the_two_it_touches_and_of_nobody_else(verdicts, data):
    num, hole = len(verdicts), data.draw(st.integers(0, len(verdicts) - 1))
    touched = {verdicts[hole].first, verdicts[hole].second}
    whole = mean(num, verdicts)
    holed = [*verdicts]
    holed[hole] = placed(verdicts[hole].first, verdicts[hole].second, (), missing="timeout")
    expected = tuple(None if k in touched else whole[k] for k in range(num))
    assert mean(num, holed) == expected
    assert mean(num, holed[:hole] + holed[hole + 1 :]) == expected


@pytest.mark.parametrize("aggregation", sorted(AGGREGATIONS))
def test_judgements_of_one_alone_count_by_themselves_and_what_nobody_judged_has_no_score(aggregation):
    def scores(num, *verdicts):
        return AGGREGATIONS[aggregation](num, verdicts, tie_break=TIE_BREAK).scores

    assert scores(3, placed(1, None, (4,)), placed(1, None, (3,), vote=1)) == (None, 3.5, None)
    assert scores(1, placed(0, None, (), missing="unreadable")) == (None,)
    assert scores(2) == (None, None)


@given(aggregation=st.sampled_from(sorted(AGGREGATIONS)), verdicts=rings())
def test_nothing_scores_below_the_lowest_score(aggregation, verdicts):
    scores = AGGREGATIONS[aggregation](len(verdicts), verdicts, tie_break=TIE_BREAK).scores
    assert all(score >= LOWEST_SCORE for score in scores)


def leaks(missing_share, *, worth_of, bias, num_groups=3000):
    """Mean size of the advantage that a liking for place 1 makes up, as a share of it: of the mean, of the naive mean.

    Each group is judged by two judges that differ in the bias alone, with the same holes. Missing in the mean are the
    completions without a score.
    """
    rng = random.Random(5)
    spurious = {"mean": [], "naive": []}
    for seed in range(num_groups):
        worth = [worth_of(rng) for _ in range(4)]
        held = [pair for pair in plan("ring", 4, seed) if rng.random() >= missing_share]
        wobble = {pair: rng.uniform(-0.5, 0.5) for pair in held}
        judged = []
        for liking in (bias, 0.0):
            verdicts = []
            for a, b in held:
                ranking = min(6, max(1, round(3.5 - (worth[a] + liking - worth[b] + wobble[a, b]))))
                verdicts.append(placed(a, b, (worth[a] + liking, worth[b]), ranking))
            judged.append(verdicts)
        for name, scores_of in (("mean", mean), ("naive", naive_mean)):
            biased, unbiased = (leave_one_out(scores_of(4, verdicts)) for verdicts in judged)
            spurious[name] += [abs(b - u) for b, u in zip(biased, unbiased, strict=True) if b is not None]
    assert len(spurious["mean"]) > num_groups
    return {name: fmean(found) / bias for name, found in spurious.items()}


@pytest.mark.parametrize(("missing_share", "naive_leak"), [(0.05, 0.06), (0.2, 0.23)])
def test_with_verdicts_missing_a_liking_for_one_place_leaks_under_a_tenth_of_it_into_the_advantages(
    missing_share, naive_leak
):
    fine = leaks(missing_share, worth_of=lambda rng: rng.uniform(1.5, 4), bias=0.5)
    assert fine["mean"] < 1e-9
    assert fine["naive"] == pytest.approx(naive_leak, abs=0.02)
    # With whole points the bias also makes and unmakes ties, which the ranking then breaks.
    whole = leaks(missing_share, worth_of=lambda rng: rng.randint(1, 4), bias=1.0)
    assert 0 < whole["mean"] < 0.1 and whole["naive"] == pytest.approx(naive_leak, abs=0.02)


@given(design=designs(max_votes=2), bias=POINTS, data=st.data())
def test_least_squares_recovers_what_is_planted_under_a_bias_or_gives_no_score(design, bias, data):
    num, pairs = design
    worth = data.draw(st.lists(st.floats(2, 4), min_size=num, max_size=num))
    verdicts = [placed(a, b, (worth[a] + bias, worth[b]), vote=vote) for a, b, vote in pairs]
    scores = least_squares_scores(num, verdicts, tie_break=0.0).scores
    in_first, in_second = {a for a, _, _ in pairs}, {b for _, b, _ in pairs}
    for k in range(num):
        if in_first & in_second and k in in_first | in_second:
            assert scores[k] == pytest.approx(worth[k] + bias / 2)
        else:
            assert scores[k] is None


@given(design=designs(max_votes=2), bias=POINTS, data=st.data())
def test_least_squares_gives_half_a_liking_for_place_1_to_everybody_whatever_else_was_said(design, bias, data):
    num, pairs = design
    scores = st.tuples(st.floats(2.9, 3.1), st.floats(2.9, 3.1))  # so near that none meets the floor
    said = data.draw(st.lists(scores, min_size=len(pairs), max_size=len(pairs)))
    without, biased = (
        least_squares_scores(
            num, [placed(a, b, (s1 + p, s2)) for (a, b, _), (s1, s2) in zip(pairs, said, strict=True)], tie_break=0.0
        ).scores
        for p in (0.0, bias)
    )
    shifted = [None if score is None else score + bias / 2 for score in without]
    assert list(biased) == pytest.approx(shifted)


@given(num=st.integers(2, 6), data=st.data())
def test_least_squares_over_both_orders_weighs_leads_and_sums_as_the_normal_equations_say(num, data):
    """By hand: (2 K + 2 w (K - 2)) (q_i - level) = leads of i + w (sums of i's verdicts less the average of those)."""
    pairs = plan("both_orders", num, 0)
    said = data.draw(st.lists(st.tuples(st.floats(3, 4), st.floats(3, 4)), min_size=len(pairs), max_size=len(pairs)))
    leads, sums = [0.0] * num, [0.0] * num
    for (a, b), (s1, s2) in zip(pairs, said, strict=True):
        leads[a] += s1 - s2
        leads[b] += s2 - s1
        sums[a] += s1 + s2
        sums[b] += s1 + s2
    level = fmean(score for scores in said for score in scores)
    expected = [
        level + (leads[k] + SUM_WEIGHT * (sums[k] - fmean(sums))) / (2 * num + 2 * SUM_WEIGHT * (num - 2))
        for k in range(num)
    ]
    verdicts = [placed(a, b, scores) for (a, b), scores in zip(pairs, said, strict=True)]
    assert list(least_squares_scores(num, verdicts, tie_break=0.0).scores) == pytest.approx(expected)


def noisy_errors(pairing, num, num_groups):
    """(squared error of a score, squared standard error) of least squares, moods being as large as the noise."""
    rng = random.Random(3)
    for seed in range(num_groups):
        worth = [rng.uniform(2.5, 3.5) for _ in range(num)]
        verdicts = []
        for a, b in plan(pairing, num, seed, calls=num + 4):
            mood = rng.gauss(0, 0.2)
            said = [worth[a] + 0.3 + mood + rng.gauss(0, 0.2), worth[b] + mood + rng.gauss(0, 0.2)]
            verdicts.append(placed(a, b, said))
        result = least_squares_scores(num, verdicts, tie_break=0.0)
        for k in range(num):
            yield (result.scores[k] - 0.15 - worth[k]) ** 2, result.standard_errors[k] ** 2


@pytest.mark.parametrize("pairing", ["ring", "ring_extra", "all_pairs", "both_orders"])
def test_standard_errors_are_the_size_of_the_errors(pairing):
    squared, predicted = zip(*noisy_errors(pairing, 5, 1500), strict=True)
    assert fmean(predicted) == pytest.approx(fmean(squared), rel=0.1)


def test_there_is_no_standard_error_without_a_degree_of_freedom():
    # Two verdicts, four equations; three scores and the liking for place 1.
    path = least_squares_scores(4, [placed(0, 1, (4, 2)), placed(1, 2, (3, 3))], tie_break=0.0)
    assert None not in path.scores[:3] and path.scores[3] is None
    assert path.standard_errors == (None,) * 4
    one = least_squares_scores(2, [placed(0, 1, (4, 2))], tie_break=0.0)
    assert one.scores == one.standard_errors == (None, None)


def test_least_squares_may_leave_the_scale_upwards_only():
    won = [(0, 1), (1, 2), (0, 2)]
    verdicts = [placed(a, b, (5, 1)) for a, b in won] + [placed(b, a, (1, 5)) for a, b in won]
    best, middle, worst = least_squares_scores(3, verdicts, tie_break=0.0).scores
    assert best == pytest.approx(3 + 16 / (6 + 2 * SUM_WEIGHT)) and best > 5
    assert middle == pytest.approx(3) and worst == LOWEST_SCORE


def test_least_squares_gives_completions_of_equal_worth_the_same_score_to_the_last_bit():
    """A group without signal must look like one: its rewards are compared with ==."""
    for num in range(2, 9):
        order = drawn_order(num, num)
        verdicts = full_ring(order, [(3, 3, 3)] * num)
        for tie_break in (0.0, TIE_BREAK):
            assert set(least_squares_scores(num, verdicts, tie_break=tie_break).scores) == {3.0}
