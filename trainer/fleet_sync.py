"""vLLM's weight-transfer control plane, spoken to a whole fleet at once."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import requests

from rollout_server.waiting import Deadline, in_background
from wire.errors import ServiceError
from wire.membership import BOOT_HEADER, PUSH_HEADER, Member, Outcome
from wire.token import auth_headers

POLL_S = 0.002
UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT}


class FleetSyncClient:
    """The four calls of vLLM's `VLLMWeightSyncClient`, fanned out to all members of a fleet.

    Each member gets a `rank_offset` of its own, so one broadcast feeds them all. A member's start, update and finish
    run in a thread of its own, one after the other: nobody waits for another between them, and a member that received
    all is finished whatever became of the others. `begin` says what the next calls are for; how each member came out
    of them is in `outcomes` and `problems`, by URL, after `settle`.

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
        # New ones for each push: a thread of the last one that still hangs writes to its own.
        self._calls: dict[str, Call] = {}

    @property
    def world_size(self) -> int:
        """Ranks of the transfer group: the sender and every worker."""
        return 1 + sum(member.world_size for member in self.members)

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """How each member came out, so far: SILENT where it has not answered, FAILED where it was not asked."""
        return {m.url: self._calls[m.url].outcome if m.url in self._calls else Outcome.FAILED for m in self.members}

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
            calls.append([("init_weight_transfer_engine", body)])
            offset += member.world_size
        self._run(calls)

    def start_weight_update(self) -> None:
        """Nothing: a member's update begins with its start."""

    def update_weights(self, update_info: Any) -> None:
        """Each member starts, receives, and finishes: from then on it stamps its tokens with the version.

        Blocks until all have. Raises ServiceError where one does not.
        """
        info = update_info | {"timeout_s": self.deadline.for_peers()}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("start_weight_update", {}),
            ("update_weights", {"update_info": info}),
            ("finish_weight_update", {"weight_version": self._version}),
        ]
        self._run([calls] * len(self.members))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Nothing: see `update_weights`."""

    def settle(self) -> None:
        """Wait until every member that was asked has answered, at most until the deadline."""
        while self.deadline.left() > 0 and not all(call.is_over for call in self._calls.values()):
            time.sleep(POLL_S)

    def _run(self, steps: Sequence[Sequence[tuple[str, dict[str, Any]]]]) -> None:
        first_failure = threading.Event()

        def report_failure() -> None:
            if not first_failure.is_set():
                first_failure.set()
                self.on_failure()

        calls = {}
        for member, member_steps in zip(self.members, steps, strict=True):
            headers = auth_headers(self._token) | {BOOT_HEADER: member.boot_id}
            if self._push_id:
                headers[PUSH_HEADER] = self._push_id
            calls[member.url] = Call(member, member_steps, headers, self.deadline, report_failure)
        self._calls = calls
        for call in calls.values():
            in_background(call.run)
        self.settle()
        if problems := self.problems:
            raise ServiceError("; ".join(problems.values()))


class Call:
    """One member's requests, one after the other until one fails. Nobody joins its thread: a frozen server's answer
    may never come."""

    def __init__(
        self,
        member: Member,
        steps: Sequence[tuple[str, dict[str, Any]]],
        headers: dict[str, str],
        deadline: Deadline,
        report_failure: Callable[[], None],
    ) -> None:
        self._member, self._steps, self._headers = member, steps, headers
        self._deadline, self._report_failure = deadline, report_failure
        self.outcome, self.is_over = Outcome.SILENT, False
        self.problem = f"{member.url}/{steps[0][0]}: no answer within the deadline"

    def run(self) -> None:
        """Make the requests."""
        try:
            for route, body in self._steps:
                self.problem = f"{self._member.url}/{route}: no answer within the deadline"
                outcome, problem = self._post(route, body)
                if outcome is not Outcome.DONE:
                    self.outcome, self.problem = outcome, f"{self._member.url}/{route} {problem}"
                    self._report_failure()
                    return
            self.outcome, self.problem = Outcome.DONE, ""
        finally:
            self.is_over = True

    def _post(self, route: str, body: dict[str, Any]) -> tuple[Outcome, str]:
        left = max(0.001, self._deadline.left())
        try:
            reply = requests.post(f"{self._member.url}/{route}", json=body, headers=self._headers, timeout=left)
        except requests.RequestException as error:
            return outcome_of(error), f"failed: {type(error).__name__}: {error}"
        if reply.status_code == 200:
            return Outcome.DONE, ""
        boot_id = reply.headers.get(BOOT_HEADER, self._member.boot_id)
        # Another process answers at its address: the member itself has ended.
        outcome = Outcome.FAILED if boot_id == self._member.boot_id else Outcome.GONE
        return outcome, f"answered HTTP {reply.status_code}: {reply.text[:300]}"


def outcome_of(error: requests.RequestException) -> Outcome:
    """GONE where a connection was refused or broke, SILENT where nothing came back."""
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return Outcome.SILENT
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in UNREACHABLE:
            return Outcome.SILENT
        reason = getattr(cause, "reason", None) or next((a for a in cause.args if isinstance(a, BaseException)), None)
        cause = reason if isinstance(reason, BaseException) else cause.__cause__ or cause.__context__
    return Outcome.GONE if isinstance(error, requests.ConnectionError) else Outcome.FAILED
