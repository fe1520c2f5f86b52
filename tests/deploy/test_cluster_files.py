"""deploy/cluster.yaml and deploy/onprem.yaml: Ray's own check, what it misses, and their commands, really run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.deploy.parsers import parse_ray
from tests.deploy.placed import placed_resources, wanted_gpus
from tests.deploy.recorded import PROJECT, ROOT, Host

FILES = ("cluster.yaml", "onprem.yaml")
HEAD = "10.0.0.1"

# What EC2's RunInstances takes and a node of ours may want; a misspelt name would only be noticed by AWS.
EC2 = {"InstanceType", "ImageId", "BlockDeviceMappings", "MetadataOptions", "KeyName", "SubnetIds", "SecurityGroupIds"}
EC2 |= {
    "InstanceMarketOptions",
    "CapacityReservationSpecification",
    "IamInstanceProfile",
    "Placement",
    "TagSpecifications",
}
EBS = {"VolumeSize", "VolumeType", "DeleteOnTermination", "Encrypted", "Iops", "Throughput"}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / name).read_text())
    return content


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host on which Ray is recorded, and which has the address of the environment variable ADDRESS."""
    return Host(tmp_path, ("ray", "uv"), {"hostname": 'echo "$ADDRESS 172.17.0.1"'})


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name: str) -> None:
    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_to_the_hosts_is_there_and_is_the_whole_project(name: str) -> None:
    mounts = read(name)["file_mounts"]
    token = "~/.config/disaggregated-rloo"
    assert mounts.pop(token) == token
    for target, source in mounts.items():
        assert (ROOT / source).exists(), source
        assert target == f"~/{PROJECT}/{source}", target
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages | {"configs", "requirements", "pyproject.toml"} <= set(mounts.values())


def test_sizes_of_node_types_fit_together() -> None:
    config = read("cluster.yaml")
    types = config["available_node_types"]
    for name, node in types.items():
        assert node["min_workers"] <= node["max_workers"], name
    assert sum(node["max_workers"] for node in types.values()) == config["max_workers"]


def test_nodes_offer_what_the_code_asks_for() -> None:
    types = read("cluster.yaml")["available_node_types"]
    assert placed_resources() == {"learner", "reward", "rollout"}
    for resource, gpus in wanted_gpus().items():
        nodes = [node for node in types.values() if resource in node["resources"]]
        most = sum(node["resources"]["GPU"] * max(1, node["max_workers"]) for node in nodes)
        assert len(nodes) == 1 and most >= gpus, resource
    assert types[read("cluster.yaml")["head_node_type"]]["resources"]["learner"] >= wanted_gpus()["learner"]


def test_node_configs_name_only_what_aws_knows() -> None:
    for node in read("cluster.yaml")["available_node_types"].values():
        assert set(node) == {"min_workers", "max_workers", "resources", "node_config"}
        assert set(node["node_config"]) <= EC2
        for disk in node["node_config"]["BlockDeviceMappings"]:
            assert set(disk) == {"DeviceName", "Ebs"} and set(disk["Ebs"]) <= EBS


def start(host: Host, name: str, whose: str, address: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The parameters of `ray start` and its environment, as the file's commands start it on a host of this address."""
    calls = []
    for command in read(name)[f"{whose}_start_ray_commands"]:
        calls += host.run(command, ADDRESS=address, RAY_HEAD_IP=HEAD)
    assert [call.argv[:2] for call in calls] == [["ray", "stop"], ["ray", "start"]]
    parse_ray(calls[0].argv[1:])
    return parse_ray(calls[1].argv[1:]), calls[1].environment


@pytest.mark.parametrize("name", FILES)
def test_heads_and_workers_start_with_commands_that_ray_takes(host: Host, name: str) -> None:
    head, environment = start(host, name, "head", HEAD)
    assert (head["head"], head["node_ip_address"], head["port"]) == (True, HEAD, 6379)
    assert head["dashboard_host"] == "127.0.0.1"
    assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_worker_niceness"] == "0"
    assert environment["RAY_health_check_failure_threshold"] == "3"
    assert environment["RAY_AUTH_TOKEN_PATH"].endswith("/.config/disaggregated-rloo/token")
    worker, environment = start(host, name, "worker", "10.0.0.3")
    assert worker["address"] == f"{HEAD}:6379" and not worker["head"]
    assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_worker_niceness"] == "0"


def test_on_hosts_that_are_there_each_offers_what_its_address_says(host: Host) -> None:
    provider = read("onprem.yaml")["provider"]
    offers = [start(host, "onprem.yaml", "head", provider["head_ip"])[0]]
    assert offers[0]["node_ip_address"] == provider["head_ip"]
    offers += [start(host, "onprem.yaml", "worker", address)[0] for address in provider["worker_ips"]]
    found = [json.loads(parameters["resources"]) for parameters in offers]
    assert found == [{"learner": 8}, {"reward": 1}, {"rollout": 8}, {"rollout": 8}]


@pytest.mark.parametrize("name", FILES)
def test_setting_up_a_host_twice_changes_it_once(host: Host, name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    token = home / ".config/disaggregated-rloo/token"
    token.parent.mkdir(parents=True)
    token.write_text("secret\n")
    token.chmod(0o644)
    setup = home / PROJECT / "deploy/setup_cuda.sh"
    setup.write_text("ray setup\n")  # recorded; what it installs is another test's
    for _ in range(2):
        calls = [call for command in read(name)["setup_commands"] for call in host.run(command)]
        assert [call.argv for call in calls] == [["ray", "setup"]] and calls[0].environment["VENV"]
    assert token.stat().st_mode & 0o777 == 0o600
    assert (home / ".bashrc").read_text().count("cluster_env.sh") == 1


def test_the_head_on_aws_gets_what_starts_machines(host: Host) -> None:
    (call,) = [call for command in read("cluster.yaml")["head_setup_commands"] for call in host.run(command)]
    assert Path(call.argv[-1]).read_text() == (ROOT / "requirements/aws.txt").read_text()
    assert call.argv[:3] == ["uv", "pip", "install"]


@pytest.mark.parametrize("name", FILES)
def test_the_token_is_in_no_command(name: str) -> None:
    commands = [line for key, lines in read(name).items() if key.endswith("commands") for line in lines]
    assert len(commands) >= 7 - 2 * (name == "onprem.yaml")
    assert not [line for line in commands if "RAY_AUTH_TOKEN=" in line or "cat " in line]
