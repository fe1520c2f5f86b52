"""The output head: log-probs from hidden states without the logits, a tile of the vocabulary at a time.

The [M, V] logits of a language model are by far its largest activation (V = 151,936 for Qwen3), and on a CPU the time
to touch that much fresh memory exceeds the time to compute it. So each pass computes a tile, folds it into a few
numbers a token, and lets the next tile overwrite it; the backward pass computes the tiles again and turns each into
its gradient in place.

The logits of a bf16 head are rounded to 8 bits: one between 16 and 32 is a multiple of 0.125, which is most of the gap
between a learner's and a replica's log-probs (MiniMax-M1, arXiv 2506.13585, section 3.2). In fp32 both are cast before
they meet, the weight a tile at a time. vLLM's counterpart is the override `head_dtype`, which `rollout_server.replica`
passes.

Symbols: M tokens; V vocabulary; H hidden size; C tokens and W words of a tile.

    log Z = log sum_v exp z_v,    logp = z_target - log Z,    d logp / d z_v = [v = target] - p_v,
    entropy = log Z - sum_v p_v z_v
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

WORDS_A_TILE = 2048  # with 1,024 tokens 8 MiB in fp32, which stays in a CPU's cache between the operations on it
_TOKENS_A_TRITON_TILE = 4096  # fixed in TRL's kernel, which takes the words as an argument


def token_logprobs(
    hidden_MH: Tensor,
    weight_VH: Tensor,
    target_M: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    with_entropy: bool,
    in_fp32: bool = False,
) -> tuple[Tensor, Tensor]:
    """(log-probs of the targets, entropies) in fp32, at most `chunk_tokens` x V logits at once.

    The matrices are multiplied in the type of `hidden_MH`, or `in_fp32`.

    On CUDA the tiles are TRL's, whose Triton kernel folds one in a single pass; elsewhere they are ours, since TRL's
    fall back to a dozen fresh tensors a tile. Gradients flow through the log-probs alone. Without `with_entropy` the
    entropies are an empty tensor.
    """
    if in_fp32:
        hidden_MH = hidden_MH.float()
    if hidden_MH.is_cuda:
        from trl.kernels import ChunkedLogProbFunction

        words = max(1024, chunk_tokens * len(weight_VH) // _TOKENS_A_TRITON_TILE // 1024 * 1024)
        outputs = ("entropy",) if with_entropy else ()
        logprobs_M, entropy_M, *_ = ChunkedLogProbFunction.apply(
            hidden_MH, weight_VH, None, target_M, temperature, words, None, 1.0, outputs
        )
        return logprobs_M, entropy_M.detach() if with_entropy else logprobs_M.new_zeros(0)
    result: tuple[Tensor, Tensor] = TiledLogProbs.apply(
        hidden_MH, weight_VH, target_M, temperature, chunk_tokens, with_entropy
    )
    return result


class TiledLogProbs(torch.autograd.Function):
    """The tiles for devices without Triton; arguments as for `token_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MH: Tensor,
        weight_VH: Tensor,
        target_M: Tensor,
        temperature: float,
        chunk_tokens: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        num = len(hidden_MH)
        # A running softmax: the largest logit so far, and relative to it sum exp(z) and sum exp(z) z.
        largest_M = hidden_MH.new_full((num,), torch.finfo(torch.float32).min, dtype=torch.float32)
        total_M, weighted_M, chosen_M = (torch.zeros_like(largest_M) for _ in range(3))
        spare = (
            hidden_MH.new_empty(min(chunk_tokens, num) * WORDS_A_TILE, dtype=torch.float32) if with_entropy else None
        )
        for rows, words, logits_CW in _logit_tiles(hidden_MH, weight_VH, temperature, chunk_tokens):
            here, word = _targets_within(target_M[rows], words)
            chosen_M[rows][here] = logits_CW[here, word]
            before_C = largest_M[rows].clone()
            now_C = torch.maximum(before_C, logits_CW.amax(-1), out=largest_M[rows])
            step_C = before_C - now_C
            shrink_C = step_C.exp()
            logits_CW.sub_(now_C[:, None])
            if spare is not None:
                exp_CW = torch.exp(logits_CW, out=spare[: logits_CW.numel()].view_as(logits_CW))
                weighted_M[rows].addcmul_(step_C, total_M[rows]).mul_(shrink_C).add_(logits_CW.mul_(exp_CW).sum(-1))
            else:
                exp_CW = logits_CW.exp_()
            total_M[rows].mul_(shrink_C).add_(exp_CW.sum(-1))
        log_total_M = largest_M + total_M.log()
        ctx.save_for_backward(hidden_MH, weight_VH, target_M, log_total_M)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        entropy_M = total_M.log() - weighted_M / total_M if with_entropy else total_M.new_zeros(0)
        ctx.mark_non_differentiable(entropy_M)
        return chosen_M - log_total_M, entropy_M

    @staticmethod  # torch types backward as (ctx, *grads): the signature is narrower on purpose
    def backward(ctx: Any, grad_M: Tensor, _grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden_MH, weight_VH, target_M, log_total_M = ctx.saved_tensors
        scaled_M = grad_M / ctx.temperature
        # In fp32 whatever the weights are: the sum over tiles would lose what a tile adds.
        grad_hidden_MH = torch.zeros_like(hidden_MH, dtype=torch.float32)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for rows, words, tile_CW in _logit_tiles(hidden_MH, weight_VH, ctx.temperature, ctx.chunk_tokens):
            tile_CW.sub_(log_total_M[rows, None]).exp_().mul_(-scaled_M[rows, None])
            here, word = _targets_within(target_M[rows], words)
            tile_CW[here, word] += scaled_M[rows][here]
            grad_hidden_MH[rows].addmm_(tile_CW, weight_VH[words].float())
            if grad_weight_VH is not None:
                grad_weight_VH[words].addmm_(tile_CW.t(), hidden_MH[rows].float())
        grad_weight = None if grad_weight_VH is None else grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_MH.to(hidden_MH.dtype), grad_weight, None, None, None, None


def _logit_tiles(
    hidden_MH: Tensor, weight_VH: Tensor, temperature: float, chunk_tokens: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(tokens, words, their logits over the temperature in fp32); a tile is overwritten when the next is asked for."""
    num, size = len(hidden_MH), len(weight_VH)
    buffer = hidden_MH.new_empty(min(chunk_tokens, num) * WORDS_A_TILE)
    for first in range(0, size, WORDS_A_TILE):
        words = slice(first, min(first + WORDS_A_TILE, size))
        for start in range(0, num, chunk_tokens):
            rows = slice(start, min(start + chunk_tokens, num))
            shape = (rows.stop - rows.start, words.stop - words.start)
            tile_CW = buffer[: shape[0] * shape[1]].view(shape)
            torch.mm(hidden_MH[rows], weight_VH[words].to(hidden_MH.dtype).t(), out=tile_CW)
            logits_CW = tile_CW.float()
            yield rows, words, logits_CW if temperature == 1.0 else logits_CW.div_(temperature)


def _targets_within(target_C: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """(rows whose target is among the words, its place in the tile)."""
    here = ((target_C >= words.start) & (target_C < words.stop)).nonzero()[:, 0]
    return here, target_C[here] - words.start
