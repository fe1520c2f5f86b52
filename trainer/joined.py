"""Servers that somebody else started, named by URL: are they there, and have they loaded?"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from wire.errors import ConfigError

PROBE_TIMEOUT_S = 5.0
PROBE_INTERVAL_S = 2.0
SAID_EVERY_S = 60.0
LOADING = 503


def is_ready(url: str) -> bool:
    """Whether `<url>/health` answers within 5 s that it is; False where it answers 503, as a server that loads does.

    Raises:
        ConfigError: nobody answers, or somebody who is no server of ours, or speaks no HTTP.
    """
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=PROBE_TIMEOUT_S):
            return True
    except urllib.error.HTTPError as error:
        if error.code == LOADING:
            return False
        raise ConfigError(f"{url}/health answers HTTP {error.code}; is this the right server?") from error
    except (urllib.error.URLError, OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(f"nobody answers at {url} ({reason}); start the server or correct the URL") from error


def wait_until_ready(urls: Sequence[str], timeout_s: float, say: Callable[[str], None]) -> None:
    """Wait until all have loaded, and say for whom it waits.

    A judge may take longer to load than everything else, and loads again where its server died and was started anew:
    who starts the parts of a run together need not start them in order.

    Args:
        urls: of the servers.
        timeout_s: for all of them together.
        say: told of whom is waited for, at once and every minute.

    Raises:
        ConfigError: one still loads after `timeout_s`, or is no longer there.
    """
    began = time.monotonic()
    said = -SAID_EVERY_S
    while loading := [url for url in urls if not is_ready(url)]:
        waited = time.monotonic() - began
        if waited > timeout_s:
            raise ConfigError(
                f"{loading[0]} is not ready after {timeout_s:.0f} s (HTTP 503 from /health); "
                "read its log, or raise startup_timeout_s"
            )
        if waited - said >= SAID_EVERY_S:
            said = waited
            say(f"waiting for {', '.join(loading)}: still loading (HTTP 503 from /health), {waited:.0f} s")
        time.sleep(PROBE_INTERVAL_S)
