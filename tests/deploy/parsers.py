"""Commands as their own programs read them: Ray's through click, the project's through their settings.

Each parser raises what the program itself would refuse the command with, a click.ClickException or a ConfigError.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
from ray.scripts.scripts import cli as ray_cli
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

import trainer.status
from reward_server.check import CheckSettings
from reward_server.config import RewardSettings
from reward_server.scale import RewardScaleSettings
from rollout_server.config import RolloutSettings
from rollout_server.scale import CHECKSUMS, ScaleSettings
from trainer.answering import AnswerSettings
from trainer.audit import arguments_in
from trainer.config import RunSettings
from trainer.orphans import command_in
from wire.scaling import take_command
from wire.settings import parse_settings

ROOT = Path(__file__).parents[2]

PLACEHOLDERS = {
    r"(?<![\w$])([A-Z]+_)?ADDRESS\b": "10.0.0.1",
    r"(?<![\w$])URL\b": "http://10.0.0.1:8200",
    r"(?<![\w$])FILE\b": "configs/toy.yaml",
}
COMMAND = re.compile(r"(?:[A-Za-z_]\w*=\S+ )*(?:ray|python -m|bash -c) \S")
ENVIRONMENT_LINE = re.compile(r"^(?:[A-Za-z_]\w*=\S+ )+")


def parse_ray(argv: Sequence[str]) -> dict[str, Any]:
    """The parameters of a `ray ...` command; those of `ray start` for `ray symmetric-run`, whose own is `address`.

    Raises:
        click.ClickException: Ray refuses it.
    """
    name, *arguments = argv
    command = ray_cli.commands[name]
    if name == "symmetric-run":
        mine, entrypoint = split_entrypoint(arguments)
        parameters = command.make_context(name, list(mine)).params
        start = ray_cli.commands["start"].make_context("start", curate_and_validate_ray_start_args(list(mine))).params
        parse_command(shlex.join(entrypoint))
        return start | {key: parameters[key] for key in ("address", "min_nodes")}
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.commands[name]
    context = command.make_context(name, list(arguments))
    if entrypoint := context.params.get("entrypoint"):
        parse_command(shlex.join(entrypoint))
    if isinstance(shell := context.params.get("cmd"), str):
        parse_line(shell)
    if isinstance(resources := context.params.get("resources"), str):
        assert all(isinstance(number, int) for number in json.loads(resources).values())
    return dict(context.params)


def split_entrypoint(arguments: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """What is before and after the `--` of `ray symmetric-run`."""
    where = list(arguments).index("--")
    return arguments[:where], arguments[where + 1 :]


def _settings(settings_class: type[Any], *, strict: bool = False) -> Callable[[list[str]], Any]:
    return lambda flags: parse_settings(settings_class, flags, strict_file=strict)


def _scale(settings_class: type[Any], *words: str) -> Callable[[list[str]], Any]:
    return lambda argv: parse_settings(settings_class, take_command(argv, *words)[1], strict_file=False)


def _status(argv: list[str]) -> None:
    with patch.object(trainer.status, "show", return_value=0):
        trainer.status.main(argv)


PROGRAMS: dict[str, Callable[[list[str]], Any]] = {
    "trainer.main": _settings(RunSettings, strict=True),
    "trainer.audit": arguments_in,
    "trainer.evaluate": _settings(AnswerSettings),
    "trainer.orphans": command_in,
    "trainer.status": _status,
    "reward_server.check": _settings(CheckSettings),
    "reward_server.main": _settings(RewardSettings),
    "reward_server.prefetch": _settings(RewardSettings),
    "reward_server.scale": _scale(RewardScaleSettings),
    "rollout_server.main": _settings(RolloutSettings),
    "rollout_server.scale": _scale(ScaleSettings, CHECKSUMS),
}
# Programs that end as they parse: tests/test_docs.py sees to their names and flags.
OTHER_PROGRAMS = re.compile(
    r"vllm\.|deploy\.toy\.make|benchmarks\.|tests\.|reward_server\.judge_file|trainer\.ledger_check"
)


def parse_command(command: str) -> bool:
    """Parse one command of a shell; returns whether it is one of Ray's or of ours."""
    for pattern, word in PLACEHOLDERS.items():
        command = re.sub(pattern, word, command)
    words = shlex.split(ENVIRONMENT_LINE.sub("", command.strip()), comments=True)
    if words[:1] == ["ray"]:
        parse_ray(words[1:])
    elif words[:2] == ["bash", "-c"]:
        return parse_line(words[2]) > 0
    elif len(words) > 2 and words[0].endswith(("python", "python3")) and words[1] == "-m":
        if OTHER_PROGRAMS.match(words[2]):
            return False
        PROGRAMS[words[2]](words[3:])
    else:
        return False
    return True


def parse_line(line: str) -> int:
    """Parse the commands of a line joined by `&&`; returns how many were Ray's or ours."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars="&")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word == "&&":
            commands.append([])
        else:
            commands[-1].append(word)
    return sum(parse_command(" ".join(command)) for command in commands)


def commands_of(document: str) -> Iterator[str]:
    """The commands of a document: lines of its fenced blocks, and what stands between backquotes in its prose."""
    text = (ROOT / document).read_text()
    for block in re.findall(r"^ *```\n(.*?)^ *```", text, re.S | re.M):
        lines = (line.strip() for line in block.splitlines())
        yield from (line for line in lines if COMMAND.match(line) and "--->" not in line)  # which is a picture
    prose = re.sub(r"^ *```\n.*?^ *```", "", text, flags=re.S | re.M)
    # One word after `ray` is a command's name, not a command.
    yield from (code for code in re.findall(r"`([^`]+)`", prose) if re.match(r"(ray \S+ \S|python -m \w+\.\w)", code))
