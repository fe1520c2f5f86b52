"""The hosts that the cluster's test runs on: each alone in its namespaces, and none of them outlives its owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster.hosts import ROOT
from tests.e2e.cluster.world import World, a_world, holders, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
SSH = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=3"
OWNER = """
import json, time
from tests.e2e.cluster.world import a_world
with a_world() as world:
    world.ask("create", cluster="c", tags={}, count=2)
    print(json.dumps(world.ask("namespaces")), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def world() -> Iterator[World]:
    """A world of its own for each test."""
    with a_world() as world:
        yield world


def test_a_host_has_its_own_address_processes_and_folders(world: World) -> None:
    one, two = world.ask("create", cluster="c", tags={"kind": "worker"}, count=2)
    machines = world.ask("machines", cluster="c")
    assert {machines[name]["address"] for name in (one, two)} == {"10.77.0.11", "10.77.0.12"}
    world.run(one, "touch /tmp/mine /root/mine /dev/shm/mine; sleep 300 > /dev/null 2>&1 &")
    seen = world.run(
        one, f"{SSH} {machines[two]['address']} 'hostname; ls /tmp /root /dev/shm; cat /proc/[0-9]*/cmdline'"
    )
    assert seen.startswith(two) and "mine" not in seen and "sleep\x00300" not in seen
    assert world.run(two, "python -c 'import ray; print(ray.__version__)'").strip()


def test_a_cut_cable_stops_everything_until_it_is_mended(world: World) -> None:
    one, two = world.ask("create", cluster="c", tags={}, count=2)
    reach = f"{SSH} {world.ask('machines', cluster='c')[two]['address']} true"
    world.run(one, reach)
    world.ask("cut", name=two)
    with pytest.raises(AssertionError, match="ended with 255"):
        world.run(one, reach)
    world.ask("restore", name=two)
    world.run(one, reach)


def test_a_new_machine_never_has_an_old_id_or_address(world: World) -> None:
    seen: set[str] = set()
    for _ in range(3):
        (name,) = world.ask("create", cluster="c", tags={})
        address = world.ask("machines", cluster="c")[name]["address"]
        assert not {name, address} & seen
        seen |= {name, address}
        world.ask("end", name=name)
    assert world.ask("machines", cluster="c") == {}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_nothing_outlives_an_owner(how: signal.Signals, tmp_path: Path) -> None:
    mounts = Path("/proc/self/mounts").read_text()
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as owner:
        assert owner.stdout
        namespaces = json.loads(owner.stdout.readline())
        assert len(holders(namespaces)) >= 4
        owner.send_signal(how)
    end = time.monotonic() + 10
    while holders(namespaces) and time.monotonic() < end:
        time.sleep(0.1)
    assert holders(namespaces) == []
    assert list(tmp_path.iterdir()) == []
    assert Path("/proc/self/mounts").read_text() == mounts
