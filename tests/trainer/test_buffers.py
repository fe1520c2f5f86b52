"""Buffers that a low precision has rounded are what the model's constructor makes of them."""

from __future__ import annotations

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.buffers import restore_buffers


def test_what_no_checkpoint_holds_is_made_again_and_nothing_else_changes() -> None:
    config = Qwen3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, vocab_size=19,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    model.register_buffer("of_the_checkpoint", torch.ones(2))
    exact = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to(torch.bfloat16)
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert not torch.equal(model.model.rotary_emb.inv_freq.float(), exact["model.rotary_emb.inv_freq"])
    restore_buffers(model)
    found = dict(model.named_buffers())
    assert found.pop("of_the_checkpoint").dtype == torch.bfloat16
    assert "model.rotary_emb.inv_freq" in found
    for name, buffer in found.items():
        assert buffer.dtype == torch.float32 and torch.equal(buffer, exact[name]), name
    assert all(torch.equal(parameter, weights[name]) for name, parameter in model.named_parameters())
    assert model.state_dict().keys() == {*weights, "of_the_checkpoint"}
