"""Attention within packed sequences: which models it fits, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from trainer.attention import Segment, is_plain_causal, per_sequence_attention


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        (Qwen3Config(), True),
        (Qwen2Config(), True),
        (LlamaConfig(), True),
        (Qwen3Config(use_sliding_window=True, sliding_window=64, max_window_layers=2), False),
        (MistralConfig(sliding_window=64), False),
        (Gemma2Config(), False),
    ],
)
def test_only_models_whose_layers_all_attend_to_everything_before_take_it(config: Any, fits: bool) -> None:
    assert is_plain_causal(config) is fits


def test_each_sequence_gets_what_it_gets_alone_with_fewer_key_heads_than_query_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 9, 8, generator=generator) for heads in (4, 2, 2))
    module = torch.nn.Module()
    segments = [Segment(4), Segment(1), Segment(4)]
    packed, _ = per_sequence_attention(module, query, key, value, None, segments=segments, scaling=0.3)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    for start, end in ((0, 4), (4, 5), (5, 9)):
        scores = query[:, :, start:end] @ key[:, :, start:end].transpose(2, 3) * 0.3
        scores = scores.masked_fill(torch.ones(end - start, end - start).triu(1).bool(), -torch.inf)
        alone = (scores.softmax(-1) @ value[:, :, start:end]).transpose(1, 2)
        assert torch.allclose(packed[:, start:end], alone, atol=1e-6)


def test_a_span_that_shares_sees_the_first_tokens_of_the_whole_one_before_it_and_its_own_up_to_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 12, 8, generator=generator) for heads in (4, 2, 2))
    segments = [Segment(4), Segment(2, shared=3), Segment(1, shared=3), Segment(3), Segment(2, shared=1)]
    sees = [*([*range(i + 1)] for i in range(4)), [0, 1, 2, 4], [0, 1, 2, 4, 5], [0, 1, 2, 6]]
    sees += [[7], [7, 8], [7, 8, 9], [7, 10], [7, 10, 11]]
    packed, _ = per_sequence_attention(torch.nn.Module(), query, key, value, None, segments=segments, scaling=0.3)
    key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    for token, seen in enumerate(sees):
        weights = (query[:, :, token : token + 1] @ key[:, :, seen].transpose(2, 3) * 0.3).softmax(-1)
        assert torch.allclose(packed[:, token], (weights @ value[:, :, seen])[:, :, 0], atol=1e-6), token


def test_whoever_forgets_the_borders_is_told() -> None:
    row = torch.zeros(1, 1, 3, 8)
    with pytest.raises(TypeError, match="segments"):
        per_sequence_attention(torch.nn.Module(), row, row, row, None)
