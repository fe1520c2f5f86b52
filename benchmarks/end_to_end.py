"""How many episodes a minute does the whole job make, beside TRL's trainer on the same servers?

    python -m benchmarks.end_to_end [--rounds 3] [--steps 20] [--warm_steps 5] [--microbatch 64] [--folder runs/...]

The toy job (configs/toy.yaml) on this machine's cores: the same policy, prompts in the same order, K, lengths,
optimizer settings, pairing and GenRM server. Two replicas and one reward service are started once; all contenders use
them:

    trl_stock      TRL's RLOOTrainer as it comes: its own generation, an asynchronous reward function that asks the
                   reward service for all verdicts of a step at once. The replicas stand idle.
    trl_servers    the same trainer, but the replicas write its completions and get its weights after each step, through
                   this project's client, fleet and sender.
    on_policy      this project with max_lag 0: `python -m trainer.main`, joined to the same servers.
    max_lag_1      the same with max_lag 1.

An episode is one completion that was trained on. Contenders run one after another, in turn forwards and backwards over
the rounds, each as a fresh process, TRL's on the same servers between the two of ours; the servers' prefix caches are
emptied before each. The rate is taken from the end of step `warm_steps` to the end of the last step, so that no start
is in it. TRL's learner computes in as many threads as there are cores, ours in as many as the configuration says (one:
the servers compute beside it), and it gives way to the servers (`learner_niceness`), from which TRL's gains nothing;
both in fp32, without gradient checkpointing. Nobody evaluates, checkpoints or checks the judge. TRL logs nothing; this
project writes its usual TensorBoard events and step log.

What was done is read from the servers, not from the contenders: verdicts given, completions and tokens written, and the
label of the last weights. Processor seconds are those of all processes, user and system, over the same steps; `others`
is what the rest of the machine used meanwhile.

The last line is JSON: `vs_trl_stock`, `vs_trl_same_servers` (max_lag_1 over the two of TRL's) and
`on_policy_vs_trl_same_servers`, each the median of its ratios within a round, which are `ratios_by_round`, and
`episodes_per_minute` of each contender and round. A shared machine drifts by more from one round to the next than from
one contender to the next: hence the ratios within a round, and TRL's on the same servers beside both of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.judge import reset_prefix_caches
from benchmarks.processor_time import MACHINE, Label, ProcessorTime
from benchmarks.servers import ADDRESS, running
from rollout_server.config import RolloutSettings
from rollout_server.replica import replica_process
from wire.process import ServerProcess, free_port, url_of
from wire.settings import parse_settings
from wire.token import auth_headers, read_or_create_token

CONFIG = "configs/toy.yaml"
CONTENDERS = ("trl_stock", "on_policy", "trl_servers", "max_lag_1")
NUM_REPLICAS = 2
START_S, RUN_S = 420.0, 1800.0
LEARNER_ENV = {  # what trainer/placement.py gives a rank that has all cores; servers have one thread each
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_ACCELERATOR": "cpu",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Servers:
    """What all contenders share. `programs` are the processes with how theirs are named."""

    replicas: list[str]
    reward: str
    token: str
    programs: dict[int, Label]

    def page(self, url: str, path: str) -> str:
        """What a server answers to a GET."""
        request = urllib.request.Request(f"{url}{path}", headers=auth_headers(self.token))
        with urllib.request.urlopen(request, timeout=30.0) as reply:
            return str(reply.read().decode())

    def genrms(self) -> list[str]:
        """The judge's own servers."""
        return [server["url"] for server in json.loads(self.page(self.reward, "/v1/info"))["servers"]]

    def versions(self) -> list[str]:
        """The label of the weights that each replica holds."""
        return [json.loads(self.page(url, "/weight_info"))["weight_version"] for url in self.replicas]

    def counts(self) -> dict[str, float]:
        """What the servers did since their start."""
        reward, replicas = self.page(self.reward, "/metrics"), [self.page(url, "/metrics") for url in self.replicas]
        verdicts, given = (counter(reward, "reward_verdicts_total", label) for label in ("", 'outcome="given"'))
        return {
            "verdicts": given,
            "verdicts missing": verdicts - given,
            "judge tokens": counter(reward, "reward_verdict_tokens_sum"),
            "completions": sum(counter(page, "vllm:request_success_total") for page in replicas),
            "tokens": sum(counter(page, "vllm:generation_tokens_total") for page in replicas),
        }


