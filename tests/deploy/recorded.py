"""Shell commands really run, with recorders in place of `ray` and other programs, which write down their arguments.

What a shell makes of quotes, `case` and variables is seen, and nothing is started.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = "disaggregated-rloo"  # the folder's name in the home of a host

RECORDER = """#!{python} -S
import json, os, sys
with open({log!r}, "a") as file:
    call = {{"argv": [os.path.basename(sys.argv[0]), *sys.argv[1:]], "environment": dict(os.environ)}}
    file.write(json.dumps(call) + "\\n")
"""


@dataclass(frozen=True)
class Call:
    """One program as a command started it."""

    argv: list[str]  # the program's name first
    environment: dict[str, str]


class Host:
    """A home folder with the project's deploy files in it, and a PATH of recorders before the real one.

    Args:
        folder: an empty folder.
        names: the programs that are recorded instead of run.
        scripts: programs that answer something, by name: their text for bash.
    """

    def __init__(self, folder: Path, names: tuple[str, ...], scripts: Mapping[str, str] | None = None) -> None:
        self._bin, self._home, self._log = folder / "bin", folder / "home", folder / "calls"
        self._bin.mkdir()
        for part in ("deploy", "requirements", "configs"):
            shutil.copytree(ROOT / part, self.project / part, ignore=shutil.ignore_patterns("__pycache__"))
        for name in names:
            self._program(name, RECORDER.format(python=sys.executable, log=str(self._log)))
        for name, text in (scripts or {}).items():
            self._program(name, f"#!/bin/bash\n{text}\n")

    @property
    def project(self) -> Path:
        """The project's folder on this host."""
        return self._home / PROJECT

    def run(self, command: str, **variables: str) -> list[Call]:
        """Run a command of bash in the project's folder; returns the recorded calls, in order.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        self._log.write_text("")
        path = f"{self._bin}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(self._home)} | variables
        subprocess.run(["bash", "-c", command], cwd=self.project, env=environment, check=True, timeout=60)
        return [Call(**json.loads(line)) for line in self._log.read_text().splitlines()]

    def _program(self, name: str, text: str) -> None:
        path = self._bin / name
        path.write_text(text)
        path.chmod(0o755)
