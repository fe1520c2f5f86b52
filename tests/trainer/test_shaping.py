"""Length terms, by identities and against TRL's own words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rloo import leave_one_out
from trainer.shaping import characters_of, flipped_share, length_terms, relative_brevity, thought_of

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=8)


def completion(answer, thought=None):
    return "y" * answer if thought is None else f"<think>\n{'x' * thought}\n</think>\n\n{'y' * answer}"


def terms(texts, judged=None, **options):
    return length_terms(list(map(characters_of, texts)), [1] * len(texts), judged or [True] * len(texts), **options)


@given(LENGTHS)
def test_brevity_sums_to_nothing_spans_one_and_falls_with_length(lengths):
    brevity = relative_brevity(lengths)
    assert sum(brevity) == pytest.approx(0, abs=1e-9)
    assert max(brevity) - min(brevity) == pytest.approx(float(len(set(lengths)) > 1))
    assert [brevity[k] for k in sorted(range(len(lengths)), key=lambda k: lengths[k])] == sorted(brevity, reverse=True)


def test_brevity_of_a_group_by_hand():
    assert relative_brevity([10, 20, 30, 40]) == pytest.approx([1 / 2, 1 / 6, -1 / 6, -1 / 2])


def test_the_terms_are_off_by_default():
    assert terms([completion(1, 50), completion(400)]) == [0, 0]


def test_answers_and_thoughts_are_measured_apart_in_characters_without_the_space_around_them():
    texts = ["<think>aaaa</think>  b ", "  aa\n</think>bbb", "<think>\naaa\n</think>\n\nbb"]
    assert terms(texts, answer_weight=1) == pytest.approx([0.5, -0.5, 0])
    assert terms(texts, thought_weight=1) == pytest.approx([-0.5, 0.5, 0])
    assert terms(texts, answer_weight=0.3, thought_weight=0.3) == pytest.approx([0, 0, 0])


@given(LENGTHS, st.floats(0, 2))
def test_without_thoughts_their_weight_does_nothing(lengths, weight):
    assert terms([completion(length) for length in lengths], thought_weight=weight) == [0] * len(lengths)


def test_a_thought_ends_at_the_last_mark_as_for_the_judge():
    assert thought_of("<think>one</think> two </think> answer") == "one</think> two"
    assert thought_of("no thought") == "" == thought_of("<think>never closed")


@given(lengths=LENGTHS, other=st.integers(0, 10_000))
def test_a_completion_that_was_not_judged_gets_no_term_and_moves_nobody_else(lengths, other):
    texts = [completion(length) for length in lengths]
    alone = terms(texts, answer_weight=0.5)
    with_other = terms([*texts, completion(other)], [True] * len(lengths) + [False], answer_weight=0.5)
    assert with_other == [*alone, 0]


@pytest.mark.parametrize(("num_tokens", "share"), [(80, 0), (81, 0.05), (90, 0.5), (100, 1), (300, 1)])
def test_overlong_punishment_falls_from_nothing_to_the_weight_within_the_cache(num_tokens, share):
    for judged in (True, False):
        found = length_terms([characters_of("any")], [num_tokens], [judged], overlong=(100, 20, 0.8))
        assert found == pytest.approx([-0.8 * share])


@given(LENGTHS, st.data())
def test_the_terms_add_up(lengths, data):
    texts = [completion(length, data.draw(st.integers(0, 90))) for length in lengths]
    options = ({"answer_weight": 0.5}, {"thought_weight": 0.2}, {"overlong": (100, 50, 1.0)})
    characters = [characters_of(text) for text in texts]
    parts = [length_terms(characters, lengths, [True] * len(texts), **option) for option in options]
    together = length_terms(characters, lengths, [True] * len(texts), **options[0], **options[1], **options[2])
    assert together == pytest.approx([sum(part) for part in zip(*parts, strict=True)])


def test_flips_are_counted_over_the_advantages_there_are():
    assert flipped_share([1.0, -1.0, 0.5, None, 0.0], [1.0, 1.0, 0.0, None, 2.0]) == (1, 4)


def test_a_small_weight_turns_no_advantage_and_a_large_one_does():
    scores = [4.0, 3.0, 2.0, 1.0]
    texts = [completion(length) for length in (400, 300, 200, 100)]
    plain = leave_one_out(scores)
    for weight, flips in ((0.5, 0), (4.0, 4)):
        shaped = leave_one_out([s + t for s, t in zip(scores, terms(texts, answer_weight=weight), strict=True)])
        assert flipped_share(shaped, plain) == (flips, 4)
