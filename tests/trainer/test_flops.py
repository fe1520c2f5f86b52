"""Planned FLOPs, held against PyTorch's own count of the operations of a real pass."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.flops import FlopsShape, head_forward, layers_forward, products_forward, step_flops

SHAPE = FlopsShape(
    hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, vocab_size=101,
)  # fmt: skip


@pytest.mark.parametrize("num_tokens", [8, 65])
def test_a_forward_pass_is_what_pytorch_counts_but_for_the_pairs_that_causal_attention_skips(num_tokens: int) -> None:
    model = Qwen3ForCausalLM(Qwen3Config(**asdict(SHAPE), attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, num_tokens, dtype=torch.long), use_cache=False)
    skipped = num_tokens * (num_tokens - 1) // 2 * 4 * 64 * 3  # eager attention computes all pairs
    planned = layers_forward(SHAPE, num_tokens) + head_forward(SHAPE, num_tokens)
    assert planned + skipped == counter.get_total_flops()


def test_a_step_is_five_forward_passes_and_four_without_a_reference() -> None:
    lengths = [(5, [9]), (3, [20])]
    forward = sum(layers_forward(SHAPE, p + c) + head_forward(SHAPE, c) for p, (c,) in lengths)
    assert step_flops(SHAPE, lengths, has_reference=True) == 5 * forward
    assert step_flops(SHAPE, lengths, has_reference=False) == 4 * forward


def test_what_is_computed_again_is_the_head_and_with_checkpointing_the_layers() -> None:
    layers, head = layers_forward(SHAPE, 14), head_forward(SHAPE, 9)
    count = [
        step_flops(SHAPE, [(5, [9])], has_reference=True, recomputed=True, gradient_checkpointing=kept)
        for kept in (False, True)
    ]
    assert count == [5 * layers + 6 * head, 6 * layers + 6 * head]


def test_a_shared_prompt_takes_its_projections_and_mlps_once_and_attention_with_each() -> None:
    shared = step_flops(SHAPE, [(5, [9, 20])], has_reference=True)
    apart = step_flops(SHAPE, [(5, [9]), (5, [20])], has_reference=True)
    assert apart - shared == 5 * products_forward(SHAPE, 5)
    assert layers_forward(SHAPE, 5) - products_forward(SHAPE, 5) == 3 * 4 * 64 * 15  # L x 4q x pairs


def test_twice_the_completions_are_twice_the_work_and_twice_the_length_is_more() -> None:
    one, two, longer = (
        step_flops(SHAPE, lengths, has_reference=True) for lengths in ([(0, [64])], [(0, [64])] * 2, [(0, [128])])
    )
    assert two == 2 * one and longer > two
    assert longer - two == 5 * 3 * 4 * 64 * 64 * 64  # L x 4q x the pairs across the middle
