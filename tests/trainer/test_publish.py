"""What a failed push leaves behind: ranks in step, and a word about every member."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks
from trainer.lora import ServedWeight, served_weights
from trainer.publish import TransferSettings, ZeroWeightSource, trainer_init_info
from wire.errors import ConfigError


@pytest.mark.timeout(240)
def test_two_ranks_under_zero_3_stay_in_step_whatever_becomes_of_a_push(tmp_path: Path) -> None:
    run_ranks("tests.trainer.publish_case", tmp_path, 2)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["outcomes"] == ["gone"]
    assert found["errors"] == ["no transfer group is open", *["a member is gone", "not as announced"] * 10]


def test_copies_are_of_the_wires_type_and_live_tensors_are_the_parameters_themselves() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    source = ZeroWeightSource(served_weights(model), torch.bfloat16, 8, is_sender=True)
    copies = dict(source)
    assert copies["0.weight"].dtype == torch.bfloat16 and torch.equal(copies["0.weight"], model[0].weight.bfloat16())
    assert dict(source.live())["0.weight"].data_ptr() == model[0].weight.data_ptr()


def test_adapters_are_merged_in_live_tensors_too() -> None:
    base, down, up = (nn.Parameter(torch.randn(shape)) for shape in ((4, 6), (2, 6), (4, 2)))
    source = ZeroWeightSource([ServedWeight("w", base, down, up, 0.5)], torch.float32, 8, is_sender=True)
    ((_, merged),) = source.live()
    assert torch.allclose(merged, base + 0.5 * up @ down)


@pytest.mark.parametrize("backend", ["ipc", "sparse_nccl", "nccl_m2n", "sharded_rdt", "modelexpress", "carrier pigeon"])
def test_a_backend_that_cannot_take_a_whole_model_from_one_sender_is_refused_with_the_reason(backend: str) -> None:
    with pytest.raises(ConfigError, match=f"weight_transfer_backend '{backend}': .*; use nccl on GPUs, gloo on CPUs"):
        trainer_init_info(TransferSettings(backend, "127.0.0.1", 1, 1), 2)


def test_checksums_are_not_to_be_had_from_vllms_own_packing() -> None:
    with pytest.raises(ConfigError, match="verify_transfer needs weight_transfer_backend gloo"):
        trainer_init_info(TransferSettings("nccl", "127.0.0.1", 1, 1, verify=True), 2)
