"""`python -m reward_server.scale`: its commands, and what it shows."""

import pytest

from reward_server.scale import ADDRESS_FILE, RewardScaleSettings, carry_out, lines, main
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


def test_without_a_service_to_talk_to_it_says_so(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no run has its reward service's address in .*: give output_dir, or reward_url"
    ):
        main(["status", "--output_dir", str(tmp_path)])


def test_a_run_names_its_service_in_its_folder(tmp_path):
    (tmp_path / ADDRESS_FILE).write_text("http://a:1\n")
    assert RewardScaleSettings(output_dir=str(tmp_path)).address() == "http://a:1"
    assert RewardScaleSettings(output_dir=str(tmp_path), reward_url="http://b:2/").address() == "http://b:2"


def test_the_table_says_how_a_start_goes_and_how_long_it_took():
    loading = {"doing": "fetches: 12.3 of 99.8 GB, 410 MB/s, 3 min 33 s left", "fetch_s": None, "load_s": None}
    done = {"doing": "", "fetch_s": 812.0, "load_s": 143.2}
    servers = [STATE["servers"][0] | loading, STATE["servers"][1] | done, STATE["servers"][1] | done | {"fetch_s": 0.0}]
    first, second, third, _ = lines(STATE | {"servers": servers})
    assert first.endswith("0 losses  fetches: 12.3 of 99.8 GB, 410 MB/s, 3 min 33 s left")
    assert second.endswith("fetched in 13 min 32 s, loaded in 2 min 24 s") and third.endswith(
        "losses  loaded in 2 min 24 s"
    )
