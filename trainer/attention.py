"""Causal attention over a packed row, one sequence at a time.

The stock `sdpa` keeps packed sequences apart by a [T, T] mask: it computes every pair of tokens of the row, those of
different sequences too, and CUDA's flash kernel refuses it. Cut at the borders, each sequence is attended to alone: the
cost is the sum of the squared lengths, and no token can see another sequence.

Completions of one prompt can share its tokens: the row has them once, before the first completion, and the others go on
from there as if they stood behind it.

    prompt, completion 1 | completion 2 | completion 3 | prompt, completion 1 | ...
    `------ <-------------------------------'
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PER_SEQUENCE = "per_sequence_sdpa"


class Span(NamedTuple):
    """`length` tokens of a row that follow one another. With `shared` they go on from that many tokens, the first of
    the nearest span before that shares none."""

    length: int
    shared: int = 0


def per_sequence_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    spans: Sequence[Span],
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface. `query` is [1, heads, T, D]; `key` and `value` may have fewer heads.

    `spans` (their lengths summing to T) has no default: whoever forgets it gets a TypeError, not completions that see
    each other.
    """
    lengths = [span.length for span in spans]
    pieces = [
        scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=mask is None, enable_gqa=True
        )
        for q, (k, v, mask) in zip(
            query.split(lengths, 2), _seen(spans, key.split(lengths, 2), value.split(lengths, 2)), strict=True
        )
    ]
    return torch.cat(pieces, 2).transpose(1, 2).contiguous(), None


def _seen(
    spans: Sequence[Span], keys: Sequence[Tensor], values: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """What each span attends to: keys, values and which of them each token sees; None: those up to itself."""
    first_k, first_v = keys[0], values[0]
    for (length, shared), k, v in zip(spans, keys, values, strict=True):
        if shared:
            sees = torch.ones(length, shared + length, dtype=torch.bool, device=k.device).tril(shared)
            yield torch.cat((first_k[:, :, :shared], k), 2), torch.cat((first_v[:, :, :shared], v), 2), sees
        else:
            first_k, first_v = k, v
            yield k, v, None


def is_plain_causal(config: Any) -> bool:
    """Whether every layer of a Transformers configuration attends to all tokens before it, and nothing else."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return kinds == {"full_attention"} and window is None and not getattr(config, "attn_logit_softcapping", None)


AttentionInterface.register(PER_SEQUENCE, per_sequence_attention)
