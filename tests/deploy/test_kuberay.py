"""deploy/kuberay.yaml against KubeRay's RayCluster; its start commands as KubeRay writes them; what its pods share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.parsers import parse_ray
from tests.deploy.placed import placed_resources, wanted_gpus
from tests.deploy.recorded import ROOT, Host

SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
CLAIM, CLUSTER = yaml.safe_load_all((ROOT / "deploy/kuberay.yaml").read_text())
HEAD = CLUSTER["spec"]["headGroupSpec"]
WORKERS = CLUSTER["spec"]["workerGroupSpecs"]
GROUPS = [HEAD, *WORKERS]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def start(group: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The parameters of `ray start`: KubeRay writes `--key=value` for each of rayStartParams into a line of bash."""
    flags = " ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items())
    where = "--head" if group is HEAD else "--address=head:6379 --block"
    (call,) = Host(folder, ("ray",)).run(f"ulimit -n 65536; ray start {where} {flags}")
    return parse_ray(call.argv[1:])


def test_the_file_is_a_ray_cluster_and_the_schema_would_see_a_mistake() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(CLUSTER, SCHEMA)
    for wrong in ({"headGroupSpec": HEAD, "workerGroupSpec": WORKERS}, {"workerGroupSpecs": WORKERS}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(CLUSTER | {"spec": wrong}, SCHEMA)


def test_groups_have_sizes_in_order_and_offer_what_the_code_asks_for(tmp_path: Path) -> None:
    offered: dict[str, int] = {}
    for group in WORKERS:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], group["groupName"]
        folder = tmp_path / group["groupName"]
        folder.mkdir()
        (resource,) = json.loads(start(group, folder)["resources"])
        gpus = int(container(group)["resources"]["limits"]["nvidia.com/gpu"])
        offered[resource] = group["maxReplicas"] * gpus
    assert set(offered) == placed_resources()
    assert all(offered[resource] >= gpus for resource, gpus in wanted_gpus().items())


def test_the_head_takes_no_work_of_its_own(tmp_path: Path) -> None:
    assert start(HEAD, tmp_path)["num_cpus"] == 0
    assert "nvidia.com/gpu" not in container(HEAD)["resources"]["limits"]


def test_every_pod_has_the_environment_of_the_other_clusters(tmp_path: Path) -> None:
    (call,) = Host(tmp_path, ("ray",)).run(". deploy/cluster_env.sh && ray status")
    for group in GROUPS:
        given = {one["name"]: one["value"] for one in container(group)["env"]}
        named = {key for key in call.environment if key.startswith(("RAY_", "AUTOSCALER_"))}
        assert set(given) == named
        assert {key: call.environment[key] for key in named - {"RAY_AUTH_TOKEN_PATH"}}.items() <= given.items()
    assert CLUSTER["spec"]["autoscalerOptions"]["env"] == container(HEAD)["env"]


def test_the_token_is_a_file_that_the_project_will_read() -> None:
    for group in GROUPS:
        spec = group["template"]["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert "securityContext" not in spec  # an fsGroup would open the file to a group, and it would be refused
        assert volumes["token"]["secret"]["defaultMode"] & 0o077 == 0
        mounts = {mount["name"]: mount["mountPath"] for mount in container(group)["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        given = {one["name"]: one["value"] for one in container(group)["env"]}
        assert given["RAY_AUTH_TOKEN_PATH"] == f"{mounts['token']}/token"


def test_claim_and_service_are_what_several_hosts_need() -> None:
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]
    assert HEAD["serviceType"] == "ClusterIP"


def test_the_version_is_the_pinned_one() -> None:
    pins = (ROOT / "requirements/common.txt").read_text().splitlines()
    assert f"ray=={CLUSTER['spec']['rayVersion']}" in pins
