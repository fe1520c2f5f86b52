"""Every package's door to Ray: the cluster that a program joins, its node, room for a part, the registry of services,
servers that may outlive the driver.

A service that knows no `ray_address` never comes here, and Ray is not imported.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from wire.address import NODE
from wire.announce import Announcer
from wire.claim import Owner
from wire.errors import ConfigError, ServiceError
from wire.hosting import Plan
from wire.registry import Facts, Registry
from wire.room import Needs, until_found
from wire.settings import Settings
from wire.signals import kept_handlers

REGISTRY, NAMESPACE = "rlhf-registry", "rlhf"
REGISTRY_TIMEOUT_S = 20.0  # the first call starts it
GPUS_TIMEOUT_S = 60.0  # a worker process starts for each place
MARK = 0.001  # of the one `node:ADDRESS` that each node has, to be placed there


def join(ray_address: str) -> None:
    """Be a member of the cluster at `ray_address` from now on. What is placed there works in a folder of the same path
    as this process's, so that a relative path means the same everywhere; where a host has none, in the one that its
    `ray start` had.

    Raises:
        ConfigError: no cluster answers there.
    """
    try:
        with kept_handlers():
            ray.init(
                address=ray_address,
                runtime_env={"worker_process_setup_hook": working_in(os.getcwd())},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError) as error:
        remedy = "start Ray there with `ray start --head`, and set RAY_AUTH_MODE=token here where it asks for a token"
        raise ConfigError(f"ray_address {ray_address!r}: {error}; {remedy}") from error


@contextmanager
def joined_cluster(ray_address: str) -> Iterator[None]:
    """As `join`, while the context is open."""
    join(ray_address)
    try:
        yield
    finally:
        ray.shutdown()


def working_in(path: str) -> Callable[[], None]:
    """What a process calls to work in this folder; nothing happens where its host has none of this path."""

    def change() -> None:
        with suppress(OSError):
            os.chdir(path)

    return change


def at_node(settings: Settings) -> Settings:
    """The settings with `bind_address: node` replaced by the address by which Ray knows this process's node."""
    if settings.bind_address != NODE:
        return settings
    return replace(settings, bind_address=ray.util.get_node_ip_address())


def resources() -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The cluster's resources: in all, and free."""
    return ray.cluster_resources(), ray.available_resources()


def announce(kind: str, url: str, facts: Facts) -> None:
    """Tell the cluster's registry of a service. Raises ServiceError where it does not answer."""
    _ask_registry("announce", kind, url, facts)


def withdraw(kind: str, url: str) -> None:
    """Take it back. Raises ServiceError where the registry does not answer."""
    _ask_registry("withdraw", kind, url)


def announcer(kind: str, url: str, facts: Facts) -> Announcer:
    """A context in which a service is in the registry."""
    return Announcer(partial(announce, kind, url, facts), partial(withdraw, kind, url))


def announced_services(kind: str) -> dict[str, Facts]:
    """Facts of the services of a kind, by URL. Raises ServiceError where the registry does not answer."""
    found: dict[str, Facts] = _ask_registry("found", kind)
    return found


def taken(kind: str, url: str, owner: Owner) -> str | None:
    """Take a service for `owner`; the folder of the run that has it, where that is another and not known to be over.

    Raises:
        ServiceError: the registry does not answer.
    """
    holder: Owner = _ask_registry("take", kind, url, owner)
    if holder.life != owner.life and RayCluster().is_over(holder):
        holder = _ask_registry("take", kind, url, owner, holder.life)
    return None if holder.life == owner.life else holder.run


def _ask_registry(method: str, *arguments: Any) -> Any:
    """It is an actor that outlives the programs that use it; whoever comes first makes it."""
    actor: Any = ray.remote(Registry)
    try:
        registry = actor.options(
            name=REGISTRY, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=-1
        ).remote()
        return ray.get(getattr(registry, method).remote(*arguments), timeout=REGISTRY_TIMEOUT_S)
    except (ray.exceptions.RayError, ValueError, AttributeError) as error:  # the last: it is of older software
        raise ServiceError(f"the cluster's registry does not answer ({type(error).__name__})") from error


def resources_of(node: str) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """The resources of the node that Ray knows by this address: in all, and free."""
    row = next(row for row in ray.nodes() if row["Alive"] and row["NodeManagerAddress"] == node)
    return row["Resources"], ray._private.state.available_resources_per_node().get(row["NodeID"], {})


