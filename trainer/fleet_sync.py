"""vLLM's weight-transfer control plane, spoken to a whole fleet at once."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from rollout_server.waiting import Deadline, in_background
from wire.errors import ServiceError
from wire.membership import BOOT_HEADER, PUSH_HEADER, Member, Outcome
from wire.token import auth_headers

UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT}

Step = tuple[str, bytes]  # a route and the JSON that is posted to it


class FleetSyncClient:
    """The four calls of vLLM's `VLLMWeightSyncClient`, fanned out to all members of a fleet.

    Each member gets a `rank_offset` of its own, so one broadcast feeds them all. A member's start, update and finish
    follow one another on a connection of its own: nobody waits for another between them, and a member that received
    all is finished whatever became of the others. An event loop in a thread makes the calls of all: a thread and a
    client for each of hundreds would cost seconds of CPU a push. `begin` says what the next calls are for; how each
    member came out of them is in `outcomes` and `problems`, by URL, after `settle`.

    Args:
        members: replicas and their numbers of workers, in rank order; the learner's rank 0 comes before them.
        token: the run's access token.
    """

    def __init__(self, members: Sequence[Member], token: str) -> None:
        self.members, self._token = list(members), token
        self.begin(Deadline(0.0))

    def begin(self, deadline: Deadline, *, push_id: str = "", version: str = "") -> None:
        """The next calls belong to this push and end by this deadline. `version` is the label of the weights."""
        self.deadline, self._push_id, self._version = deadline, push_id, version
        self.on_failure: Callable[[], None] = lambda: None
        # New ones for each push: a call of the last one that still hangs writes to its own.
        self._calls: dict[str, Call] = {}
        self._all_over = threading.Event()
        self._all_over.set()
        self._first: list[str] = []

    @property
    def world_size(self) -> int:
        """Ranks of the transfer group: the sender and every worker."""
        return 1 + sum(member.world_size for member in self.members)

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """How each member came out, so far: SILENT where it has not answered, FAILED where it was not asked."""
        return {m.url: self._calls[m.url].outcome if m.url in self._calls else Outcome.FAILED for m in self.members}

    @property
    def first(self) -> str:
        """URL of the member that failed before the others; what they then say may only follow from it."""
        return self._first[0] if self._first else ""

    @property
    def problems(self) -> dict[str, str]:
        """What went wrong at the members that are not DONE."""
        asked = {url: call.problem for url, call in self._calls.items() if call.outcome is not Outcome.DONE}
        return {m.url: "it was not asked" for m in self.members if m.url not in self._calls} | asked

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each member joins the group at its own offset. Raises ServiceError where one does not."""
        offset, calls = init_info["rank_offset"], []
        for member in self.members:
            body = {"init_info": {**init_info, "rank_offset": offset, "timeout_s": self.deadline.for_peers()}}
            calls.append([_step("init_weight_transfer_engine", body)])
            offset += member.world_size
        self._run(calls)

    def start_weight_update(self) -> None:
        """Nothing: a member's update begins with its start."""

    def update_weights(self, update_info: Any) -> None:
        """Each member starts, receives, and finishes: from then on it stamps its tokens with the version.

        Blocks until all have. Raises ServiceError where one does not.
        """
        info = update_info | {"timeout_s": self.deadline.for_peers()}
        calls = [  # written once: what a large model's update says of its tensors is long
            _step("start_weight_update", {}),
            _step("update_weights", {"update_info": info}),
            _step("finish_weight_update", {"weight_version": self._version}),
        ]
        self._run([calls] * len(self.members))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing: see `update_weights`."""

    def settle(self) -> None:
        """Wait until every member that was asked has answered, at most until the deadline."""
        self._all_over.wait(self.deadline.left())

    def _run(self, steps: Sequence[Sequence[Step]]) -> None:
        headers = auth_headers(self._token) | {"Content-Type": "application/json"}
        if self._push_id:
            headers[PUSH_HEADER] = self._push_id
        self._calls = {
            member.url: Call(member, member_steps, self.deadline)
            for member, member_steps in zip(self.members, steps, strict=True)
        }
        self._all_over = threading.Event()
        calls, on_failure, all_over, first = list(self._calls.values()), self.on_failure, self._all_over, self._first
        in_background(lambda: asyncio.run(_make_all(calls, headers, on_failure, all_over, first)))
        self.settle()
        if problems := self.problems:
            raise ServiceError("; ".join(problems.values()))


def _step(route: str, body: dict[str, Any]) -> Step:
    return route, json.dumps(body).encode()


async def _make_all(
    calls: Sequence[Call],
    headers: dict[str, str],
    on_failure: Callable[[], None],
    all_over: threading.Event,
    first: list[str],
) -> None:
    """All members' calls at once; the first failure is told as soon as it is known, and its URL put into `first`."""

    async def make(session: aiohttp.ClientSession, call: Call) -> None:
        await call.make(session)
        if call.outcome is not Outcome.DONE and not first:
            first.append(call.url)
            await asyncio.wrap_future(in_background(on_failure))  # it may block, and the others go on

    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            await asyncio.gather(*(make(session, call) for call in calls), return_exceptions=True)
    finally:
        all_over.set()


class Call:
    """One member's requests, one after the other until one fails."""

    def __init__(self, member: Member, steps: Sequence[Step], deadline: Deadline) -> None:
        self._member, self._steps, self._deadline = member, steps, deadline
        self.url = member.url
        self.outcome = Outcome.SILENT
        self.problem = f"{member.url}/{steps[0][0]}: no answer within the deadline"

    async def make(self, session: aiohttp.ClientSession) -> None:
        """Make the requests."""
        for route, body in self._steps:
            self.problem = f"{self._member.url}/{route}: no answer within the deadline"
            outcome, problem = await self._post(session, route, body)
            if outcome is not Outcome.DONE:
                self.outcome, self.problem = outcome, f"{self._member.url}/{route} {problem}"
                return
        self.outcome, self.problem = Outcome.DONE, ""

    async def _post(self, session: aiohttp.ClientSession, route: str, body: bytes) -> tuple[Outcome, str]:
        member = self._member
        timeout = aiohttp.ClientTimeout(total=max(0.001, self._deadline.left()))
        headers = {BOOT_HEADER: member.boot_id}
        try:
            async with session.post(f"{member.url}/{route}", data=body, headers=headers, timeout=timeout) as reply:
                if reply.status == 200:
                    await reply.read()
                    return Outcome.DONE, ""
                text = (await reply.text())[:300]
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            outcome = outcome_of(error)
            silence = "gave no answer within the deadline"
            return outcome, silence if outcome is Outcome.SILENT else f"failed: {type(error).__name__}: {error}"
        # Another process answers at its address: the member itself has ended.
        is_same = reply.headers.get(BOOT_HEADER, member.boot_id) == member.boot_id
        return Outcome.FAILED if is_same else Outcome.GONE, f"answered HTTP {reply.status}: {text}"


def outcome_of(error: Exception) -> Outcome:
    """GONE where a connection was refused or broke, SILENT where nothing came back."""
    if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in UNREACHABLE):
        return Outcome.SILENT
    return (
        Outcome.GONE
        if isinstance(error, (OSError, aiohttp.ClientConnectionError, aiohttp.ClientPayloadError))
        else Outcome.FAILED
    )
