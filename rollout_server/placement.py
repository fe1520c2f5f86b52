"""How replicas are placed on a Ray cluster: one actor a replica, each supervising one vLLM server on its node."""

from __future__ import annotations

from dataclasses import replace

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_command, replica_process
from wire.claim import Claim, Owner
from wire.hosted import HostedServer
from wire.hosting import Plan
from wire.identity import Identity, digest, digest_of_model, software_of
from wire.placement import at_node
from wire.token import read_or_create_token

KIND = "replica"


class ReplicaHost(HostedServer):
    """The actor of replica `index`; it makes the server's process on its node, so that its port is that node's."""

    def __init__(self, settings: RolloutSettings, identity: Identity, index: int, owner: Owner) -> None:
        super().__init__(
            lambda: replica_process(at_node(settings), index),
            identity,
            index,
            Claim(owner, is_kept=settings.keeps_servers),
            startup_timeout_s=settings.startup_timeout_s,
        )


def replica_plan(settings: RolloutSettings, index: int) -> Plan:
    """Replica `index`, from 0, on a node with the resource `rollout` and its GPUs."""
    return Plan(
        kind=KIND,
        index=index,
        name=f"replica-{index}",
        host=ReplicaHost,
        arguments=(settings,),
        identity=replica_identity(settings, index),
        resources={"rollout": 1},
        num_gpus=settings.gpus_per_replica,
        is_kept=settings.keeps_servers,
    )


def replica_identity(settings: RolloutSettings, index: int) -> Identity:
    """What a replica must have to be taken for this one."""
    given = [str(port) for port in settings.rollout_ports[index : index + 1]]
    return Identity(
        command=tuple(replica_command(replace(settings, bind_address=""), port=0)),
        listens=(settings.bind_address, *(given or [settings.port_range or "any port"])),
        models=(digest_of_model(settings.model_name_or_path),),
        token=digest(read_or_create_token(settings.token_file).encode()),
        software=software_of("wire", "rollout_server"),
    )
