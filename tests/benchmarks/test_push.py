"""The parts of the push benchmark that need no server."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.push import summary
from benchmarks.push_model import SHAPE, num_layers


@pytest.mark.parametrize("megabytes", [256, 300, 1000])
def test_the_model_is_of_the_size_asked_for_and_no_layer_larger(megabytes: int) -> None:
    def size(layers: int) -> int:
        with torch.device("meta"):
            model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_hidden_layers=layers))
        return sum(parameter.numel() * 2 for parameter in model.parameters())

    layers = num_layers(megabytes * 10**6)
    assert size(layers - 1) < megabytes * 10**6 <= size(layers)


def test_the_ratio_is_of_medians_and_above_one_where_we_are_the_faster() -> None:
    pushes = [{"seconds": s, "load_seconds": 0.2, "pause_over_transfer_s": 0.05} for s in (0.1, 9.0, 0.2)]
    figures = summary(pushes, [0.1, 0.4, 50.0], 2 * 10**8)
    assert figures == {
        "seconds": 0.2, "gb_per_s": 1.0, "ratio": 2.0, "load_seconds": 0.2, "pause_over_transfer_s": 0.05
    }  # fmt: skip
