"""Causal attention over a packed row, one sequence at a time.

The stock `sdpa` keeps packed sequences apart by a [T, T] mask: it computes every pair of tokens of the row, those of
different sequences too, and CUDA's flash kernel refuses it. Cut at the borders, each sequence is attended to alone: the
cost is the sum of the squared lengths, there is no mask, and no token can see another sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PER_SEQUENCE = "per_sequence_sdpa"


def per_sequence_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    sequence_lengths: Sequence[int],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface. `query` is [1, heads, T, D]; `key` and `value` may have fewer heads.

    `sequence_lengths` (summing to T) has no default: whoever forgets it gets a TypeError, not completions that see
    each other.
    """
    lengths = list(sequence_lengths)
    pieces = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=True)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


def is_plain_causal(config: Any) -> bool:
    """Whether every layer of a Transformers configuration attends to all tokens before it, and nothing else."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kinds == {"full_attention"} and window is None and not getattr(config, "attn_logit_softcapping", None)


AttentionInterface.register(PER_SEQUENCE, per_sequence_attention)
