"""Each heavy library has its door, and imports point one way. The files are read, not imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("wire", "rollout_server", "reward_server", "trainer")

DOORS = {
    "ray": {"wire/placement.py", "reward_server/genrm_placement.py", "trainer/placement.py"},
    "deepspeed": {"trainer/learner.py", "trainer/publish.py", "trainer/checkpoint.py"},
    "vllm": {
        "rollout_server/plugin.py",
        "rollout_server/transfer.py",
        "rollout_server/buckets.py",
        "rollout_server/reload.py",
        "rollout_server/gloo_sender.py",
        "rollout_server/gloo_worker.py",
        "rollout_server/nccl_guard.py",
        "rollout_server/packed_route.py",
        "rollout_server/worker_answers.py",
        "trainer/publish.py",
    },
    "peft": {"trainer/lora.py"},
    "huggingface_hub": {"reward_server/hub.py"},
    "deploy": set[str](),
}
MAY_IMPORT = {
    "wire": {"wire"},
    "rollout_server": {"wire", "rollout_server"},
    "reward_server": {"wire", "reward_server"},
    "trainer": {"wire", "rollout_server", "reward_server", "trainer"},
}
TORCH_FREE = (
    "wire",
    "reward_server",
    "rollout_server/client.py",
    "rollout_server/fleet.py",
    "rollout_server/config.py",
)
FORBIDDEN_NAMES = {"utils.py", "common.py", "helpers.py", "manager.py"}

FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported_packages(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


def test_there_are_files_to_read() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_to_its_doors_and_directions(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    imports = imported_packages(path)
    for library, doors in DOORS.items():
        assert library not in imports or name in doors, f"{name} imports {library}; its doors are {sorted(doors)}"
    assert imports & set(PACKAGES) <= MAY_IMPORT[name.partition("/")[0]]
    if name.startswith(TORCH_FREE):
        assert "torch" not in imports, f"{name} must stay torch-free"


def test_no_file_is_named_for_nothing() -> None:
    assert not [path for path in FILES if path.name in FORBIDDEN_NAMES]
