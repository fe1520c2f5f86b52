"""A cluster yaml for the test's cloud: provider, auth, docker, sizes and patience are its own, no installing.

What stays is what the test is about: the node types and their custom resources and labels, the files that every host is
given, and the commands that start Ray.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

PROVIDER = {"type": "external", "module": "tests.e2e.cluster.provider.HostProvider"}
AUTH = {"ssh_user": "root", "ssh_private_key": "/root/.ssh/id_ed25519"}
# All hosts share one machine's cores: little of everything, and more patience with a host that answers late.
START = {"--object-store-memory": "80000000", "--num-cpus": "1"}
HEAD_START = START | {"--include-dashboard": "false"}
PATIENCE = (
    "RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=500 RAY_health_check_timeout_ms=1000 "
    "RAY_health_check_failure_threshold=8 AUTOSCALER_UPDATE_INTERVAL_S=1"
)
IDLE_MINUTES = 0.1
# An external provider has no defaults: what a real one fills in is named.
EMPTY: dict[str, Any] = {
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
}
SETUP = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
# The machine's own virtual environment is bind-mounted into every host.
INSTALLS = re.compile(r"\bpip install\b|\bapt-get\b|setup\w*\.sh")
BUILT_IN = ("CPU", "GPU", "TPU", "memory", "object_store_memory")


def derived(cluster: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The test's own yaml from a real one.

    `sizes`: the fewest and the most nodes of the type that has a resource, by the resource's name; the other types keep
    theirs. Every node has one of each resource of its own. KeyError where no type has a resource of `sizes`.
    """
    config = copy.deepcopy({**EMPTY, **cluster, "provider": PROVIDER, "auth": AUTH, "docker": {}})
    config["idle_timeout_minutes"] = IDLE_MINUTES
    for key in SETUP:
        config[key] = [line for line in config[key] if not INSTALLS.search(line)]
    types = config["available_node_types"]
    for node_type in types.values():
        _shrink(node_type)
    for resource, (fewest, most) in sizes.items():
        types[_type_with(types, resource)] |= {"min_workers": fewest, "max_workers": most}
    config["max_workers"] = sum(
        node_type.get("max_workers", 0) for name, node_type in types.items() if name != config["head_node_type"]
    )
    config["head_start_ray_commands"] = [_with(HEAD_START, line) for line in cluster["head_start_ray_commands"]]
    config["worker_start_ray_commands"] = [_with(START, line) for line in cluster["worker_start_ray_commands"]]
    return config


def _shrink(node_type: dict[str, Any]) -> None:
    for key in ("docker", *SETUP):
        node_type.pop(key, None)
    node_type["node_config"] = {}
    own = {name: 1 for name in node_type.get("resources", {}) if name not in BUILT_IN}
    node_type["resources"] = {"CPU": 1, **own}


def _type_with(types: Mapping[str, Mapping[str, Any]], resource: str) -> str:
    for name, node_type in types.items():
        if resource in node_type["resources"]:
            return name
    raise KeyError(f"no node type has the resource {resource!r}; they have {[t['resources'] for t in types.values()]}")


def _with(flags: Mapping[str, str], command: str) -> str:
    """`ray start` with these flags in place of its own of the same names; any other command as it is."""
    if not re.search(r"\bray start\b", command):
        return command
    # A machine need not allow the limits of the image.
    command = re.sub(r"\bulimit -n \d+\s*&&\s*", "", command)
    for flag in flags:
        command = re.sub(rf"\s{flag}(=|\s+)\S+", "", command)
    words = " ".join(f"{flag}={value}" for flag, value in flags.items())
    return re.sub(r"\bray start\b", f"env {PATIENCE} ray start {words}", command)
