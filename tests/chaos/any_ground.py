"""Where any process may be killed: standing services that are mended, runs over them, and runs that start their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests
from safetensors.numpy import load_file

from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from tests.chaos.learner_kills import Broken, Weights
from tests.e2e.conftest import START_S, TOY_CONFIG, Program
from trainer.supervisor import processes_of
from wire.process import ServerProcess, free_port
from wire.settings import parse_settings
from wire.token import read_or_create_token

COMPLETIONS_PER_STEP = 16
PROMPTS_PER_STEP = 4
ENDING_S = 60.0  # until nothing of a run is left after its driver has ended
LOOK_S = 1.0
DEAF_S = 20.0  # a server whose engine was killed waits for its last requests, which nobody answers any more
JUDGE_TIMEOUT_S = 300.0  # of a verdict: a GenRM server that was killed is back long before

DRIVER, LEARNER, RAYLET, GCS = "driver", "learner", "raylet", "gcs"
REPLICA, ENGINE = "replica", "replica's engine"
REWARD, GENRM, GENRM_ENGINE = "reward service", "genrm server", "genrm server's engine"
KINDS = (DRIVER, LEARNER, RAYLET, GCS, REPLICA, ENGINE, REWARD, GENRM, GENRM_ENGINE)
ENDS_A_RUN = frozenset({DRIVER, LEARNER, RAYLET, GCS})


@dataclass(frozen=True)
class Layout:
    """What kind of run it is: `starts_all` its servers itself, or joins the standing ones, `num_replicas` of them."""

    deterministic: bool
    num_steps: int
    starts_all: bool = False
    num_replicas: int = 2

    @property
    def max_lag(self) -> int:
        """The run's."""
        return 0 if self.deterministic else 1


@dataclass
class Life:
    """A life of a run, from outside."""

    program: Program
    began: float = field(default_factory=time.time)  # by the clock of files
    _mark: str = ""

    @property
    def is_over(self) -> bool:
        """Whether its driver has ended."""
        return self.program.process.poll() is not None

    @property
    def is_up(self) -> bool:
        """Whether it has all its parts."""
        return "fleet: " in self.program.text()

    def saves(self, output: Path) -> bool:
        """Whether it is writing a checkpoint: one that an earlier life left half written does not count."""
        with suppress(OSError):
            return any(path.stat().st_mtime > self.began for path in output.glob(".checkpoint-*.partial"))
        return False

    def mark(self) -> str:
        """The run id that all its processes carry; empty where it has none yet."""
        with suppress(psutil.Error):
            for child in [] if self._mark else psutil.Process(self.program.process.pid).children():
                with suppress(psutil.Error):
                    if "trainer.supervisor" in child.cmdline():
                        self._mark = child.cmdline()[-1]
        return self._mark

    def wait_until_nothing_is_left(self) -> None:
        """Raises Broken where something of it outlives its driver."""
        end = time.monotonic() + ENDING_S
        while self._mark and (left := list(processes_of(self._mark))):
            if time.monotonic() > end:
                names = [" ".join(psutil.Process(pid).cmdline())[:100] for pid in left if psutil.pid_exists(pid)]
                raise Broken(f"left {ENDING_S:.0f} s after the run's end: {names}")
            time.sleep(0.1)


