"""Run on a host that is no part of the cluster, without its token: what answers there?

    python -m tests.e2e.cluster.outsider < QUESTIONS

QUESTIONS is a line of JSON a server: {"address": "10.77.0.12", "port": 20000, "routes": [["GET", "/metrics"], ...]}.
Prints a line a request: `url`, `method`, and `answer`: an HTTP status, `refused`, or `no HTTP`.
"""

from __future__ import annotations

import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# What might be there, whether or not a server says so.
GET = [
    *("/", "/docs", "/redoc", "/openapi.json", "/metrics", "/v1/models", "/gate", "/weight_info", "/is_paused"),
    *("/get_world_size", "/v1/replicas", "/v1/servers", "/v1/info", "/v1/checksums", "/no-such-route"),
    *("/health/", "//health", "/health/../metrics"),
]
POST = [
    *("/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update", "/pause"),
    *("/resume", "/update_weight_version", "/weight_checker", "/inference/v1/generate", "/v1/completions"),
    *("/v1/chat/completions", "/v1/judgement", "/v1/replicas", "/v1/servers", "/collective_rpc"),
]
OTHERS = [("PUT", "/v1/replicas/count"), ("DELETE", "/v1/replicas"), ("OPTIONS", "/metrics"), ("HEAD", "/metrics")]
ROUTES = [("GET", path) for path in GET] + [("POST", path) for path in POST] + OTHERS
NUM_THREADS = 128  # whoever does not answer keeps one for TIMEOUT_S
TIMEOUT_S = 5.0
GUESSES: tuple[dict[str, str], ...] = ({}, {"Authorization": "Bearer guessed"})
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def answer(address: str, port: int, method: str, path: str, headers: dict[str, str]) -> int | str:
    """What one request comes to."""
    connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_S)
    try:
        try:
            connection.connect()
        except OSError:
            return "refused"
        body = None if method == "GET" else b"{}"
        connection.request(method, path, body=body, headers={"Content-Type": "application/json", **headers})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return "no HTTP"
    finally:
        connection.close()


def asked(question: dict[str, Any]) -> list[dict[str, Any]]:
    """Each route without a token and with a wrong one, and two that ask for a web socket. Whoever speaks no HTTP is
    asked once."""
    address, port = question["address"], int(question["port"])

    def row(method: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
        found = answer(address, port, method, path, headers)
        return {"url": f"http://{address}:{port}{path}", "method": method, "answer": found}

    health = row("GET", "/health", {})
    if not isinstance(health["answer"], int):
        return [health]
    rows = [row(method, path, guess) for method, path in question["routes"] for guess in GUESSES]
    return [health, *rows, *(row("GET", path, UPGRADE) for path in ("/v1/realtime", "/v1/judgements"))]


def main() -> None:
    """Ask all at once, and say what came."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for rows in pool.map(asked, map(json.loads, sys.stdin)):
            for row in rows:
                print(json.dumps(row))


if __name__ == "__main__":
    main()
