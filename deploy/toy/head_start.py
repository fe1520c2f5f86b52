"""A head start for the judge: attention heads that copy by number, planted in the random weights before training.

A judge that walks over an answer looks up, at each number, the word that stands behind the same number in its prompt.
Two layers do that: a head of the first tells every position the token before it, and a head of the second looks for
the position whose token before is the current token, and copies what stands there. Another pair does the same with
tokens two back, which finds the number after a number, or the end of the answer. Training finds such pairs by itself,
but that takes most of the time; planted, they are there from the first step and training only refines them.

Letters: H hidden size (128), D head size (32), F = D / 2 rotary frequencies. The i-th rotary pair of a head is
(i, i + F), turned by position x theta ** (-i / F).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3ForCausalLM

from deploy.toy.world import FILLER_WORDS, RUDE_WORDS, TOPICS

FAMILIES = (*((name, *words) for name, words in TOPICS.items()), RUDE_WORDS, FILLER_WORDS)

OFFSETS = (1, 2, 3)
"""Heads 0, 1, 2 of the first layer attend this many tokens back."""


@torch.no_grad()
def plant_families(model: LlamaForCausalLM | Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give words of one family like vectors, as pre-trained word vectors have, and let the head start as the embedding.

    Overwrites both in place. Draws from torch's global generator.
    """
    embeddings_VH = torch.randn(model.config.vocab_size, model.config.hidden_size)
    for family in FAMILIES:
        forms = [*family, *("Ġ" + word for word in family)]  # a token may carry its leading space, written as Ġ
        embeddings_VH[tokenizer.convert_tokens_to_ids(forms)] += torch.randn(model.config.hidden_size)
    embeddings_VH = F.normalize(embeddings_VH, dim=1) * 6.0
    model.get_input_embeddings().weight.copy_(embeddings_VH)
    model.get_output_embeddings().weight.copy_(embeddings_VH * 0.1)  # what is copied is what is written


@torch.no_grad()
def plant_copying(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Overwrite embeddings, head and a few attention heads in place. Draws from torch's global generator."""
    hidden, size = model.config.hidden_size, model.config.head_dim
    plant_families(model, tokenizer)
    embeddings_VH = model.model.embed_tokens.weight
    # One coordinate alike for all tokens, so that a head can go by distance alone; equal lengths keep it so.
    embeddings_VH[:, 0] = 2.0
    model.lm_head.weight[:, 0] = 0.0
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    theta = model.config.rope_parameters["rope_theta"]
    frequencies_F = theta ** (-torch.arange(size // 2) / (size // 2))
    # Only slowly turning pairs compare two tokens alike at every distance that occurs, up to some 200 tokens.
    slow_F = frequencies_F < 0.005
    slow_D = torch.cat([slow_F, slow_F])
    # Directions orthogonal to each other: where a head writes an earlier token must not look like the token itself.
    token_DH, before_DH, before2_DH, rest = _directions(hidden).split(size)
    written = {1: before_DH, 2: before2_DH}
    for head, offset in enumerate(OFFSETS):
        rows = slice(head * size, (head + 1) * size)
        _attend_back(first.q_proj.weight[rows], first.k_proj.weight[rows], frequencies_F, offset)
        if offset in written:
            first.v_proj.weight[rows] = token_DH
            first.o_proj.weight[:, rows] = written[offset].T * 2.0
    for head, (query_DH, key_DH) in enumerate(((token_DH, before_DH), (before2_DH, before2_DH))):
        rows = slice(head * size, (head + 1) * size)
        # A written token is longer than the token itself, hence the smaller gain where both sides are written ones.
        gain = 3.0 if query_DH is token_DH else 1.5
        second.q_proj.weight[rows] = query_DH * slow_D[:, None] * gain
        second.k_proj.weight[rows] = key_DH * slow_D[:, None] * gain
        second.v_proj.weight[rows][: len(rest)] = rest
        second.o_proj.weight[:, rows][:, : len(rest)] = rest.T * 2.0


def _attend_back(query_DH: torch.Tensor, key_DH: torch.Tensor, frequencies_F: torch.Tensor, offset: int) -> None:
    """Make a head's score a sum of cos((distance - offset) x frequency): it is highest at `offset` tokens back."""
    num, fast_F = len(frequencies_F), frequencies_F > 0.02  # a slow pair tells no neighbours apart
    query_DH.zero_()
    key_DH.zero_()
    query_DH[:num, 0] = 2.2 * fast_F * torch.cos(offset * frequencies_F)
    query_DH[num:, 0] = -2.2 * fast_F * torch.sin(offset * frequencies_F)
    key_DH[:num, 0] = 2.2 * fast_F


def _directions(hidden: int) -> torch.Tensor:
    """Random orthonormal rows [H - 1, H] that leave the constant coordinate alone."""
    rows = torch.zeros(hidden - 1, hidden)
    rows[:, 1:] = torch.linalg.qr(torch.randn(hidden - 1, hidden - 1))[0]
    return rows
