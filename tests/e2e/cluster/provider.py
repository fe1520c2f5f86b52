"""Ray's view of the cloud: `provider: {type: external, module: tests.e2e.cluster.provider.HostProvider}`."""

from __future__ import annotations

from typing import Any

from ray.autoscaler.node_provider import NodeProvider

from tests.e2e.cluster.door import ask

CREATE_S = 120.0


class HostProvider(NodeProvider):
    """It remembers nothing: the workstation's and the head's both ask the same cloud, so they never disagree."""

    def _machines(self) -> dict[str, dict[str, Any]]:
        return ask("machines", cluster=self.cluster_name)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Ids of the machines that bear all these tags."""
        wanted = tag_filters.items()
        return [name for name, machine in self._machines().items() if wanted <= machine["tags"].items()]

    def is_running(self, node_id: str) -> bool:
        """A machine that exists runs: hosts start within a second."""
        return node_id in self._machines()

    def is_terminated(self, node_id: str) -> bool:
        """Ids are never given again, so one that is gone is gone for good."""
        return node_id not in self._machines()

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Its tags; none where it has ended since it was listed."""
        return self._machines().get(node_id, {}).get("tags", {})

    def internal_ip(self, node_id: str) -> str:
        """Its only address."""
        return self._machines()[node_id]["address"]

    external_ip = internal_ip

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        """New machines, by id."""
        made = ask("create", cluster=self.cluster_name, tags=tags, count=count, deadline_s=CREATE_S)
        return {name: {} for name in made}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        """Add to its tags."""
        ask("tag", name=node_id, tags=tags)

    def terminate_node(self, node_id: str) -> None:
        """Power it off."""
        ask("end", name=node_id)
