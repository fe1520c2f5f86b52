"""What happens to the cluster, scene by scene, and what is seen of it from outside.

`ray up`; a reward service by hand, and a replica; the run, which finds them, with a replica of its own; a second GenRM
server, on a new host, and its end; a third replica, on a new host; an outsider at every port; the host of the run's own
replica cut off until it is given up, its cable mended, another in its place; the run's end, after which hosts go; and
`ray down`.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.e2e.cluster.derived_yaml import derived
from tests.e2e.cluster.hosts import ROOT
from tests.e2e.cluster.outsider import ROUTES
from tests.e2e.cluster.programs import Program
from tests.e2e.cluster.toy_run import RewardService, ToyRun, python, replica_by_hand
from tests.e2e.cluster.world import World

REAL: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "cluster.yaml").read_text())
SIZES = {"reward": (1, 2), "rollout": (2, 3)}
TOKEN = "~/.config/disaggregated-rloo/token"
NUM_STEPS = 48  # under the slow judge they would take 8 minutes, which is longer than all scenes before it is let go
START_S = 240.0  # until servers are up that load their libraries all at once on two cores
SOON_S = 60.0
STEPS_S = 240.0  # a few steps under the slow judge
BLIP_S = 1.0
OF_A_RUN = ("trainer.", "rollout_server", "vllm", "VLLM", "ray::PlacedRank", "ray::ReplicaHost", "multiproc")
OF_THE_CLUSTER = (*OF_A_RUN, "raylet", "reward_server")


@dataclass
class Seen:
    """What was seen. Hosts are addresses by name; a row of `listeners` is one of `tests.e2e.cluster.listeners`, one of
    `answers` of `tests.e2e.cluster.outsider`."""

    head: Mapping[str, str] = field(default_factory=dict)
    reward: Mapping[str, str] = field(default_factory=dict)
    more_reward: Mapping[str, str] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)
    third: Mapping[str, str] = field(default_factory=dict)
    replacement: Mapping[str, str] = field(default_factory=dict)
    by_hand: str = ""  # the address of the replica that was started by hand
    judges: str = ""  # the reward service's table, when the second server had given a verdict
    cut_off: str = ""  # the address of the host whose cable was cut
    listeners: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    lost_before_cut: str = ""
    steps_at_cut: int = 0
    steps_at_loss: int = 0
    steps_at_end_of_cut: int = 0
    left_on_cut_off: list[str] = field(default_factory=list)
    exit_codes: dict[str, int] = field(default_factory=dict)
    output: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    audit: str = ""
    left_of_the_run: dict[str, list[str]] = field(default_factory=dict)
    hosts_after_the_run: dict[str, set[str]] = field(default_factory=dict)  # by node type
    machines_after: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class Story:
    """The cluster's operator, at a workstation that is no part of it. `seen` fills as the scenes are played."""

    def __init__(self, world: World) -> None:
        self._world, self.seen = world, Seen()
        (self._workstation,) = world.ask("create", cluster="", tags={})
        text = yaml.safe_dump(derived(REAL, SIZES), sort_keys=False)
        self._type(f"cat > cluster.yaml <<'END'\n{text}\nEND")
        self._type(f"mkdir -p $(dirname {TOKEN}) && head -c 32 /dev/urandom | base64 > {TOKEN} && chmod 600 {TOKEN}")

    def play(self) -> Seen:
        """All scenes, in order."""
        self._scene("ray up", self._ray_up)
        (head,), (reward,) = self.seen.head, self.seen.reward
        self._service = RewardService(self._world, reward)
        by_hand, self.seen.by_hand = next(iter(self.seen.first.items()))
        self._replica = replica_by_hand(self._world, by_hand)
        self._scene("reward service", lambda: self._service.wait_for("reward service http", START_S))
        self._scene("replica", lambda: self._replica.wait_for("replica-0 http", START_S))
        self._service.scale("+1")  # nobody waits for it
        slow = Program(self._world, reward, "slow", python("tests.e2e.cluster.slow_judge", self._service.url))
        self._run = ToyRun(self._world, head, NUM_STEPS)
        try:
            self._scene("run", lambda: self._run.wait_for("fleet: ", START_S))
            self._scene("second judge", self._see_the_second_judge)
            self._scene("third replica", self._grow)
            self._scene("outsider", self._look_from_outside)
            self._scene("cut", self._cut)
            self._scene("restored", self._restore)
            self._scene("replacement", self._see_the_replacement)
            slow.stop(SOON_S)
            self._scene("end of the run", self._end_of_the_run)
        except AssertionError:
            print(self._run.text()[-8000:])
            raise
        self._scene("ray down", self._ray_down)
        return self.seen

    def _scene(self, name: str, play: Callable[[], Any]) -> None:
        started = time.monotonic()
        play()
        self.seen.seconds[name] = time.monotonic() - started
        print(f"{name}: {self.seen.seconds[name]:.0f} s", flush=True)

    def _type(self, command: str, timeout_s: float = 60.0) -> str:
        return self._world.run(self._workstation, command, timeout_s)

    def _machines(self) -> dict[str, dict[str, Any]]:
        """What the provider still has of the cluster."""
        found: dict[str, dict[str, Any]] = self._world.ask("machines", cluster=REAL["cluster_name"])
        return found

    def _hosts(self, kind: str, num: int, known: Mapping[str, str] | None = None) -> dict[str, str]:
        """Addresses of `num` hosts of a node type on which Ray has been started, beside those that are known."""
        end = time.monotonic() + SOON_S
        while True:
            found = {
                name: machine["address"]
                for name, machine in self._machines().items()
                if machine["tags"].get("ray-user-node-type") == kind
                and machine["tags"].get("ray-node-status") == "up-to-date"
                and name not in (known or {})
            }
            if len(found) >= num:
                return found
            assert time.monotonic() < end, f"{found} of {num} {kind} hosts: {self._machines()}"
            time.sleep(0.5)

    def _ray_up(self) -> None:
        self._type(f"cd {ROOT} && ray up -y --no-config-cache ~/cluster.yaml", timeout_s=180)
        self.seen.head = self._hosts("trainer", 1)
        self.seen.reward, self.seen.first = self._hosts("reward", 1), self._hosts("rollout", 2)

    def _see_the_second_judge(self) -> None:
        """It gives verdicts to the run, and is sent away again."""
        self.seen.more_reward = self._hosts("reward", 1, self.seen.reward)
        (address,) = self.seen.more_reward.values()
        gave = re.compile(rf"http://{re.escape(address)}:\d+ +ready .* [1-9]\d* answers")

        def has_judged() -> bool:
            self.seen.judges = self._service.scale("status")
            return gave.search(self.seen.judges) is not None

        self._service.wait_until(has_judged, START_S, f"verdict of {address}")
        self._service.scale("1")
        self._service.wait_until(
            lambda: address not in self._service.scale("status"), SOON_S, "end of the second judge"
        )

    def _grow(self) -> None:
        """To three replicas; on the way one of the two hosts is cut off so shortly that nothing comes of it."""
        self._run.scale("2")  # of its own
        (blinking,) = (name for name, address in self.seen.first.items() if address == self.seen.by_hand)
        cut_at = time.monotonic()
        self._world.ask("cut", name=blinking)
        time.sleep(BLIP_S)
        self._world.ask("restore", name=blinking)
        print(f"{self.seen.by_hand} was cut off for {time.monotonic() - cut_at:.1f} s", flush=True)
        self.seen.third = self._hosts("rollout", 1, self.seen.first)
        (address,) = self.seen.third.values()
        self._run.wait_for_writer(address, START_S)
        self.seen.lost_before_cut = self._run.lines(" is lost: ")

    def _look_from_outside(self) -> None:
        seen = self.seen
        for name in (*seen.head, *seen.reward, *seen.first, *seen.third):
            rows = self._world.run(name, "python -m tests.e2e.cluster.listeners").splitlines()
            seen.listeners[name] = [json.loads(row) for row in rows]
        ours = {
            f"http://{row['address']}:{row['port']}": row
            for rows in seen.listeners.values()
            for row in rows
            if row["owner"] == "ours"
        }
        routes = json.loads(self._type(f"python -m tests.e2e.cluster.routes {' '.join(ours)}"))
        questions = [
            json.dumps({"address": row["address"], "port": row["port"], "routes": [*ROUTES, *routes[url]]})
            for url, row in ours.items()
        ]
        asked = shlex.quote("\n".join(questions))
        answers = self._type(f"printf %s {asked} | python -m tests.e2e.cluster.outsider", timeout_s=120)
        seen.answers = [json.loads(row) for row in answers.splitlines()]

    def _cut(self) -> None:
        """A host that writes is cut off; the run parts with it and goes on, and the provider is told to end it."""
        ((name, self.seen.cut_off),) = (row for row in self.seen.first.items() if row[1] != self.seen.by_hand)
        self.seen.steps_at_cut = len(self._run.steps())
        self._world.ask("cut", name=name)
        lost = f"replica http://{self.seen.cut_off}:"
        self._run.wait_until(lambda: lost in self._run.lines(" is lost: "), SOON_S, "loss")
        self.seen.steps_at_loss = len(self._run.steps())
        self._run.wait_for_steps(2, STEPS_S)
        self._run.wait_until(lambda: name not in self._machines(), SOON_S, "end of the host for its provider")

    def _restore(self) -> None:
        """Its cable is mended: what still runs there must find out that it is no part of the cluster any more."""
        self.seen.steps_at_end_of_cut = len(self._run.steps())
        (name,) = (name for name, address in self.seen.first.items() if address == self.seen.cut_off)
        self._world.ask("restore", name=name)
        self.seen.left_on_cut_off = self._left_on(name, OF_THE_CLUSTER)
        self._world.ask("end", name=name)

    def _see_the_replacement(self) -> None:
        seen = self.seen
        seen.replacement = self._hosts("rollout", 1, {**seen.first, **seen.third})
        (address,) = seen.replacement.values()
        self._run.wait_for_writer(address, START_S)
        print(f"{len(self._run.steps())} of {NUM_STEPS} steps under the slow judge", flush=True)

    def _end_of_the_run(self) -> None:
        seen, run = self.seen, self._run
        seen.exit_codes["run"] = run.wait(START_S)
        seen.output, seen.steps, seen.files = run.text(), run.steps(), run.files()
        seen.summary, seen.audit = json.loads(run.read("summary.json")), run.audit()
        seen.exit_codes["replica"] = self._replica.stop(SOON_S)
        seen.hosts_after_the_run = self._hosts_when_idle_ones_are_gone()
        others = [name for name in self._machines() if name not in seen.reward]
        seen.left_of_the_run = {name: self._left_on(name, OF_A_RUN) for name in others}
        seen.exit_codes["reward service"] = self._service.stop(SOON_S)
        seen.left_of_the_run |= {name: self._left_on(name, OF_A_RUN) for name in seen.reward}

    def _hosts_when_idle_ones_are_gone(self) -> dict[str, set[str]]:
        """Hosts by node type, as soon as no type has more than it must, at most after SOON_S."""
        end = time.monotonic() + SOON_S
        while True:
            found: dict[str, set[str]] = {}
            for name, machine in self._machines().items():
                found.setdefault(machine["tags"].get("ray-user-node-type", ""), set()).add(name)
            if all(len(found.get(kind, ())) <= fewest for kind, (fewest, _) in SIZES.items()) or time.monotonic() > end:
                return found
            time.sleep(0.5)

    def _ray_down(self) -> None:
        self._type(f"cd {ROOT} && ray down -y ~/cluster.yaml", timeout_s=120)
        self.seen.machines_after = self._machines()

    def _left_on(self, name: str, of: tuple[str, ...]) -> list[str]:
        """Command lines of a host that have one of these words in them; none as soon as there is none, at most after
        SOON_S."""
        end = time.monotonic() + SOON_S
        while True:
            lines = self._world.run(name, "ps -A -ww -o args=").splitlines()
            left = [line for line in lines if any(word in line for word in of)]
            if not left or time.monotonic() > end:
                return left
            time.sleep(1.0)
