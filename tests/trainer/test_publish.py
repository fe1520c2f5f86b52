"""What a failed push leaves behind: ranks in step, and a word about every member."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.ranks import run_ranks
from trainer.lora import ServedWeight, served_weights
from trainer.publish import ZeroWeightSource


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


def test_the_sources_own_time_is_counted_and_not_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    source = ZeroWeightSource(served_weights(model), torch.float32, 8, is_sender=True)
    now = [0.0]
    monkeypatch.setattr("trainer.publish.time.perf_counter", lambda: now[0])
    tensor = ServedWeight.tensor

    def slow(weight: ServedWeight, dtype: torch.dtype) -> torch.Tensor:
        now[0] += 2.0
        return tensor(weight, dtype)

    monkeypatch.setattr(ServedWeight, "tensor", slow)
    for _ in range(2):  # each pass begins at 0
        for _ in source:
            now[0] += 100.0
        assert source.gather_seconds == 4 * 2.0
