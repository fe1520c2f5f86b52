"""The parts of a simulated run, its learner ranks apart (`trainer/stand_in_rank.py`): they take the time that the rates
say and compute nothing.

All live in the driver's process and keep to the loop's clock, which may be a virtual one. How long a completion or a
verdict takes follows from its seed, as its text would.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random

from reward_server.asking import QUEUE_IS_FULL
from reward_server.client import VerdictMemory
from reward_server.group import judge_group
from reward_server.scheme import Scheme
from rollout_server.client import CompletionFutures, Order, RolloutClient, Sampling
from rollout_server.control_routes import ControlRoutes
from rollout_server.membership import Membership, Replica, State
from rollout_server.push import Push, WeightSender
from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger import GroupMemory
from trainer.lineage import Lineage
from trainer.prompts import hash_seed
from trainer.rates import Layout
from trainer.stats import StepStats
from wire.generation import Completion, PolicyVersion, VersionSpan, logprob_array, token_array
from wire.judgement import GroupVerdict, Message, Verdict
from wire.membership import Member
from wire.waits import waiting

TOKENS_PER_ID = 64  # a completion carries one id for so many of its tokens: only its time matters here
MOST_IDS = 2**31  # a token id has 32 bits
CLOSE_ENOUGH_S = 1e-6  # a timer fires up to the clock's resolution early, and would be set again for ever
JUDGES = "judges"
ASKED_AGAIN_S = 2.0  # after which a background call that found no room comes back


class Meter:
    """How much of the time the slots of a part were in use. Times are those of the loop's clock, in seconds."""

    def __init__(self) -> None:
        self._in_use, self._since = 0, 0.0
        self._slots_s = self._any_s = 0.0

    @contextmanager
    def used(self) -> Iterator[None]:
        """The block uses one slot."""
        self._add(1)
        try:
            yield
        finally:
            self._add(-1)

    def _add(self, num: int) -> None:
        now = asyncio.get_running_loop().time()
        self._slots_s += self._in_use * (now - self._since)
        self._any_s += min(1, self._in_use) * (now - self._since)
        self._in_use, self._since = self._in_use + num, now

    @property
    def slots_s(self) -> float:
        """Seconds in use until now, summed over slots."""
        self._add(0)
        return self._slots_s

    @property
    def any_s(self) -> float:
        """Seconds in which any slot was in use."""
        self._add(0)
        return self._any_s


class SimulatedReplica:
    """Writes as many completions at once as it has slots; the others wait in order. A pause stops its clock."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._slots = asyncio.Semaphore(layout.replica_slots)
        self._runs = asyncio.Event()
        self._runs.set()
        self._resumed_at = self._worked_s = 0.0
        self.version = ""
        self.meter = Meter()

    def pause(self) -> None:
        """Stop; what is being written is kept."""
        if self._runs.is_set():
            self._worked_s = self._read()
            self._runs.clear()

    def resume(self) -> None:
        """Go on."""
        if not self._runs.is_set():
            self._resumed_at = asyncio.get_running_loop().time()
            self._runs.set()

    def _read(self) -> float:
        """Seconds that it has run."""
        if not self._runs.is_set():
            return self._worked_s
        return self._worked_s + asyncio.get_running_loop().time() - self._resumed_at

    async def write(self, seed: int) -> tuple[array[int], tuple[VersionSpan, ...], bool]:
        """(ids, the versions that wrote them, whether it ended by itself) of the completion of this seed."""
        async with self._slots:
            with self.meter.used():
                await self._runs.wait()
                first, tokens = self.version, self._layout.tokens.draw(seed)
                mark = self._read() + self._layout.completion.draw(seed)
                while (left := mark - self._read()) > CLOSE_ENOUGH_S or not self._runs.is_set():
                    await asyncio.sleep(max(0.0, left))
                    await self._runs.wait()
        # The first id is the completion's own: texts must differ, or the judge is asked about one of them alone.
        num = max(2, round(tokens / TOKENS_PER_ID))
        ids = token_array((hash_seed("id", seed) % MOST_IDS, *(1,) * (num - 1)))
        # Versions in between do not matter: the oldest is what a lag is reckoned from.
        spans = (VersionSpan(first, 0, 1), VersionSpan(self.version, 1, num))
        return ids, spans, tokens < self._layout.tokens.longest


class SimulatedRoutes(ControlRoutes):
    """The control routes of replicas that live in this process."""

    def __init__(self, replicas: Mapping[str, SimulatedReplica]) -> None:
        super().__init__(token="")
        self._replicas = replicas

    async def pause(self, replica: Replica, timeout_s: float, *, keep: bool) -> None:
        """Stop generating."""
        self._replicas[replica.url].pause()

    async def resume(self, replica: Replica, timeout_s: float) -> None:
        """Go on generating."""
        self._replicas[replica.url].resume()


class SimulatedFleet:
    """Replicas that none leaves. Membership and pushes are the real ones'."""

    def __init__(self, settings: RunSettings, layout: Layout) -> None:
        self.replicas = {f"sim://replica-{index}": SimulatedReplica(layout) for index in range(layout.replicas)}
        self.membership = Membership()
        self._push = Push(
            self.membership,
            SimulatedRoutes(self.replicas),
            timeout_s=settings.transfer_timeout_s,
            probe_timeout_s=settings.probe_timeout_s,
            drain_timeout_s=settings.rollout_timeout_s,
            keep=True,
        )
        for url in self.replicas:
            self.membership.enter(Replica(url, 1, url, state=State.SYNCING))

    async def publish(self, sender: WeightSender, version: PolicyVersion) -> None:
        """Make `version` the live one."""
        await self._push.bring(sender, version, self.membership.of(State.READY, State.SYNCING))

    def load(self, members: Sequence[Member], version: PolicyVersion) -> None:
        """The weights have arrived at these."""
        for member in members:
            self.replicas[member.url].version = version.label

    def ready(self) -> Sequence[Replica]:
        """See `rollout_server.places.Members`."""
        return self.membership.of(State.READY)

    async def changed(self, timeout_s: float) -> None:
        """See `rollout_server.places.Members`."""
        await self.membership.changed(timeout_s)

    def suspect(self, replica: Replica) -> None:
        """See `rollout_server.places.Members`."""

    def count(self, name: str, number: int = 1) -> None:
        """See `rollout_server.places.Members`."""
        self.membership.counts[name] += number