@contextmanager
def own_place(takes: Needs, timeout_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """This process's share of its own node while the context is open, for a service that was started there by hand.

    Ray gives it to nobody else, and the autoscaler does not take the node for idle. What the node has none of is left
    out. The process and those it starts see the GPUs of its place, unless `CUDA_VISIBLE_DEVICES` says which.

    Args:
        takes: its part's name and what it needs.
        timeout_s: how long it waits for room.
        say: told what is missing where that takes long.

    Raises:
        ServiceError: there was no room.
    """
    node = ray.util.get_node_ip_address()
    has, _ = resources_of(node)
    each = {name: amount for name, amount in takes.each.items() if has.get(name)}
    if not each or not takes.num:
        yield
        return
    room = Room(f"{takes.part} on node {node}", each, takes.num, node)
    try:
        try:
            asyncio.run(asyncio.wait_for(room.found(say), timeout_s))
        except TimeoutError:
            raise ServiceError(
                f"node {node} had no room for {takes.part} within {timeout_s:.0f} s: others have its places; end one "
                "of them, or give the node more at its `ray start`"
            ) from None
        if each.get("GPU"):
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", ",".join(room.gpus()))
        yield
    finally:
        room.give_back()


def _own_gpus() -> list[str]:
    return [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]


class Room:
    """Places in the cluster, packed on as few nodes as hold them; they are kept until `give_back`.

    Args:
        part: who will be there, as a message calls it.
        each: what one place has; zeros are left out.
        num: of places.
        node: the address by which Ray knows the one node where they must be; by default any.
    """

    def __init__(self, part: str, each: Mapping[str, float], num: int = 1, node: str | None = None) -> None:
        self._needs = Needs(part, {name: amount for name, amount in each.items() if amount}, num)
        self._resources = resources if node is None else partial(resources_of, node)
        bound = {} if node is None else {f"node:{node}": MARK}
        self._group = placement_group([{**self._needs.each, **bound}] * num, strategy="PACK")

    async def found(self, say: Callable[[str], None]) -> None:
        """Return when all places are there; `say` is told what is missing where that takes long. No deadline."""
        await until_found(self._needs, self._group.wait, self._resources, say)

    def gpus(self) -> list[str]:
        """The ids of the GPUs of all places, in their order, once they are found."""
        ask: Any = ray.remote(_own_gpus)
        num = self._needs.each.get("GPU", 0)
        asked = [
            ask.options(num_cpus=0, num_gpus=num, scheduling_strategy=self.place(index)).remote()
            for index in range(self._needs.num)
        ]
        return [gpu for gpus in ray.get(asked, timeout=GPUS_TIMEOUT_S) for gpu in gpus]

    def place(self, index: int = 0) -> PlacementGroupSchedulingStrategy:
        """Where an actor is to be started: in place `index`."""
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)

    def address(self, index: int = 0) -> str:
        """The address by which Ray knows the node of place `index`, once it is found."""
        node = placement_group_table(self._group)["bundles_to_node_id"][index]
        return next(str(row["NodeManagerAddress"]) for row in ray.nodes() if row["NodeID"] == node)

    def give_back(self) -> None:
        """Let others have it; who is there is ended."""
        remove_placement_group(self._group)


class RayCluster:
    """The cluster that this process has joined, as the owner of servers needs it (`wire.hosting.Cluster`)."""

    def owner(self, run: str, orphan_timeout_s: float) -> Owner:
        """A new life of the driver of a run. `run`: the folder it writes to."""
        job = ray.get_runtime_context().get_job_id()
        return Owner(str(Path(run).resolve()), secrets.token_hex(8), job, orphan_timeout_s)

    def launch(self, plan: Plan, owner: Owner) -> Any:
        """An actor of the plan, which waits for a node with room. Four threads let it be heard while its server starts.

        One that outlives its driver has no placement group: a group would have to outlive it too, and nobody would end
        a group whose driver died before its actor was there.
        """
        lasting = {"name": f"{plan.kind}-{plan.index}-{secrets.token_hex(4)}", "namespace": NAMESPACE}
        options: dict[str, Any] = {**lasting, "lifetime": "detached"} if plan.is_kept else {}
        actor: Any = ray.remote(plan.host)
        return actor.options(
            num_cpus=0, num_gpus=plan.num_gpus, resources=dict(plan.resources), max_concurrency=4, **options
        ).remote(*plan.arguments, plan.identity, plan.index, owner)

    def answers(self, actor: Any) -> Callable[[float], bool]:
        """Whether the actor is there, waited for at most so many seconds; it blocks."""
        answer = actor.held.remote()
        return lambda timeout_s: bool(ray.wait([answer], timeout=timeout_s)[0])

    def resources(self) -> tuple[Mapping[str, float], Mapping[str, float]]:
        """The cluster's: in all, and free."""
        return resources()

    async def ask(self, actor: Any, method: str, *arguments: Any) -> Any:
        """The actor's answer. No deadline.

        Raises:
            ConfigError: the actor's own.
            ServiceError: the actor's own, or that it is gone.
        """
        try:
            return await getattr(actor, method).remote(*arguments)
        except ray.exceptions.RayError as error:  # the actor's own error in Ray's wrapping, or the actor is gone
            cause = getattr(error, "cause", None)
            if isinstance(cause, ConfigError | ServiceError):
                raise cause from error
            raise ServiceError(str(cause or error)) from error

    def kill(self, actor: Any) -> None:
        """End it; its server ends with it."""
        ray.kill(actor)

    def kept(self, kind: str) -> dict[str, Any]:
        """Actors of a kind that outlive their drivers, by name."""
        found = {}
        for row in ray.util.list_named_actors(all_namespaces=True):
            if row["namespace"] == NAMESPACE and row["name"].startswith(f"{kind}-"):
                with suppress(ValueError):  # it has ended meanwhile
                    found[row["name"]] = ray.get_actor(row["name"], namespace=NAMESPACE)
        return found

    def is_over(self, owner: Owner) -> bool:
        """Whether that life of a driver is known to be over: Ray has seen its job end."""
        # Ray's public list of jobs asks the dashboard, which a cluster need not have; this asks its GCS.
        return any(job["JobID"] == owner.job and job["IsDead"] for job in ray._private.state.jobs())
