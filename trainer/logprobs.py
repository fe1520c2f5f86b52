"""Log-probs of completions, packed: several sequences in one row, without padding and without whole logits.

K completions of one prompt have K times its tokens. Where the attention can, the row has them once
(`trainer.attention`): their hidden states, and the gradient through them, are computed once for all K.

Symbols: N sequences; T tokens of the packed row; M completion tokens among them; H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer.attention import PER_SEQUENCE, Segment
from trainer.batch import MicroBatch
from trainer.head import token_logprobs


@dataclass
class Packed:
    """A micro-batch as tensors. `source_M[m]` is the row position whose hidden state predicts completion token m;
    `segments` says who attends to whom."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    source_M: Tensor
    target_M: Tensor
    segment_M: Tensor
    sampled_M: Tensor
    advantage_N: Tensor
    segments: list[Segment]


def to_tensors(samples: MicroBatch, device: torch.device, *, share_prompts: bool = False) -> Packed:
    """Lay samples end to end; each one's positions start at 0 again, which keeps them apart where attention reads them.

    With `share_prompts`, for per-sequence attention alone, neighbours with one prompt have it once, before the first
    of them; the positions of the others go on from its end, and `segments` keeps them apart. No samples gives a row of
    two tokens with no targets: a rank without work still runs the collective passes.
    """
    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    segment: list[int] = []
    segments: list[Segment] = []
    end_of_prompt = 0
    for index, sample in enumerate(samples):
        prompt_ids, num = sample.prompt_ids, len(sample.completion_ids)
        if share_prompts and index and prompt_ids == samples[index - 1].prompt_ids:
            segments.append(Segment(num, shared=len(prompt_ids)))
        else:
            segments.append(Segment(sample.num_tokens))
            ids += prompt_ids
            positions += range(len(prompt_ids))
            end_of_prompt = len(ids)
        source += [end_of_prompt - 1, *range(len(ids), len(ids) + num - 1)][:num]  # the token before predicts
        segment += [index] * num
        ids += sample.completion_ids
        positions += range(len(prompt_ids), sample.num_tokens)
    segments = [part for part in segments if part.length]
    if not ids:
        ids, positions, segments = [0, 0], [0, 1], [Segment(2)]

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    return Packed(
        input_ids_1T=integers(ids)[None],
        position_ids_1T=integers(positions)[None],
        source_M=integers(source),
        target_M=integers([token for sample in samples for token in sample.completion_ids]),
        segment_M=integers(segment),
        sampled_M=floats([value for sample in samples for value in sample.sampled_logprobs]),
        advantage_N=floats([sample.advantage for sample in samples]),
        segments=segments,
    )


class PolicyScorer(nn.Module):
    """A causal language model that answers with log-probs instead of logits.

    Args:
        policy: a Transformers causal LM.
        temperature: the sampling temperature; logits are divided by it, as the replicas do.
        chunk_tokens: at most this many tokens x vocabulary logits exist at once, forward and backward.
        fp32_head: multiply hidden states and head weight in fp32.

    Raises:
        ValueError: the output layer has a bias, which no score here would contain.
    """

    def __init__(self, policy: nn.Module, temperature: float, chunk_tokens: int, fp32_head: bool = False) -> None:
        super().__init__()
        self.policy = policy
        self.temperature, self.chunk_tokens, self.fp32_head = temperature, chunk_tokens, fp32_head
        if getattr(self._head(), "bias", None) is not None:
            raise ValueError("the policy's output layer has a bias; only a plain matrix is supported")

    def to_tensors(self, samples: MicroBatch, device: torch.device) -> Packed:
        """Laid out as this model's attention can read it."""
        return to_tensors(samples, device, share_prompts=self._is_per_sequence)

    def forward(self, packed: Packed, *, with_entropy: bool = True) -> tuple[Tensor, Tensor]:
        """(logprobs_M, entropy_M) in fp32; the entropy carries no gradient, and is empty without `with_entropy`.

        `attention_mask=None` with `use_cache=False` is what makes Transformers read the restarts of the positions as
        borders between sequences; with a cache or a mask the completions would silently see each other.
        """
        decoder: nn.Module = self.policy.get_decoder()  # type: ignore[operator]  # a method of Transformers' models
        borders = {"segments": packed.segments} if self._is_per_sequence else {}
        hidden_TH = decoder(
            input_ids=packed.input_ids_1T,
            position_ids=packed.position_ids_1T,
            attention_mask=None,
            use_cache=False,
            **borders,
        ).last_hidden_state[0]
        # Under ZeRO-3 the access gathers the weight and keeps it for this module's backward pass too.
        weight_VH = self._head().weight
        if packed.source_M.numel() == 0:
            # Every parameter must take part on every rank, or ZeRO's gradient reduction waits for it.
            nothing = ((hidden_TH[0] @ weight_VH[0]) * 0).float()
            return nothing + hidden_TH.new_zeros(0, dtype=torch.float32), hidden_TH.new_zeros(0, dtype=torch.float32)
        return token_logprobs(
            hidden_TH[packed.source_M],
            weight_VH,
            packed.target_M,
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            with_entropy=with_entropy,
            in_fp32=self.fp32_head,
        )

    @property
    def _is_per_sequence(self) -> bool:
        config: Any = self.policy.config  # torch types a module's attributes as tensors or modules
        return bool(config._attn_implementation == PER_SEQUENCE)

    def _head(self) -> Any:
        return self.policy.get_output_embeddings()  # type: ignore[operator]  # a method of Transformers' models
