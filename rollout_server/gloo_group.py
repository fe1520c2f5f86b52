"""A Gloo group whose waits end when a peer is lost, and that can be closed under way.

Gloo has no call that ends an operation, and one whose connection breaks in its middle is often not told: it holds its
caller until the operation's own timeout. So the waiting is done here. Every rank is connected to every other, this
group knows its connections, and the kernel says at once when one of them ends: a peer has died, or closed its group.
"""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import BroadcastOptions

from rollout_server.waiting import Deadline, TransferBroken, in_background

ENDED = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
POLL_MS = 1.0
BURIAL_POLL_S = 0.05


class GlooGroup:
    """Ranks 0 .. `size` - 1, connected each to each. All must construct it at the same time.

    Args:
        store: where the ranks exchange their addresses.
        rank: of this process.
        size: number of ranks.
        deadline: for being connected.

    Raises:
        RuntimeError: not connected in time, or a peer was lost.
    """

    def __init__(self, store: Any, rank: int, size: int, deadline: Deadline) -> None:
        from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo

        before = _open_sockets()
        self._group: Any = ProcessGroupGloo(PrefixStore("gloo", store), rank, size, timeout=deadline.timedelta())
        new = [number for number, name in _open_sockets().items() if before.get(number) != name]
        self._connections = _connections_of_group(new, store, rank, size, deadline)
        self._ends = select.poll()
        for connection in self._connections:
            self._ends.register(connection, select.POLLRDHUP)
        self._works: list[Any] = []
        self.is_closed = False

    def broadcast(self, buffer: Tensor, deadline: Deadline) -> Any:
        """Start a broadcast from rank 0 into `buffer` everywhere; returns the work to wait for.

        Raises:
            TransferBroken: the group is closed, or a connection is.
        """
        options = BroadcastOptions()
        options.rootRank = 0
        options.timeout = deadline.timedelta()
        group = self._group
        if group is None:
            raise TransferBroken("the transfer group is closed")
        try:
            work = group.broadcast([buffer], options)
        except RuntimeError as error:
            raise TransferBroken(_first_line(error)) from error
        self._works = [*(work for work in self._works if not work.is_completed()), work]
        return work

    def wait(self, work: Any, deadline: Deadline) -> None:
        """Wait for a broadcast.

        Raises:
            TransferBroken: a peer is gone or has closed its group, this group was closed, or the deadline has passed.
                The broadcast's buffer must not be used again: Gloo may still hold it.
        """
        while not work.is_completed():
            if self.is_closed:
                raise TransferBroken("the transfer group was closed")
            if deadline.left() <= 0:
                raise TransferBroken("the deadline of the transfer has passed")
            if self._ends.poll(POLL_MS) and not work.is_completed():
                raise TransferBroken("a connection of the transfer group has ended")
        try:
            work.wait()
        except RuntimeError as error:
            raise TransferBroken(_first_line(error)) from error

    def close(self) -> None:
        """Break all connections: whoever waits, here or at a peer, fails at once. From any thread, more than once."""
        if self.is_closed:
            return
        self.is_closed = True
        connections, group = self._connections, self._group
        self._group = None
        for connection in connections:
            with suppress(OSError):  # the peer was faster
                connection.shutdown(socket.SHUT_RDWR)
        in_background(_Burial(group, self._works, connections))


class _Burial:
    """Drops a group, then its connections; it holds the last reference to the group.

    Gloo's destructor waits for the operations under way, which Gloo may not know to be lost, and holds Python's lock
    meanwhile: the whole process would stand still until their timeout. So they are waited for here.
    """

    def __init__(self, group: Any, works: list[Any], connections: list[socket.socket]) -> None:
        self._group, self._works, self._connections = group, works, connections

    def __call__(self) -> None:
        while not all(work.is_completed() for work in self._works):
            time.sleep(BURIAL_POLL_S)
        self._works, self._group = [], None
        for connection in self._connections:
            connection.close()


def _connections_of_group(
    numbers: list[int], store: Any, rank: int, size: int, deadline: Deadline
) -> list[socket.socket]:
    """Handles of Gloo's connections, among the descriptors that are new since before the group.

    One end of a connection was accepted at its rank's listener, the other is connected to it. So the ranks tell each
    other where they listen, and whatever else the process opened meanwhile matches none of it.
    """
    sockets = [socket.socket(fileno=os.dup(number)) for number in numbers]
    own = {_port(s.getsockname()) for s in sockets if s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)}
    store.set(f"listens/{rank}", " ".join(map(str, own)))
    keys = [f"listens/{other}" for other in range(size)]
    store.wait(keys, deadline.timedelta())
    theirs = {int(port) for key in keys for port in bytes(store.get(key)).decode().split()}
    connections = []
    for candidate in sockets:
        peer = _peer_port(candidate)
        if peer and (peer in theirs or _port(candidate.getsockname()) in own):
            connections.append(candidate)
        else:
            candidate.close()
    return connections


def _port(address: Any) -> int:
    return int(address[1]) if isinstance(address, tuple) else 0


def _peer_port(connection: socket.socket) -> int:
    try:
        return _port(connection.getpeername())
    except OSError:  # a listener has none
        return 0


def _open_sockets() -> dict[int, str]:
    """The process's sockets: descriptor and identity."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            name = os.readlink(entry)
            if name.startswith("socket:"):
                found[int(entry.name)] = name
    return found


def _first_line(error: RuntimeError) -> str:
    return str(error).partition("\n")[0][:300]
