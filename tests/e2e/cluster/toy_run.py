"""The toy run on the cluster: what is typed on its hosts, and what the run's folder says of it."""

from __future__ import annotations

import json
import shlex
from typing import Any

from tests.e2e.cluster.hosts import ROOT
from tests.e2e.cluster.programs import FOLDER, Program
from tests.e2e.cluster.world import World

TOY = (ROOT / ".cache" / "toy").resolve()
OUTPUT = "runs/cluster"  # of the head's project folder: a path as people give it
EPISODES_PER_STEP = 16
# Every host has the models where this machine has them. Ports of ours are told from Ray's by their range.
EVERYWHERE = [
    *("--config", "configs/toy.yaml", "--ray_address", "auto", "--bind_address", "node", "--port_range", "20000-20099"),
]
JUDGE = ["--judge_model_name_or_path", str(TOY / "judge")]
REPLICAS = ["--model_name_or_path", str(TOY / "policy"), "--replicas", "1"]  # of the run, and by hand
# Ray tells of a host that died; silence need not, and on two cores on which a server starts it may last.
RUN = [
    *("--dataset_name", str(TOY / "helpsteer3"), "--output_dir", OUTPUT),
    *("--num_eval_prompts", "0", "--judge_check", "false", "--learning_rate", "1e-5"),
    *("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"),
    *("--probe_interval_s", "1", "--probe_timeout_s", "30", "--transfer_timeout_s", "40"),
]


def python(module: str, *flags: str) -> str:
    """A command line of a host's shell."""
    return shlex.join(["python", "-m", module, *flags])


class RewardService(Program):
    """The reward service, by hand on `host`."""

    def __init__(self, world: World, host: str) -> None:
        super().__init__(world, host, "reward", python("reward_server.main", *EVERYWHERE, *JUDGE))

    @property
    def url(self) -> str:
        """Where it answers, once it has said so."""
        return self.text().split("reward service ")[1].split()[0]

    def scale(self, command: str) -> str:
        """What `reward_server.scale` prints."""
        flags = ("--config", "configs/toy.yaml", "--reward_url", self.url)
        return self._world.run(self.host, f"cd {FOLDER} && {python('reward_server.scale', command, *flags)}")


def replica_by_hand(world: World, host: str) -> Program:
    """A replica, by hand on `host`."""
    return Program(world, host, "replica", python("rollout_server.main", *EVERYWHERE, *REPLICAS))


class ToyRun(Program):
    """`trainer.main` on `host`, for so many steps."""

    def __init__(self, world: World, host: str, num_steps: int) -> None:
        size = ["--total_episodes", str(num_steps * EPISODES_PER_STEP)]
        super().__init__(world, host, "run", python("trainer.main", *EVERYWHERE, *JUDGE, *REPLICAS, *RUN, *size))

    def read(self, name: str) -> str:
        """A file of its folder; empty where it is not there."""
        return self._world.run(self.host, f"cat {FOLDER}/{OUTPUT}/{name} 2> /dev/null || true")

    def files(self) -> list[str]:
        """The paths of what lies in its folder."""
        return self._world.run(self.host, f"cd {FOLDER}/{OUTPUT} && find . -mindepth 1 -printf '%P\\n'").splitlines()

    def lines(self, text: str) -> str:
        """The lines of its output that contain `text`."""
        return "\n".join(line for line in self.text().splitlines() if text in line)

    def steps(self) -> list[dict[str, Any]]:
        """What each step was made of, so far."""
        return [json.loads(line) for line in self.read("steps.jsonl").splitlines()]

    def writers(self) -> set[str]:
        """The addresses of the replicas whose completions were trained on, so far."""
        return {address_in(url) for step in self.steps() for url in step["completions_by_replica"]}

    def wait_for_steps(self, num: int, deadline_s: float) -> None:
        """Wait for so many steps more."""
        wanted = len(self.steps()) + num
        self.wait_until(lambda: len(self.steps()) >= wanted, deadline_s, f"step {wanted}")

    def wait_for_writer(self, address: str, deadline_s: float) -> None:
        """Wait until a completion of the replica at `address` was trained on."""
        self.wait_until(lambda: address in self.writers(), deadline_s, f"completion of {address}")

    def scale(self, command: str) -> str:
        """What `rollout_server.scale` prints, from the run's folder."""
        flags = ("--config", "configs/toy.yaml", "--output_dir", OUTPUT)
        return self._world.run(self.host, f"cd {FOLDER} && {python('rollout_server.scale', command, *flags)}")

    def audit(self) -> str:
        """What `trainer.audit` prints; AssertionError where it finds anything."""
        return self._world.run(self.host, f"cd {FOLDER} && {python('trainer.audit', OUTPUT)}", timeout_s=120)


def address_in(url: str) -> str:
    """`10.77.0.12` of `http://10.77.0.12:20000`."""
    return url.removeprefix("http://").rpartition(":")[0]
