"""Log-probs of completions, packed: several sequences in one row, without padding and without whole logits.

Symbols: T tokens of the packed row; M completion tokens among them; V vocabulary; H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.batch import Sample


@dataclass
class Packed:
    """A micro-batch as tensors. `source_M[m]` is the row position whose hidden state predicts completion token m."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    source_M: Tensor
    target_M: Tensor
    segment_M: Tensor
    sampled_M: Tensor
    advantage_N: Tensor


def to_tensors(samples: Sequence[Sample], device: torch.device) -> Packed:
    """Lay samples end to end; each one's positions start at 0 again, which is what keeps them apart in attention.

    No samples gives a row of two tokens with no targets: a rank without work still runs the collective passes.
    """
    ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    segment: list[int] = []
    for index, sample in enumerate(samples):
        start = len(ids) + len(sample.prompt_ids)
        ids += [*sample.prompt_ids, *sample.completion_ids]
        positions += range(sample.num_tokens)
        source += range(start - 1, start - 1 + len(sample.completion_ids))  # the token before predicts
        segment += [index] * len(sample.completion_ids)
    if not ids:
        ids, positions = [0, 0], [0, 1]

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
    )


class PolicyScorer(nn.Module):
    """A causal language model that answers with log-probs instead of logits.

    Args:
        policy: a Transformers causal LM.
        temperature: the sampling temperature; logits are divided by it, as the replicas do.
        chunk_tokens: tokens whose [chunk, V] logits exist at once, in the forward and in the backward pass.
    """

    def __init__(self, policy: nn.Module, temperature: float, chunk_tokens: int) -> None:
        super().__init__()
        self.policy = policy
        self.temperature, self.chunk_tokens = temperature, chunk_tokens

    def forward(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """(logprobs_M, entropy_M) in fp32; the entropy carries no gradient.

        `attention_mask=None` with `use_cache=False` is what makes Transformers read the restarts of the positions as
        borders between sequences; with a cache or a mask the completions would silently see each other.
        """
        decoder: nn.Module = self.policy.get_decoder()  # type: ignore[operator]  # a method of Transformers' models
        hidden_TH = decoder(
            input_ids=packed.input_ids_1T,
            position_ids=packed.position_ids_1T,
            attention_mask=None,
            use_cache=False,
        ).last_hidden_state[0]
        if packed.source_M.numel() == 0:
            # Every parameter must take part on every rank, or ZeRO's gradient reduction waits for it.
            nothing = (self._head(hidden_TH[:1]) * 0).float().sum()
            return nothing + hidden_TH.new_zeros(0, dtype=torch.float32), hidden_TH.new_zeros(0, dtype=torch.float32)
        hidden_MH = hidden_TH[packed.source_M]
        pieces = [
            self._chunk(hidden_CH, target_C)
            for hidden_CH, target_C in zip(
                hidden_MH.split(self.chunk_tokens), packed.target_M.split(self.chunk_tokens), strict=True
            )
        ]
        # Detached here: a checkpoint marks every output as one that needs a gradient.
        return torch.cat([logprobs for logprobs, _ in pieces]), torch.cat([entropy for _, entropy in pieces]).detach()

    def _chunk(self, hidden_CH: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and hidden_CH.requires_grad:
            # Reentrant: under ZeRO-3 the other kind compares a gathered weight's shape with its partitioned one.
            return checkpoint(self._score, hidden_CH, target_C, use_reentrant=True)
        return self._score(hidden_CH, target_C)

    def _head(self, hidden_CH: Tensor) -> Tensor:
        head: nn.Module = self.policy.get_output_embeddings()  # type: ignore[operator]
        return head(hidden_CH)

    def _score(self, hidden_CH: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
        logits_CV = self._head(hidden_CH).float() / self.temperature
        log_total_C = logits_CV.logsumexp(-1)
        logprobs_C = logits_CV.gather(-1, target_C[:, None])[:, 0] - log_total_C
        with torch.no_grad():  # H = log Z - sum p x logit
            mean_logit_C = ((logits_CV - log_total_C[:, None]).exp() * logits_CV).sum(-1)
        return logprobs_C, log_total_C - mean_logit_C
