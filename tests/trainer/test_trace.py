"""The trace file: what Perfetto is given."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.trace import DRIVER, RECENT, Trace, _take_lane
from wire.waits import Wait, Waits

MIB = 2**20


def read(folder: Path, name: str = "trace.json") -> list[dict[str, Any]]:
    return json.loads((folder / name).read_text())["traceEvents"]


def bars(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Row, lane, name, waiter, seconds from and to, of all events that are no metadata."""
    rows = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    found = [e for e in events if e["ph"] == "X"]
    return [
        (rows[e["pid"]], e["tid"], e["name"], e["args"]["who"], e["ts"] / 1e6, (e["ts"] + e["dur"]) / 1e6)
        for e in found
    ]


class Clock:
    """Tells a trace of waits at seconds since it began."""

    def __init__(self, trace: Trace) -> None:
        now = asyncio.get_running_loop().time()
        self.trace, self.zero = trace, now - trace.since_start(now)

    def wait(self, who: str, peer: str, reason: str, start: float, end: float) -> None:
        self.trace.hear(Wait(who, peer, reason, self.zero + start), self.zero + end)

    def stage(self, name: str, start: float, end: float) -> None:
        self.trace.stage(name, self.zero + start, self.zero + end)


async def test_a_wait_is_a_bar_in_the_row_of_whom_it_is_for(tmp_path: Path) -> None:
    trace = Trace(tmp_path, limit_bytes=MIB)
    tell = Clock(trace)
    tell.wait("group 12", "replica http://a:1", "writes", 1.5, 1.75)
    trace.flush()
    (event,) = [event for event in read(tmp_path) if event["ph"] == "X"]
    assert event.pop("pid") == 2  # the driver's row is always there
    assert event == {
        "ph": "X", "name": "writes", "cat": "replica", "ts": pytest.approx(1_500_000, abs=2),
        "dur": pytest.approx(250_000, abs=2), "tid": 0, "args": {"who": "group 12", "reason": "writes"}
    }  # fmt: skip


async def test_the_file_can_be_read_after_every_flush_and_before_the_first(tmp_path: Path) -> None:
    trace = Trace(tmp_path, limit_bytes=MIB)
    tell = Clock(trace)
    assert bars(read(tmp_path)) == []
    for i in range(5):
        trace.flush()
        tell.wait(f"group {i}", f"replica http://{i}", 'says "no\n"', i, i + 1)
        trace.flush()
        assert len(bars(read(tmp_path))) == i + 1


async def test_rows_are_named_and_ordered_driver_learner_replicas_judge(tmp_path: Path) -> None:
    trace = Trace(tmp_path, limit_bytes=MIB)
    tell = Clock(trace)
    for peer in ("disk", "genrm http://g", "replica http://b", "replica http://a", "learner 0", "judge http://j"):
        tell.wait("driver", peer, "works", 0, 1)
    trace.flush()
    facts: dict[int, dict[str, Any]] = defaultdict(dict)
    for event in read(tmp_path):
        if event["ph"] == "M" and event["name"].startswith("process"):
            facts[event["pid"]] |= event["args"]
    rows = [fact["name"] for fact in sorted(facts.values(), key=lambda fact: fact["sort_index"])]
    assert rows == [
        "driver", "learner 0", "replica http://b", "replica http://a", "judge http://j", "genrm http://g", "disk"
    ]  # fmt: skip


async def test_what_overlaps_lies_in_lanes_and_what_follows_takes_the_lowest(tmp_path: Path) -> None:
    trace = Trace(tmp_path, limit_bytes=MIB)
    tell = Clock(trace)
    for start, end in ((0, 1), (0.5, 2), (1, 3), (3, 4)):
        tell.wait("group 1", "replica http://a", "writes", start, end)
    trace.flush()
    assert [lane for _, lane, *_ in bars(read(tmp_path))] == [0, 1, 0, 0]


TIMES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=40)


@given(TIMES)
def test_no_two_of_a_lane_overlap(spans: list[tuple[int, int]]) -> None:
    ends: list[float] = []
    placed: list[tuple[int, int, int]] = []
    for start, end in sorted(((s, s + d) for s, d in spans), key=lambda span: span[1]):
        lane = _take_lane(ends, start, end)
        assert not [p for p in placed if p[0] == lane and p[1] < end and start < p[2]]
        placed.append((lane, start, end))


async def test_the_drivers_stages_have_a_lane_and_its_waits_for_groups_lie_below(tmp_path: Path) -> None:
    trace = Trace(tmp_path, limit_bytes=MIB)
    tell = Clock(trace)
    tell.wait("driver", "group 7", "is in the making", 0, 2)
    tell.wait("driver", "group 8", "is in the making", 2, 3)
    tell.stage("wait", 0, 3)
    trace.flush()
    assert [row[:4] for row in bars(read(tmp_path))] == [
        (DRIVER, 1, "group 7 is in the making", "driver"),
        (DRIVER, 1, "group 8 is in the making", "driver"),
        (DRIVER, 0, "wait", "driver"),
    ]


