"""A toy policy that takes long enough to send, and what vLLM's checksums of it must be."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
VOCABULARY_MULTIPLE = 64  # vLLM pads the vocabulary's rows with zeros

Tensors = dict[str, np.ndarray]


def make_wide_policy(source: Path, target: Path, megabytes: int, seed: int = 0) -> None:
    """The policy in `source` with so wide a feed-forward part that its float32 weights take about `megabytes` MB.

    It computes the same: the new neurons have random inputs, and outputs of weight zero, until they are trained.
    """
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    hidden, old = config["hidden_size"], config["intermediate_size"]
    wide = megabytes * 10**6 // (3 * 4 * hidden * config["num_hidden_layers"]) // 64 * 64
    draw = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            new = draw.normal(0.0, 0.02, (wide - old, hidden)).astype(np.float32)
            tensors[name] = np.concatenate([tensor, new])
        elif name.endswith("down_proj.weight"):
            tensors[name] = np.concatenate([tensor, np.zeros((hidden, wide - old), np.float32)], axis=1)
        else:
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config | {"intermediate_size": wide}, indent=2))


def checksums_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each tensor as a server of one worker holds it, by vLLM's name, of the policy in `folder`."""
    return {name: hashlib.sha256(tensor.tobytes()).hexdigest() for name, tensor in _as_served(folder).items()}


def _as_served(folder: Path) -> Tensors:
    tensors = load_file(folder / "model.safetensors")
    for fused, parts in FUSED.items():
        for first in [name for name in tensors if name.endswith(f"{parts[0]}.weight")]:
            prefix = first.removesuffix(f"{parts[0]}.weight")
            rows = [tensors.pop(f"{prefix}{part}.weight") for part in parts]
            tensors[f"{prefix}{fused}.weight"] = np.concatenate(rows)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        padding = -len(tensors[name]) % VOCABULARY_MULTIPLE
        tensors[name] = np.concatenate([tensors[name], np.zeros((padding, tensors[name].shape[1]), np.float32)])
    return tensors
