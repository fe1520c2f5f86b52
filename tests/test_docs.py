"""The documents say what is: flags, defaults, paths, names of metrics and modules are held against the code."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from reward_server.config import RewardSettings
from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.scale import ScaleSettings
from trainer.answering import AnswerSettings
from trainer.ledger import Ledger
from trainer.ledger_past import Past
from trainer.lineage import Lineage
from trainer.verdicts import VerdictRecord
from wire.generation import PolicyVersion

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "deploy/README.md")
LOGGING = (
    "metrics",
    "journal",
    "services",
    "utilisation",
    "contest",
    "evaluation",
)  # what names a TensorBoard scalar, beside verdicts and fleet
PACKAGES = ("wire", "rollout_server", "reward_server", "trainer")

SETTINGS = {f.name: f for cls in (RolloutSettings, RewardSettings, ScaleSettings, AnswerSettings) for f in fields(cls)}
OTHER_FLAGS = {
    *("config", "help"),  # of every program of ours
    *("middleware", "weight-transfer-config", "enable-scale-out", "load-format", "hf-overrides", "api-key"),  # vLLM
    *("model", "host", "port", "max-model-len", "trust-remote-code", "generation-config"),  # vLLM, by hand
    *("target", "from-file", "nodes"),  # docker build, kubectl, sbatch
    *("head", "address", "node-ip-address", "resources"),  # ray start
    *("logdir", "no-deps", "once", "interval"),  # tensorboard, pip, the live table
    *("step", "group", "tolerance"),  # the audit
    *("kills", "folder"),  # the chaos programs
    "gamed",  # deploy.toy.make
}


def ray_flags(command: click.Command) -> Iterator[str]:
    """Every flag of a command of Ray's, and of those below it."""
    yield from (flag.removeprefix("--") for parameter in command.params for flag in parameter.opts)
    for below in getattr(command, "commands", {}).values():
        yield from ray_flags(below)


FLAG = re.compile(r"(?<![\w-])--([a-zA-Z][\w-]*)")
MODULE = re.compile(r"python3? -m ([A-Za-z_][\w.]*)")
METRIC = re.compile(r'"((?:[a-z]+/[\w.]+)|lr|episode|eps)": ')


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def section(title: str) -> str:
    """A section of README.md, up to the next heading of the same level."""
    return text_of("README.md").split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(title: str) -> list[list[str]]:
    """Cells of every table row of a section whose first cell is one name in backquotes."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section(title).splitlines()]
    return [[row[0].strip("| `"), *row[1:]] for row in rows if re.fullmatch(r"\|? ?`[^`]+`", row[0])]


def tree_paths() -> Iterator[str]:
    """Every path of README's file tree, relative to the root."""
    folders: list[str] = []
    for line in section("File tree").split("```")[1].strip().splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        yield "".join(folders) + name
        if name.endswith("/"):
            folders.append(name)


def default_of(name: str) -> Any:
    field = SETTINGS[name]
    return field.default if field.default_factory is MISSING else field.default_factory()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_flag_in_a_document_exists(document: str) -> None:
    flags = set(FLAG.findall(text_of(document)))
    of_benchmarks = {
        flag for path in (ROOT / "benchmarks").glob("*.py") for flag in re.findall(r'"--([\w-]+)"', path.read_text())
    }
    assert flags - set(SETTINGS) - OTHER_FLAGS - of_benchmarks - set(ray_flags(ray_cli)) == set()


def test_the_configuration_table_gives_the_real_defaults() -> None:
    rows = first_cells("Configuration")
    assert len(rows) > 50
    for name, default, *_ in rows:
        assert name in SETTINGS, f"{name} is no setting"
        assert yaml.safe_load(default.strip("`")) == default_of(name), name


def test_every_path_in_the_file_tree_exists() -> None:
    missing = [path for path in tree_paths() if not (ROOT / path).exists()]
    assert not missing


def test_the_file_tree_names_every_module() -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules - set(tree_paths()) == set(), "README.md's file tree lacks a line"


def test_the_monitoring_table_names_what_the_code_logs() -> None:
    code = "".join(text_of(f"trainer/{name}.py") for name in LOGGING)
    logged = {name for name in METRIC.findall(code) if not name.startswith("time/")}
    logged |= set(VerdictRecord(max_unreadable=1.0).drain()) | set(Fleet(RolloutSettings(device="cpu"), "").metrics())
    logged |= set(Ledger(Path(), Past(PolicyVersion(0, 0), Lineage(0, {}))).metrics())
    described = {row[0] for row in first_cells("Monitoring") if "/" in row[0] or row[0] in logged}
    assert len(logged) > 20
    assert {name for name in described if not name.startswith("time/")} == logged


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_module_to_run_can_be_found(document: str) -> None:
    for name in MODULE.findall(text_of(document)):
        assert importlib.util.find_spec(name.rstrip(".")) is not None, name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_and_configuration_that_is_named_exists(document: str) -> None:
    text = text_of(document)
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    here = (ROOT / document).parent
    assert [link for link in links if not (here / link).exists()] == []
    named = re.findall(
        r"(?<![\w/.])((?:configs|requirements|tests|trainer|wire|rollout_server|reward_server)/[\w./-]*\w)", text
    )
    assert [path for path in named if not (ROOT / path).exists()] == []
