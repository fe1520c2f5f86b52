"""What the driver, the learner and a replica tell each other about membership and pushes. Torch-free.

driver -> learner             members, push id            open_transfer, send_weights
learner, driver -> replica    x-boot-id, x-push-id        on every call that has to do with weights
learner -> driver             outcome of each member      how the push went
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

# A replica's process draws a boot id when it starts and puts it on every answer. A request that carries another one is
# refused with 409: a server that was started again at the same URL is never taken for its former self.
BOOT_HEADER = "x-boot-id"
# Names one attempt to send a version to one set of members. A replica refuses with 409 what belongs to another attempt
# than the last that it began, so a call that was delayed, or repeated, changes nothing.
PUSH_HEADER = "x-push-id"


class Member(msgspec.Struct, frozen=True):
    """A replica as the transfer sees it. `world_size` is its number of workers, each a rank of the transfer group.

    Example: `Member("http://10.0.0.7:8000", 2, "b1946ac9")`.
    """

    url: str
    world_size: int
    boot_id: str


class Outcome(StrEnum):
    """How a member came out of a push."""

    DONE = "done"
    FAILED = "failed"  # it answered, with an error: it lives, and needs another push
    GONE = "gone"  # its connection was refused or broke: its process has ended
    SILENT = "silent"  # no answer within the deadline: it is frozen, or cut off


class TransferReport(msgspec.Struct, frozen=True):
    """How a call went at every member (learner -> driver).

    `outcomes` and `problems` are by URL; a member that is DONE has no problem. `error` is what went wrong at the
    learner itself, `first` the member that failed before the others: what they say may only follow from it. Times in
    seconds: `seconds` from the first byte to the last, `load_seconds` the longest that a member then took to load what
    had arrived, `gather_seconds` what the learner took to get the weights together: ZeRO-3 shards gathered, adapters
    merged, some of it while others are on the wire. Example of a push that one of two replicas did not live through:
    `TransferReport({"http://a": Outcome.FAILED, "http://b": Outcome.GONE}, {...}, "connection reset", 0.4, 0.0, 0)`.
    """

    outcomes: dict[str, Outcome]
    problems: dict[str, str]
    error: str = ""
    seconds: float = 0.0
    load_seconds: float = 0.0
    num_bytes: int = 0
    first: str = ""
    gather_seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether every member is done, and the learner too."""
        return not self.error and all(outcome is Outcome.DONE for outcome in self.outcomes.values())
