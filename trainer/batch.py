"""From scored completions to what each learner rank computes: shares, mini-batches and packed micro-batches.

Torch-free: the driver cuts, the ranks make tensors of it. How a batch is cut changes nothing in the gradient, because
each completion's loss is divided by the completions of the whole optimizer step.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from wire.generation import logprob_array, token_array


@dataclass(frozen=True)
class Sample:
    """One completion to train on (driver -> learner rank).

    `sampled_logprobs` has one entry a completion token, from the replica. Both are kept as arrays, as in a
    `wire.generation.Completion`. Example: `Sample((5, 6), token_array((7, 2)), logprob_array((-0.3, -0.1)), 1.25)`.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: array[int]
    sampled_logprobs: array[float]
    advantage: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "completion_ids", token_array(self.completion_ids))
        object.__setattr__(self, "sampled_logprobs", logprob_array(self.sampled_logprobs))

    @property
    def num_tokens(self) -> int:
        """Prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)


MicroBatch = list[Sample]  # packed into one sequence; empty where a rank has less work than the others


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer step's work of one rank, or a part of it.

    `denominator`: completions of the whole optimizer step over all ranks, by which the loss is divided.
    """

    micro_batches: list[MicroBatch]
    denominator: int


def pack(samples: Sequence[Sample], token_budget: int) -> list[MicroBatch]:
    """First fit, longest first: micro-batches of at most `token_budget` tokens (a longer sample stands alone).

    In a micro-batch completions of one prompt are neighbours. Each counts with its prompt: whether that is shared
    depends on the learner's attention.
    """
    bins: list[tuple[int, MicroBatch]] = []
    for sample in sorted(samples, key=lambda s: -s.num_tokens):
        num_tokens = sample.num_tokens
        for index, (size, content) in enumerate(bins):
            if size + num_tokens <= token_budget:
                bins[index] = (size + num_tokens, [*content, sample])
                break
        else:
            bins.append((num_tokens, [sample]))
    return [sorted(content, key=lambda s: s.prompt_ids) for _, content in bins]


def share(samples: Sequence[Sample], num_ranks: int) -> list[list[Sample]]:
    """Split over the ranks so that tokens are balanced: longest first, each to the rank with the least."""
    shares: list[list[Sample]] = [[] for _ in range(num_ranks)]
    sizes = [0] * num_ranks
    for sample in sorted(samples, key=lambda s: -s.num_tokens):
        rank = sizes.index(min(sizes))
        shares[rank].append(sample)
        sizes[rank] += sample.num_tokens
    return shares


def pack_for_ranks(samples: Sequence[Sample], num_ranks: int, token_budget: int) -> list[list[MicroBatch]]:
    """Micro-batches for each rank, equally many: under ZeRO-3 every forward pass is a collective, so a rank that has
    fewer would leave the others waiting for ever. The missing ones are empty."""
    packed = [pack(part, token_budget) for part in share(samples, num_ranks)]
    most = max(len(micro_batches) for micro_batches in packed)
    return [micro_batches + [[] for _ in range(most - len(micro_batches))] for micro_batches in packed]


def build_batch(
    samples: Sequence[Sample],
    *,
    num_ranks: int,
    num_mini_batches: int,
    token_budget: int,
    denominator: int | None = None,
) -> list[list[MiniBatch]]:
    """`[rank][mini_batch]` of one step of the loop.

    Args:
        samples: completions with an advantage, in the order of admission.
        num_ranks: learner ranks.
        num_mini_batches: optimizer steps the batch is split into; empty parts are left out.
        token_budget: tokens of a packed micro-batch.
        denominator: what the loss is divided by; None: the samples of a mini-batch.
    """
    parts = [samples[index::num_mini_batches] for index in range(num_mini_batches)]
    per_rank: list[list[MiniBatch]] = [[] for _ in range(num_ranks)]
    for part in parts:
        if part:
            for rank, micro_batches in enumerate(pack_for_ranks(part, num_ranks, token_budget)):
                per_rank[rank].append(MiniBatch(micro_batches, denominator or len(part)))
    return per_rank