@dataclass
class Ground:
    """The standing services: replicas and a reward service, started by hand, and started again when they have died.

    `deterministic` servers serve both kinds of runs.
    """

    folder: Path
    token_file: Path
    reward_port: int
    replicas: list[ServerProcess]
    reward: Program | None = None
    _heard: dict[str, float] = field(default_factory=dict)  # url -> when it last answered, since its start
    _next_look: float = 0.0
    _num_lives: int = 0

    @property
    def reward_url(self) -> str:
        """Of the standing service."""
        return f"http://127.0.0.1:{self.reward_port}"

    def start_reward(self) -> None:
        """Start the reward service, or start it again."""
        flags = (
            "--deterministic",
            "true",
            "--token_file",
            str(self.token_file),
            "--log_dir",
            str(self.folder / "logs"),
        )
        flags += ("--reward_port", str(self.reward_port), "--judge_timeout_s", str(JUDGE_TIMEOUT_S))
        self.reward = Program("reward_server.main", *flags, output=self.folder / "reward_service.out")

    def mend(self) -> None:
        """Start again what has ended, or was well and does not answer any more."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for replica in self.replicas:
            if replica.is_healthy():
                self._heard[replica.url] = now
            elif not replica.is_alive() or now - self._heard.get(replica.url, now) > DEAF_S:
                replica.stop(grace_s=0.0)
                replica.start()
                self._heard.pop(replica.url, None)
        assert self.reward is not None
        if self.reward.process.poll() is not None:
            self.start_reward()

    def wait_until_ready(self, least: int = 1) -> None:
        """Wait for the reward service and `least` replicas. Raises Broken where they do not answer in time."""
        end = time.monotonic() + START_S
        while late := self._silent(least):
            self.mend()
            if time.monotonic() > end:
                raise Broken(f"{late} did not answer within {START_S:.0f} s")
            time.sleep(0.2)

    def _silent(self, least: int) -> list[str]:
        silent = [replica.url for replica in self.replicas if not replica.is_healthy()]
        late = silent if len(self.replicas) - len(silent) < least else []
        with suppress(requests.RequestException):
            if requests.get(f"{self.reward_url}/health", timeout=3.0).status_code == 200:
                return late
        return [*late, self.reward_url]

    @contextmanager
    def life(self, name: str, layout: Layout, *, resume: bool) -> Iterator[Life]:
        """A life of run `name`, ended with the block at the latest."""
        output = self.folder / name
        output.mkdir(exist_ok=True)
        deterministic = str(layout.deterministic).lower()
        flags = ["--deterministic", deterministic, "--max_lag", str(layout.max_lag), "--num_eval_prompts", "0"]
        flags += ["--total_episodes", str(layout.num_steps * COMPLETIONS_PER_STEP), "--save_steps", "1"]
        flags += ["--save_total_limit", "1000", "--judge_check", "false", "--judge_timeout_s", str(JUDGE_TIMEOUT_S)]
        flags += ["--per_device_train_batch_size", str(COMPLETIONS_PER_STEP), "--gradient_accumulation_steps", "1"]
        flags += ["--token_file", str(self.token_file), "--output_dir", str(output)]
        flags += ["--replica_restarts", "1000", "--replica_wait_s", str(START_S)]
        if layout.starts_all:
            flags += ["--replicas", str(layout.num_replicas)]
        else:
            urls = [replica.url for replica in self.replicas if replica.is_healthy()][: layout.num_replicas]
            flags += ["--replicas", "0", "--reward_url", self.reward_url, "--rollout_urls", *urls]
        flags += ["--resume_from_checkpoint", "latest"] if resume else []
        self._num_lives += 1
        life = Life(Program("trainer.main", *flags, output=self.folder / f"{name}.life-{self._num_lives}.out"))
        try:
            yield life
        finally:
            if not life.is_over:
                life.program.stop()

    def weights(self, name: str) -> Weights:
        """The final policy of run `name`, as bits."""
        tensors = load_file(self.folder / name / "policy" / "model.safetensors")
        return {key: tensor.tobytes() for key, tensor in tensors.items()}

    def victims(self, life: Life) -> dict[str, list[psutil.Process]]:
        """Processes that may be killed, by kind: the run's, and those that serve it."""
        roots = [replica.pid for replica in self.replicas] + [self.reward.process.pid if self.reward else None]
        pids = set(processes_of(life.mark())) if life.mark() else set()
        found: dict[str, list[psutil.Process]] = {DRIVER: [psutil.Process(life.program.process.pid)]}
        for root in filter(None, roots):
            with suppress(psutil.Error):
                process = psutil.Process(root)
                pids |= {root, *(child.pid for child in process.children(recursive=True))}
        for pid in sorted(pids):
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if kind := _kind_of(process):
                    found.setdefault(kind, []).append(process)
        return found


def _kind_of(process: psutil.Process) -> str | None:
    command = process.cmdline()
    if process.name() in ("raylet", "gcs_server"):
        return RAYLET if process.name() == "raylet" else GCS
    if command and command[0].startswith("ray::PlacedRank"):
        return LEARNER
    if "reward_server.main" in command:
        return REWARD
    if _is_vllm(command):
        return GENRM if _judges(command) else REPLICA
    if "EngineCore" in "".join(command):
        above = process.parent()
        parent = above.cmdline() if above is not None else []
        return (GENRM_ENGINE if _judges(parent) else ENGINE) if _is_vllm(parent) else None
    return None


def _is_vllm(command: list[str]) -> bool:
    return "vllm.entrypoints.openai.api_server" in command


def _judges(command: list[str]) -> bool:
    return command[command.index("--model") + 1].endswith("judge")


@contextmanager
def standing_ground(folder: Path, num_replicas: int = 2) -> Iterator[Ground]:
    """The services, started and waited for, and ended with the block."""
    token_file = folder / "token"
    read_or_create_token(token_file)
    reward_port, *ports = (free_port("127.0.0.1") for _ in range(1 + num_replicas))
    flags = ["--config", str(TOY_CONFIG), "--deterministic", "true", "--token_file", str(token_file)]
    flags += ["--log_dir", str(folder / "logs"), "--replicas", str(num_replicas), "--rollout_ports", *map(str, ports)]
    settings, _ = parse_settings(RolloutSettings, flags, strict_file=False)
    ground = Ground(folder, token_file, reward_port, [replica_process(settings, i) for i in range(num_replicas)])
    try:
        for replica in ground.replicas:
            replica.start()
        ground.start_reward()
        ground.wait_until_ready(num_replicas)
        yield ground
    finally:
        for replica in ground.replicas:
            replica.stop(grace_s=0.0)
        if ground.reward is not None:
            ground.reward.stop()
