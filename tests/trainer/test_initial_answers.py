"""A run that is resumed without the answers of the initial policy ends before anything is loaded for it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rollout_server.client import Sampling
from trainer import main
from trainer.checkpoint import DriverState
from trainer.config import RunSettings
from trainer.initial_answers import INITIAL_ANSWERS_FILE, Answer, asked_of, sampling_of, write_answers
from trainer.prompts import Prompt
from wire.errors import ConfigError

PROMPT = Prompt(0, ({"role": "user", "content": "sea?"},), (5, 6))
STOPS = (2,)
Loads = list[str]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    """What was loaded."""
    found: Loads = []

    def load(settings: RunSettings, say: Any) -> Any:
        found.append("material")
        return SimpleNamespace(held_out=[PROMPT] * min(1, settings.num_eval_prompts), stop_token_ids=STOPS)

    monkeypatch.setattr(main, "load_material", load)
    return found


def settings_for(folder: Path, **changes: Any) -> RunSettings:
    """Of a run that is resumed, from the checkpoint of its fourth step."""
    settings = RunSettings(device="cpu", output_dir=str(folder), resume_from_checkpoint="latest", **changes)
    checkpoint = folder / "checkpoint-4"
    checkpoint.mkdir(exist_ok=True)
    state = DriverState(0, 4, 16, settings.completions_per_step, settings.num_learner_ranks, settings.seed)
    (checkpoint / "state.json").write_text(json.dumps(asdict(state)))
    return settings


def answer(sampling: Sampling) -> Answer:
    return Answer(asked_of(PROMPT, sampling), "waves", 2, True, "0.0", "0.0")


def test_where_they_are_missing_the_run_ends_before_anything_is_loaded(tmp_path: Path, loads: Loads) -> None:
    with pytest.raises(ConfigError, match=rf"{INITIAL_ANSWERS_FILE}: No such file; eval_steps is 7.*or eval_steps 0"):
        main.material_of(settings_for(tmp_path, eval_steps=7))
    assert loads == []


def test_answers_to_something_else_are_refused_as_soon_as_the_prompts_are_known(tmp_path: Path, loads: Loads) -> None:
    settings = settings_for(tmp_path)
    write_answers(tmp_path, [answer(sampling_of(settings, STOPS))])
    assert main.material_of(settings).held_out == [PROMPT]
    with pytest.raises(ConfigError, match=r"not to these 1 prompts at temperature 0.2.*or eval_steps 0"):
        main.material_of(settings_for(tmp_path, eval_temperature=0.2))
    assert loads == ["material", "material"]


@pytest.mark.parametrize("changes", [{"eval_steps": 0}, {"num_eval_prompts": 0}])
def test_a_run_that_never_compares_needs_none(tmp_path: Path, loads: Loads, changes: dict[str, int]) -> None:
    main.material_of(settings_for(tmp_path, **changes))
    assert loads == ["material"]


def test_a_run_that_begins_makes_its_own(tmp_path: Path, loads: Loads) -> None:
    main.material_of(RunSettings(device="cpu", output_dir=str(tmp_path)))
    assert loads == ["material"]