class SimulatedRollouts(RolloutClient):
    """The real client up to its request: who writes which prompt, and which prompt is next, it decides itself."""

    def __init__(self, fleet: SimulatedFleet, settings: RunSettings, layout: Layout) -> None:
        sampling = Sampling(settings.response_length, settings.temperature, ())
        super().__init__(fleet, "", sampling, settings.rollout_timeout_s, room=layout.replica_slots)
        self._fleet = fleet

    async def _stream(self, replica: Replica, futures: CompletionFutures, order: Order, *, first: int = 0) -> None:
        writer = self._fleet.replicas[replica.url]

        async def write(index: int, future: asyncio.Future[Completion]) -> None:
            ids, spans, finished = await writer.write(order.seed + index)
            if not future.done():
                logprobs = logprob_array((-0.5,) * len(ids))
                future.set_result(Completion(first + index, ids, logprobs, finished, spans, replica.url))

        await asyncio.gather(*(write(index, future) for index, future in enumerate(futures)))


class SimulatedJudge:
    """The reward service over its GenRM servers: a verdict goes to the server with the fewest, and waits in order where
    all are full."""

    def __init__(self, settings: RunSettings, layout: Layout) -> None:
        self._layout, self._scheme = layout, Scheme.of(settings)
        self._slots = asyncio.Semaphore(layout.judging)
        self._in_flight = [0] * layout.genrm_servers
        self.meters = [Meter() for _ in range(layout.genrm_servers)]

    async def group(
        self,
        conversation: Sequence[Message],
        completions: Sequence[Awaitable[str | None]],
        seed: int,
        memory: VerdictMemory | None = None,
    ) -> GroupVerdict:
        """As `reward_server.client.RewardClient.group`."""
        return await judge_group(self._judge_pair, completions, seed, self._scheme)

    async def judge(
        self,
        conversation: Sequence[Message],
        responses: Sequence[str],
        seed: int,
        vote: int = 0,
        *,
        background: asyncio.Event | None = None,
    ) -> Verdict:
        """As `reward_server.client.RewardClient.judge`: in the background it is asked again while all are busy."""
        while background is not None and not background.is_set() and self._slots.locked():
            with waiting("judge sim://", QUEUE_IS_FULL):
                await asyncio.sleep(ASKED_AGAIN_S)
        return await self._judge_pair(responses[0], responses[1] if len(responses) == 2 else None, seed, vote)

    async def _judge_pair(self, first: str, second: str | None, seed: int, vote: int) -> Verdict:
        drawn = hash_seed("verdict", seed, vote)
        seconds = self._layout.verdict.draw(drawn)
        async with self._slots:
            server = min(range(len(self._in_flight)), key=self._in_flight.__getitem__)
            self._in_flight[server] += 1
            try:
                with self.meters[server].used(), waiting(f"genrm sim://genrm-{server}", JUDGES):
                    await asyncio.sleep(seconds)
            finally:
                self._in_flight[server] -= 1
        tokens = round(self._layout.verdict_tokens * seconds / self._layout.verdict.mean)
        scores = tuple(float(Random(drawn + place).randint(1, 5)) for place in range(1 if second is None else 2))
        ranking = None if second is None else 3 if scores[0] >= scores[1] else 4
        return Verdict(scores=scores, ranking=ranking, completion_tokens=tokens, seconds=seconds)


class _NoMemory(GroupMemory):
    """Of a group of which nothing is known and nothing is kept."""

    def __init__(self) -> None:
        self.completions = {}

    def wrote(self, completion: Completion) -> None:
        pass

    def recall(self, seed: int, vote: int) -> Verdict | None:
        return None

    def note(self, seed: int, vote: int, verdict: Verdict) -> None:
        pass


class SimulatedLedger:
    """Keeps nothing: a simulation is not resumed."""

    lineage = Lineage(0, {})

    def recall(self, occurrence: int, oldest_step: int) -> GroupMemory:
        """Nothing is there."""
        return _NoMemory()

    async def record_step(
        self,
        version: PolicyVersion,
        groups: Sequence[Group],
        stats: StepStats,
        *,
        dropped: Sequence[tuple[int, str]],
    ) -> None:
        """Nothing is kept."""
