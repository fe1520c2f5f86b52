"""Where the fleet's chaos takes place: standing replicas, a reward service, and runs over them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from rollout_server.scale import ADDRESS_FILE
from tests.chaos.fleet_weights import make_wide_policy
from tests.chaos.learner_kills import Broken
from tests.e2e.conftest import ROOT, START_S, TOY, TOY_CONFIG, Program
from trainer.step_log import STEPS_FILE
from wire.process import ServerProcess, free_port
from wire.settings import parse_settings
from wire.token import auth_headers, read_or_create_token, read_token

POLICY_MB = 64
TRANSFER_TIMEOUT_S = 6.0
PROBE_TIMEOUT_S = (
    10.0  # a server's first completion after its start takes some seconds, and its engine is deaf meanwhile
)
COMPLETIONS_PER_STEP = 16
CALL_TIMEOUT_S = 3.0
CHECKSUM_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Gate:
    """What a replica's own gate says: its weights' state, the last push that began, and which boot this is."""

    weights: str
    push_id: str | None
    boot_id: str


class Replicas:
    """Calls to replicas, by URL."""

    def __init__(self, token: str) -> None:
        self._session = requests.Session()
        self._session.headers.update(auth_headers(token))

    def gate(self, url: str, timeout_s: float = CALL_TIMEOUT_S) -> Gate | None:
        """Its state; None where it does not answer."""
        with suppress(requests.RequestException):
            found = self._session.get(f"{url}/gate", timeout=timeout_s).json()
            return Gate(found["weights"], found["push_id"], found["boot_id"])
        return None

    def holds(self, url: str) -> tuple[str, dict[str, str]] | None:
        """(label, checksum of each tensor) of the weights that it serves; None where it does not answer, or is between
        two pushes: what one gate before and one after say is of one push, and of weights that were whole."""
        before = self.gate(url)
        if before is None or before.weights != "whole":
            return None
        with suppress(requests.RequestException, KeyError):
            label = self._session.get(f"{url}/weight_info", timeout=CALL_TIMEOUT_S).json()["weight_version"]
            asked = {"action": "checksum"}
            reply = self._session.post(f"{url}/weight_checker", json=asked, timeout=CHECKSUM_TIMEOUT_S)
            if self.gate(url) == before:
                # A name begins with the worker's place among all workers, such as dp0:pp0:pcp0:tp0.
                found = reply.json()["checksums"]
                return str(label), {name.rpartition(":")[2]: checksum for name, checksum in found.items()}
        return None

    def fleet(self, fleet_url: str) -> dict[str, Any] | None:
        """The fleet as its run sees it; None where the run does not answer."""
        with suppress(requests.RequestException, ValueError):
            found: dict[str, Any] = self._session.get(f"{fleet_url}/v1/replicas", timeout=CALL_TIMEOUT_S).json()
            return found
        return None


def processes_at(url: str) -> dict[str, psutil.Process] | None:
    """The replica's processes: `api`, which answers, and `engine`, which schedules and holds the weights.
    None where one of them is missing."""
    port = url.rpartition(":")[2]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if "vllm.entrypoints.openai.api_server" in command and command[command.index("--port") + 1] == port:
                return {"api": process, "engine": _child(process, "EngineCore")}
    return None


def _child(process: psutil.Process, title: str) -> psutil.Process:
    for child in process.children():
        if title in "".join(child.cmdline()):
            return child
    raise psutil.NoSuchProcess(process.pid, title)


@dataclass
class Run:
    """A run under attack. `steps` is its number of steps."""

    program: Program
    output: Path
    steps: int
    replicas: Replicas
    _fleet_url: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.program.process.poll() is not None

    def state(self) -> dict[str, Any] | None:
        """Its fleet; None where it has none yet, or does not answer."""
        if not self._fleet_url:
            with suppress(OSError):
                self._fleet_url = (self.output / ADDRESS_FILE).read_text().strip()
        return self.replicas.fleet(self._fleet_url) if self._fleet_url else None

    def ready(self) -> list[str]:
        """URLs of the replicas that write."""
        return [row["url"] for row in (self.state() or {"replicas": []})["replicas"] if row["state"] == "ready"]

    def lines(self) -> list[dict[str, Any]]:
        """What its steps were made of."""
        path = self.output / STEPS_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def policy_of(self, label: str, start: Path) -> Path | None:
        """The folder of the policy with this label; None where it is not written yet. `start`: the run's first one."""
        step = int(label.partition(".")[2])
        path = start if step == 0 else self.output / f"export-{step}"
        return path if path.is_dir() else None


