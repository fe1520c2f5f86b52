"""A replica is taken for another where it would have been started in the same way, and not else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import wire.identity
from rollout_server.config import RolloutSettings
from rollout_server.placement import replica_identity, replica_plan
from wire.token import read_or_create_token


@pytest.fixture
def settings(tmp_path: Path) -> RolloutSettings:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return RolloutSettings(
        device="cpu", ray_address="auto", model_name_or_path=str(model), token_file=str(tmp_path / "token")
    )


OTHERWISE: dict[str, Any] = {
    "model_name_or_path": "Qwen/Qwen3-8B",
    "model_revision": "main",
    "rollout_dtype": "float32",
    "max_prompt_length": 77,
    "rollout_tensor_parallel_size": 2,
    "weight_transfer_backend": "nccl",
    "deterministic": True,
    "rollout_extra_args": "--seed 3",
    "device": "cuda",
    "rollout_max_num_seqs": 5,
    "fp32_lm_head": True,
    "bind_address": "node",
    "port_range": "20000-20100",
    "rollout_ports": [8200],
}
NO_MATTER: dict[str, Any] = {
    "log_dir": "elsewhere",
    "startup_timeout_s": 7.0,
    "orphan_timeout_s": 99.0,
    "replicas": 3,
    "probe_interval_s": 9.0,
    "temperature": 0.5,
    "ray_address": "head:6379",
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_one_that_would_be_started_otherwise_is_another(settings: RolloutSettings, name: str) -> None:
    other = replica_identity(replace(settings, **{name: OTHERWISE[name]}), 0)
    assert other != replica_identity(settings, 0)
    assert other.differences(replica_identity(settings, 0))


@pytest.mark.parametrize("name", NO_MATTER)
def test_what_the_server_does_not_know_of_does_not_matter(settings: RolloutSettings, name: str) -> None:
    other = replica_identity(replace(settings, **{name: NO_MATTER[name]}), 0)
    assert other == replica_identity(settings, 0) and other.differences(replica_identity(settings, 0)) == ""


def test_another_model_in_the_same_folder_is_another(settings: RolloutSettings) -> None:
    before = replica_identity(settings, 0)
    (Path(settings.model_name_or_path) / "config.json").write_text('{"hidden_size": 8}')
    assert replica_identity(settings, 0) != before


def test_another_token_is_another_and_is_not_told(settings: RolloutSettings, tmp_path: Path) -> None:
    before, token = replica_identity(settings, 0), read_or_create_token(settings.token_file)
    Path(settings.token_file).unlink()
    after = replica_identity(settings, 0)
    assert after != before and token not in repr(before)
    assert before.differences(after).startswith("token: ")


def test_other_software_is_another(settings: RolloutSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = replica_identity(settings, 0)
    assert any(line.startswith("torch ") for line in before.software) and "code " in before.software[-1]
    monkeypatch.setattr(wire.identity, "version", lambda name: "0.0.1")
    wire.identity.software_of.cache_clear()
    try:
        after = replica_identity(settings, 0)
        assert after != before and "torch 0.0.1" in after.differences(before)
    finally:
        wire.identity.software_of.cache_clear()


def test_what_differs_is_told_in_words_of_the_command(settings: RolloutSettings) -> None:
    other = replica_identity(replace(settings, rollout_dtype="float32"), 0)
    assert other.differences(replica_identity(settings, 0)) == "command: float32 in the place of bfloat16"


def test_a_replica_outlives_its_driver_only_in_a_cluster_that_does_and_where_that_is_wanted(
    settings: RolloutSettings,
) -> None:
    assert replica_plan(settings, 0).is_kept
    assert not replica_plan(replace(settings, orphan_timeout_s=0.0), 0).is_kept
    assert not replica_plan(replace(settings, ray_address=None), 0).is_kept


def test_what_a_node_must_have_free_is_named(settings: RolloutSettings) -> None:
    assert str(replica_plan(settings, 4).needs) == "1 x {rollout: 1}"
    on_gpus = replace(settings, device="cuda", rollout_tensor_parallel_size=2)
    assert str(replica_plan(on_gpus, 4).needs) == "1 x {GPU: 2, rollout: 1}" and replica_plan(on_gpus, 4).num_gpus == 2
