"""Where a part listens: `bind_address`, and the network interface that carries it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from wire.errors import ConfigError
from wire.room import Needs

if TYPE_CHECKING:
    from wire.settings import Settings

NODE = "node"  # as a bind_address: the address by which Ray knows the node that a part is placed on
LOOPBACK = "lo"


def check_bind_address(address: str, ray_address: str | None) -> None:
    """Raises ConfigError unless it is an IP address, or `node` in a Ray cluster."""
    if address == NODE:
        if not ray_address:
            raise ConfigError(
                f"bind_address {NODE!r} is the address by which a Ray cluster knows its node, and no cluster is named: "
                "give ray_address, or an IP address such as 127.0.0.1"
            )
        return
    try:
        ipaddress.ip_address(address)
    except ValueError:
        raise ConfigError(
            f"bind_address {address!r} is no IP address; give one, such as 127.0.0.1, or {NODE} in a Ray cluster"
        ) from None


def interface_of(address: str) -> str:
    """The name of this host's interface that carries the address.

    Raises:
        ConfigError: none does.
    """
    wanted = ipaddress.ip_address(address)
    if wanted.is_loopback:  # all of 127.0.0.0/8 is, and only one of them is listed
        return LOOPBACK
    carried = addresses_by_interface()
    for name, addresses in carried.items():
        if wanted in addresses:
            return name
    found = ", ".join(str(found) for addresses in carried.values() for found in addresses)
    raise ConfigError(
        f"bind_address {address} is carried by no interface of host {os.uname().nodename}, which has {found}; give one "
        f"of these, or {NODE} where Ray places parts on several hosts"
    )


def addresses_by_interface() -> dict[str, list[ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """The IP addresses of this host, by interface."""
    import psutil  # type: ignore[import-untyped]  # it has no stubs

    return {
        name: [ipaddress.ip_address(row.address) for row in rows if row.family.name in ("AF_INET", "AF_INET6")]
        for name, rows in psutil.net_if_addrs().items()
    }


@contextmanager
def settled(settings: Settings, *, announces: bool = False, takes: Needs | None = None) -> Iterator[Settings]:
    """The settings with the address that a service of this host listens on. Where that is a node's, or the service
    `announces` itself, this process is a member of the cluster at `ray_address`, if any, while the context is open, and
    has what it `takes` of its node (`wire.placement.own_place`).

    Raises:
        ConfigError: no cluster answers at `ray_address`.
        ServiceError: the node has no room for it within `startup_timeout_s`.
    """
    if not settings.ray_address or not (announces or settings.bind_address == NODE):
        yield settings
        return
    from wire.placement import at_node, joined_cluster, own_place

    with joined_cluster(settings.ray_address), ExitStack() as stack:
        if takes is not None:
            stack.enter_context(own_place(takes, settings.startup_timeout_s, partial(print, flush=True)))
        yield at_node(settings)


def socket_environment(address: str) -> dict[str, str]:
    """The variables that keep NCCL's and Gloo's own sockets to the interface of `address`, and NCCL's to its family.

    Gloo takes the interface's first address. Empty for an address that stands for all interfaces.

    Raises:
        ConfigError: no interface of this host carries the address.
    """
    parsed = ipaddress.ip_address(address)
    if parsed.is_unspecified:
        return {}
    name = interface_of(address)
    exactly = name if name == LOOPBACK else f"={name}"  # NCCL takes a bare name for the beginning of one
    family = "AF_INET" if parsed.version == 4 else "AF_INET6"
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": exactly, "NCCL_SOCKET_FAMILY": family}
