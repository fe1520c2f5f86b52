"""The files of a service that is yet to start on this node."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_server.config import RewardSettings
from reward_server.weights import Weights
from tests.reward_server.toy_hub import MODEL, ToyHub, serving
from wire.errors import ConfigError, ServiceError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToyHub]:
    (tmp_path / "repository").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "repository" / name).write_text("{}")
    with serving(ToyHub(tmp_path / "repository")) as found:
        for name in [name for name in os.environ if name.startswith("HF_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield found


def settings_in(folder: Path, model: str = MODEL) -> RewardSettings:
    return RewardSettings(judge_model_name_or_path=model, log_dir=str(folder))


def until_over(weights: Weights) -> str:
    end = time.monotonic() + 60
    while (state := weights.look()) is not None and state.is_under_way:
        assert time.monotonic() < end
        time.sleep(0.05)
    return "nothing to do" if state is None else state.phase


def test_they_are_fetched_with_the_first_look_and_are_there_for_whoever_comes_next(hub: ToyHub, tmp_path: Path) -> None:
    weights = Weights(settings_in(tmp_path))
    assert until_over(weights) == "here" and until_over(weights) == "here"
    assert hub.gets("model.safetensors") == [None]
    weights.stop()


def test_what_a_person_must_change_is_a_mistake_of_the_settings(hub: ToyHub, tmp_path: Path) -> None:
    weights = Weights(settings_in(tmp_path, "toys/nothing"))
    with pytest.raises(ConfigError, match="the reward service: judge_model_name_or_path 'toys/nothing' is not at http"):
        until_over(weights)


def test_a_fetch_that_was_ended_is_told_with_its_last_words(hub: ToyHub, tmp_path: Path) -> None:
    hub.hang_at = 0
    weights = Weights(settings_in(tmp_path))
    weights.look()
    weights.stop()
    with pytest.raises(ServiceError, match="judge-files ended with exit code"):
        weights.look()


def test_a_folder_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    assert until_over(Weights(settings_in(tmp_path, str(tmp_path / "judge")))) == "nothing to do"
