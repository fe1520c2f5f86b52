"""Causal attention over a packed row, one sequence at a time.

The stock `sdpa` keeps packed sequences apart by a [T, T] mask: it computes every pair of tokens of the row, those of
different sequences too, and CUDA's flash kernel refuses it. Cut at the borders, each sequence is attended to alone: the
cost is the sum of the squared lengths, and no token can see another sequence.

Completions of one prompt can share its tokens: the row has them once, before the first completion, and the others go on
from there as if they stood behind it.

    prompt, completion 1 | completion 2 | completion 3 | prompt, completion 1 | ...
    `------ <-------------------------------'

What is shared are the layers' matrix products. Attention is computed over prompt and completion for each, and what it
gives for the prompt left out: without its queries each would need a mask, which costs the flash kernel, the half of the
pairs that causal attention skips, and memory that grows with the square of the length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PER_SEQUENCE = "per_sequence_sdpa"


class Segment(NamedTuple):
    """`length` tokens of a row that follow one another. With `shared` they go on from that many tokens, the first of
    the nearest segment before that shares none."""

    length: int
    shared: int = 0


def per_sequence_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Sequence[Segment],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface. `query` is [1, heads, T, D]; `key` and `value` may have fewer heads.

    `segments` (their lengths summing to T) has no default: whoever forgets it gets a TypeError, not completions that
    see each other.
    """
    lengths = [segment.length for segment in segments]
    pieces: list[Tensor] = []
    first: tuple[Tensor, ...] = ()
    for (_length, shared), *own in zip(segments, *(row.split(lengths, 2) for row in (query, key, value)), strict=True):
        if shared:
            q, k, v = (torch.cat((a[:, :, :shared], b), 2) for a, b in zip(first, own, strict=True))
        else:
            q, k, v = first = tuple(own)
        seen = scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=True)
        pieces.append(seen[:, :, shared:])
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


def is_plain_causal(config: Any) -> bool:
    """Whether every layer of a Transformers configuration attends to all tokens before it, and nothing else."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kinds == {"full_attention"} and window is None and not getattr(config, "attn_logit_softcapping", None)


AttentionInterface.register(PER_SEQUENCE, per_sequence_attention)
