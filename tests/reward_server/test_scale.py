"""`python -m reward_server.scale`: its commands, and what it shows."""

import pytest

from reward_server.scale import carry_out, lines, main
from wire.errors import ConfigError

STATE = {
    "count": 2,
    "queue_depth": 7,
    "prefix_cache_hit_share": 0.25,
    "servers": [
        {"url": "http://a:1", "state": "ready", "started": True, "in_flight": 3, "answers": 12, "losses": 0},
        {"url": "http://b:2", "state": "lost", "started": False, "in_flight": 0, "answers": 9, "losses": 4},
    ],
}


class FakeClient:
    def __init__(self):
        self.calls = []

    async def call(self, method, path, message=None):
        self.calls.append((method, path, message))
        return STATE


@pytest.mark.parametrize(
    ("command", "call"),
    [
        (["5"], ("PUT", "/v1/servers/count", {"count": 5})),
        (["+3"], ("PUT", "/v1/servers/count", {"count": 5})),
        (["-2"], ("PUT", "/v1/servers/count", {"count": 0})),
        (["status"], ("GET", "/v1/servers", None)),
        (["add", "http://c:3"], ("POST", "/v1/servers", {"url": "http://c:3"})),
        (["remove", "http://c:3"], ("DELETE", "/v1/servers?url=http%3A%2F%2Fc%3A3", None)),
    ],
)
async def test_a_command_is_one_call_to_the_service(command, call):
    client = FakeClient()
    assert await carry_out(client, command) == STATE
    assert client.calls[-1] == call


async def test_fewer_than_none_is_refused_with_how_many_there_are():
    with pytest.raises(ConfigError, match="-3 of 2 servers"):
        await carry_out(FakeClient(), ["-3"])


def test_the_table_names_each_server_with_its_state_and_the_queue():
    first, second, last = lines(STATE)
    assert first.split()[:3] == ["http://a:1", "ready", "started"] and "3 in flight" in first
    assert second.split()[:3] == ["http://b:2", "lost", "joined"] and "4 losses" in second
    assert last == "2 of its own, 7 calls wait, prefix-cache hits 25%"


def test_without_a_service_to_talk_to_it_says_so():
    with pytest.raises(ConfigError, match="reward_url is not set"):
        main(["status"])
