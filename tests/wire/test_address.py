"""The interface of an address, and what NCCL and Gloo are told of it."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

import wire.address
from wire.address import addresses_by_interface, check_bind_address, interface_of, settled, socket_environment
from wire.engine import vllm_environment
from wire.errors import ConfigError
from wire.settings import ServiceSettings

HOST = {
    "lo": [ip_address("127.0.0.1"), ip_address("::1")],
    "eth0": [ip_address("10.0.0.5"), ip_address("fd00::5"), ip_address("fe80::1%eth0")],
    "eth1": [ip_address("10.1.0.5"), ip_address("10.1.0.6")],
}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.address, "addresses_by_interface", lambda: HOST)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_SOCKET_FAMILY"):
        monkeypatch.delenv(name, raising=False)


def test_the_kernel_agrees_on_the_loopback_interface() -> None:
    names = [name for _, name in socket.if_nameindex()]
    assert ip_address("127.0.0.1") in addresses_by_interface()["lo"]
    assert set(addresses_by_interface()) <= set(names)


@pytest.mark.parametrize(
    ("address", "interface", "family"),
    [
        ("10.0.0.5", "eth0", "AF_INET"),
        ("fd00::5", "eth0", "AF_INET6"),
        ("fd00:0:0::5", "eth0", "AF_INET6"),
        ("10.1.0.6", "eth1", "AF_INET"),
    ],
)
def test_the_data_sockets_are_kept_to_the_interface_and_family_of_the_address(
    host: None, address: str, interface: str, family: str
) -> None:
    assert interface_of(address) == interface
    wanted = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}", "NCCL_SOCKET_FAMILY": family}
    assert socket_environment(address) == wanted
    for device in ("cpu", "cuda"):
        env = vllm_environment(bind_address=address, token_file="token", device=device)
        assert wanted.items() <= env.items() and env["VLLM_HOST_IP"] == address


def test_what_the_shell_says_of_an_interface_stands(host: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    env = vllm_environment(bind_address="10.0.0.5", token_file="token", device="cuda")
    assert (env["NCCL_SOCKET_IFNAME"], env["GLOO_SOCKET_IFNAME"]) == ("ib0", "eth0")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_every_loopback_address_is_the_loopback_interfaces(address: str) -> None:
    assert (
        socket_environment(address)["GLOO_SOCKET_IFNAME"] == socket_environment(address)["NCCL_SOCKET_IFNAME"] == "lo"
    )


def test_an_address_for_all_interfaces_names_none() -> None:
    assert socket_environment("0.0.0.0") == socket_environment("::") == {}


def test_an_address_of_another_host_is_one_mistake_with_this_hosts_own(host: None) -> None:
    with pytest.raises(
        ConfigError, match=r"bind_address 10.9.9.9 is carried by no interface of host \S+, which has .*10.0.0.5"
    ):
        interface_of("10.9.9.9")


def test_a_nodes_own_address_needs_a_cluster() -> None:
    check_bind_address("node", "auto")
    with pytest.raises(
        ConfigError, match=r"bind_address 'node' is the address .* no cluster is named: give ray_address"
    ):
        check_bind_address("node", None)


def test_a_service_with_an_address_of_its_own_asks_no_cluster() -> None:
    settings = ServiceSettings(ray_address="192.0.2.77:6379")
    with settled(settings) as here:
        assert here is settings
