"""The commands that make a pool of servers larger or smaller while it works; replicas and GenRM servers share them.

N           so many servers of the pool's own        add URL       join a running server
+N, -N      so many more, or fewer                   remove URL    let a joined one go
status      only look
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from wire.errors import ConfigError

USAGE = "give a number of servers (3, +1, -1), status, add URL or remove URL"


def written_address(output_dir: str, name: str, missing: str) -> str:
    """The URL that a run has written to the file `name` of its folder, where it stands while the run goes on.

    Raises:
        ConfigError: there is none; `missing` is what to say, with `{path}` for the file.
    """
    path = Path(output_dir) / name
    try:
        return path.read_text().strip()
    except OSError:
        raise ConfigError(missing.format(path=path)) from None


def take_command(argv: Sequence[str], *others: str) -> tuple[list[str], list[str]]:
    """(the command's words, the flags that follow). `others` are words of one pool's own.

    Raises:
        ConfigError: there is no command, or it is none.
    """
    words = list(argv)
    if not words:
        raise ConfigError(USAGE)
    num = 2 if words[0] in ("add", "remove") else 1
    command = words[:num]
    if command[0] in others:
        return command, words[num:]
    if len(command) < num or not re.fullmatch(r"[+-]?\d+|status|(add|remove) https?://\S+", " ".join(command)):
        raise ConfigError(f"{' '.join(command)!r} is no command; {USAGE}")
    return command, words[num:]


def wanted_count(word: str, now: int) -> int:
    """How many servers `word` (3, +1, -1) asks for where there are `now`.

    Raises:
        ConfigError: fewer than none.
    """
    count = int(word)
    if word[0] not in "+-":
        return count
    if now + count < 0:
        raise ConfigError(f"{word} of {now} servers leaves fewer than none; give at most -{now}")
    return now + count
