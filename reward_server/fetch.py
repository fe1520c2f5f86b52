"""Bring the judge's files to this host: once a host, with news of how far it is, and an end where it stands still.

    look up what there is --> is all here? --> the lock of this model --> fetch, watched --> the folder
         hub silent: try again   yes: done        held by another process: watch its files grow

The library fetches on a thread of its own that cannot be stopped: a fetch belongs in a process of its own.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

from reward_server import hub
from reward_server.fetch_state import ByteRate, FetchState, Phase
from wire.errors import ServiceError

POLL_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
LEFTOVER_S = 600.0  # an unfinished file that nobody wrote to for so long has no process any more

T = TypeVar("T")
Tell = Callable[[FetchState], None]


class Fetch:
    """One model's files on their way to this host.

    Args:
        model: Hub id.
        revision: branch, tag or commit; None: the main branch.
        stall_s: seconds without a byte more, or without an answer, after which it is given up.
        tell: told how far it is, about twice a second.
    """

    def __init__(self, model: str, revision: str | None, stall_s: float, tell: Tell) -> None:
        self._model, self._revision, self._stall_s, self._tell = model, revision, stall_s, tell
        self._began = self._moved = time.monotonic()
        self._rate = ByteRate()
        self._at_first = self._most = 0

    def run(self) -> Path:
        """The folder with all files. Blocks for as long as bytes come.

        Raises:
            ConfigError: there is no such model or revision, it is gated, the disk is too small, or the hub must not
                be asked and not all is here.
            ServiceError: nothing came for `stall_s`.
        """
        self._tell(FetchState("looks"))
        if hub.is_offline():
            folder = hub.cached(self._model, self._revision)
            if folder is None:
                raise hub.missing_offline(self._model, self._revision)
            return self._arrived(folder, 0)
        snapshot = self._tried_again(lambda: hub.look_up(self._model, self._revision))
        if isinstance(snapshot, Path):
            return self._arrived(snapshot, 0)
        self._at_first = self._most = snapshot.done_bytes
        with self._locked(snapshot):
            _remove_leftovers(self._model)
            hub.check_space(snapshot)
            folder = self._tried_again(lambda: self._fetched(snapshot))
        return self._arrived(folder, snapshot.total_bytes)

    def _tried_again(self, ask: Callable[[], T]) -> T | Path:
        """What `ask` gives, in the end. Where the hub does not answer and all is here, the folder."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return ask()
            except hub.TROUBLE as error:
                mistake = hub.mistake_in(error, self._model, self._revision)
                if mistake is not None:
                    raise mistake from error
                folder = hub.cached(self._model, self._revision)
                if folder is not None:
                    return folder
                if time.monotonic() - self._moved > self._stall_s:
                    raise self._stalled(f"{type(error).__name__}: {error}") from error
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    @contextmanager
    def _locked(self, snapshot: hub.Snapshot) -> Iterator[None]:
        """No other process of this host fetches the model while the context is open."""
        path = hub.cache_folder(self._model).parent / ".locks" / hub.cache_folder(self._model).name / "fetch"
        with _opened(path) as file:
            while not _taken(file):
                self._watch(snapshot, "waits")
                time.sleep(POLL_S)
            yield

    def _fetched(self, snapshot: hub.Snapshot) -> Path:
        """Fetch on a thread, and look at the disk meanwhile."""
        outcome: list[Path | Exception] = []

        def fetch() -> None:
            try:
                outcome.append(hub.download(snapshot, self._revision))
            except hub.TROUBLE as error:  # for whoever waits below
                outcome.append(error)

        thread = threading.Thread(target=fetch, name=f"fetch {self._model}", daemon=True)
        thread.start()
        while thread.is_alive():
            self._watch(snapshot, "fetches")
            thread.join(POLL_S)
        if not outcome:
            raise ServiceError(f"{self._model}: the fetch broke off; its thread's last words are above")
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

    def _watch(self, snapshot: hub.Snapshot, phase: Phase) -> None:
        """Tell how far it is. Raises ServiceError where it stands still."""
        now, done = time.monotonic(), snapshot.done_bytes
        if done > self._most:
            self._most, self._moved = done, now
        elif now - self._moved > self._stall_s:
            raise self._stalled("no byte more came")
        rate, total = self._rate.note(now, done), snapshot.total_bytes
        self._tell(FetchState(phase, done, total, rate, now - self._began, max(0, done - self._at_first)))

    def _stalled(self, why: str) -> ServiceError:
        return ServiceError(
            f"{self._model}: nothing came from the hub for judge_fetch_stall_s ({self._stall_s:g} s): {why}; whole "
            "files are kept, so another start goes on with the rest"
        )

    def _arrived(self, folder: Path, total: int) -> Path:
        seconds = time.monotonic() - self._began
        self._tell(FetchState("here", total, total, 0.0, seconds, max(0, total - self._at_first)))
        return folder


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        yield file


def _taken(file: IO[str]) -> bool:
    """Whether the lock is this process's now; the kernel gives it back with the file, however the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_leftovers(model: str) -> None:
    """Unfinished files of processes that were killed: the library begins such a file anew, and lets the old one lie."""
    for path in (hub.cache_folder(model) / "blobs").glob("*.incomplete"):
        if time.time() - path.stat().st_mtime > LEFTOVER_S:
            path.unlink(missing_ok=True)
