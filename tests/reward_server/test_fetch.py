"""The judge's files are fetched by the real library from a hub on the loopback interface, in a process of their own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_server.fetch_state import FetchState
from reward_server.fetched import fetched_command
from tests.reward_server.toy_hub import LARGE, MODEL, ToyHub, serving

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SHOW = [
    sys.executable,
    "-c",
    "import sys, os; print('became', sys.argv[1], sorted(os.listdir(sys.argv[1])))",
    "{weights}",
]
STALL_S = 30.0


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[ToyHub]:
    """A repository with two formats of weights, a tokenizer, code, and what nobody reads."""
    folder, numbers = tmp_path / "repository", random.Random(1)
    (folder / "original").mkdir(parents=True)
    for name in (SHARDS[0], "pytorch_model.bin", "original/consolidated.00.pth"):
        (folder / name).write_bytes(numbers.randbytes(1_000_000))
    (folder / SHARDS[1]).write_bytes(numbers.randbytes(32_000_000))  # the library writes pieces of 10 MiB
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("config.json", "tokenizer.json", "modeling.py", "chat_template.jinja", "README.md", "picture.png"):
        (folder / name).write_text(f"{{}} {name}")
    with serving(ToyHub(folder)) as found:
        yield found


class Fetching:
    """`reward_server.fetched` as the service starts it."""

    def __init__(self, hub: ToyHub, home: Path, *, model: str = MODEL, revision: str | None = None, **env: str) -> None:
        self.state_file = home / f"{len(list(home.glob('*.json')))}.json" if home.exists() else home / "0.json"
        stall_s = float(env.pop("stall_s", STALL_S))
        known = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | known | env
        self.process = subprocess.Popen(
            fetched_command(self.state_file, model, revision, stall_s, SHOW),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self.process.pid

    @property
    def state(self) -> FetchState | None:
        return FetchState.read(self.state_file)

    def ended(self, code: int = 0) -> str:
        told, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == code, told
        return told

    def wait_until(self, share: float) -> None:
        while (state := self.state) is None or not state.total_bytes or state.done_bytes < share * state.total_bytes:
            assert self.process.poll() is None, self.ended()
            time.sleep(0.02)


def test_what_vllm_reads_is_fetched_once_and_the_command_follows_with_its_folder(hub: ToyHub, tmp_path: Path) -> None:
    fetching = Fetching(hub, tmp_path / "home")
    pid = fetching.pid
    told = fetching.ended()
    (became,) = [line for line in told.splitlines() if line.startswith("became")]
    for name in (*SHARDS, "config.json", "tokenizer.json", "modeling.py", "chat_template.jinja"):
        assert f"'{name}'" in became, became
    for name in ("pytorch_model.bin", "original", "picture.png", "README.md"):
        assert f"'{name}'" not in became and not hub.gets(name)
    folder = Path(became.split()[1])
    assert folder.name == hub.commit and (folder / SHARDS[0]).read_bytes() == (hub.folder / SHARDS[0]).read_bytes()
    state = fetching.state
    assert state is not None and state.phase == "here" and state.fetched_bytes == state.total_bytes > 33_000_000
    assert "\r" not in told and f"{MODEL}: 33.0 MB here, 33.0 MB fetched in" in told
    assert fetching.process.pid == pid  # the same process: who watches it watches the server

    hub.asked.clear()
    again = Fetching(hub, tmp_path / "home")
    assert f"{MODEL}: 33.0 MB here, 0 B fetched in" in again.ended()
    assert hub.gets(".safetensors") == [] and again.state is not None and again.state.fetched_bytes == 0


def test_a_broken_connection_goes_on_where_it_was(hub: ToyHub, tmp_path: Path) -> None:
    hub.break_at = 15_000_000
    Fetching(hub, tmp_path / "home").ended()
    assert hub.gets(SHARDS[1]) == [None, "bytes=10485760-"]
    (there,) = (tmp_path / "home").rglob(SHARDS[1])
    assert there.read_bytes() == (hub.folder / SHARDS[1]).read_bytes()


def test_a_killed_fetch_is_taken_up_with_the_files_that_are_not_whole(hub: ToyHub, tmp_path: Path) -> None:
    hub.hang_at = 25_000_000
    first = Fetching(hub, tmp_path / "home")
    first.wait_until(0.6)  # the small one is whole, of the large one 20 MB are written
    blobs = tmp_path / "home/hub/models--toys--judge/blobs"
    os.kill(first.pid, signal.SIGKILL)
    first.ended(-signal.SIGKILL)
    (left,) = blobs.glob("*.incomplete")
    os.utime(left, (0, 0))
    hub.asked.clear()
    hub.hang_at = None
    second = Fetching(hub, tmp_path / "home")
    second.ended()
    assert hub.gets(SHARDS[0]) == [] and len(hub.gets(SHARDS[1])) == 1
    assert not left.exists()
    assert second.state is not None and second.state.fetched_bytes < second.state.total_bytes


def test_two_servers_of_one_host_fetch_once_and_the_waiting_one_says_how_far_it_is(hub: ToyHub, tmp_path: Path) -> None:
    hub.hang_at = 25_000_000
    first = Fetching(hub, tmp_path / "home")
    first.wait_until(0.3)
    second = Fetching(hub, tmp_path / "home")
    second.wait_until(0.6)
    assert second.state is not None and second.state.phase == "waits"
    hub.hang_at = None
    assert "another process fetches" in second.ended()
    first.ended()
    assert [len(hub.gets(name)) for name in SHARDS] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model": "toys/nothing"}, 2, ("'toys/nothing' is not at http://127.0.0.1", "HF_TOKEN")),
        ({"refusal": (401, "GatedRepo")}, 2, ("is gated at http://127.0.0.1", "HF_TOKEN")),
        ({"refusal": (403, "GatedRepo")}, 2, ("is gated at http://127.0.0.1", "HF_TOKEN")),
        ({"revision": "v9"}, 2, ("no branch, tag or commit 'v9'", "judge_revision")),
        ({"HF_HUB_OFFLINE": "1"}, 2, ("is not whole in", "HF_HUB_OFFLINE")),
        ({"hang_at": 300_000, "stall_s": "2"}, 1, ("nothing came from the hub for judge_fetch_stall_s (2 s)",)),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(
    hub: ToyHub, tmp_path: Path, changes: dict[str, object], code: int, words: tuple[str, ...]
) -> None:
    for name in ("refusal", "hang_at"):
        if name in changes:
            setattr(hub, name, changes.pop(name))
    fetching = Fetching(hub, tmp_path / "home", **changes)  # type: ignore[arg-type]  # a mixed table
    last = fetching.ended(code).splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), last
    state = fetching.state
    assert state is not None and state.phase == "failed" and state.is_mistake == (code == 2)
    assert last == f"error: {state.message}"


def test_without_the_hub_what_is_here_is_enough(hub: ToyHub, tmp_path: Path) -> None:
    Fetching(hub, tmp_path / "home").ended()
    hub.asked.clear()
    assert "became" in Fetching(hub, tmp_path / "home", HF_HUB_OFFLINE="1").ended() and not hub.asked
    assert "became" in Fetching(hub, tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:1").ended()
    shutil.rmtree(tmp_path / "home/hub/models--toys--judge/trees")  # another version of the library kept no list
    assert "became" in Fetching(hub, tmp_path / "home", HF_HUB_OFFLINE="1").ended()
    (shard,) = (tmp_path / "home").rglob(SHARDS[1])
    shard.unlink()
    assert "is not whole in" in Fetching(hub, tmp_path / "home", HF_HUB_OFFLINE="1").ended(2)


def test_a_disk_that_is_too_small_is_found_before_anything_is_fetched(
    hub: ToyHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from reward_server import hub as door
    from wire.errors import ConfigError

    monkeypatch.setattr(door.constants, "HF_HUB_CACHE", str(tmp_path / "home/hub"))
    monkeypatch.setattr(door.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_500_000))
    files = tuple(door.HubFile(name, 10 * LARGE, name) for name in SHARDS)
    snapshot = door.Snapshot(MODEL, "c0ffee", files)
    with pytest.raises(ConfigError, match=r"needs 2\.0 MB more in .*home/hub, and 1\.5 MB are free there: make room"):
        door.check_space(snapshot)
    (tmp_path / "home/hub/models--toys--judge/blobs").mkdir(parents=True)
    (tmp_path / "home/hub/models--toys--judge/blobs" / SHARDS[0]).touch()  # this one is there
    door.check_space(snapshot)
