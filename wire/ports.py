"""Ports out of a range: `port_range: 20000-20100`, for hosts between which only some ports are open.

A port is *claimed* between the moment it is chosen and the moment its server listens, and a claim is seen by every
process of the host: it is an abstract Unix socket named after address and port, which the kernel keeps to the net of
the host (or container) and removes with its process, however that ends. Without claims two servers that start at one
time would choose the same.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from wire.errors import ConfigError

Bound = TypeVar("Bound")


@dataclass(frozen=True)
class PortRange:
    """Ports `lowest` .. `highest`, both included."""

    lowest: int
    highest: int

    @classmethod
    def of(cls, text: str) -> PortRange:
        """Of `20000-20100`. Raises ConfigError where it is no range of ports."""
        lowest, dash, highest = text.partition("-")
        if dash and lowest.isdecimal() and highest.isdecimal() and 1 <= int(lowest) <= int(highest) <= 65535:
            return cls(int(lowest), int(highest))
        raise ConfigError(f"port_range {text!r} is no range of ports; give LOWEST-HIGHEST, such as 20000-20100")

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.lowest, self.highest + 1))

    def __str__(self) -> str:
        return f"{self.lowest}-{self.highest}"


_claims: dict[tuple[str, int], socket.socket] = {}  # of this process


def claim(address: str, port: int) -> bool:
    """Whether the port is this process's from now on; False where it is claimed already, here or elsewhere."""
    if (address, port) in _claims:
        return False
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mark.bind(f"\0rlhf-port/{address}/{port}")
    except OSError:
        mark.close()
        return False
    _claims[address, port] = mark
    return True


def release(address: str, port: int) -> None:
    """Let others claim the port; without effect where this process has no claim to it."""
    mark = _claims.pop((address, port), None)
    if mark is not None:
        mark.close()


def release_url(url: str) -> None:
    """The same for the port of `http://address:port`."""
    parts = urlsplit(url)
    if parts.hostname is not None and parts.port is not None:
        release(parts.hostname, parts.port)


def claimed_port(address: str, port_range: str) -> int:
    """The lowest port of the range that is free on `address`, claimed until `release` or this process's end.

    Raises:
        ConfigError: `port_range` is no range, or has no free port.
        OSError: the address is not this host's.
    """
    for port in PortRange.of(port_range):
        if claim(address, port):
            try:
                _listener(address, port).close()
            except OSError as error:
                release(address, port)
                if error.errno == errno.EADDRINUSE:
                    continue
                raise
            return port
    raise _exhausted(address, port_range)


def bound_in_range(address: str, port_range: str, bind: Callable[[int], Bound]) -> Bound:
    """What `bind` gives for the lowest port of the range with which it does not raise EADDRINUSE.

    Raises:
        ConfigError: `port_range` is no range, or has no free port.
        OSError: as `bind` does.
    """
    for port in PortRange.of(port_range):
        if not claim(address, port):
            continue
        try:
            return bind(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        finally:
            release(address, port)
    raise _exhausted(address, port_range)


def _listener(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of a server that ended a moment ago do not keep the port from the next one.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def _exhausted(address: str, port_range: str) -> ConfigError:
    return ConfigError(
        f"port_range {port_range}: no port of it is free on {address}; give a larger one, or end what holds them"
    )
