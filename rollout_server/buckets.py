"""How a model is cut for the wire: buckets of whole tensors, each at an aligned place of a flat byte buffer.

    bucket: | tensor 0 | pad | tensor 1 | pad | ... | checksum |        each tensor at a multiple of 64 bytes

Both sides compute the same cut from the parameters' descriptions, so nothing but bytes travels. The places are aligned,
so the receiver's tensors are views of what arrived; nothing is copied to take them apart.

Symbols: a *bucket* is a list of consecutive parameters whose bytes together pass `bucket_bytes`; a *piece* is a list of
consecutive buckets that fit into the receiver's staging area together.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta

ALIGNMENT = 64  # bytes: a cache line, and a multiple of every type's size
CHECKSUM_BYTES = 8


def num_bytes(meta: ParamMeta) -> int:
    """Bytes of one parameter on the wire, without padding."""
    return math.prod(meta.shape) * meta.dtype.itemsize


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Bucket:
    """One part of the stream. `index` counts from 0; `offsets` are the tensors' places, in bytes; `num_bytes` is all of
    it, padding and checksum included."""

    index: int
    metas: tuple[ParamMeta, ...]
    offsets: tuple[int, ...]
    num_bytes: int

    def __str__(self) -> str:
        return f"bucket {self.index} ({self.metas[0].name} to {self.metas[-1].name})"

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The bucket's tensors inside `buffer`, a flat uint8 tensor of at least `num_bytes`, aligned itself."""
        return [
            buffer[offset : offset + num_bytes(meta)].view(meta.dtype).view(meta.shape)
            for meta, offset in zip(self.metas, self.offsets, strict=True)
        ]

    def named(self, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
        """`(name, view)` pairs, for a model's loader."""
        return zip((meta.name for meta in self.metas), self.views(buffer), strict=True)


def cut_into_buckets(metadata: Iterable[ParamMeta], bucket_bytes: int) -> list[Bucket]:
    """Consecutive parameters, a bucket closed by the parameter that brings it to `bucket_bytes` or more."""
    buckets: list[Bucket] = []
    metas: list[ParamMeta] = []
    offsets: list[int] = []
    end = 0

    def close() -> None:
        size = aligned(end + CHECKSUM_BYTES)
        buckets.append(Bucket(len(buckets), tuple(metas), tuple(offsets), size))

    for meta in metadata:
        metas.append(meta)
        offsets.append(end)
        end = aligned(end + num_bytes(meta))
        if sum(map(num_bytes, metas)) >= bucket_bytes:
            close()
            metas, offsets, end = [], [], 0
    if metas:
        close()
    return buckets


def cut_into_pieces(buckets: Sequence[Bucket], staging_bytes: int) -> list[list[Bucket]]:
    """Consecutive buckets that fit into `staging_bytes` together; a bucket that does not fit is a piece of its own."""
    pieces: list[list[Bucket]] = []
    room = 0
    for bucket in buckets:
        if not pieces or bucket.num_bytes > room:
            pieces.append([])
            room = staging_bytes
        pieces[-1].append(bucket)
        room -= bucket.num_bytes
    return pieces


def write_checksum(bucket: Bucket, buffer: Tensor) -> None:
    """Put the checksum of the bucket's bytes into its last eight."""
    place = buffer[bucket.num_bytes - CHECKSUM_BYTES : bucket.num_bytes]
    place.view(torch.int64).fill_(_checksum(bucket, buffer))


def verify_checksum(bucket: Bucket, buffer: Tensor) -> None:
    """Raises RuntimeError where the bucket's bytes are not those that were sent."""
    place = buffer[bucket.num_bytes - CHECKSUM_BYTES : bucket.num_bytes]
    sent, arrived = int(place.view(torch.int64).item()), _checksum(bucket, buffer)
    if sent != arrived:
        raise RuntimeError(f"{bucket} arrived damaged: its CRC-32 is {arrived:08x}, and {sent:08x} was sent")


def _checksum(bucket: Bucket, buffer: Tensor) -> int:
    content: Any = buffer[: bucket.num_bytes - CHECKSUM_BYTES].numpy()
    return zlib.crc32(content)
