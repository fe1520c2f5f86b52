"""A resumed rank draws what it would have drawn."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.random_states import load_random_states, save_random_states


def draws() -> list[float]:
    """Of each generator; the normal draws come in pairs, of which one is kept for the next call."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.randn(()))]


def test_every_generator_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    draws()  # leaves half a pair of normal draws behind
    save_random_states(tmp_path / "states.pt")
    expected = [draws(), draws()]
    draws()
    load_random_states(tmp_path / "states.pt")
    assert [draws(), draws()] == expected


def test_states_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"states\.pt"):
        load_random_states(tmp_path / "states.pt")
