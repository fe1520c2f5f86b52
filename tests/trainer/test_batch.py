"""Cutting a step into shares and packs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trainer.batch import Sample, build_batch, pack, pack_for_ranks


def sample(num_tokens: int, name: int = 0) -> Sample:
    return Sample((name,), tuple(range(num_tokens - 1)), (0.0,) * (num_tokens - 1), 1.0)


SAMPLES = st.lists(st.integers(2, 40), min_size=1, max_size=30).map(
    lambda sizes: [sample(size, name) for name, size in enumerate(sizes)]
)


@given(SAMPLES, st.integers(8, 64))
def test_packing_keeps_every_sample_once_and_within_the_budget(samples: list[Sample], budget: int) -> None:
    packs = pack(samples, budget)
    assert sorted(s.prompt_ids for p in packs for s in p) == sorted(s.prompt_ids for s in samples)
    assert all(sum(s.num_tokens for s in p) <= budget or len(p) == 1 for p in packs)


def test_the_longest_fit_first_and_completions_of_one_prompt_are_neighbours_within_a_micro_batch() -> None:
    samples = [sample(size, name) for size, name in [(9, 1), (20, 2), (12, 1), (11, 3), (4, 2), (10, 1)]]
    names = [[(s.prompt_ids[0], s.num_tokens) for s in p] for p in pack(samples, 40)]
    assert names == [[(1, 12), (2, 20), (2, 4)], [(1, 10), (1, 9), (3, 11)]]


@given(SAMPLES, st.integers(1, 4), st.integers(8, 64))
def test_all_ranks_run_equally_many_micro_batches(samples: list[Sample], ranks: int, budget: int) -> None:
    shares = pack_for_ranks(samples, ranks, budget)
    assert len({len(share) for share in shares}) == 1
    assert sorted(s.prompt_ids for share in shares for p in share for s in p) == sorted(s.prompt_ids for s in samples)


@given(SAMPLES, st.integers(1, 3), st.integers(1, 3))
def test_the_denominator_counts_the_completions_of_the_optimizer_step_over_all_ranks(
    samples: list[Sample], ranks: int, mini_batches: int
) -> None:
    batch = build_batch(samples, num_ranks=ranks, num_mini_batches=mini_batches, token_budget=32)
    for parts in zip(*batch, strict=True):
        assert {part.denominator for part in parts} == {sum(len(m) for part in parts for m in part.micro_batches)}
    assert sum(part.denominator for part in batch[0]) == len(samples)
