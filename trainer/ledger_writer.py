"""Writes to the ledger's database on a thread of its own: what is noted is committed a moment later, nobody waits."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wire.errors import ServiceError
from wire.waits import waiting

MOST_AT_ONCE = 1000
GATHER_S = 0.05  # that a note waits for others: a commit of its own would cost more than all else that is done with it
PAGE_BYTES = 8192  # a completion of a thousand tokens has twelve thousand
DISK, TAKES_LEDGER = "disk", "takes the ledger's writes"
CLOSE_TIMEOUT_S = 60.0

Statement = tuple[str, Sequence[Any]]
_Job = tuple[Sequence[Statement], "asyncio.Future[None] | None"]


def connect(path: Path) -> sqlite3.Connection:
    """The database, in write-ahead mode: a process that dies leaves what it has committed, and readers do not wait.

    Commits are not synced one by one, so the end of the whole host may take the last notes. None is ever half there,
    and what somebody waited for is synced: weights that other hosts may hold by then have their step written down.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=30.0, check_same_thread=False)
    connection.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a new file
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


class LedgerWriter:
    """One thread that writes in the order in which it was asked.

    Notes of `GATHER_S` seconds share a transaction; what somebody waits for is written at once, with all before it.

    Args:
        path: the database, whose tables exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_waited_for = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    def note(self, *statements: Statement) -> None:
        """Have it written soon. Where that fails the next `write` says so."""
        self._jobs.put((statements, None))

    async def write(self, *statements: Statement) -> None:
        """Return when it, and all that was noted before it, is committed.

        Raises:
            ServiceError: it could not be written; the message has the reason.
        """
        self._check()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.put((statements, done))
        self._is_waited_for.set()
        with waiting(DISK, TAKES_LEDGER):
            await done
        self._check()

    async def close(self) -> None:
        """Write what is left and end the thread."""
        self._jobs.put(None)
        self._is_waited_for.set()
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)

    def _check(self) -> None:
        if self._error is not None:
            raise ServiceError(f"the ledger {self._path} could not be written: {self._error}") from self._error

    def _work(self) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while (job := self._jobs.get()) is not None:
                self._is_waited_for.wait(GATHER_S)
                self._is_waited_for.clear()  # before the look at what is there: it can only be set for what is seen
                jobs, is_last = self._with_more(job)
                try:
                    connection = connection or connect(self._path)
                    self._commit(connection, jobs)
                except Exception as error:  # noqa: BLE001 - the thread's outermost: who waits for it would wait for ever
                    self._error = error
                for _, done in jobs:
                    if done is not None:
                        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                            done.get_loop().call_soon_threadsafe(_settle, done)
                if is_last:
                    return
        finally:
            if connection is not None:
                connection.close()

    def _with_more(self, job: _Job) -> tuple[list[_Job], bool]:
        """The job and what else is there by now; and whether the end is among it."""
        jobs = [job]
        while len(jobs) < MOST_AT_ONCE:
            try:
                more = self._jobs.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return jobs, True
            jobs.append(more)
        return jobs, False

    def _commit(self, connection: sqlite3.Connection, jobs: Sequence[_Job]) -> None:
        if self._error is not None:
            return  # what was lost must not be followed by what builds on it
        is_waited_for = any(done is not None for _, done in jobs)
        connection.execute(f"PRAGMA synchronous={'FULL' if is_waited_for else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statements, _ in jobs:
                for text, values in statements:
                    connection.execute(text, values)
            connection.execute("COMMIT")
        except Exception:  # whatever it was, it is the caller's; the database must not stay half way
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
