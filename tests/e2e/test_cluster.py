"""`ray up` over SSH on hosts of their own, the toy run on them while a host comes and another is cut off, `ray down`.

The story is played once (`tests/e2e/cluster/story.py`), with everything that belongs to it gone afterwards; each test
looks at a part of what was seen.
"""

from __future__ import annotations

import glob
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.e2e.cluster.derived_yaml import derived
from tests.e2e.cluster.story import NUM_STEPS, REAL, SIZES, Seen, Story
from tests.e2e.cluster.toy_run import EPISODES_PER_STEP, address_in
from tests.e2e.cluster.world import a_world, holders, why_not
from tests.e2e.conftest import TOY

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
ENDED_S = 20.0  # until the kernel has ended what a namespace holds


@dataclass
class Left:
    """What is left when the world is gone: processes, mounts, Ray's SSH connections, the door."""

    processes: list[str]
    mounts: set[str]
    connections: set[str]
    has_door: bool


@pytest.fixture(scope="module")
def told() -> tuple[Seen, Left]:
    """The story, and what is left of its world."""
    if not (TOY / "judge" / "config.json").exists():
        pytest.skip("no toy models: run `make toy`")
    mounts, connections = _mounts(), set(glob.glob("/tmp/ray_ssh_*"))
    with a_world() as world:
        try:
            seen = Story(world).play()
        finally:
            namespaces = world.ask("namespaces")
    end = time.monotonic() + ENDED_S
    while holders(namespaces) and time.monotonic() < end:
        time.sleep(0.2)
    sockets = set(glob.glob("/tmp/ray_ssh_*")) - connections
    return seen, Left(holders(namespaces), _mounts() - mounts, sockets, world.door.exists())


@pytest.fixture(scope="module")
def seen(told: tuple[Seen, Left]) -> Seen:
    """What was seen."""
    return told[0]


def _mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())


def test_what_is_derived_keeps_the_types_and_takes_the_sizes() -> None:
    config = derived(REAL, SIZES)
    types = config["available_node_types"]
    assert [set(node_type["resources"]) for node_type in types.values()] == [
        {"CPU", "learner"},
        {"CPU", "reward"},
        {"CPU", "rollout"},
    ]
    assert (types["rollout"]["min_workers"], types["rollout"]["max_workers"], config["max_workers"]) == (2, 3, 5)
    assert config["file_mounts"] == REAL.get("file_mounts", {})
    assert not any("install" in line for line in config["setup_commands"])
    for line in (config["head_start_ray_commands"][-1], config["worker_start_ray_commands"][-1]):
        assert line.count("--num-cpus=1") == line.count("ray start") == 1
    validate_config(prepare_config(config))
    with pytest.raises(KeyError, match="judge"):
        derived(REAL, {"judge": (1, 1)})


def test_each_part_is_where_its_resource_is(seen: Seen) -> None:
    (judge,), (head,) = seen.reward.values(), seen.head.values()
    assert f"found in the cluster: reward service http://{judge}:20000" in seen.output
    assert f"fleet: http://{head}:" in seen.output
    assert f"found in the cluster: replica http://{seen.by_hand}:20000" in seen.output
    assert writers(seen, 0, 2) <= set(seen.first.values()) <= writers(seen, 0, seen.steps_at_cut)


def test_a_second_judge_came_on_a_new_host_since_the_first_host_is_the_services(seen: Seen) -> None:
    ((_, first),), ((_, second),) = seen.reward.items(), seen.more_reward.items()
    hosts = [address_in(row.split()[0]) for row in seen.judges.splitlines()[:-1]]
    assert sorted(hosts) == sorted([first, second])
    assert seen.judges.splitlines()[-1].startswith("2 of its own, ")


def test_hosts_that_nobody_needs_are_given_back_and_the_services_own_is_not(seen: Seen) -> None:
    assert seen.hosts_after_the_run["reward"] == set(seen.reward)
    assert len(seen.hosts_after_the_run["rollout"]) == SIZES["rollout"][0]


def test_a_third_replica_came_on_a_new_host_and_a_short_cut_on_the_way_lost_nobody(seen: Seen) -> None:
    (address,) = seen.third.values()
    assert f"replica http://{address}:20000 joined with version" in seen.output
    assert address in writers(seen, 0, seen.steps_at_cut)
    assert seen.lost_before_cut == ""


def test_a_run_parts_with_a_host_that_is_cut_off_and_goes_on_without_it(seen: Seen) -> None:
    assert f"replica http://{seen.cut_off}:20000 is lost" in seen.output
    assert seen.output.count(" is lost: ") == 1
    assert seen.steps_at_end_of_cut >= seen.steps_at_loss + 2
    # A step that was under way at the loss, and those that wait behind it, may have what it had written before.
    assert seen.cut_off in writers(seen, 0, seen.steps_at_cut)
    assert seen.cut_off not in writers(seen, seen.steps_at_loss + 2, NUM_STEPS)


