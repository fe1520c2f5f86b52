"""The names of servers' routes, asked with the token of this host's user.

    python -m tests.e2e.cluster.routes URL...

Prints one JSON object: methods and paths by URL, of those that describe themselves by OpenAPI.
"""

from __future__ import annotations

import http.client
import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from wire.token import auth_headers, read_token

TOKEN = "~/.config/disaggregated-rloo/token"
NUM_THREADS = 128  # whoever does not answer keeps one for TIMEOUT_S
TIMEOUT_S = 5.0


def routes(url: str) -> list[tuple[str, str]]:
    """Methods and paths of the server at `url`; empty where it is none, or does not describe itself."""
    request = urllib.request.Request(f"{url}/openapi.json", headers=auth_headers(read_token(TOKEN)))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            paths = json.load(reply)["paths"]
    except (OSError, http.client.HTTPException, ValueError, KeyError):  # an HTTPError is an OSError
        return []
    return [(method.upper(), path) for path, methods in paths.items() for method in methods]


def main() -> None:
    """Ask all at once."""
    urls = sys.argv[1:]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        print(json.dumps(dict(zip(urls, pool.map(routes, urls), strict=True))))


if __name__ == "__main__":
    main()