@dataclass
class Ground:
    """What survives the attacks: the services, by hand started, and the token to them."""

    folder: Path
    token_file: Path
    reward_url: str
    policy: Path
    replicas: Replicas
    standing: dict[str, ServerProcess] = field(default_factory=dict)  # by URL

    @contextmanager
    def run(self, name: str, *, steps: int, own_replicas: int) -> Iterator[Run]:
        """A run over the standing replicas and as many of its own, ended with the block at the latest."""
        output = self.folder / name
        output.mkdir()
        flags = ["--model_name_or_path", str(self.policy), "--num_eval_prompts", "0", "--judge_check", "false"]
        flags += ["--reward_url", self.reward_url, "--token_file", str(self.token_file), "--output_dir", str(output)]
        flags += ["--total_episodes", str(steps * COMPLETIONS_PER_STEP), "--save_steps", "0", "--export_steps", "1"]
        flags += ["--per_device_train_batch_size", str(COMPLETIONS_PER_STEP), "--gradient_accumulation_steps", "1"]
        flags += ["--learning_rate", "1e-5", "--transfer_bucket_mib", "1", "--replica_restarts", "1000"]
        flags += ["--transfer_timeout_s", str(TRANSFER_TIMEOUT_S), "--probe_timeout_s", str(PROBE_TIMEOUT_S)]
        flags += ["--probe_interval_s", "1", "--replica_wait_s", str(START_S), *SERVED]
        flags += ["--replicas", str(own_replicas), "--rollout_urls", *self.standing]
        program = Program("trainer.main", *flags, output=self.folder / f"{name}.out", env={"PYTHONPATH": str(ROOT)})
        try:
            yield Run(program, output, steps, self.replicas)
        finally:
            if program.process.poll() is None:
                program.stop()

    def revive(self, url: str) -> None:
        """Start the standing replica at `url` again, whatever is left of it; it is not waited for."""
        process = self.standing[url]
        process.stop(grace_s=0.0)
        process.start()


SERVED = ("--rollout_extra_args", "--worker-extension-cls tests.chaos.kept_weights.KeptWeights")


@contextmanager
def standing_ground(folder: Path, num_replicas: int, reward_url: str | None = None) -> Iterator[Ground]:
    """The services, started by hand and ended with the block. The replicas are not waited for.

    Args:
        folder: where all of it is written.
        num_replicas: that runs join.
        reward_url: of a reward service that is there already; its token is `token` in the folder above.
    """
    policy = folder / "wide-policy"
    make_wide_policy(TOY / "policy", policy, POLICY_MB)
    token_file = folder.parent / "token" if reward_url else folder / "token"
    read_or_create_token(token_file)
    ports = [free_port("127.0.0.1") for _ in range(num_replicas)]
    flags = ["--config", str(TOY_CONFIG), "--model_name_or_path", str(policy), "--token_file", str(token_file), *SERVED]
    flags += ["--log_dir", str(folder / "logs"), "--replicas", str(num_replicas)]
    settings, _ = parse_settings(RolloutSettings, [*flags, "--rollout_ports", *map(str, ports)], strict_file=False)
    processes = [replica_process(settings, index) for index in range(num_replicas)]
    reward = None
    try:
        for process in processes:
            process.start()
        if reward_url is None:
            port = free_port("127.0.0.1")
            common = ("--token_file", str(token_file), "--log_dir", str(folder / "logs"))
            output = folder / "reward_service.out"
            reward = Program("reward_server.main", *common, "--reward_port", str(port), output=output)
            reward.wait_for("reward service http")
            reward_url = f"http://127.0.0.1:{port}"
        standing = {process.url: process for process in processes}
        yield Ground(folder, token_file, reward_url, policy, Replicas(read_token(str(token_file))), standing)
    finally:
        for process in processes:
            process.stop(grace_s=0.0)
        if reward is not None:
            reward.stop()


def wait_until_they_answer(ground: Ground, urls: Sequence[str]) -> None:
    """Raises Broken where a standing replica does not answer in time."""
    end = time.monotonic() + START_S
    while late := [url for url in urls if not ground.standing[url].is_healthy()]:
        if time.monotonic() > end:
            raise Broken(f"{late} did not answer within {START_S:.0f} s")
        time.sleep(0.2)