def counter(page: str, name: str, label: str = "") -> float:
    """The sum of the samples called `name`, of those that have `label`, on a page of Prometheus' text format."""
    lines = [line for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{")) and label in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@dataclass(frozen=True)
class Ran:
    """One contender's run: `rate` in episodes a minute, `wall_s` and `used` (processor seconds) of one step of the
    window, `work` of the whole run as the servers counted it, `version` of the weights at its end."""

    contender: str
    rate: float
    wall_s: float
    used: dict[str, float]
    work: dict[str, float]
    versions: list[str]

    def lines(self) -> list[str]:
        """For people."""
        ours = {name: seconds for name, seconds in self.used.items() if name != MACHINE}
        total = sum(ours.values())
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in sorted(ours.items()))
        others = self.used[MACHINE] - total
        return [
            f"{self.contender:>12}: {self.rate:7.0f} episodes/min, {self.wall_s:.2f} s a step; processor s a step "
            f"{total:.2f} ({parts}), others {others:.2f}",
            f"{'':>12}  whole run: "
            + ", ".join(f"{value:.0f} {name}" for name, value in self.work.items())
            + f"; weights at the end {' '.join(self.versions)}",
        ]


def main() -> None:
    """As the module says."""
    args = arguments()
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # the judge's too: it has the route that empties a prefix cache
    found: dict[str, list[Ran]] = {contender: [] for contender in args.only}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(args.folder or name)
        folder.mkdir(parents=True, exist_ok=True)
        read_or_create_token(str(folder / "token"))
        processes = server_processes(folder)
        with running(processes, START_S):
            servers = joined(processes, folder)
            for index in range(args.rounds):
                print(f"round {index + 1}; load {os.getloadavg()[0]:.1f}", flush=True)
                for contender in args.only[:: -1 if index % 2 else 1]:
                    ran = run(contender, args, servers, folder / f"{contender}-{index}")
                    found[contender].append(ran)
                    print("\n".join(ran.lines()), flush=True)
    print(json.dumps(result({contender: [ran.rate for ran in runs] for contender, runs in found.items()})))


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender")
    parser.add_argument("--steps", type=int, default=20, help="steps that the rate is taken over")
    parser.add_argument("--warm_steps", type=int, default=5, help="steps before them")
    parser.add_argument("--microbatch", type=int, default=64, help="completions of one of TRL's forward passes")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="contenders")
    parser.add_argument("--folder", help="keep what the runs write here")
    args = parser.parse_args()
    if min(args.rounds, args.steps, args.warm_steps) < 1:
        parser.error("--rounds, --steps and --warm_steps must be at least 1")
    return args


def result(rates: dict[str, list[float]]) -> dict[str, Any]:
    """The last line: medians of the ratios within a round, where both sides ran."""
    sides = {
        "vs_trl_stock": ("max_lag_1", "trl_stock"),
        "vs_trl_same_servers": ("max_lag_1", "trl_servers"),
        "on_policy_vs_trl_same_servers": ("on_policy", "trl_servers"),
    }
    ratios = {
        name: [one / other for one, other in zip(rates[ours], rates[theirs], strict=True)]
        for name, (ours, theirs) in sides.items()
        if ours in rates and theirs in rates
    }
    return {
        **{name: round(median(values), 2) for name, values in ratios.items()},
        "ratios_by_round": {name: [round(value, 2) for value in values] for name, values in ratios.items()},
        "episodes_per_minute": {contender: [round(rate) for rate in values] for contender, values in rates.items()},
    }


# --- the servers


def server_processes(folder: Path) -> list[ServerProcess]:
    """The replicas, then the reward service, which starts its GenRM server itself."""
    common = ["--token_file", str(folder / "token"), "--log_dir", str(folder / "servers"), "--bind_address", ADDRESS]
    settings, _ = parse_settings(RolloutSettings, ["--config", CONFIG, *common], strict_file=False)
    port = free_port(ADDRESS)
    command = [sys.executable, "-m", "reward_server.main", "--config", CONFIG, *common, "--reward_port", str(port)]
    log = folder / "servers" / "reward.log"
    reward = ServerProcess("reward service", command, dict(os.environ), log, url_of(ADDRESS, port))
    return [*(replica_process(settings, index) for index in range(NUM_REPLICAS)), reward]


