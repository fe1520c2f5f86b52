"""The endless, seeded stream of prompts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.prompts import SEED_BITS, Prompt, PromptRenderer, PromptStream, hash_seed
from wire.errors import ConfigError

NUM = 7
EPOCH = [Prompt(index, ({"role": "user", "content": str(index)},), (index,)) for index in range(NUM)]


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert hash_seed(42, "train", 0, "0.0") == 1048142404664418207
    assert hash_seed() == 4119008146064567469


@given(st.lists(st.one_of(st.integers(), st.text()), max_size=4))
def test_a_seed_leaves_room_for_k_completions_in_63_bits(parts: list[object]) -> None:
    assert 0 <= hash_seed(*parts) < 2**SEED_BITS < 2**63 - 2**16


def test_neighbours_share_no_seed_and_spread_over_the_whole_range() -> None:
    seeds = [hash_seed(run, "train", occurrence) for run in range(10) for occurrence in range(1000)]
    assert len(set(seeds)) == len(seeds)
    assert {seed >> (SEED_BITS - 4) for seed in seeds} == set(range(16))
    mean = sum(seeds) / len(seeds) / 2**SEED_BITS
    assert mean == pytest.approx(0.5, abs=0.01)


def test_parts_are_kept_apart() -> None:
    assert hash_seed("a", "b") != hash_seed("ab") != hash_seed("a", "b", "")
    assert hash_seed(1, 23) != hash_seed(12, 3)


def take(stream: PromptStream, num: int) -> list[Prompt]:
    return list(itertools.islice(stream, num))


def test_each_epoch_holds_every_prompt_once_in_an_order_of_its_own() -> None:
    taken = take(PromptStream(EPOCH, seed=1), 5 * NUM)
    epochs = [tuple(prompt.token_ids for prompt in taken[start : start + NUM]) for start in range(0, 5 * NUM, NUM)]
    assert all(sorted(epoch) == [prompt.token_ids for prompt in EPOCH] for epoch in epochs)
    assert len(set(epochs)) == 5


def test_an_occurrence_is_the_place_in_the_stream_over_all_epochs() -> None:
    taken = take(PromptStream(EPOCH, seed=1), 3 * NUM)
    assert [prompt.occurrence for prompt in taken] == list(range(3 * NUM))
    assert all(prompt.conversation == EPOCH[prompt.token_ids[0]].conversation for prompt in taken)


def test_one_seed_gives_one_order_and_another_another() -> None:
    assert take(PromptStream(EPOCH, seed=1), 20) == take(PromptStream(EPOCH, seed=1), 20)
    assert take(PromptStream(EPOCH, seed=1), 20) != take(PromptStream(EPOCH, seed=2), 20)


@given(st.integers(0, 4 * NUM), st.integers(0, 4 * NUM))
def test_seeking_equals_skipping_forwards_or_backwards(place: int, already_read: int) -> None:
    stream = PromptStream(EPOCH, seed=3)
    take(stream, already_read)
    stream.seek(place)
    assert take(stream, 2 * NUM) == take(PromptStream(EPOCH, seed=3), place + 2 * NUM)[place:]


class Words:
    """A tokenizer whose token is a word; remembers what it was told."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {}

    def apply_chat_template(self, conversation: list[dict[str, str]], **told: Any) -> list[int]:
        self.told = told
        return [len(word) for turn in conversation for word in turn["content"].split()]


def conversation(num_words: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "word " * num_words}]


def test_prompts_that_are_too_long_are_dropped_and_counted_and_never_cut() -> None:
    renderer = PromptRenderer(Words(), enable_thinking=False, max_prompt_length=5)
    prompts, dropped = renderer.render_all([conversation(num) for num in (3, 6, 5, 100, 1)], "prompts")
    assert [len(prompt.token_ids) for prompt in prompts] == [3, 5, 1]
    assert dropped == 2
    assert [prompt.occurrence for prompt in prompts] == [0, 1, 2]
    assert prompts[0].conversation == tuple(conversation(3))


@pytest.mark.parametrize("enable_thinking", [False, True])
def test_the_template_is_asked_for_the_start_of_the_answer_and_told_about_thinking(enable_thinking: bool) -> None:
    words = Words()
    PromptRenderer(words, enable_thinking=enable_thinking, max_prompt_length=5).render(conversation(2))
    assert words.told["add_generation_prompt"] is True and words.told["enable_thinking"] is enable_thinking


def test_a_limit_that_no_prompt_fits_is_named() -> None:
    renderer = PromptRenderer(Words(), enable_thinking=False, max_prompt_length=2)
    with pytest.raises(ConfigError, match=r"max_prompt_length \(2\); raise it"):
        renderer.render_all([conversation(3)], "prompts")
