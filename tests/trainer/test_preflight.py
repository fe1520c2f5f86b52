"""What is checked before anything starts, as it depends on where the parts will be."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer import preflight
from trainer.config import RunSettings
from trainer.preflight import check_environment
from wire.errors import ConfigError

NO_GPU = "this host shows no NVIDIA GPU"


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this host has an NVIDIA GPU")
def test_only_outside_of_a_cluster_the_drivers_own_host_must_have_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_model", "load_truth", "load_conversations", "pairs_to_check_judge"):
        monkeypatch.setattr(preflight, name, lambda *arguments: None)
    alone = RunSettings(device="cuda", num_eval_prompts=0)
    with pytest.raises(ConfigError, match=NO_GPU):
        check_environment(alone)
    alone.ray_address = "auto"
    assert not [note for note in check_environment(alone) if NO_GPU in note]
