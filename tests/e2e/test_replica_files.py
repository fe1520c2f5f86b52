"""A replica of a policy on the hub fetches configuration and tokenizer, and no weights: they come from the learner."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from tests.e2e.conftest import START_S, TOY
from tests.reward_server.toy_hub import MODEL, ToyHub, serving


def test_a_replica_asks_the_hub_for_no_weights(folder: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(ToyHub(TOY / "policy")) as hub:
        for name, value in {"ENDPOINT": hub.url, "HOME": str(folder / "hub"), "HUB_OFFLINE": "0"}.items():
            monkeypatch.setenv(f"HF_{name}", value)
        settings = RolloutSettings(
            model_name_or_path=MODEL,
            device="cpu",
            rollout_dtype="float32",
            rollout_max_num_seqs=4,
            max_prompt_length=64,
            response_length=16,
            token_file=str(token_file),
            log_dir=str(folder / "files-logs"),
        )
        replica = replica_process(settings, 0)
        try:
            replica.start()
            replica.wait_healthy(START_S)
        finally:
            replica.stop()
    read = {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET"}
    assert {"config.json", "tokenizer.json"} <= read, read
    assert not [path for _, path, _ in hub.asked if path.endswith((".safetensors", ".bin", ".pt"))]
