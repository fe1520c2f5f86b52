"""Checkpoints are whole or absent; the learner's part is a fake."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint import Checkpoints, DriverState
from trainer.config import RunSettings
from trainer.ledger_past import LEDGER_FILE
from wire.errors import ConfigError, ServiceError
from wire.generation import PolicyVersion


class Saver:
    """Writes two files; fails between them when told to."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.fails = False

    async def save(self, folder: str) -> None:
        self.folders.append(Path(folder))
        part = Path(folder) / "learner"
        part.mkdir()
        (part / "rank0.pt").write_text("weights")
        if self.fails:
            raise ServiceError("learner rank 1: save: No space left on device")
        (part / "rank1.pt").write_text("weights")

    async def load(self, folder: str) -> None:
        raise AssertionError("nobody asked for it")


def settings_for(folder: Path, **changes: Any) -> RunSettings:
    """Ten steps of 16 completions."""
    return RunSettings(device="cpu", output_dir=str(folder), **{"total_episodes": 160, **changes})


async def save(checkpoints: Checkpoints, *steps: int, saver: Saver | None = None, lineage: int = 0) -> list[Path]:
    saver = saver or Saver()
    return [await checkpoints.save(saver, PolicyVersion(lineage, step), next_prompt=4 * step) for step in steps]


async def test_a_checkpoint_holds_the_learners_part_and_where_the_driver_goes_on(tmp_path: Path) -> None:
    (path,) = await save(Checkpoints(settings_for(tmp_path, seed=7)), 3, lineage=1)
    assert path == tmp_path / "checkpoint-3"
    assert (path / "learner" / "rank1.pt").read_text() == "weights"
    state = DriverState(lineage=1, step=3, next_prompt=12, completions_per_step=16, num_learner_ranks=1, seed=7)
    assert DriverState(**json.loads((path / "state.json").read_text())) == state
    resumed = Checkpoints(settings_for(tmp_path, resume_from_checkpoint="latest", seed=7)).to_resume()
    assert resumed == (path, state)


async def test_it_is_written_aside_and_only_the_rename_makes_it_one(tmp_path: Path) -> None:
    saver, checkpoints = Saver(), Checkpoints(settings_for(tmp_path))

    class Watching(Saver):
        async def save(self, folder: str) -> None:
            await super().save(folder)
            assert checkpoints.existing() == []

    saver = Watching()
    await save(checkpoints, 1, saver=saver)
    assert saver.folders[0] != tmp_path / "checkpoint-1"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


async def test_only_the_newest_are_kept_and_ten_comes_after_nine(tmp_path: Path) -> None:
    checkpoints = Checkpoints(settings_for(tmp_path, save_total_limit=2))
    await save(checkpoints, 8, 9, 10)
    assert [path.name for path in checkpoints.existing()] == ["checkpoint-9", "checkpoint-10"]
    assert checkpoints.has(10) and not checkpoints.has(8)
    assert not (tmp_path / "checkpoint-8").exists()


async def test_an_interrupted_save_leaves_the_one_before_usable_and_the_next_succeeds(tmp_path: Path) -> None:
    saver, checkpoints = Saver(), Checkpoints(settings_for(tmp_path, save_total_limit=1))
    await save(checkpoints, 2, saver=saver)
    saver.fails = True
    with pytest.raises(ServiceError, match="No space left"):
        await save(checkpoints, 4, saver=saver)
    latest = Checkpoints(settings_for(tmp_path, resume_from_checkpoint="latest")).to_resume()
    assert latest is not None and latest[1].step == 2
    saver.fails = False
    await save(checkpoints, 4, saver=saver)
    assert [path.name for path in checkpoints.existing()] == ["checkpoint-4"]
    assert not list(tmp_path.glob(".*"))


async def test_a_step_saved_twice_is_replaced(tmp_path: Path) -> None:
    checkpoints = Checkpoints(settings_for(tmp_path))
    await save(checkpoints, 2)
    (tmp_path / "checkpoint-2" / "stale").touch()
    (path,) = await save(checkpoints, 2, lineage=1)
    assert not (path / "stale").exists() and json.loads((path / "state.json").read_text())["lineage"] == 1