async def test_it_listens_while_it_is_open_and_writes_what_nobody_answered_at_the_end(tmp_path: Path) -> None:
    waits = Waits()
    with Trace(tmp_path, limit_bytes=MIB, waits=waits):
        with waits.on("judge http://j", "judges", who="group 1"):
            pass
        hung = waits.begin("learner 0", "steps", who="driver")
    waits.end(hung)
    with waits.on("judge http://j", "judges"):
        pass
    assert [(row, name, who) for row, _, name, who, *_ in bars(read(tmp_path))] == [
        ("judge http://j", "judges", "group 1"),
        ("learner 0", "steps", "driver"),
    ]


async def test_a_resumed_run_goes_on_in_the_file_with_the_same_rows_and_the_same_zero(tmp_path: Path) -> None:
    with Trace(tmp_path, limit_bytes=MIB) as trace:
        Clock(trace).wait("group 1", "replica http://a", "writes", 0, 0.5)
    before = read(tmp_path)
    text = (tmp_path / "trace.json").read_text()
    started = json.loads(text)["otherData"]["started_s"]
    # As if the first life had begun an hour ago.
    (tmp_path / "trace.json").write_text(text.replace(json.dumps(started), json.dumps(started - 3600)))
    with Trace(tmp_path, limit_bytes=MIB, goes_on=True) as trace:
        now = asyncio.get_running_loop().time()
        trace.hear(Wait("group 1", "replica http://a", "writes", now - 1), now)
        trace.hear(Wait("group 1", "replica http://b", "writes", now - 1), now)
    events = read(tmp_path)
    assert events[: len(before)] == before
    first, second, third = bars(events)
    assert first[0] == second[0] == "replica http://a" and third[0] == "replica http://b"
    assert 3600 <= second[5] < 3700
    assert len({event["pid"] for event in events}) == 3  # driver, a, b


async def test_a_fresh_run_begins_anew_and_so_does_one_whose_file_was_broken_off(tmp_path: Path) -> None:
    async def life(*, goes_on: bool) -> list[tuple[Any, ...]]:
        with Trace(tmp_path, limit_bytes=MIB, goes_on=goes_on) as trace:
            Clock(trace).wait("group 1", "replica http://a", "writes", 0, 1)
        return bars(read(tmp_path))

    assert len(await life(goes_on=True)) == 1  # there is no file yet
    assert len(await life(goes_on=False)) == 1
    assert len(await life(goes_on=True)) == 2
    for broken in ((tmp_path / "trace.json").read_bytes()[:-40], b"", b"[]\n", b'{"otherData":1,"traceEvents":[\n'):
        (tmp_path / "trace.json").write_bytes(broken)
        assert len(await life(goes_on=True)) == 1


async def test_the_files_together_keep_to_their_limit_and_the_rows_stay(tmp_path: Path) -> None:
    limit = 20_000
    trace = Trace(tmp_path, limit_bytes=limit)
    tell = Clock(trace)
    for i in range(1000):
        tell.wait(f"group {i}", f"replica http://{i % 3}", "writes", i, i + 1)
        if i % 10 == 0:
            trace.flush()
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit + 10
    trace.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.json", "trace.previous.json"]
    both = bars(read(tmp_path, "trace.previous.json")) + bars(read(tmp_path))
    numbers = [int(who.removeprefix("group ")) for *_, who, _, _ in both]
    assert numbers == list(range(numbers[0], 1000)) and len(numbers) > 50
    assert {row for row, *_ in both} == {f"replica http://{i}" for i in range(3)}


async def test_without_a_trace_there_is_no_file_and_the_pictures_have_their_window(tmp_path: Path) -> None:
    waits = Waits()
    with Trace(tmp_path / "run", limit_bytes=0, waits=waits) as trace:
        with waits.on("disk", "saves", who="driver"):
            pass
        open_one = waits.begin("learner 0", "steps", who="driver")
        events = trace.window(0.0, asyncio.get_running_loop().time())
        assert [(event.row, event.reason) for event in events] == [("disk", "saves"), ("learner 0", "steps")]
        assert trace.window(1e9, asyncio.get_running_loop().time())[:-1] == []  # what is still open is always now
        waits.end(open_one)
    assert not (tmp_path / "run").exists()


async def test_what_is_kept_in_memory_is_bounded_and_says_from_when_it_is_whole(tmp_path: Path) -> None:
    trace = Trace(tmp_path, limit_bytes=0)
    tell = Clock(trace)
    assert trace.complete_from == 0.0
    for i in range(RECENT + 10):
        tell.stage("wait", i, i + 1)
    assert len(trace.recent) == RECENT and trace.complete_from == pytest.approx(11)


async def test_a_disk_that_is_full_ends_the_trace_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trace = Trace(tmp_path, limit_bytes=MIB)
    tell = Clock(trace)
    tell.stage("wait", 0, 1)
    trace.flush()

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        for i in range(1, 4):
            tell.stage("wait", i, i + 1)
            trace.flush()
    assert [record.message for record in caplog.records if "no trace from now on" in record.message] == [
        f"no trace from now on: {tmp_path}/trace.json: [Errno 28] No space left on device"
    ]
    assert len(bars(read(tmp_path))) == 1
