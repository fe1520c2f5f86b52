"""CUDA out of memory, said in a way that tells what to lower and by how much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainer.config import RunSettings
from wire.errors import ServiceError

GIB = 2**30


@contextmanager
def memory_guard(stage: str, rank: int, settings: RunSettings) -> Iterator[None]:
    """Around a stage of learner rank `rank`.

    Raises:
        ServiceError: in place of `torch.cuda.OutOfMemoryError`.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        raise ServiceError(advice(stage, rank, settings, free, total)) from error


def advice(stage: str, rank: int, settings: RunSettings, free: int, total: int) -> str:
    """What to lower; `free` and `total` are bytes of the rank's GPU."""
    budget, chunk = settings.microbatch_tokens, settings.logprob_chunk_tokens
    return (
        f"CUDA out of memory on learner rank {rank} in {stage}: {free / GIB:.1f} GiB were free of {total / GIB:.1f}. "
        f"Lower max_tokens_per_microbatch from {budget} to {budget // 2} and logprob_chunk_tokens from {chunk} to "
        f"{max(chunk // 2, 1)}; if it still fails, take configs/deepspeed/zero3_offload.json or more learner ranks"
    )
