"""Log-probs and gradients of the tiled head, held against the whole softmax and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.head import WORDS_A_TILE, token_logprobs

SIZES = [97, WORDS_A_TILE, WORDS_A_TILE + 1, 2 * WORDS_A_TILE + 300]  # of the vocabulary: part of a tile, one, more


def inputs(size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, weight, targets): the first and last words of tiles are targets too, logits go beyond 100."""
    generator = torch.Generator().manual_seed(size)
    edges = [0, size - 1, *(word for word in (WORDS_A_TILE - 1, WORDS_A_TILE) if word < size)]
    target_M = torch.cat([torch.tensor(edges), torch.randint(size, (7,), generator=generator)])
    hidden = (torch.randn(len(target_M), 16, generator=generator) * 3).to(dtype).requires_grad_()
    weight = (torch.randn(size, 16, generator=generator) * 3).to(dtype).requires_grad_()
    return hidden, weight, target_M


def whole(hidden: Tensor, weight: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    table = (hidden.float() @ weight.float().T / temperature).log_softmax(-1)
    return table.gather(1, target[:, None])[:, 0], -(table.exp() * table).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_give_the_log_probs_entropies_and_gradients_of_the_whole(
    size: int, chunk_tokens: int, temperature: float
) -> None:
    hidden, weight, target = inputs(size)
    logprobs, entropy = token_logprobs(
        hidden, weight, target, temperature=temperature, chunk_tokens=chunk_tokens, with_entropy=True
    )
    expected_logprobs, expected_entropy = whole(hidden, weight, target, temperature)
    assert torch.allclose(logprobs, expected_logprobs, atol=1e-4)
    assert torch.allclose(entropy, expected_entropy, atol=1e-4)
    assert not entropy.requires_grad
    factors = torch.linspace(-2, 2, len(target))
    got = torch.autograd.grad((logprobs * factors).sum(), (hidden, weight))
    expected = torch.autograd.grad((expected_logprobs * factors).sum(), (hidden, weight))
    for one, other in zip(got, expected, strict=True):
        assert torch.linalg.norm(one - other) <= 1e-5 * torch.linalg.norm(other)


def test_without_entropy_the_log_probs_are_the_same_and_the_entropy_is_empty() -> None:
    hidden, weight, target = inputs(SIZES[-1])
    arguments = {"temperature": 1.0, "chunk_tokens": 4}
    with_entropy, _ = token_logprobs(hidden, weight, target, with_entropy=True, **arguments)
    without, nothing = token_logprobs(hidden, weight, target, with_entropy=False, **arguments)
    assert torch.equal(with_entropy, without) and nothing.shape == (0,)


def test_a_certain_token_has_no_entropy_and_an_impossible_one_no_overflow() -> None:
    weight = torch.zeros(WORDS_A_TILE + 5, 2)
    weight[-1, 0], weight[3, 1] = 1.0, -1.0
    hidden = torch.tensor([[500.0, 500.0], [500.0, 500.0]])
    target = torch.tensor([len(weight) - 1, 3])
    logprobs, entropy = token_logprobs(hidden, weight, target, temperature=1.0, chunk_tokens=2, with_entropy=True)
    assert logprobs.tolist() == pytest.approx([0.0, -1000.0]) and entropy.tolist() == pytest.approx([0.0, 0.0])


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, target = inputs(97)
    logprobs, _ = token_logprobs(hidden, weight.detach(), target, temperature=1.0, chunk_tokens=4, with_entropy=False)
    logprobs.sum().backward()
    assert hidden.grad is not None and weight.grad is None


def test_a_bf16_head_in_fp32_rounds_no_logit() -> None:
    hidden, weight, target = inputs(SIZES[-1], torch.bfloat16)
    arguments = {"temperature": 1.0, "chunk_tokens": 4, "with_entropy": False}
    expected, _ = whole(hidden, weight, target, 1.0)
    exact, _ = token_logprobs(hidden, weight, target, in_fp32=True, **arguments)
    rounded, _ = token_logprobs(hidden, weight, target, **arguments)
    assert torch.allclose(exact, expected, atol=1e-4)
    assert (rounded - expected).abs().max() > 0.01
    exact.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
