"""What the code asks of a cluster's nodes: the custom resources in the three placement.py, read and not imported."""

from __future__ import annotations

import ast
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PLACEMENTS = ("trainer/placement.py", "rollout_server/placement.py", "reward_server/placement.py")


def placed_resources() -> set[str]:
    """Every custom resource of an actor or a bundle."""
    found = set()
    for path in PLACEMENTS:
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.keyword) and node.arg == "resources" and isinstance(node.value, ast.Dict):
                found |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    return {name for name in found if isinstance(name, str)}


def wanted_gpus() -> dict[str, int]:
    """GPUs that configs/qwen3-8b/cluster.yaml takes, by the resource of the nodes that have them."""
    config = yaml.safe_load((ROOT / "configs/qwen3-8b/cluster.yaml").read_text())
    return {
        "learner": config["num_learner_ranks"],
        "reward": config.get("judge_servers", 1) * config["judge_tensor_parallel_size"],
        "rollout": config["replicas"] * config.get("rollout_tensor_parallel_size", 1),
    }
