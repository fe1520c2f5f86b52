"""Every command of the documents that is Ray's or the project's own, parsed by the program that it starts."""

from __future__ import annotations

import re

import click
import pytest

from tests.deploy.parsers import ROOT, commands_of, parse_command, parse_line
from wire.errors import ConfigError


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configurations are named relative to the project's folder."""
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(("document", "at_least"), [("deploy/README.md", 25), ("README.md", 20)])
def test_the_documents_commands_are_taken_by_their_programs(document: str, at_least: int) -> None:
    num = 0
    for command in commands_of(document):
        try:
            num += parse_line(command)
        except (ConfigError, click.ClickException, KeyError, ValueError) as error:
            pytest.fail(f"{command}: {error}")
    assert num >= at_least


def test_files_that_the_document_names_exist() -> None:
    named = set(re.findall(r"(?<![\w./-])deploy/[\w./]*\w", (ROOT / "deploy/README.md").read_text()))
    named |= {
        f"deploy/{name}" for name in re.findall(r"^\| `([\w./]+)` \|", (ROOT / "deploy/README.md").read_text(), re.M)
    }
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    "command",
    [
        "ray start --head --recources='{}'",
        "ray start --head --resources='{\"learner\": 8'",
        "ray job submit --adress http://127.0.0.1:8265 -- python -m trainer.main",
        "ray job submit -- bash -c 'cd x && python -m trainer.main --relpicas 2'",
        "ray exec deploy/cluster.yaml 'python -m trainer.main --relpicas 2'",
        "python -m trainer.main --config configs/no.yaml",
        "python -m rollout_server.scale many --config FILE",
        "ray symmetric-run --address ADDRESS:6379 --head -- python -m trainer.main",
        "python -m trainer.mian",
    ],
)
def test_a_mistake_in_a_command_is_seen(command: str) -> None:
    with pytest.raises((ConfigError, click.ClickException, ValueError, KeyError)):
        parse_command(command)
