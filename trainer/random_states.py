"""The random states of one process, to disk and back.

Every learner rank writes its own: DeepSpeed keeps one client state for all ranks below ZeRO-3, that of rank 0.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch


def save_random_states(path: Path) -> None:
    """Write the states of Python's, NumPy's and PyTorch's generators, those of the visible GPUs included."""
    kind, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys)), *rest),  # an array would need an unsafe load
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(states, path)


def load_random_states(path: Path) -> None:
    """Set the generators to what `save_random_states` wrote. Raises OSError where there is no such file."""
    states = torch.load(path, weights_only=True)
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
