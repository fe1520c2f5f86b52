"""What a server says of its load, and how a room follows it: rule by rule, and over an engine with little cache."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from random import Random

import pytest

from wire.load import CUT, Load, Room, read_samples

# Lines as vLLM 0.32 writes them, of a replica whose cache holds 4 of 120 requests.
PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="toy/policy"} 4.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="toy/policy"} 110.0
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason. \
Sum of all reasons equals vllm:num_requests_waiting.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="0",model_name="toy/policy",reason="capacity"} 110.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="toy/policy",reason="deferred"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="toy/policy"} 0.9130434782608696
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="toy/policy"} 5.0
# HELP vllm:num_preemptions_created Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_created gauge
vllm:num_preemptions_created{engine="0",model_name="toy/policy"} 1.7955710788802006e+09
vllm:request_num_preemptions_count{engine="0",model_name="toy/policy"} 6.0
"""


def calm(running: float, preemptions: float = 0.0) -> Load:
    return Load(running, 0.0, preemptions, 0.5)


# --- the page


def test_a_page_of_vllm_says_what_runs_what_waits_what_was_preempted_and_how_full_the_cache_is() -> None:
    assert Load.read(PAGE) == Load(running=4.0, waiting=110.0, preemptions=5.0, kv_usage=0.9130434782608696)


def test_engines_behind_one_address_add_up_and_the_fullest_cache_counts() -> None:
    second = "\n".join(line.replace('engine="0"', 'engine="1"') for line in PAGE.splitlines() if line[0] != "#")
    second = second.replace("0.9130434782608696", "0.95")
    assert Load.read(PAGE + second) == Load(running=8.0, waiting=220.0, preemptions=10.0, kv_usage=0.95)


@pytest.mark.parametrize("name", ["running{", "waiting{", "usage_perc{", "preemptions_total{"])
def test_a_page_that_lacks_a_figure_says_nothing(name: str) -> None:
    assert Load.read("\n".join(line for line in PAGE.splitlines() if name not in line)) is None
    assert Load.read("") is None


def test_a_metric_is_found_by_its_whole_name_wherever_it_stands_and_a_line_that_cannot_be_read_is_none() -> None:
    page = 'a 1\na{x="y"} 2\nab 3\na_b{x="y"} 4\n# a 5\nb a 6\na{x="y"} many\nc 1e3'
    assert read_samples(page, ["a", "c", "d"]) == {"a": [1.0, 2.0], "c": [1000.0], "d": []}


# --- the rules


def test_a_room_is_the_largest_until_the_server_is_strained_and_a_first_look_proves_nothing() -> None:
    room = Room(4, 100)
    assert room.look(Load(40.0, 60.0, 90.0, 1.0), 100) == 100
    assert Room(8, 4).size == 4


def test_a_queue_that_stays_cuts_to_what_runs_but_never_by_more_than_a_cut() -> None:
    room = Room(4, 100)
    for expected in (100, 92):
        assert room.look(Load(92.0, 8.0, 0.0, 0.8), 100) == expected
    room = Room(4, 100)
    for expected in (100, 80):
        assert room.look(Load(10.0, 90.0, 0.0, 0.8), 100) == expected


def test_no_second_cut_before_what_is_in_flight_has_come_down_to_the_first() -> None:
    room, strained = Room(4, 100), Load(10.0, 80.0, 0.0, 0.8)
    sizes = [room.look(strained, in_flight) for in_flight in (100, 100, 99, 84, 83)]
    assert sizes == [100, 80, 80, 80, 64]


def test_an_engine_that_reads_new_prompts_has_a_queue_and_is_not_strained() -> None:
    room = Room(4, 100)
    assert [room.look(Load(10.0 * n, 100 - 10.0 * n, 0.0, 0.3), 100) for n in range(1, 10)] == [100] * 9


def test_the_rest_of_one_prompt_that_waits_is_no_strain() -> None:
    room = Room(4, 100)
    assert [room.look(Load(100.0, 3.0, 0.0, 0.5), 103) for _ in range(5)] == [100] * 5


def test_preemptions_cut_by_their_number_and_old_ones_do_not_count() -> None:
    room = Room(4, 100)
    looks = [(7.0, 100), (7.0, 100), (10.0, 100), (10.0, 98), (60.0, 98)]
    assert [room.look(calm(90.0, preemptions), n) for preemptions, n in looks] == [100, 100, 97, 98, int(CUT * 98)]


def test_a_cut_is_from_what_was_in_flight_when_it_was_too_much_though_all_is_written_by_now() -> None:
    room = Room(4, 100)
    room.look(calm(60.0), 60)
    assert room.look(calm(0.0, 5.0), 0) == 55


def test_a_server_that_was_started_again_counts_from_zero_and_that_is_no_strain() -> None:
    room = Room(4, 100)
    assert [room.look(calm(50.0, preemptions), 50) for preemptions in (90.0, 0.0, 2.0)] == [100, 100, 48]


def test_a_room_grows_only_where_it_is_full_and_the_cache_is_not_and_never_beyond_the_largest() -> None:
    room = Room(4, 100)
    room.look(calm(100.0), 100)
    assert room.look(calm(90.0, 2.0), 100) == 98
    assert room.look(calm(90.0, 2.0), 97) == 98  # not full
    assert room.look(Load(98.0, 0.0, 2.0, 0.95), 98) == 98  # nearly no cache left
    assert [room.look(calm(98.0, 2.0), 100) for _ in range(4)] == [99, 100, 100, 100]


