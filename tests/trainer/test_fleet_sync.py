"""The control plane of a push against servers that answer, refuse, hang and die."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rollout_server.waiting import Deadline
from trainer.fleet_sync import FleetSyncClient
from wire.errors import ServiceError
from wire.membership import BOOT_HEADER, PUSH_HEADER, Member, Outcome
from wire.process import free_port

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], int]


class Server:
    """Answers with what `answer` returns; `requests` are (route, boot id, push id, body)."""

    def __init__(self, answer: Answer = lambda *_: 200, boot_id: str = "boot") -> None:
        self.requests: list[tuple[str, str, str | None, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                row = (self.path.strip("/"), self.headers[BOOT_HEADER], self.headers[PUSH_HEADER], body)
                outer.requests.append(row)
                status = answer(self, body)
                if status:
                    self.send_response(status)
                    self.send_header(BOOT_HEADER, boot_id)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.member = Member(f"http://127.0.0.1:{self.server.server_port}", 2, "boot")
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(*arguments: Any, **settings: Any) -> Server:
        servers.append(Server(*arguments, **settings))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def begun(*members: Member, timeout_s: float = 5.0) -> FleetSyncClient:
    client = FleetSyncClient(members, "token")
    client.begin(Deadline(timeout_s), push_id="push-7", version="v0.7")
    return client


def outcomes(client: FleetSyncClient) -> list[Outcome]:
    return [client.outcomes[member.url] for member in client.members]


def hang_up(handler: BaseHTTPRequestHandler, _: Any) -> int:
    handler.connection.shutdown(socket.SHUT_RDWR)
    return 0


def test_each_member_starts_receives_and_finishes_with_its_boot_id_and_the_push_id(serve) -> None:
    servers = [serve(), serve()]
    client = begun(*(server.member for server in servers))
    client.start_weight_update()
    client.update_weights({"names": ["w"]})
    client.finish_weight_update()
    assert outcomes(client) == [Outcome.DONE] * 2 and not client.problems
    for server in servers:
        start, update, finish = server.requests
        assert start == ("start_weight_update", "boot", "push-7", {})
        assert update[:3] == ("update_weights", "boot", "push-7")
        info = update[3]["update_info"]
        assert info["names"] == ["w"] and 4.0 < info["timeout_s"] <= 4.5  # earlier than the sender's own
        assert finish == ("finish_weight_update", "boot", "push-7", {"weight_version": "v0.7"})


def test_each_member_joins_at_the_offset_behind_the_one_before(serve) -> None:
    servers = [serve(), serve()]
    client = begun(*(server.member for server in servers))
    assert client.world_size == 5
    client.init_weight_transfer_engine({"rank_offset": 1})
    assert [server.requests[0][3]["init_info"]["rank_offset"] for server in servers] == [1, 3]


def test_a_member_that_fails_is_told_at_once_and_the_others_go_on(serve) -> None:
    told = threading.Event()

    def wait_for_word(*_: Any) -> int:
        return 200 if told.wait(5) else 599

    bad = serve(lambda *_: 500)
    client = begun(serve(wait_for_word).member, bad.member)
    client.on_failure = told.set
    with pytest.raises(ServiceError, match=rf"{bad.member.url}/start_weight_update answered HTTP 500"):
        client.update_weights({})
    assert outcomes(client) == [Outcome.DONE, Outcome.FAILED]


@pytest.mark.parametrize(
    ("answer", "boot_id", "outcome"),
    [
        (lambda *_: 409, "boot", Outcome.FAILED),
        (lambda *_: 409, "another", Outcome.GONE),  # another process answers at the member's address
        (hang_up, "boot", Outcome.GONE),
    ],
)
def test_what_an_answer_says_of_a_member(serve, answer: Answer, boot_id: str, outcome: Outcome) -> None:
    client = begun(serve(answer, boot_id=boot_id).member)
    with pytest.raises(ServiceError):
        client.update_weights({})
    assert outcomes(client) == [outcome]


def test_nobody_at_the_address_is_gone_and_a_server_that_says_nothing_is_silent(serve) -> None:
    release = threading.Event()
    nobody = Member(f"http://127.0.0.1:{free_port('127.0.0.1')}", 1, "boot")
    hanging = serve(lambda *_: 200 if release.wait(20) else 599)
    client = begun(nobody, hanging.member, timeout_s=0.5)
    started = time.monotonic()
    with pytest.raises(ServiceError, match="no answer within the deadline"):
        client.update_weights({})
    assert time.monotonic() - started < 1.0  # the thread that hangs is not joined
    assert outcomes(client) == [Outcome.GONE, Outcome.SILENT]
    release.set()


def test_a_late_answer_to_one_push_says_nothing_of_the_next(serve) -> None:
    release = threading.Event()
    hanging = serve(lambda *_: 500 if release.wait(20) else 599)
    client = begun(hanging.member, timeout_s=0.2)
    with pytest.raises(ServiceError):
        client.update_weights({})
    client.begin(Deadline(5.0), push_id="push-8")
    release.set()
    assert outcomes(client) == [Outcome.FAILED] and client.problems[hanging.member.url] == "it was not asked"
