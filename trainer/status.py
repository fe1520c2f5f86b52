"""`python -m trainer.status RUN [--once] [--interval 1]`: how a run stands, live.

RUN is the run's output_dir. The table is drawn anew every `--interval` seconds until the run ends; with `--once` it is
printed once. Exit code: 1 where the driver is gone without having ended its run, or is silent; 2 where there is no run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.status_file import STATUS_FILE, process_boot
from trainer.status_table import duration, lines
from wire.errors import ConfigError
from wire.settings import run_program

SILENT_AFTER_S = 5.0  # the driver writes each second
PLAIN_WIDTH = 100  # where the output is no terminal
HOME, END_OF_LINE, BELOW = "\x1b[H", "\x1b[K", "\x1b[J"  # drawn over what was there, the table does not flicker


def read_status(output_dir: Path) -> dict[str, Any]:
    """What the driver last wrote.

    Raises:
        ConfigError: no run writes to this folder.
    """
    path = output_dir / STATUS_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the output_dir of a run") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no status of a run: {error}") from error
    return found


def heading(run: dict[str, Any], now: float) -> tuple[str, bool]:
    """(what the first line says, whether the driver is well, or has ended as it should). `now`: of the wall clock."""
    age_s = max(0.0, now - run["written"])
    name = f"{run['output_dir']} on {run['host']}, process {run['pid']}"
    if run["end"] is not None:
        how = {"done": "is done", "stopped": "was stopped"}.get(run["end"], f"ended: {run['end']}")
        return f"{name}: the run {how}, {duration(age_s)} ago", True
    is_here = run["host"] == socket.gethostname()
    if is_here and process_boot(run["pid"]) != run["boot"]:
        gone = f"process {run['pid']} is gone"
        return f"!!! {run['output_dir']}: the driver was last heard of {duration(age_s)} ago; {gone}", False
    if age_s > SILENT_AFTER_S:
        why = f"process {run['pid']} lives and is silent" if is_here else f"it runs on {run['host']}"
        return f"!!! {run['output_dir']}: the driver was last heard of {duration(age_s)} ago; {why}", False
    return f"{name}, for {duration(run['written'] - run['started'])}", True


def page(state: dict[str, Any], now: float, width: int, *, is_colored: bool = False) -> tuple[list[str], bool]:
    """(the whole picture, whether the driver is well)."""
    first, is_well = heading(state["run"], now)
    first = first[:width]
    if is_colored and not is_well:
        first = f"\x1b[1;37;41m{first}\x1b[0m"
    return [first, "", *lines(state, width)], is_well


def show(output_dir: Path, *, once: bool, interval_s: float) -> int:
    """Print, or draw until the run ends; the exit code."""
    is_terminal = sys.stdout.isatty()
    if is_terminal and not once:
        print(HOME + BELOW, end="")
    while True:
        state = read_status(output_dir)
        size = shutil.get_terminal_size((PLAIN_WIDTH, 1000))
        width = size.columns if is_terminal else PLAIN_WIDTH
        rows, is_well = page(state, time.time(), width, is_colored=is_terminal)
        if is_terminal and not once:
            rows = rows[: size.lines - 1]
            print(HOME + "".join(f"{row}{END_OF_LINE}\n" for row in rows) + BELOW, end="", flush=True)
        else:
            print("\n".join(rows), flush=True)
        if once or state["run"]["end"] is not None:
            return 0 if is_well else 1
        time.sleep(interval_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, read, show."""
    parser = argparse.ArgumentParser(prog="python -m trainer.status", description="How a run stands, live.")
    parser.add_argument("run", metavar="RUN", help="the run's output_dir")
    parser.add_argument("--once", action="store_true", help="print the table once")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two pictures")
    arguments = parser.parse_args(argv)
    if not arguments.interval > 0:
        raise ConfigError(f"--interval ({arguments.interval:g}) must be positive")
    return show(Path(arguments.run), once=arguments.once, interval_s=arguments.interval)


if __name__ == "__main__":
    run_program(main)
