"""Settings that every process of a run shares, and how a program reads its settings.

A setting is a field of a dataclass: the same name works as a key of the YAML file and as a command-line flag.
Each server reads its own dataclass from the file and leaves the other keys alone; the trainer, whose dataclass
inherits them all, refuses a key that nobody knows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from wire.address import check_bind_address
from wire.claim import LEAST_ORPHAN_TIMEOUT_S
from wire.errors import ConfigError, RLHFError
from wire.ports import PortRange


@dataclass
class ServiceSettings:
    """What every service needs: where to listen, whom to trust, where to write."""

    bind_address: str = field(
        default="127.0.0.1",
        metadata={"help": "IP address every service and rendezvous listens on; node: its own node's in a Ray cluster."},
    )
    port_range: str | None = field(
        default=None,
        metadata={"help": "Ports that are not given one by one come from here, such as 20000-20100; None: any free."},
    )
    ray_address: str | None = field(
        default=None, metadata={"help": "Ray cluster to join (auto, or host:port); None: a run has one of its own."}
    )
    orphan_timeout_s: float = field(
        default=1800.0,
        metadata={
            "help": "In a joined Ray cluster, servers whose driver died wait so long for the next; 0: they end with it."
        },
    )
    token_file: str = field(
        default="~/.config/disaggregated-rloo/token",
        metadata={"help": "File with the access token (mode 0600). Made on first use; copy it to every host."},
    )
    log_dir: str = field(default="runs/logs", metadata={"help": "Folder for the logs of started servers."})
    startup_timeout_s: float = field(default=1800.0, metadata={"help": "Deadline for a server's start, in seconds."})
    device: str = field(
        default="auto",
        metadata={"help": "cuda, cpu, or auto: cuda where a GPU is visible.", "choices": ["auto", "cpu", "cuda"]},
    )
    deterministic: bool = field(
        default=False, metadata={"help": "Same settings, same run, bit for bit. Slower; every server needs it too."}
    )

    @property
    def keeps_servers(self) -> bool:
        """Whether servers that a run starts outlive a driver that dies: for a while, in a cluster that does."""
        return bool(self.ray_address) and self.orphan_timeout_s > 0

    def check(self) -> None:
        """Raises ConfigError on a value that cannot work."""
        check_bind_address(self.bind_address, self.ray_address)
        if self.port_range is not None:
            PortRange.of(self.port_range)
        if self.startup_timeout_s <= 0:
            raise ConfigError(f"startup_timeout_s ({self.startup_timeout_s}) must be positive")
        if self.orphan_timeout_s and self.orphan_timeout_s < LEAST_ORPHAN_TIMEOUT_S:
            raise ConfigError(
                f"orphan_timeout_s ({self.orphan_timeout_s:g}) is too short for a driver that is heard of every few "
                f"seconds; give {LEAST_ORPHAN_TIMEOUT_S:.0f} or more, or 0: servers then end with their driver"
            )


NOT_BOOL = (int, float, str)  # types of flags for which a file's true or false is a mistake

Settings = TypeVar("Settings", bound=ServiceSettings)


def parse_settings(
    settings_class: type[Settings], argv: Sequence[str] | None = None, *, strict_file: bool
) -> tuple[Settings, argparse.Namespace]:
    """Read `--config FILE` and the flags into `settings_class`, then check them.

    Args:
        settings_class: the dataclass to fill.
        argv: the arguments; the process's own by default.
        strict_file: refuse keys of the file that are no field (the trainer), or skip them (a server).

    Returns:
        The settings, and the remaining namespace: `config`, the path of the file or None.

    Raises:
        ConfigError: an unknown flag or key, a value of the wrong type, a file that is missing or no mapping, or
            whatever the settings' own `check` finds.
    """
    from trl import TrlParser  # type: ignore[attr-defined]  # TRL exports it lazily

    class Parser(TrlParser):  # argparse prints its usage and exits; a program of ours ends with one line
        def error(self, message: str) -> NoReturn:
            raise ConfigError(message.removeprefix("argument "))

    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(dataclass_types=[settings_class], allow_abbrev=False)  # type: ignore[list-item]  # TRL's annotation
    path = _take_config_path(arguments)
    leftover = _apply_file(parser, settings_class, path) if path else []
    if leftover and strict_file:
        raise ConfigError(f"{path}: unknown setting {leftover[0]!r}; `--help` lists them all")
    parsed = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True, look_for_args_file=False)
    settings, unknown = parsed[0], parsed[-1]
    if unknown:
        raise ConfigError(f"unknown flag {unknown[0]!r}; `--help` lists them all")
    settings.check()
    return settings, argparse.Namespace(config=path)


def _take_config_path(arguments: list[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == "--config":
            if index + 1 == len(arguments):
                raise ConfigError("--config needs the path of a YAML file")
            del arguments[index]
            return arguments.pop(index)
        if argument.startswith("--config="):
            return arguments.pop(index).partition("=")[2]
    return None


def _apply_file(parser: Any, settings_class: type, path: str) -> list[str]:
    """Make the file's values the parser's defaults; returns the keys that are no field."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold `name: value` lines")
    names = {f.name for f in fields(settings_class)}
    types = get_type_hints(settings_class)
    known = {key: value for key, value in content.items() if key in names}
    # argparse converts a default only when it is a string, so YAML's scalars go through the flag's own type.
    for action in parser._actions:
        if action.dest in known and (known[action.dest] is not None or NoneType not in get_args(types[action.dest])):
            known[action.dest] = _convert(action, known[action.dest], path)
    parser.set_defaults_with_config(**known)
    return [key for key in content if key not in names]


def _convert(action: Any, value: Any, path: str) -> Any:
    def convert(item: Any) -> Any:
        # `str` would take anything, and YAML reads a bare `no` as false.
        if item is None or isinstance(item, list | dict) or (isinstance(item, bool) and action.type in NOT_BOOL):
            raise ValueError
        return action.type(str(item)) if action.type and not isinstance(item, bool) else item

    try:
        if action.nargs in ("+", "*"):
            return [convert(item) for item in (value if isinstance(value, list) else [value])]
        converted = convert(value)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise ConfigError(f"{path}: {action.dest}: invalid value {value!r}") from None
    if action.choices and converted not in action.choices:
        raise ConfigError(
            f"{path}: {action.dest}: invalid choice {value!r} (choose from {', '.join(map(str, action.choices))})"
        )
    return converted


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Run a program's `main`; a known error becomes one line on stderr and an exit code (2 for a ConfigError)."""
    try:
        code = main() or 0
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except RLHFError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.exit(code)
