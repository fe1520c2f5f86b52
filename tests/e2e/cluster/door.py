"""Asks the cloud: from the test, from the workstation and from the head alike."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

INSIDE = Path("/run/cloud/socket")


class CloudRefused(RuntimeError):
    """The cloud answered with an error."""


def ask(verb: str, *, door: Path = INSIDE, deadline_s: float = 60.0, **of: Any) -> Any:
    """What the cloud answers to `verb`, a method of `Cloud` with its arguments. TimeoutError after `deadline_s`."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(deadline_s)
        line.connect(str(door))
        line.sendall(json.dumps({"verb": verb, "of": of}).encode() + b"\n")
        with line.makefile("r") as reader:
            answer = json.loads(reader.readline() or '{"error": "the cloud closed its door"}')
    if "error" in answer:
        raise CloudRefused(f"{verb}: {answer['error']}")
    return answer["answer"]
