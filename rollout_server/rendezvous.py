"""A torch.distributed rendezvous that listens where it was told to, and nowhere else.

PyTorch's TCP store takes a host name for its clients but binds the server's socket to every interface. Whoever reaches
that port can read and write the store, and with it join the group that carries the weights.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse

from wire.ports import bound_in_range

DEFAULT_TIMEOUT = timedelta(minutes=30)  # torch.distributed's own


def bound_socket(host: str, port: int, port_range: str | None = None) -> socket.socket:
    """A listening TCP socket on `host` alone; `port` 0 takes a free one, of `port_range` where there is one.

    Raises:
        ConfigError: `port_range` has no free port.
        OSError: the address is not this host's, or the port is taken.
    """
    if not port and port_range is not None:
        return bound_in_range(host, port_range, lambda chosen: bound_socket(host, chosen))
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def store_on(host: str, port: int, rank: int, world_size: int, timeout: timedelta) -> Any:
    """A `torch.distributed.TCPStore` on `host:port`; rank 0 holds it, the others wait for it at most `timeout`."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # there, though not in __all__

    settings: dict[str, Any] = {
        "world_size": world_size,
        "is_master": rank == 0,
        "timeout": timeout,
        "multi_tenant": False,
    }
    if rank == 0:
        settings["master_listen_fd"] = bound_socket(host, port).detach()
    return TCPStore(host, port, **settings)


def listen_on_named_host_only() -> None:
    """Make `init_method="tcp://host:port"` bind its store to `host` in this process.

    torch keeps its handlers in a private table and refuses a second registration of a scheme; vLLM's engine has no
    setting for it. The replacement speaks the same protocol, so a peer without it can join.
    """
    rendezvous = importlib.import_module("torch.distributed.rendezvous")

    def handle(url: str, timeout: timedelta = DEFAULT_TIMEOUT, **_: Any) -> Iterator[tuple[Any, int, int]]:
        address = urlparse(url)
        query = parse_qs(address.query)
        rank, world_size = int(query["rank"][0]), int(query["world_size"][0])
        assert address.hostname is not None and address.port is not None
        yield store_on(address.hostname, address.port, rank, world_size, timeout), rank, world_size
        raise RuntimeError("a TCP rendezvous cannot be repeated")

    rendezvous._rendezvous_handlers["tcp"] = handle
