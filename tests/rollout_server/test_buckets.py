"""The cut of a stream into buckets and pieces, and the way of tensors through a flat buffer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta

from rollout_server.buckets import (
    ALIGNMENT,
    cut_into_buckets,
    cut_into_pieces,
    num_bytes,
    verify_checksum,
    write_checksum,
)
from rollout_server.gloo_sender import pack

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=8)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.uint8])


@st.composite
def metadata(draw: st.DrawFn) -> list[ParamMeta]:
    return [ParamMeta(f"p{index}", draw(DTYPES), shape) for index, shape in enumerate(draw(SHAPES))]


def tensors_for(metas: Sequence[ParamMeta], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(100 * torch.rand(meta.shape, generator=generator)).to(meta.dtype) for meta in metas]


@given(metadata(), st.integers(1, 400))
def test_buckets_hold_every_parameter_once_in_order_and_close_when_they_are_full(
    metas: list[ParamMeta], size: int
) -> None:
    buckets = cut_into_buckets(metas, size)
    assert [meta for bucket in buckets for meta in bucket.metas] == metas
    assert [bucket.index for bucket in buckets] == list(range(len(buckets)))
    for bucket in buckets:
        assert sum(map(num_bytes, bucket.metas[:-1])) < size
    for bucket in buckets[:-1]:
        assert sum(map(num_bytes, bucket.metas)) >= size


@given(metadata())
def test_what_is_packed_is_seen_bit_by_bit_at_aligned_places(metas: list[ParamMeta]) -> None:
    (bucket,) = cut_into_buckets(metas, 10**6)
    tensors = tensors_for(metas)
    buffer = torch.full((bucket.num_bytes,), 255, dtype=torch.uint8)
    pack(bucket, iter([(m.name, t) for m, t in zip(metas, tensors, strict=True)]), buffer, is_live=False)
    for meta, tensor, (name, arrived) in zip(metas, tensors, bucket.named(buffer), strict=True):
        assert (name, arrived.dtype, tuple(arrived.shape)) == (meta.name, meta.dtype, meta.shape)
        assert torch.equal(arrived, tensor)
        if arrived.numel():
            assert (arrived.data_ptr() - buffer.data_ptr()) % ALIGNMENT == 0


@given(metadata(), st.integers(1, 200), st.integers(1, 2000))
def test_pieces_hold_every_bucket_once_in_order_and_fit_into_the_staging_area(
    metas: list[ParamMeta], size: int, staging: int
) -> None:
    buckets = cut_into_buckets(metas, size)
    pieces = cut_into_pieces(buckets, staging)
    assert [bucket for piece in pieces for bucket in piece] == buckets
    for piece in pieces:
        assert len(piece) == 1 or sum(bucket.num_bytes for bucket in piece) <= staging
    for piece, following in pairwise(pieces):
        assert sum(bucket.num_bytes for bucket in [*piece, following[0]]) > staging


def test_live_tensors_are_converted_and_transposed_ones_keep_their_own_order() -> None:
    (bucket,) = cut_into_buckets([ParamMeta("t", torch.bfloat16, (3, 2))], 1)
    buffer = torch.zeros(bucket.num_bytes, dtype=torch.uint8)
    tensor = torch.arange(6.0).view(2, 3).T
    pack(bucket, iter([("t", tensor)]), buffer, is_live=True)
    assert torch.equal(bucket.views(buffer)[0], tensor.bfloat16())


@pytest.mark.parametrize(
    "yielded",
    [
        [("t", torch.zeros(3, 2))],
        [("u", torch.zeros(2, 3))],
        [("t", torch.zeros(2, 3, dtype=torch.bfloat16))],
        [],
    ],
)
def test_a_tensor_that_was_not_announced_so_is_refused(yielded: list[tuple[str, Tensor]]) -> None:
    (bucket,) = cut_into_buckets([ParamMeta("t", torch.float32, (2, 3))], 1)
    with pytest.raises(ValueError, match="where it announced"):
        pack(bucket, iter(yielded), torch.zeros(bucket.num_bytes, dtype=torch.uint8), is_live=False)


def test_a_checksum_notices_one_changed_bit_and_names_the_bucket() -> None:
    _, bucket = cut_into_buckets([ParamMeta(name, torch.float32, (40,)) for name in "abc"], 200)
    buffer = torch.zeros(bucket.num_bytes, dtype=torch.uint8)
    buffer[5] = 17
    write_checksum(bucket, buffer)
    verify_checksum(bucket, buffer)
    buffer[5] ^= 1
    with pytest.raises(RuntimeError, match=r"bucket 1 \(c to c\) arrived damaged"):
        verify_checksum(bucket, buffer)