async def test_what_is_not_a_whole_checkpoint_is_not_seen(tmp_path: Path) -> None:
    for name in (".checkpoint-9.partial", "checkpoint-9.partial", "checkpoint-x", "checkpoint-"):
        (tmp_path / name).mkdir()
    checkpoints = Checkpoints(settings_for(tmp_path, resume_from_checkpoint="latest"))
    assert checkpoints.existing() == []
    with pytest.raises(ConfigError, match=f"resume_from_checkpoint latest: {tmp_path} holds no checkpoint"):
        checkpoints.to_resume()


async def test_a_run_resumes_from_the_latest_or_from_the_one_that_is_named(tmp_path: Path) -> None:
    early, late = await save(Checkpoints(settings_for(tmp_path)), 9, 10)
    for wanted, expected in (("latest", late), (str(early), early)):
        found = Checkpoints(settings_for(tmp_path, resume_from_checkpoint=wanted)).to_resume()
        assert found is not None and found[0] == expected
    assert Checkpoints(settings_for(tmp_path)).to_resume() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_accumulation_steps": 16}, "completions_per_step 16, this run has 32"),
        ({"gradient_accumulation_steps": 4, "num_learner_ranks": 2}, "num_learner_ranks 1, this run has 2"),
        ({"seed": 43}, "seed 42, this run has 43"),
        ({"use_peft": True, "lora_r": 8}, "adapters none, this run has LoRA r 8, alpha 32, on all-linear"),
    ],
)
async def test_what_must_stay_the_same_is_refused_with_both_numbers(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    await save(Checkpoints(settings_for(tmp_path)), 2)
    with pytest.raises(ConfigError, match=f"checkpoint-2 was made with {message}"):
        Checkpoints(settings_for(tmp_path, resume_from_checkpoint="latest", **changes)).to_resume()
    recut = settings_for(
        tmp_path, resume_from_checkpoint="latest", per_device_train_batch_size=4, gradient_accumulation_steps=4
    )
    assert Checkpoints(recut).to_resume() is not None


@pytest.mark.parametrize("content", [None, "no json", "[1]", '{"step": 1}', '{"a": 1}'])
def test_a_folder_without_a_state_is_no_checkpoint(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    if content is not None:
        (folder / "state.json").write_text(content)
    with pytest.raises(ConfigError, match=f"{folder} is no checkpoint of this program"):
        Checkpoints(settings_for(tmp_path, resume_from_checkpoint=str(folder))).to_resume()


@pytest.mark.parametrize(("every", "due"), [(4, [4, 8, 10]), (0, [10]), (1, list(range(1, 11))), (10, [10])])
def test_a_checkpoint_is_due_every_so_many_steps_and_at_the_end(tmp_path: Path, every: int, due: list[int]) -> None:
    checkpoints = Checkpoints(settings_for(tmp_path, save_steps=every))
    assert [step for step in range(1, 11) if checkpoints.is_due(step)] == due


async def test_a_run_that_went_back_keeps_what_it_writes_and_latest_means_last_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(settings_for(tmp_path, save_total_limit=2))
    await save(checkpoints, 8, 9)
    await save(checkpoints, 4, lineage=1)
    assert [path.name for path in checkpoints.existing()] == ["checkpoint-9", "checkpoint-4"]
    resumed = Checkpoints(settings_for(tmp_path, resume_from_checkpoint="latest")).to_resume()
    assert resumed is not None
    assert resumed[0].name == "checkpoint-4"


async def test_a_run_that_died_before_its_first_checkpoint_is_resumed_from_its_ledger(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).touch()
    assert Checkpoints(settings_for(tmp_path, resume_from_checkpoint="latest")).to_resume() is None


async def test_places_that_were_taken_ahead_come_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(settings_for(tmp_path))
    await checkpoints.save(Saver(), PolicyVersion(0, 2), 8, taken_ahead=[12, 9])
    resumed = Checkpoints(settings_for(tmp_path, resume_from_checkpoint="latest")).to_resume()
    assert resumed is not None and (resumed[1].next_prompt, resumed[1].taken_ahead) == (8, [9, 12])


async def test_the_ledger_is_needed_from_where_the_oldest_checkpoint_goes_on(tmp_path: Path) -> None:
    checkpoints = Checkpoints(settings_for(tmp_path, save_total_limit=2))
    assert checkpoints.first_needed() == 0
    for step in (1, 2, 3):
        await checkpoints.save(Saver(), PolicyVersion(0, step), 10 * step)
    assert checkpoints.first_needed() == 20


async def test_what_a_killed_life_left_is_gone_with_the_next_save(tmp_path: Path) -> None:
    checkpoints = Checkpoints(settings_for(tmp_path))
    for name in (".checkpoint-3.partial", ".checkpoint-1.removed"):
        (tmp_path / name / "learner").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    await save(checkpoints, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "runs"]
    (tmp_path / ".checkpoint-5.partial").mkdir()
    checkpoints.clear_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "runs"]


async def test_the_event_loop_runs_on_while_a_checkpoint_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync that waits for the loop to turn would wait for ever if the loop waited for it."""
    turned, loop = asyncio.Event(), asyncio.get_running_loop()
    sync = os.fsync

    def slow_sync(descriptor: int) -> None:
        asyncio.run_coroutine_threadsafe(turned.wait(), loop).result(timeout=10)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_sync)
    saving = asyncio.create_task(save(Checkpoints(settings_for(tmp_path)), 1))
    await asyncio.sleep(0.01)
    assert not saving.done()
    turned.set()
    assert await saving == [tmp_path / "checkpoint-1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mount = subprocess.run(command, capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


class Writing(Saver):
    """Writes so many KiB as a rank does, whose errors reach the driver as ServiceErrors."""

    def __init__(self, kib: int) -> None:
        super().__init__()
        self.kib = kib

    async def save(self, folder: str) -> None:
        (Path(folder) / "learner").mkdir()
        try:
            torch.save(torch.zeros(self.kib * 256), Path(folder) / "learner" / "rank0.pt")
        except (OSError, RuntimeError) as error:
            raise ServiceError(f"learner rank 0: save: {error}") from error


async def test_a_full_disk_ends_in_one_clear_error_and_leaves_the_checkpoint_before_whole(small_disk: Path) -> None:
    checkpoints = Checkpoints(settings_for(small_disk))
    (before,) = await save(checkpoints, 1, saver=Writing(600))
    message = (
        f"{small_disk}/checkpoint-2 could not be written: learner rank 0: save: .*MB were written, and 0.0 MB free "
        f"after that; {before} is intact, of 0.6 MB"
    )
    with pytest.raises(ServiceError, match=message):
        await save(checkpoints, 2, saver=Writing(600))
    assert [path.name for path in small_disk.iterdir()] == ["checkpoint-1"]
    assert torch.load(before / "learner" / "rank0.pt").numel() == 600 * 256
    resumed = Checkpoints(settings_for(small_disk, resume_from_checkpoint="latest")).to_resume()
    assert resumed is not None and resumed[1].step == 1
    await save(checkpoints, 3, saver=Writing(100))  # there is room again for what fits


async def test_a_disk_that_fills_with_the_drivers_own_part_is_the_same_error(small_disk: Path) -> None:
    class Filling(Saver):
        async def save(self, folder: str) -> None:
            with pytest.raises(OSError) as raised, (Path(folder) / "weights").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            assert raised.value.errno == errno.ENOSPC

    with pytest.raises(ServiceError, match=r"checkpoint-1 could not be written: .*No space left on device"):
        await save(Checkpoints(settings_for(small_disk)), 1, saver=Filling())
    assert list(small_disk.iterdir()) == []
