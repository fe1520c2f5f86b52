"""Rendezvous sockets listen where they were told to, and nowhere else."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psutil
import pytest

from rollout_server.rendezvous import bound_socket, listen_on_named_host_only, store_on
from wire.process import free_port

TIMEOUT = timedelta(seconds=20)
EVERYWHERE = {"0.0.0.0", "::"}


def listening_on(port: int) -> set[str]:
    """Addresses on which this process listens at `port`."""
    connections = psutil.Process().net_connections(kind="tcp")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.port == port}


def both_ranks(make: Callable[[int], Any]) -> list[Any]:
    """`make(rank)` for ranks 0 and 1 at once: each waits for the other."""
    with ThreadPoolExecutor(max_workers=2) as threads:
        return list(threads.map(make, range(2)))


def test_a_bound_socket_listens_on_its_host_alone() -> None:
    with bound_socket("127.0.0.1", 0) as listener:
        assert listening_on(listener.getsockname()[1]) == {"127.0.0.1"}


def test_an_ipv6_address_is_bound_as_one() -> None:
    with bound_socket("::1", 0) as listener:
        assert listening_on(listener.getsockname()[1]) == {"::1"}


def test_a_store_listens_on_its_host_alone_and_both_ranks_reach_it() -> None:
    port = free_port("127.0.0.1")
    master, other = both_ranks(lambda rank: store_on("127.0.0.1", port, rank, 2, TIMEOUT))
    assert listening_on(port) == {"127.0.0.1"}
    master.set("from-0", "a")
    other.set("from-1", "b")
    assert (other.get("from-0"), master.get("from-1")) == (b"a", b"b")


def test_a_rank_waits_for_the_store_no_longer_than_the_timeout() -> None:
    with pytest.raises(Exception, match=r"(?i)timed out|timeout|refused"):
        store_on("127.0.0.1", free_port("127.0.0.1"), 1, 2, timedelta(seconds=1))


def test_torch_itself_would_listen_on_every_interface_and_with_us_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    rendezvous = importlib.import_module("torch.distributed.rendezvous")

    def meet(port: int) -> list[Any]:
        url = f"tcp://127.0.0.1:{port}"
        return both_ranks(lambda rank: next(rendezvous.rendezvous(url, rank, 2, timeout=TIMEOUT)))

    port = free_port("127.0.0.1")
    stores = meet(port)
    assert listening_on(port) & EVERYWHERE, "torch has learnt it: rendezvous.py can go"
    del stores
    # Puts torch's own handler back at the end.
    monkeypatch.setitem(rendezvous._rendezvous_handlers, "tcp", rendezvous._rendezvous_handlers["tcp"])
    listen_on_named_host_only()
    port = free_port("127.0.0.1")
    (store, rank, world_size), (peer, *_) = meet(port)
    assert listening_on(port) == {"127.0.0.1"}
    assert (rank, world_size) == (0, 2)
    store.set("key", "value")
    assert peer.get("key") == b"value"
