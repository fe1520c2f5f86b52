"""HelpSteer3-shaped conversations from a folder, and every way in which they cannot be had."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from trainer.config import RunSettings
from trainer.dataset import Conversation, load_conversations, pairs_to_check_judge
from wire.errors import ConfigError

USER = {"role": "user", "content": "hello"}
ASSISTANT = {"role": "assistant", "content": "hi"}

Load = Callable[..., list[Conversation]]


def row(*context: dict[str, str], language: str = "english", **more: Any) -> dict[str, Any]:
    return {"context": list(context), "language": language, "overall_preference": 1, **more}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library's cache under the test's folder; its progress bars as they were."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "helpsteer3"
    (path / "preference").mkdir(parents=True)
    return path


@pytest.fixture
def load(folder: Path) -> Load:
    def call(split: str = "train", **changes: Any) -> list[Conversation]:
        return load_conversations(RunSettings(device="cpu", **{"dataset_name": str(folder), **changes}), split)

    return call


def write(path: Path, rows: list[Any]) -> None:
    text = "".join(json.dumps(item) + "\n" for item in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize(
    "name",
    ["preference/train.jsonl", "preference/train.jsonl.gz", "preference/train.json", "train.jsonl", "train.json.gz"],
)
def test_a_split_is_found_by_its_configuration_or_beside_it_packed_or_not(folder: Path, load: Load, name: str) -> None:
    write(folder / name, [row(USER, ASSISTANT, USER), row(USER)])
    assert load() == [[USER, ASSISTANT, USER], [USER]]


def test_parquet_is_read_too(folder: Path, load: Load) -> None:
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([row(USER)]).to_parquet(str(folder / "preference" / "train.parquet"))
    assert load() == [[USER]]


def test_the_configurations_own_file_comes_before_the_folders(folder: Path, load: Load) -> None:
    write(folder / "train.jsonl", [row({"role": "user", "content": "wrong"})])
    write(folder / "preference" / "train.jsonl", [row(USER)])
    assert load() == [[USER]]


def test_each_split_has_its_file(folder: Path, load: Load) -> None:
    write(folder / "train.jsonl", [row(USER)])
    write(folder / "validation.jsonl", [row(USER), row(USER)])
    assert (len(load("train")), len(load("validation"))) == (1, 2)


def test_one_language_is_kept_or_all(folder: Path, load: Load) -> None:
    korean = {"role": "user", "content": "annyeong"}
    write(folder / "train.jsonl", [row(USER), row(korean, language="korean"), row(USER)])
    assert load() == [[USER], [USER]]
    assert load(dataset_language="korean") == [[korean]]
    assert load(dataset_language="") == load(dataset_language=None) == [[USER], [korean], [USER]]


def test_a_context_that_does_not_end_in_a_user_turn_is_skipped(folder: Path, load: Load) -> None:
    write(folder / "train.jsonl", [row(USER, ASSISTANT), row(), row(USER)])
    assert load() == [[USER]]


MISTAKES: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "a missing column": ([{"context": [USER], "domain": "code"}], {}, r"no column language \(it has context, domain\)"),
    "no column at all": ([{"text": "hello"}], {}, r"no column context, language \(it has text\)"),
    "a language nobody speaks": (
        [row(USER), row(USER, language="french")],
        {"dataset_language": "klingon"},
        r"dataset_language 'klingon' leaves no row .*the split has english, french",
    ),
    "no user turn last": ([row(USER, ASSISTANT)], {}, "no conversation that ends in a user turn"),
    "a context of text": (
        [{"context": "hello", "language": "english"}],
        {},
        "`context` must be a list of role/content",
    ),
    "turns without a role": (
        [{"context": [{"content": "x"}], "language": "english"}],
        {},
        "`context` must be a list of role/content",
    ),
    "another split": ([row(USER)], {"split": "validation"}, r"has no preference/validation\.jsonl\[\.gz\]"),
    "another configuration": ([row(USER)], {"dataset_config": "feedback", "split": "test"}, r"no feedback/test\.jsonl"),
    "a folder that is not there": ([row(USER)], {"dataset_name": "./nowhere"}, r"dataset_name 'nowhere' is neither"),
}


@pytest.mark.parametrize(("rows", "changes", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(folder: Path, load: Load, rows: list[Any], changes: dict[str, Any], message: str) -> None:
    write(folder / "preference" / "train.jsonl", rows)
    with pytest.raises(ConfigError, match=message) as error:
        load(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.jsonl", b'{"context": [\n'), ("train.jsonl.gz", b"no gzip"), ("train.jsonl", b""),
     ("train.parquet", b"no parquet")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(folder: Path, load: Load, name: str, content: bytes) -> None:
    (folder / "preference" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name} cannot be read as (json|parquet)|has no column") as error:
        load()
    assert "\n" not in str(error.value)


def test_a_data_set_without_preferences_is_refused_with_the_way_out(folder: Path) -> None:
    write(folder / "preference" / "validation.jsonl", [row(USER)])
    settings = RunSettings(device="cpu", dataset_name=str(folder))
    with pytest.raises(ConfigError, match=r"no column response1.*--judge_check false"):
        pairs_to_check_judge(settings)


@pytest.mark.parametrize("change", [{"judge_check": False}, {"resume_from_checkpoint": "latest"}])
def test_no_pairs_are_read_where_the_judge_is_not_checked(change: dict[str, Any]) -> None:
    assert pairs_to_check_judge(RunSettings(device="cpu", dataset_name="./nowhere", **change)) == []
