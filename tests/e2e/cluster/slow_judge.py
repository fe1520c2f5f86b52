"""Run on the reward host: its GenRM is as slow as a large one is, until SIGTERM.

    python -m tests.e2e.cluster.slow_judge URL

`URL` is the reward service's. In a real run the judge is the slow part. Here it rests for every verdict that it has
given, so that the run outlasts what happens to it, and servers that start have the machine's cores. On a slow machine
its verdicts take it longer, and it rests no longer for that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

from tests.e2e.cluster.toy_run import address_in
from wire.settings import ServiceSettings
from wire.token import auth_headers, read_token

S_A_VERDICT = 0.6  # a step of 16 verdicts takes 10 s at least
WORKS_S, RESTS_S = 0.1, 2.0  # it begins to work again before anybody takes it for lost
ASK_TIMEOUT_S = 30.0


def engine() -> int:
    """The process that computes for this host's GenRM server."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            if (process / "cmdline").read_text().startswith("VLLM::EngineCore"):
                return int(process.name)
    raise SystemExit("no GenRM server runs here")


def answers(url: str, token: str) -> int:
    """Verdicts that this host's GenRM server has given to the service at `url`."""
    with urlopen(Request(f"{url}/v1/servers", headers=auth_headers(token)), timeout=ASK_TIMEOUT_S) as reply:
        servers = json.load(reply)["servers"]
    return sum(server["answers"] for server in servers if address_in(server["url"]) == address_in(url))


def main(url: str) -> None:
    """Stop it for as long as its verdicts demand, and let it go on, again and again."""
    pid, token, over = engine(), read_token(ServiceSettings().token_file), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    given, rested_until = answers(url, token), time.monotonic()
    while not over.wait(WORKS_S):
        before, given = given, answers(url, token)
        rested_until = max(rested_until, time.monotonic()) + (given - before) * S_A_VERDICT
        os.kill(pid, signal.SIGSTOP)
        over.wait(min(RESTS_S, rested_until - time.monotonic()))
        os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    main(*sys.argv[1:])
