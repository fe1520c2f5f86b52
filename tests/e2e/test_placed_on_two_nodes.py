"""Parts on two nodes of a real Ray cluster, which are two loopback addresses of this host: each listens on its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, os, sys, time
from dataclasses import replace
from pathlib import Path
from aiohttp import web
from aiohttp.test_utils import TestServer
from ray.cluster_utils import Cluster

import wire.room
from reward_server.config import RewardSettings
from reward_server.placement import reward_plan
from rollout_server.config import RolloutSettings
from rollout_server.placement import replica_plan
from trainer.config import RunSettings
from trainer.judge_service import JudgeService
from trainer.placement import place_learner
from wire.errors import ConfigError, ServiceError
from wire import placement
from wire.hosting import PlacedServer
from wire.placement import RayCluster, at_node, joined_cluster, own_place
from wire.registry import REWARD
from wire.room import Needs

folder, ports = sys.argv[1:]
args = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, connect=False, head_node_args={**args, "num_cpus": 1, "num_gpus": 4})
driver = cluster.head_node.node_ip_address
other = cluster.add_node(node_ip_address="127.0.0.2", num_cpus=1, resources={"rollout": 1, "reward": 1}, **args)
node = "127.0.0.2"
wire.room.SAY_AFTER_S = 1.0


# A service that was started by hand is found by a run that judges alike, and is not once it has ended.
async def found_in_the_cluster(settings, said):
    def found(settings):
        return JudgeService(settings, RayCluster(), None, said.append)._found()

    async def genrm(request):
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", genrm)
    async with TestServer(app) as server:
        command = [sys.executable, "-m", "reward_server.main", "--ray_address", cluster.address]
        command += ["--bind_address", "node"]
        command += ["--judge_servers", "0", "--judge_urls", str(server.make_url("")), "--token_file", folder + "/token"]
        command += ["--judge_model_name_or_path", settings.judge_model_name_or_path, "--device", "cpu"]
        by_hand = await asyncio.create_subprocess_exec(*command, "--judge_tensor_parallel_size", "1")
        try:
            url = None
            for _ in range(120):
                url = url or await found(settings)
                await asyncio.sleep(0 if url else 0.5)
            assert url and url.startswith(f"http://{driver}:"), (url, said)
            assert said[-1] == f"found in the cluster: reward service {url}"
            other = replace(settings, judge_dialect="json")
            assert await found(other) is None and "judge_dialect 'boxed'" in said[-1], said
        finally:
            by_hand.terminate()
            await by_hand.wait()
    assert placement.announced_services(REWARD) == {}
    print("found while it served")


# What a service by hand takes of its node is nobody else's; what the node never had is not asked for.
def its_own_place(said):
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    with own_place(Needs("the replicas", {"GPU": 1, "no such thing": 1}, 3), 30, said.append):
        assert sorted(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) == ["0", "1", "2"] and not said, said
        assert wire.placement.resources_of(driver)[1]["GPU"] == 1
        try:
            with own_place(Needs("another", {"GPU": 2}), 4, said.append):
                pass
        except ServiceError as error:
            print("no place", error)
    while wire.placement.resources_of(driver)[1]["GPU"] != 4:
        time.sleep(0.1)
    lacks = f"no room yet for another on node {driver}: it needs 1 x {{GPU: 2}}; missing: GPU (1 of 4 free)"
    assert said == [lacks], said
    with own_place(Needs("nobody", {"no such thing": 1}), 1, said.append):
        pass
    os.environ.pop("CUDA_VISIBLE_DEVICES")


async def main():
    await asyncio.to_thread(its_own_place, [])
    said = []
    known = {"bind_address": "node", "ray_address": cluster.address, "device": "cpu", "log_dir": "logs"}
    known |= {"token_file": folder + "/token", "port_range": ports, "startup_timeout_s": 60.0}
    settings = RunSettings(**known, output_dir=folder, num_learner_ranks=1)
    assert at_node(settings).bind_address == driver, at_node(settings).bind_address

    placing = asyncio.create_task(place_learner(settings, said.append))  # no node has the resource `learner`
    while not said:
        await asyncio.sleep(0.1)
    assert said == ["no room yet for the learner: it needs 1 x {learner: 1}; missing: learner (0 of 0 free)"], said
    cluster.add_node(node_ip_address="127.0.0.3", num_cpus=1, resources={"learner": 1}, **args)
    ranks, host = await placing
    assert host == "127.0.0.3" and said[-1] == "room for the learner was found", (host, said)
    lowest = int(ports.partition("-")[0])
    assert await ranks[0].pick_port.remote() == lowest

    # The model is nowhere, so the programs end: where they would have listened is in their logs and errors.
    joined, owner = RayCluster(), RayCluster().owner(folder, 0.0)
    plan = replica_plan(RolloutSettings(**known, model_name_or_path="./nowhere"), 0)
    replica = PlacedServer(plan, joined, owner, said.append)
    try:
        await replica.start()
    except Exception as error:
        print("replica", error)
    await replica.stop()
    assert Path(folder, "logs", "replica-0.log").exists()  # relative to the driver's folder, not to Ray's
    judge = RewardSettings(**known, judge_urls=["http://127.0.0.9:1"], judge_servers=0, judge_tensor_parallel_size=1)
    service = PlacedServer(reward_plan(judge), joined, owner, said.append)
    starting = asyncio.ensure_future(asyncio.wait_for(service.start(), 50))
    import urllib.request, urllib.error
    for _ in range(300):
        await asyncio.sleep(0.1)
        try:
            urllib.request.urlopen(f"http://{node}:{lowest}/health", timeout=1)
        except urllib.error.HTTPError as error:
            assert error.code == 503
            print("the reward service listens on its node")
            break
        except OSError:
            pass
    starting.cancel()
    await service.stop()
    await found_in_the_cluster(settings, said)

    try:
        away = RolloutSettings(**{**known, "bind_address": "192.0.2.77"}, model_name_or_path="./nowhere")
        replica = PlacedServer(replica_plan(away, 1), joined, owner, said.append)
        await replica.start()
    except ConfigError as error:
        print("mistake", error)
    await replica.stop()


os.chdir(folder)
try:
    with joined_cluster(cluster.address):
        asyncio.run(main())
    print("all is well")
finally:
    cluster.shutdown()
"""


def test_each_part_listens_on_its_own_node_in_the_range_and_missing_resources_are_named(tmp_path: Path) -> None:
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "23300-23309"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    told = done.stdout + done.stderr
    assert "all is well" in done.stdout, told
    assert "the reward service listens on its node" in done.stdout, told
    assert "found while it served" in done.stdout, told
    assert " had no room for another within 4 s: others have its places; end one of them" in done.stdout, told
    assert "mistake replica-1: bind_address 192.0.2.77 is carried by no interface of host" in done.stdout, told
    assert "replica replica-0 ended with exit code 1" in done.stdout, told
