"""Floating-point operations of a step, from shapes alone.

A product of [m, k] and [k, n] takes 2 m k n operations; what is not a matrix product is left out. For one sequence of t
tokens, c of them completion, and a decoder of L layers with hidden size h, q = heads x head size, k = key-value heads x
head size, MLP width f and vocabulary V:

    projections of a layer   2 t (h q + 2 h k + q h)          queries, keys and values, output
    MLP of a layer           2 t (3 h f)                      gate, up, down
    attention of a layer     2 (2 q) t (t + 1) / 2            q.k and p.v; token i attends to the i tokens up to it
    head                     2 c h V                          completion tokens alone are scored

    forward(t, c) = L (projections + MLP + attention) + head

Completions that share a prompt's tokens (`trainer.attention`) need its projections and MLPs once, and their attention
each for itself: n of them with p prompt tokens take n - 1 times L (projections + MLP) of p tokens less.

The backward pass takes twice the forward: for each product, one for either factor's gradient. With own and reference
log-probs (two forward passes without gradient) and the training pass, a step is 2 + 3 = 5 forward passes of *model*
FLOPs; what is computed again to save memory (the head once, the layers under gradient checkpointing once) is work that
the hardware does and the model does not need.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FlopsShape:
    """What the operations depend on; the names are those of a Transformers configuration."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int


def products_forward(shape: FlopsShape, num_tokens: int) -> int:
    """Projections and MLPs of all layers."""
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    weights = shape.hidden_size * (2 * queries + 2 * keys + 3 * shape.intermediate_size)
    return shape.num_hidden_layers * 2 * num_tokens * weights


def layers_forward(shape: FlopsShape, num_tokens: int) -> int:
    """All layers for one sequence; the attention term is quadratic in its tokens."""
    pairs = num_tokens * (num_tokens + 1) // 2
    attention = 4 * shape.num_attention_heads * shape.head_dim * pairs
    return products_forward(shape, num_tokens) + shape.num_hidden_layers * attention


def head_forward(shape: FlopsShape, num_completion_tokens: int) -> int:
    """The output layer, over completion tokens."""
    return 2 * num_completion_tokens * shape.hidden_size * shape.vocab_size


def step_flops(
    shape: FlopsShape,
    lengths: Iterable[tuple[int, Sequence[int]]],
    *,
    has_reference: bool,
    recomputed: bool = False,
    gradient_checkpointing: bool = False,
) -> int:
    """Of one step of the loop with one pass over its batch, over all ranks.

    Args:
        shape: of policy and reference.
        lengths: the tokens of each prompt that is computed, and of each of the completions that share it.
        has_reference: whether there is a pass of the reference beside the policy's own.
        recomputed: count what is computed twice as well.
        gradient_checkpointing: whether that includes the layers.
    """
    passes = 3 + 1 + has_reference
    layer_passes = passes + (recomputed and gradient_checkpointing)
    head_passes = passes + recomputed
    total = 0
    for prompt, completions in lengths:
        total -= layer_passes * (len(completions) - 1) * products_forward(shape, prompt)  # counted with each below
        for completion in completions:
            total += layer_passes * layers_forward(shape, prompt + completion)
            total += head_passes * head_forward(shape, completion)
    return total
