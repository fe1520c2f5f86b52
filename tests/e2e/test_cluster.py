"""`ray up` over SSH on hosts of their own, the fleet growing and losing one there, `ray down`: and nothing is left."""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.e2e.cluster.derived_yaml import derived
from tests.e2e.cluster.hosts import ROOT
from tests.e2e.cluster.world import World, a_world, holders, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
SIZES = {"reward": (1, 1), "rollout": (2, 3)}
# Ray asks a node every 0.5 s, waits 1 s for the answer and gives it up after 8 failures: 12 s; the rest is busy cores.
NOTICED_S = 40.0
TOKEN = "~/.config/disaggregated-rloo/token"
REAL: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "cluster.yaml").read_text())


@pytest.fixture
def world() -> Iterator[World]:
    """A world, of which nothing is left when the test is over."""
    before = Path("/proc/self/mounts").read_text(), sorted(glob.glob("/tmp/ray_ssh_*"))
    with a_world() as world:
        try:
            yield world
        finally:
            namespaces = world.ask("namespaces")
    deadline = time.monotonic() + 20
    while holders(namespaces) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert holders(namespaces) == []
    assert before == (Path("/proc/self/mounts").read_text(), sorted(glob.glob("/tmp/ray_ssh_*")))
    assert not world.door.exists()


@pytest.fixture
def workstation(world: World) -> str:
    """A host that is no part of the cluster, with the yaml on it."""
    (name,) = world.ask("create", cluster="", tags={})
    text = yaml.safe_dump(derived(REAL, SIZES), sort_keys=False)
    world.run(name, f"cat > cluster.yaml <<'END'\n{text}\nEND")
    world.run(name, f"mkdir -p $(dirname {TOKEN}) && head -c 32 /dev/urandom | base64 > {TOKEN} && chmod 600 {TOKEN}")
    return name


def head_of(world: World) -> str:
    """The head's id."""
    machines = world.ask("machines", cluster=REAL["cluster_name"])
    return next(name for name, machine in machines.items() if machine["tags"]["ray-node-type"] == "head")


def play(world: World, head: str) -> dict[str, dict[str, Any]]:
    """What `placed` found at each stage; where it fails, Ray's own account of the cluster is printed."""
    try:
        lines = world.run(head, "python -m tests.e2e.cluster.placed", timeout_s=240).splitlines()
    except AssertionError:
        print(world.run(head, "ray status; tail -n 60 /tmp/ray/session_latest/logs/monitor.*", timeout_s=60))
        print(world.ask("machines", cluster=REAL["cluster_name"]))
        raise
    found = [json.loads(line) for line in lines if line.startswith("{")]
    print(*found, sep="\n")
    return {line["stage"]: line for line in found}


def test_what_is_derived_keeps_the_types_and_takes_the_sizes() -> None:
    config = derived(REAL, SIZES)
    types = config["available_node_types"]
    assert [set(node_type["resources"]) for node_type in types.values()] == [
        {"CPU", "learner"},
        {"CPU", "reward"},
        {"CPU", "rollout"},
    ]
    assert (types["rollout"]["min_workers"], types["rollout"]["max_workers"], config["max_workers"]) == (2, 3, 4)
    assert config["file_mounts"] == REAL.get("file_mounts", {})
    assert not any("install" in line for line in config["setup_commands"])
    for line in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert line.count("--num-cpus=1") == line.count("ray start") == 1
    validate_config(prepare_config(config))
    with pytest.raises(KeyError, match="judge"):
        derived(REAL, {"judge": (1, 1)})


def test_a_cluster_comes_up_grows_loses_a_host_and_goes(world: World, workstation: str) -> None:
    world.run(workstation, f"cd {ROOT} && ray up -y --no-config-cache ~/cluster.yaml", timeout_s=180)
    head = head_of(world)
    stages = play(world, head)
    machines = world.ask("machines", cluster=REAL["cluster_name"])

    learner, reward, *rollouts = (tuple(place) for place in stages["placed"]["found"])
    assert learner == (head, machines[head]["address"])
    assert len({learner, reward, *rollouts}) == 4

    first, second, third = (tuple(place) for place in stages["one more"]["found"])
    assert {first, second} == set(rollouts) and third not in {learner, reward, *rollouts}

    assert stages["blip"]["found"]
    assert stages["noticed"]["found"] and stages["noticed"]["seconds"] < NOTICED_S
    *kept, new = (tuple(place) for place in stages["replaced"]["found"])
    assert kept == [first, second]
    assert new not in {learner, reward, first, second, third} and third[0] not in machines

    world.run(workstation, f"cd {ROOT} && ray down -y ~/cluster.yaml", timeout_s=120)
    assert world.ask("machines", cluster=REAL["cluster_name"]) == {}
