"""`python -m reward_server.fetched STATE_FILE MODEL REVISION STALL_S COMMAND...`: fetch MODEL, then become COMMAND.

In COMMAND the word `{weights}` becomes the folder with MODEL's files: who serves them asks the hub for nothing, and
serves the commit that was fetched. REVISION `-` is the main branch. How far it is stands in STATE_FILE.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from reward_server import hub
from reward_server.fetch import Fetch
from reward_server.fetch_state import FetchState
from reward_server.fetch_teller import teller_for
from wire.errors import ConfigError, RLHFError
from wire.settings import run_program

WEIGHTS = "{weights}"
MAIN_BRANCH = "-"


def fetched_command(
    state_file: Path, model: str, revision: str | None, stall_s: float, command: Sequence[str]
) -> list[str]:
    """The argv of this program."""
    words = [str(state_file), model, revision or MAIN_BRANCH, f"{stall_s:g}", *command]
    return [sys.executable, "-m", "reward_server.fetched", *words]


def main() -> None:
    """Fetch, and become the command."""
    hub.be_quiet()
    path, model, revision, stall_s, *command = sys.argv[1:]
    state_file, teller = Path(path), teller_for(sys.stdout, model)

    def tell(state: FetchState) -> None:
        state.write(state_file)
        teller.tell(state)

    try:
        folder = Fetch(model, None if revision == MAIN_BRANCH else revision, float(stall_s), tell).run()
    except RLHFError as error:
        FetchState("failed", message=str(error), is_mistake=isinstance(error, ConfigError)).write(state_file)
        raise
    sys.stdout.flush()
    words = [str(folder) if word == WEIGHTS else word for word in command]
    os.execvp(words[0], words)


def run_and_leave(main: Callable[[], None]) -> NoReturn:
    """As `run_program`, without waiting for threads of the library that hang on a silent hub."""
    try:
        run_program(main)
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    run_and_leave(main)
