"""Exports: when, where, and whole or absent. The learner is a fake that writes a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.config import RunSettings
from trainer.export import Exports
from wire.errors import ServiceError
from wire.generation import PolicyVersion


class Writer:
    """Writes one file a folder; `seen` are the whole folders that were there meanwhile."""

    def __init__(self, root: Path, failing: str | None = None) -> None:
        self.root, self.failing = root, failing
        self.seen: list[set[str]] = []

    async def export(self, folder: str) -> None:
        self.write(folder, "model.safetensors")

    async def export_adapter(self, folder: str) -> None:
        self.write(folder, "adapter_model.safetensors")

    def write(self, folder: str, name: str) -> None:
        self.seen.append(whole(self.root))
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_text("weights")
        if name == self.failing:
            raise ServiceError("learner rank 1: export: disk full")


def whole(root: Path) -> set[str]:
    """Files under names that are not hidden."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if not path.parts[0].startswith(".")}


def exports(root: Path, **changes: Any) -> Exports:
    return Exports(RunSettings(device="cpu", output_dir=str(root), **changes))


@pytest.mark.parametrize(("every", "due"), [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6])])
def test_an_export_is_due_every_so_many_steps(tmp_path: Path, every: int, due: list[int]) -> None:
    assert [step for step in range(1, 8) if exports(tmp_path, export_steps=every).is_due(step)] == due


async def test_a_run_exports_after_each_step_that_is_due(tmp_path: Path) -> None:
    from trainer.run import Run

    settings = RunSettings(device="cpu", output_dir=str(tmp_path), export_steps=2, save_steps=0)
    parts: Any = SimpleNamespace(learner=Writer(tmp_path))
    unused: Any = None
    pipeline: Any = SimpleNamespace(next_occurrence=4, taken_ahead=set())
    run = Run(settings, unused, "token", parts, lambda line: None, unused, unused)
    told: list[int] = []
    contest: Any = SimpleNamespace(begin_if_due=told.append)
    for step in range(1, 6):
        await run._checkpoint(unused, contest, PolicyVersion(0, step), pipeline)
    assert told == [1, 2, 3, 4, 5]
    assert whole(tmp_path) == {"export-2/model.safetensors", "export-4/model.safetensors"}


async def test_an_export_has_its_name_only_when_all_of_it_is_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    assert await exports(tmp_path, use_peft=True).save(writer, 20) == tmp_path / "export-20"
    assert writer.seen == [set(), set()]
    assert whole(tmp_path) == {"export-20/model.safetensors", "export-20/adapter/adapter_model.safetensors"}
    await exports(tmp_path).save(writer, 40)
    assert whole(tmp_path) - {"export-40/model.safetensors"} == writer.seen[-1]


async def test_the_last_export_is_the_policy_with_the_adapter_beside_it(tmp_path: Path) -> None:
    await exports(tmp_path).save_final(Writer(tmp_path))
    assert whole(tmp_path) == {"policy/model.safetensors"}
    await exports(tmp_path, use_peft=True).save_final(Writer(tmp_path))
    assert whole(tmp_path) == {"policy/model.safetensors", "adapter/adapter_model.safetensors"}


async def test_a_failed_export_leaves_nothing_and_what_was_there_stays(tmp_path: Path) -> None:
    await exports(tmp_path, use_peft=True).save(Writer(tmp_path), 20)
    before = whole(tmp_path)
    failing = Writer(tmp_path, failing="adapter_model.safetensors")
    for step in (20, 40):
        with pytest.raises(ServiceError, match=rf"export-{step} could not be written: learner rank 1: .* disk full"):
            await exports(tmp_path, use_peft=True).save(failing, step)
    assert whole(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export-20"]


async def test_what_a_killed_life_left_goes_with_the_next_export(tmp_path: Path) -> None:
    for name in (".export-10.partial", ".export-20.removed", ".policy.removed"):
        (tmp_path / name / "adapter").mkdir(parents=True)
    (tmp_path / "export-20").mkdir()
    await exports(tmp_path).save(Writer(tmp_path), 20)
    assert [path.name for path in tmp_path.iterdir()] == ["export-20"]
    assert whole(tmp_path) == {"export-20/model.safetensors"}