def test_a_host_that_comes_back_is_not_taken_for_what_it_was(seen: Seen) -> None:
    assert seen.left_on_cut_off == []


def test_another_host_takes_the_place_of_the_one_that_was_cut_off(seen: Seen) -> None:
    (address,) = seen.replacement.values()
    assert f"replica http://{address}:20000 joined with version" in seen.output
    assert address in writers(seen, seen.steps_at_loss, NUM_STEPS)
    wrote = {address_in(url) for url in seen.steps[-1]["completions_by_replica"]}
    assert wrote <= {*seen.first.values(), *seen.third.values(), address} - {seen.cut_off}


def test_every_socket_of_ours_listens_on_its_nodes_address_alone(seen: Seen) -> None:
    for name, address in {**seen.head, **seen.reward, **seen.first, **seen.third}.items():
        ours = [row for row in seen.listeners[name] if row["owner"] == "ours"]
        assert ours and {row["address"] for row in ours} == {address}, ours
    (head,), (reward,) = seen.head, seen.reward
    programs = [row["program"] for row in seen.listeners[head] if row["owner"] == "ours"]
    # The control API; the ranks' meeting and the transfer group's, with the connections of its rank 0.
    assert len([program for program in programs if "trainer.main" in program]) == 1
    assert len([program for program in programs if "ray::PlacedRank" in program]) >= 3
    assert {"reward_server.main", "api_server", "VLLM::EngineCore"} <= {
        word for row in seen.listeners[reward] for word in row["program"].replace(".openai.", " ").split()
    }


def test_without_the_token_an_outsider_gets_nothing_but_health(seen: Seen) -> None:
    spoken = [(*row["url"].removeprefix("http://").partition("/"), row) for row in seen.answers]
    spoken = [(server, slash + path, row) for server, slash, path, row in spoken if isinstance(row["answer"], int)]
    servers = {server for server, _, _ in spoken}
    assert len(servers) == 6, servers  # reward service, GenRM, three replicas, the fleet's control API
    healths = {(server, row["answer"]) for server, path, row in spoken if (row["method"], path) == ("GET", "/health")}
    assert healths == {(server, 200) for server in servers}
    others = [(path, row) for _, path, row in spoken if path != "/health"]
    assert [row for _, row in others if row["answer"] not in (401, 403)] == []
    assert {row["method"] for _, row in others} >= {"GET", "POST", "PUT", "DELETE"}
    for route in ("/update_weights", "/inference/v1/generate", "/v1/judgement", "/metrics", "/docs", "/openapi.json"):
        assert len([path for path, _ in others if path == route]) >= 2 * len(servers)
    # Whoever else listens there speaks another language: nothing is told in HTTP.
    assert {row["answer"] for row in seen.answers} - {200, 401, 403} <= {"no HTTP", "refused"}


def test_the_run_ends_with_every_step_trained_once(seen: Seen) -> None:
    assert seen.exit_codes["run"] == 0
    assert [step["step"] for step in seen.steps] == list(range(1, NUM_STEPS + 1))
    prompts = [prompt for step in seen.steps for prompt in step["prompts"]]
    assert len(prompts) == len(set(prompts)) == NUM_STEPS * EPISODES_PER_STEP // 4
    assert (seen.summary["steps"], seen.summary["policy_version"]) == (NUM_STEPS, f"0.{NUM_STEPS}")
    assert seen.summary["replica_versions"] == [f"0.{NUM_STEPS}"] * 3
    assert seen.audit.splitlines()[-1] == "nothing is wrong", seen.audit


def test_what_the_learner_writes_is_where_the_driver_was_told(seen: Seen) -> None:
    assert {"policy/config.json", f"checkpoint-{NUM_STEPS}/state.json"} <= set(seen.files)
    assert any(name.startswith(f"checkpoint-{NUM_STEPS}/learner/") for name in seen.files)
    assert not any("partial" in name or name == "fleet_url" for name in seen.files)


def test_a_run_and_a_service_that_end_leave_no_process_on_any_host(seen: Seen) -> None:
    assert {name: left for name, left in seen.left_of_the_run.items() if left} == {}
    assert (seen.exit_codes["reward service"], seen.exit_codes["replica"]) == (0, 0)


def test_nothing_is_left_of_the_cluster(told: tuple[Seen, Left]) -> None:
    seen, left = told
    assert seen.machines_after == {}
    assert left == Left([], set(), set(), has_door=False)


def writers(seen: Seen, first: int, last: int) -> set[str]:
    """Addresses of the replicas whose completions the steps `first` + 1 .. `last` trained on."""
    steps = [step for step in seen.steps if first < step["step"] <= last]
    return {address_in(url) for step in steps for url in step["completions_by_replica"]}
