"""`python -m tests.e2e.nodes_case FOLDER TOKEN_FILE`: a reward service grows over two nodes of a real Ray cluster.

The nodes are two loopback addresses of this host. The judge is the toy one, on a hub of the loopback interface, so its
files are fetched; both servers are real. Verdicts are asked all the while.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ray
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.cluster_utils import Cluster

from deploy.toy.world import TOPICS
from reward_server.client import RewardClient
from reward_server.scale import carry_out, lines
from tests.e2e.conftest import ROOT, TOY_CONFIG
from tests.reward_server.toy_hub import MODEL, ToyHub, serving
from wire.judgement import Message, Verdict
from wire.process import free_port
from wire.token import read_token

NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
TWO = ("the sea is salty and wide", "well, water")
LONG_S = 300.0


class Asked:
    """Verdicts, asked eight at a time until told to stop, each of another seed."""

    def __init__(self, client: RewardClient) -> None:
        self._client = client
        self.verdicts: list[Verdict] = []
        self.goes_on = True

    async def go_on(self) -> None:
        number = 0
        while self.goes_on:
            turns = [(Message(role="user", content=f"{number + n}: {list(TOPICS)[n % 4]}?"),) for n in range(8)]
            asked = (self._client.judge(turn, TWO, seed=number + n) for n, turn in enumerate(turns))
            self.verdicts += await asyncio.gather(*asked)
            number += 8

    @property
    def servers(self) -> set[str]:
        return {verdict.server for verdict in self.verdicts[-64:]}


def asks_for_reward() -> bool:
    """Whether the autoscaler would see that somebody waits for a node."""
    state = get_cluster_resource_state(GcsClient(address=ray.get_runtime_context().gcs_address))
    return "reward" in str(state.pending_gang_resource_requests)


async def all_free() -> bool:
    return ray.available_resources().get("reward") == 2


async def until(what: str, is_so: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + LONG_S
    while not await is_so():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.5)


async def grown_and_shrunk(client: RewardClient, hub: ToyHub, node: str) -> None:
    async def state() -> dict[str, Any]:
        return await carry_out(client, ["status"])

    async def num_ready() -> int:
        return sum(server["state"] == "ready" for server in (await state())["servers"])

    (first,) = (await state())["servers"]
    assert first["fetch_s"] > 0 and first["load_s"] > 0 and first["doing"] == "", first
    weights = [path for _, path, _ in hub.asked if path.endswith(".safetensors")]
    asked = Asked(client)
    work = asyncio.create_task(asked.go_on())
    assert ray.available_resources()["reward"] == 1  # the service by hand has the one of its node
    grown = await carry_out(client, ["+1"])
    assert [server["url"] for server in grown["servers"]] == [first["url"], "judge-1"], grown

    async def both() -> bool:
        return await num_ready() == 2

    await until("a second server on the other node", both)
    table = await state()
    second = table["servers"][1]
    assert second["url"].startswith(f"http://{node}:") and second["started"] and table["count"] == 2, second
    assert "reward" not in ray.available_resources(), ray.available_resources()
    # The same host, so the files were there: only small ones were asked for again, if any.
    assert [path for _, path, _ in hub.asked if path.endswith(".safetensors")] == weights
    print("\n".join(lines(table)))

    async def both_answer() -> bool:
        return asked.servers == {first["url"], second["url"]}

    await until("verdicts of both", both_answer)
    await carry_out(client, ["+1"])  # for which no node has room: the autoscaler is asked for one

    async def is_asked_for() -> bool:
        (waiting,) = [server for server in (await state())["servers"] if server["url"] == "judge-2"]
        return "missing: reward (0 of 2 free)" in waiting["doing"] and asks_for_reward()

    await until("a third is asked for", is_asked_for)
    await carry_out(client, ["1"])

    async def one() -> bool:
        is_free = ray.available_resources().get("reward") == 1 and not asks_for_reward()
        return is_free and len((await state())["servers"]) == 1

    await until("the second gone, and its place given back", one)
    asked.goes_on = False
    await work
    missing = {verdict.missing for verdict in asked.verdicts} - {None, "unreadable", "too_long"}
    assert not missing and len({verdict.key for verdict in asked.verdicts}) == len(asked.verdicts), missing
    print("verdicts", len(asked.verdicts), "of several attempts", sum(v.attempts > 1 for v in asked.verdicts))


async def main(folder: Path, token_file: str, cluster: Cluster, hub: ToyHub) -> None:
    port, address = free_port("127.0.0.1"), cluster.head_node.node_ip_address
    flags = ["--config", str(TOY_CONFIG), "--token_file", token_file, "--log_dir", str(folder / "nodes-logs")]
    flags += ["--ray_address", cluster.address, "--bind_address", address, "--reward_port", str(port)]
    flags += ["--judge_model_name_or_path", MODEL]
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
    with (folder / "nodes-service.out").open("wb") as log:
        service = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "reward_server.main", *flags, env=environment, cwd=ROOT, stdout=log, stderr=log
        )
    try:
        async with RewardClient(f"http://{address}:{port}", read_token(token_file), timeout_s=150) as client:

            async def is_up() -> bool:
                assert service.returncode is None, (folder / "nodes-service.out").read_text()
                return "reward service http" in (folder / "nodes-service.out").read_text()

            await until("the service", is_up)
            await grown_and_shrunk(client, hub, "127.0.0.2")
    finally:
        service.terminate()
        await service.wait()
        print((folder / "nodes-service.out").read_text())


if __name__ == "__main__":
    os.environ |= {"HF_HOME": sys.argv[1] + "/huggingface", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    with serving(ToyHub(ROOT / ".cache/toy/judge")) as found:
        os.environ["HF_ENDPOINT"] = found.url  # for the actors too
        two = Cluster(initialize_head=True, connect=False, head_node_args={"resources": {"reward": 1}, **NODE})
        try:
            two.add_node(node_ip_address="127.0.0.2", resources={"reward": 1}, **NODE)
            ray.init(address=two.address, log_to_driver=False)
            asyncio.run(main(Path(sys.argv[1]), sys.argv[2], two, found))
            asyncio.run(until("the service's own place is given back", all_free))
            print("all is well", json.dumps(found.gets(".safetensors")))
        finally:
            ray.shutdown()
            two.shutdown()
