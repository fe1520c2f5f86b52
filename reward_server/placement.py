"""How the reward service is placed on a Ray cluster: one actor that supervises `reward_server.main` on its node."""

from __future__ import annotations

from dataclasses import replace

from reward_server.config import RewardSettings
from reward_server.fetch_state import FetchState
from reward_server.service import STOP_GRACE_S, service_flags, service_process
from reward_server.weights import Weights
from wire.claim import Claim, Owner
from wire.hosted import HostedServer
from wire.hosting import Plan
from wire.identity import Identity, digest, digest_of_model, software_of
from wire.placement import at_node
from wire.token import read_or_create_token

KIND = "reward-service"


class RewardHost(HostedServer):
    """The actor of the service; it makes the process on the node where it will run, so that its port is that node's."""

    def __init__(self, settings: RewardSettings, identity: Identity, index: int, owner: Owner) -> None:
        self._weights = Weights(settings)
        super().__init__(
            lambda: service_process(at_node(settings)),
            identity,
            index,
            Claim(owner, is_kept=settings.keeps_servers),
            startup_timeout_s=settings.startup_timeout_s,
            grace_s=STOP_GRACE_S,
        )

    def fetch(self, life: str) -> FetchState | None:
        """How far the judge's files are, begun with the first call: before `start`, whose deadline is for loading."""
        self._claim.renew(life)
        return self._weights.look()

    def _end(self) -> None:
        self._weights.stop()
        super()._end()


def reward_plan(settings: RewardSettings) -> Plan:
    """The service, on a node with the resource `reward` and the GPUs of its GenRM servers."""
    return Plan(
        kind=KIND,
        index=0,
        name="the reward service",
        host=RewardHost,
        arguments=(settings,),
        identity=reward_identity(settings),
        resources={"reward": 1},
        num_gpus=settings.judge_servers * settings.gpus_per_genrm,
        is_kept=settings.keeps_servers,
        stop_timeout_s=45.0,  # it takes up to 30 s to end its GenRM servers
    )


def reward_identity(settings: RewardSettings) -> Identity:
    """What a service must have to be taken for this one. Where its log is, and how long it may take to start, is not
    in it."""
    neutral = replace(
        settings, bind_address="", port_range=None, ray_address=None, reward_url=None, token_file="", log_dir="",
        startup_timeout_s=1.0, orphan_timeout_s=0.0,
    )  # fmt: skip
    return Identity(
        command=tuple(service_flags(neutral)),
        listens=(settings.bind_address, settings.port_range or "any port"),
        models=(digest_of_model(settings.judge_model_name_or_path),),
        token=digest(read_or_create_token(settings.token_file).encode()),
        software=software_of("wire", "reward_server"),
    )