def joined(processes: Sequence[ServerProcess], folder: Path) -> Servers:
    """The servers as contenders see them."""
    *replicas, reward = processes
    labels: list[Label] = [*[lambda _process, _is_first: "replicas"] * len(replicas), reward_part]
    programs = {process.pid: label for process, label in zip(processes, labels, strict=True) if process.pid}
    token = read_or_create_token(str(folder / "token"))
    return Servers([process.url for process in replicas], reward.url, token, programs)


def reward_part(_process: psutil.Process, is_first: bool) -> str:
    """The service, or the GenRM server that it started."""
    return "reward service" if is_first else "GenRM"


def run_part(process: psutil.Process, is_first: bool) -> str:
    """A process of one of this project's runs."""
    if is_first:
        return "driver"
    return "learner" if process.name().startswith("ray::") or "Rank" in " ".join(process.cmdline()[:1]) else "Ray"


def trl_part(_process: psutil.Process, _is_first: bool) -> str:
    """TRL's trainer is one process."""
    return "learner"


# --- one run


def run(contender: str, args: argparse.Namespace, servers: Servers, folder: Path) -> Ran:
    """Run it from its start to its end, over servers whose prefix caches are empty."""
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(reset_prefix_caches([*servers.replicas, *servers.genrms()], servers.token))
    before = servers.counts()
    steps = args.warm_steps + args.steps
    command, label = command_of(contender, args, servers, folder, steps)
    leashed = [sys.executable, "-m", "wire.leash", str(os.getpid()), *command]
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            leashed, env=os.environ | LEARNER_ENV, stdout=output, stderr=output, start_new_session=True
        )
    with ProcessorTime({**servers.programs, process.pid: label}) as processor:
        try:
            code = process.wait(RUN_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60.0)
    if code != 0:
        raise SystemExit(f"{contender} ended with {code}:\n{(folder / 'output').read_text()[-3000:]}")
    ends = ends_of_steps(folder)
    start, end = ends[args.warm_steps], ends[steps]
    work = {name: value - before[name] for name, value in servers.counts().items()}
    used = {name: seconds / args.steps for name, seconds in processor.between(start, end).items()}
    wall_s = (end - start) / args.steps
    return Ran(contender, 60 * completions_per_step() / wall_s, wall_s, used, work, servers.versions())


def command_of(
    contender: str, args: argparse.Namespace, servers: Servers, folder: Path, steps: int
) -> tuple[list[str], Label]:
    """How it is started, and how its processes are named."""
    flags = ["--config", CONFIG, "--output_dir", str(folder), "--token_file", str(folder.parent / "token")]
    flags += ["--replicas", "0", "--rollout_urls", *servers.replicas, "--reward_url", servers.reward]
    flags += ["--bind_address", ADDRESS, "--total_episodes", str(steps * completions_per_step())]
    flags += ["--num_eval_prompts", "0", "--judge_check", "false", "--save_steps", "0"]
    if contender in ("on_policy", "max_lag_1"):
        flags += ["--max_lag", "1" if contender == "max_lag_1" else "0"]
        return [sys.executable, "-m", "trainer.main", *flags], run_part
    job = {
        "flags": flags,
        "steps": steps,
        "microbatch": args.microbatch,
        "marks": str(folder / "marks.jsonl"),
        "on_replicas": contender == "trl_servers",
    }
    return [sys.executable, "-m", "benchmarks.end_to_end_trl", json.dumps(job)], trl_part


def completions_per_step() -> int:
    """Of the toy job."""
    from trainer.config import RunSettings

    return parse_settings(RunSettings, ["--config", CONFIG], strict_file=True)[0].completions_per_step


def ends_of_steps(folder: Path) -> dict[int, float]:
    """Step -> when it ended (`time.time()`): from TRL's marks, or from the TensorBoard events of a run."""
    marks = folder / "marks.jsonl"
    if marks.exists():
        return {mark["step"]: mark["time"] for mark in map(json.loads, marks.read_text().splitlines())}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "runs"))
    events.Reload()
    return {event.step: event.wall_time for event in events.Scalars("episode")}


if __name__ == "__main__":
    main()
