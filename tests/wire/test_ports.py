"""Ports of a range: chosen once, seen by other processes, given back."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rollout_server.rendezvous import bound_socket
from wire.errors import ConfigError
from wire.ports import PortRange, bound_in_range, claimed_port, release
from wire.process import free_port

ADDRESS = "127.0.0.1"


@pytest.fixture
def three() -> Iterator[str]:
    """A range of three ports that are free."""
    for lowest in range(21000, 30000, 7):
        try:
            for port in range(lowest, lowest + 3):
                bound_socket(ADDRESS, port).close()
        except OSError:
            continue
        yield f"{lowest}-{lowest + 2}"
        for port in range(lowest, lowest + 3):
            release(ADDRESS, port)
        return
    pytest.fail("no three free ports in a row")


def test_a_port_is_not_given_away_twice_though_nobody_listens_on_it_yet(three: str) -> None:
    lowest = PortRange.of(three).lowest
    assert [free_port(ADDRESS, three) for _ in range(2)] == [lowest, lowest + 1]
    other = f"from wire.ports import claimed_port; print(claimed_port({ADDRESS!r}, {three!r}))"
    for _ in range(2):  # the other process takes its claim with it
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=True)
        assert int(done.stdout) == lowest + 2
    assert claimed_port("127.0.0.2", three) == lowest  # another address is another port
    release("127.0.0.2", lowest)


def test_a_port_that_somebody_listens_on_is_passed_over(three: str) -> None:
    lowest = PortRange.of(three).lowest
    with bound_socket(ADDRESS, lowest), bound_socket(ADDRESS, 0, three) as second:
        assert second.getsockname()[1] == lowest + 1
        assert free_port(ADDRESS, three) == lowest + 2


def test_an_exhausted_range_is_named_and_a_port_that_was_given_back_is_chosen_again(three: str) -> None:
    ports = [free_port(ADDRESS, three) for _ in range(3)]
    for take in (lambda: free_port(ADDRESS, three), lambda: bound_socket(ADDRESS, 0, three)):
        with pytest.raises(ConfigError, match=f"port_range {three}: no port of it is free on {ADDRESS}; give a larger"):
            take()
    release(ADDRESS, ports[1])
    assert free_port(ADDRESS, three) == ports[1]


def test_an_address_of_another_host_is_no_exhausted_range(three: str) -> None:
    with pytest.raises(OSError, match="Cannot assign"):
        claimed_port("192.0.2.77", three)
    for port_range in (None, three):
        with pytest.raises(ConfigError, match=r"bind_address 192.0.2.77 is carried by no interface"):
            free_port("192.0.2.77", port_range)
    with pytest.raises(OSError, match="Cannot assign"):
        bound_in_range("192.0.2.77", three, lambda port: socket.create_server(("192.0.2.77", port)))


@pytest.mark.parametrize("text", ["", "20000", "20100-20000", "0-10", "20000-70000", "a-b", "1-2-3", "-5"])
def test_what_is_no_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give LOWEST-HIGHEST, such as 20000-20100"):
        PortRange.of(text)
