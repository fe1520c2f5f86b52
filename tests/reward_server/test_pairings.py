"""Who is compared with whom, by brute force over what the completions in the making may turn out to be."""

import subprocess
import sys
from collections import Counter
from itertools import combinations, permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.pairings import PAIRINGS, drawn_order, pairing_named
from reward_server.seeds import derived_seed
from wire.errors import ConfigError

SEEDS = st.integers(0, 2**63 - 1)
NAMES = st.sampled_from(sorted(PAIRINGS))
CALLS = st.integers(0, 15)
ORDERS = st.integers(0, 6).flatmap(lambda num: st.permutations(range(num)))
UNLIKE = "an answer like no other "


def plan(name, order, answers, calls=0):
    return pairing_named(name, calls=calls).pairs(order, answers)


def contenders(order, answers):
    """Written anew: the first in the order of each answer."""
    firsts = {}
    for k in order:
        if answers[k] is not None:
            firsts.setdefault(answers[k], k)
    return sorted(firsts.values(), key=order.index)


@st.composite
def answered(draw, choices=("a", "b", "c", None)):
    """An order, every answer, and an order of arrival."""
    order = draw(ORDERS)
    answers = {k: draw(st.sampled_from(choices)) for k in order}
    return order, answers, draw(st.permutations(order))


@st.composite
def distinct(draw):
    """The same without duplicates: each completion has an answer of its own, or none."""
    order, empty, arrival = draw(answered(("some", None)))
    return order, {k: None if answer is None else f"{UNLIKE}{k}" for k, answer in empty.items()}, arrival


@given(num=st.integers(0, 20), seed=SEEDS)
def test_an_order_holds_each_completion_once_and_depends_on_its_seed_alone(num, seed):
    assert sorted(drawn_order(num, seed)) == list(range(num))
    assert drawn_order(num, seed) == drawn_order(num, seed)


def test_every_order_is_drawn_about_equally_often():
    counts = Counter(tuple(drawn_order(3, seed)) for seed in range(6000))
    assert len(counts) == 6 and all(850 < count < 1150 for count in counts.values())


def test_order_and_extra_pairs_are_the_same_in_another_process():
    code = (
        "from reward_server.pairings import drawn_order, pairing_named; order = drawn_order(9, 77);"
        "print(order, pairing_named('ring_extra', calls=30).pairs(order, {k: str(k) for k in order}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": salt}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for salt in ("1", "2")
    }
    order = drawn_order(9, 77)
    assert outputs == {f"{order} {plan('ring_extra', order, {k: str(k) for k in order}, 30)}"}


@given(name=NAMES, calls=CALLS, group=answered())
def test_only_contenders_are_judged_and_a_sole_one_is_judged_alone(name, calls, group):
    order, answers, _ = group
    pairs, expected = plan(name, order, answers, calls), contenders(order, answers)
    assert {k for pair in pairs for k in pair if k is not None} == set(expected)
    assert len(set(pairs)) == len(pairs) and all(a != b for a, b in pairs)
    if len(expected) == 1:
        assert pairs == [(expected[0], None)]


@given(group=answered())
def test_the_ring_is_the_order_closed_over_those_left_out(group):
    order, answers, _ = group
    row = contenders(order, answers)
    if len(row) > 1:
        assert plan("ring", order, answers) == list(zip(row, row[1:] + row[:1], strict=True))


@given(group=answered())
def test_single_judges_each_contender_alone_and_both_orders_each_pair_twice(group):
    order, answers, _ = group
    row = contenders(order, answers)
    assert plan("single", order, answers) == [(k, None) for k in row]
    if len(row) > 1:
        assert sorted(plan("both_orders", order, answers)) == sorted(permutations(row, 2))