def test_a_room_never_falls_below_one_prompts_completions() -> None:
    room = Room(4, 100)
    in_flight = 100
    for n in range(100):
        in_flight = room.look(Load(1.0, 50.0, 5.0 * n, 1.0), in_flight)
    assert room.size == 4


def test_of_a_queue_that_others_share_only_the_own_share_is_cut() -> None:
    room = Room(1, 100)
    room.look(Load(150.0, 50.0, 0.0, 0.8), 100)
    assert room.look(Load(180.0, 20.0, 0.0, 0.8), 100) == 100  # it runs more than it did
    assert room.look(Load(180.0, 20.0, 0.0, 0.8), 100) == 90


# --- over an engine


@dataclass
class Engine:
    """Sequences in a cache of `cache` tokens, as vLLM schedules them: first come, first served, the youngest preempted.

    A tick writes `TOKENS` tokens of each sequence that runs; a preempted one is read again before it goes on.
    """

    cache: int
    slots: int
    running: list[list[int]] = field(default_factory=list)  # (tokens in the cache, tokens at its end)
    waiting: deque[list[int]] = field(default_factory=deque)
    preemptions: int = 0
    recomputed: int = 0  # tokens
    finished: int = 0

    TOKENS = 20
    PROMPT = 200

    @property
    def num(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def used(self) -> int:
        return sum(sequence[0] for sequence in self.running)

    def load(self) -> Load:
        return Load(len(self.running), len(self.waiting), self.preemptions, self.used / self.cache)

    def tick(self) -> None:
        needed = self.TOKENS * (len(self.running) + 1)
        while self.waiting and len(self.running) < self.slots and self.used + self.waiting[0][0] + needed <= self.cache:
            self.running.append(self.waiting.popleft())
            needed += self.TOKENS
        while len(self.running) > 1 and self.used + self.TOKENS * len(self.running) > self.cache:
            self.preemptions += 1
            self.recomputed += self.running[-1][0]
            self.waiting.appendleft(self.running.pop())
        for sequence in self.running:
            sequence[0] += self.TOKENS
        self.finished += sum(has >= end for has, end in self.running)
        self.running = [sequence for sequence in self.running if sequence[0] < sequence[1]]


@dataclass
class Course:
    """What a run over an engine came to, look by look."""

    sizes: list[int] = field(default_factory=list)
    bound: list[int] = field(default_factory=list)  # requests in the engine's own queue
    preemptions: list[int] = field(default_factory=list)
    recomputed: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)


def run_over(engine: Engine, num_looks: int, *, seed: int, adaptive: bool = True, room: Room | None = None) -> Course:
    """Keep the engine as full as the room allows, K = 4 at a time, with completions of 500 to 1500 tokens."""
    rng, course = Random(seed), Course()
    room = room or Room(4, engine.slots)
    for _ in range(num_looks):
        for _ in range(2):
            while engine.num < room.size:
                for _ in range(4):
                    engine.waiting.append([engine.PROMPT, engine.PROMPT + rng.randint(500, 1500)])
            engine.tick()
        if adaptive:
            room.look(engine.load(), engine.num)
        course.sizes.append(room.size)
        course.bound.append(len(engine.waiting))
        for counts, value in (
            (course.preemptions, engine.preemptions),
            (course.recomputed, engine.recomputed),
            (course.finished, engine.finished),
        ):
            counts.append(value)
    return course


SETTLED = 150  # looks until a room of 128 has come down to a quarter: completions that wait must be written first
HOLDS = 28_000 / (200 + 0.5 * 1000 + 20)  # sequences of mean size in the cache, 39


@pytest.mark.parametrize("seed", range(5))
def test_a_room_settles_near_what_the_cache_holds_without_swinging_wildly(seed: int) -> None:
    sizes = run_over(Engine(28_000, 128), 1000, seed=seed).sizes[SETTLED:]
    assert 0.75 * HOLDS < sum(sizes) / len(sizes) < 1.1 * HOLDS
    assert min(sizes) > 0.45 * HOLDS and max(sizes) < 1.35 * HOLDS
    assert all(after >= int(CUT * before) for before, after in itertools.pairwise(sizes))


@pytest.mark.parametrize("seed", range(5))
def test_what_waits_is_not_bound_to_the_engine_and_little_is_computed_twice_at_hardly_fewer_completions(
    seed: int,
) -> None:
    fixed = run_over(Engine(28_000, 128), 1000, seed=seed, adaptive=False)
    room = run_over(Engine(28_000, 128), 1000, seed=seed)
    assert sum(fixed.bound[SETTLED:]) / len(fixed.bound[SETTLED:]) > 60
    assert sum(room.bound[SETTLED:]) / len(room.bound[SETTLED:]) < 2
    assert room.recomputed[-1] - room.recomputed[SETTLED] < 0.4 * (fixed.recomputed[-1] - fixed.recomputed[SETTLED])
    assert room.finished[-1] > 0.85 * fixed.finished[-1]


def test_a_room_grows_again_when_the_cache_holds_more() -> None:
    engine, room = Engine(28_000, 128), Room(4, 128)
    before = run_over(engine, 600, seed=1, room=room).sizes[-1]
    engine.cache *= 2
    sizes = run_over(engine, 400, seed=2, room=room).sizes
    assert before < 1.35 * HOLDS and sum(sizes[-200:]) / 200 > 0.75 * 2 * HOLDS


def test_with_cache_for_all_the_room_stays_the_largest() -> None:
    assert set(run_over(Engine(10**6, 128), 300, seed=1).sizes) == {128}
