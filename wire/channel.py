"""The channel to a reward service: many judgements at once over one WebSocket.

    -> {"id": 7, "order": JudgementRequest}                                       asks
    -> {"id": 7}                                                                  nobody waits for it any more
    <- {"id": 7, "status": 200, "body": Verdict}                                  the answer, as soon as it is there
    <- {"id": 7, "status": 429, "retry_after_s": 2, "body": {"detail": "..."}}    or why there is none

Frames are text, each a JSON object. `id` is a number of the asker's choice that no other of its judgements under way on
the connection has. Statuses are those of `POST /v1/judgement`; where one is not 200 the body says why. A judgement ends
with the connection that asked, or, where that was cut, a while later.

A verdict takes seconds to minutes, and a trainer waits for a thousand: a connection for each would be a thousand open
files on both sides, and a request of its own costs the asker five times as much as a frame does.
"""

from __future__ import annotations

import msgspec

CHANNEL_PATH = "/v1/judgements"
LARGEST_FRAME, LARGEST_ORDER = 2**24, 2**23  # bytes; what is larger goes by POST


class Asked(msgspec.Struct, omit_defaults=True):
    """Asks for a judgement, `order` being a JudgementRequest as JSON, or, where that is empty, withdraws it."""

    id: int
    order: msgspec.Raw = msgspec.Raw()


class Answered(msgspec.Struct, omit_defaults=True):
    """What became of it: an HTTP status, a Verdict or a reason as JSON, and the seconds after which to ask again."""

    id: int
    status: int
    body: msgspec.Raw
    retry_after_s: float = 0.0
