"""Where the ranks of a transfer group meet: a TCP store that the sender holds.

    sender                                   worker, rank r
    Meeting(address)                         join(address, port, r)  --here/r-->
    wait_for(ranks): are all here?
    open()                       --go-->     join returns

The group itself is built only when everybody is here, for building it is what hangs where one is missing. `close` ends
the store: who waits at it fails at once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

from rollout_server.rendezvous import bound_socket
from rollout_server.waiting import POLL_S, SHORTEST_S, Deadline, TransferBroken, wait_for

GO = "go"

Result = TypeVar("Result")


class Meeting:
    """The sender's side. Listens on `address` only; every rank may read and write the store.

    Args:
        address: of the interface that faces the replicas.
        deadline: of the store's own calls.
        port: to listen on; 0 takes a free one.
    """

    def __init__(self, address: str, deadline: Deadline, port: int = 0) -> None:
        listener = bound_socket(address, port)
        self.address, self.port = address, int(listener.getsockname()[1])
        self._store: Any = _store(
            address, self.port, deadline, is_master=True, master_listen_fd=listener.detach(), multi_tenant=True
        )

    def wait_for(
        self, ranks: Iterable[int], deadline: Deadline, label: str = "here", is_over: Callable[[], bool] | None = None
    ) -> None:
        """Wait until each of `ranks` has set `label/rank`, or `is_over` says that there is nothing to wait for.

        Raises:
            TransferBroken: the meeting was closed, or the deadline has passed; the message names the ranks.
        """
        missing = [rank for rank in ranks if not self._has(f"{label}/{rank}")]
        while missing and not (is_over and is_over()):
            if deadline.left() <= 0:
                raise TransferBroken(f"ranks {missing} of the transfer group did not report {label!r} in time")
            time.sleep(POLL_S)
            missing = [rank for rank in missing if not self._has(f"{label}/{rank}")]

    def gather(self, size: int, deadline: Deadline, joined: Future[None], form: Callable[[], Result]) -> Result:
        """Wait for ranks 1 .. `size` - 1, then `form` the group with them.

        Args:
            size: of the group, rank 0 included.
            deadline: for all of it.
            joined: the workers' routes, which return only once their workers are in the group.
            form: this rank's own entry.

        Raises:
            ServiceError: a member failed, or the deadline has passed; the meeting is closed then.
        """
        try:
            self.wait_for(range(1, size), deadline)
            self.open()
            group = form()
        except (RuntimeError, TransferBroken) as error:
            self.close()
            wait_for(joined, deadline)  # its error names the member
            raise TransferBroken(f"the transfer group could not be formed ({error})") from error
        wait_for(joined, deadline)
        return group

    def check(self) -> None:
        """Raises TransferBroken where the meeting is closed."""
        self._alive()

    def open(self) -> None:
        """Let those who joined build the group."""
        self.set(GO, "1")

    def client(self, deadline: Deadline) -> Any:
        """A connection of its own to the store: it breaks when the meeting is closed, whoever still uses it."""
        return _store(self.address, self.port, deadline, is_master=False)

    def set(self, key: str, value: str) -> None:
        """Set a key. Raises TransferBroken where the meeting is closed."""
        self._alive().set(key, value)

    def get(self, key: str) -> str:
        """The value of a key that is set."""
        return bytes(self._alive().get(key)).decode()

    def close(self) -> None:
        """End the store. May be called from any thread, and more than once."""
        self._store = None

    def has_all(self, ranks: Iterable[int], label: str) -> bool:
        """Whether each of `ranks` has set `label/rank`."""
        return bool(self._alive().check([f"{label}/{rank}" for rank in ranks]))

    def _has(self, key: str) -> bool:
        return bool(self._alive().check([key]))

    def _alive(self) -> Any:
        store = self._store  # held here while it is in use: another thread may close the meeting
        if store is None:
            raise TransferBroken("the meeting of the transfer group was ended")
        return store


def join(address: str, port: int, rank: int, deadline: Deadline) -> Any:
    """The worker's side: check in, wait for all others; returns the store.

    Raises:
        RuntimeError: the sender ended the meeting, or the deadline has passed.
        OSError: the meeting was over already.
    """
    # The sender listens before it invites. The store's client would take a refusal for a host that is not up yet, and
    # try again until its timeout.
    socket.create_connection((address, port), timeout=max(SHORTEST_S, deadline.left())).close()
    store = _store(address, port, deadline, is_master=False)
    store.set(f"here/{rank}", "1")
    store.wait([GO], deadline.timedelta())
    return store


def _store(address: str, port: int, deadline: Deadline, **settings: Any) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # there, though not in __all__

    return TCPStore(address, port, wait_for_workers=False, timeout=deadline.timedelta(), **settings)