@given(group=answered(("a", "b", "c", "d", "e", None)))
def test_all_pairs_compares_each_pair_once_and_each_contender_in_both_places(group):
    order, answers, _ = group
    row, pairs = contenders(order, answers), plan("all_pairs", order, answers)
    if len(row) > 2:
        assert sorted(map(sorted, pairs)) == sorted(map(sorted, combinations(row, 2)))
    if len(row) == 2:
        assert sorted(pairs) == sorted(permutations(row))
    if len(row) > 1:
        assert {a for a, _ in pairs} == {b for _, b in pairs} == set(row)


@given(order=ORDERS.filter(lambda order: len(order) > 2))
def test_all_pairs_of_a_whole_group_gives_everybody_both_places_equally_often_but_for_one(order):
    pairs = plan("all_pairs", order, {k: str(k) for k in order})
    firsts = Counter(a for a, _ in pairs)
    odd = (len(order) - 1) % 2
    assert all(abs(firsts[k] - (len(order) - 1 - firsts[k])) == odd for k in order)


@given(group=answered(("a", "b", "c", "d", "e", None)), calls=CALLS)
def test_ring_extra_holds_the_ring_and_fills_its_calls(group, calls):
    order, answers, _ = group
    num, ring = len(contenders(order, answers)), plan("ring", order, answers)
    pairs = plan("ring_extra", order, answers, calls)
    assert pairs[: len(ring)] == ring
    if num > 1:
        assert len(pairs) == min(max(calls, num), num * (num - 1))


def test_every_extra_pair_is_drawn_about_equally_often():
    answers = {k: str(k) for k in range(4)}
    counts = Counter(
        (order.index(a) - order.index(b)) % 4
        for order in permutations(range(4))
        for a, b in plan("ring_extra", order, answers, 6)[4:]
    )
    # Eight pairs are not in a ring of four: four of neighbours the other way round, four of opposites.
    assert sum(counts.values()) == 48 and set(counts) == {1, 2} and 14 <= counts[1] <= 34


@given(name=NAMES, calls=CALLS, group=distinct())
def test_a_pair_that_was_certain_stays(name, calls, group):
    order, answers, arrival = group
    known, earlier = {}, set()
    for k in arrival:
        known[k] = answers[k]
        now = set(plan(name, order, known, calls))
        assert earlier <= now
        earlier = now
    assert earlier == set(plan(name, order, answers, calls))


@given(name=NAMES, calls=CALLS, group=answered())
def test_a_certain_pair_goes_only_when_a_duplicate_turns_up_that_stands_earlier_in_the_order(name, calls, group):
    order, answers, arrival = group
    known, earlier = {}, set()
    for k in arrival:
        takes_over = any(
            answers[k] is not None and answers[k] == answers[other] and order.index(k) < order.index(other)
            for other in known
        )
        known[k] = answers[k]
        now = set(plan(name, order, known, calls))
        assert takes_over or earlier <= now
        earlier = now


@given(name=NAMES, calls=CALLS, group=distinct(), num_known=st.integers(0, 6))
def test_what_is_certain_is_what_all_outcomes_share(name, calls, group, num_known):
    order, answers, arrival = group
    known = {k: answers[k] for k in arrival[:num_known]}
    unknown = arrival[num_known:]
    shared = set.intersection(
        *(
            set(plan(name, order, known | dict(zip(unknown, outcome, strict=True)), calls))
            for outcome in product(*[(f"{UNLIKE}{k}", None) for k in unknown])
        )
    )
    certain = set(plan(name, order, known, calls))
    if name == "ring_extra":  # may wait longer than it must
        assert certain <= shared
    else:
        assert certain == shared


def test_a_name_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'rings'.*single, ring, ring_extra, all_pairs, both_orders"):
        pairing_named("rings")


@given(seed=SEEDS, first=st.integers(0, 9), second=st.integers(0, 9))
def test_derived_seeds_fit_63_bits_and_tell_their_parts_apart(seed, first, second):
    assert 0 <= derived_seed("pair", seed, first, second) < 2**63
    if first != second:
        assert derived_seed("pair", seed, first, second) != derived_seed("pair", seed, second, first)
