"""The pool over small servers that can be killed, frozen and thawed."""

import asyncio
import gc
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from reward_server import pool as pool_module
from reward_server.figures import NAMES
from reward_server.peer import open_session
from reward_server.pool import Pool, PooledCall
from reward_server.prefix_cache import PrefixCache, hit_share
from wire.errors import ServiceError
from wire.load import PREEMPTIONS, RUNNING, USAGE, WAITING, read_samples

METRICS = """# HELP vllm:prefix_cache_queries_total x
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 20.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 60.0
"""


class FakeServer:
    """Answers after `work_s` seconds; while `thawed` is clear it answers nothing, not even its health."""

    def __init__(self, work_s=0.0):
        self.work_s, self.thawed = work_s, asyncio.Event()
        self.thawed.set()
        self.status = 200
        self.asked, self.in_flight, self.most_in_flight = [], 0, 0
        app = web.Application()
        app.add_routes(
            [web.post("/work", self.work), web.get("/health", self.health), web.get("/metrics", self.metrics)]
        )
        self.server = TestServer(app, handler_cancellation=True)

    async def start(self):
        await self.server.start_server()
        self.url = str(self.server.make_url("")).rstrip("/")

    async def work(self, request):
        self.asked.append((await request.json())["n"])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.work_s)
            await self.thawed.wait()
            return web.json_response({"url": self.url}, status=self.status)
        finally:
            self.in_flight -= 1

    async def health(self, request):
        await self.thawed.wait()
        return web.Response()

    async def metrics(self, request):
        return web.Response(text=METRICS)


@pytest.fixture(autouse=True)
def quick_health(monkeypatch):
    monkeypatch.setattr(pool_module, "HEALTH_INTERVAL_S", 0.05)
    monkeypatch.setattr(pool_module, "HEALTH_TIMEOUT_S", 0.1)


@asynccontextmanager
async def pool_of(*servers, max_in_flight=4, health_timeout_s=0.3, **options):
    for server in servers:
        await server.start()
    async with open_session() as session:
        options |= {"max_in_flight": max_in_flight, "health_timeout_s": health_timeout_s}
        async with Pool(session, "secret", **options) as pool:
            for server in servers:
                pool.add(server.url)
            while pool.num_ready < len(servers):
                await asyncio.sleep(0.01)
            yield pool
    for server in servers:
        server.thawed.set()
        await server.server.close()


async def ask(pool, n, affinity=0, deadline_s=10.0):
    """The call, and the URL that answered."""
    call = PooledCall()
    async with asyncio.timeout(deadline_s):
        reply = await pool.post("/work", {"n": n}, affinity, call)
    return call, reply


def state_of(pool, server):
    return next(s.state for s in pool.servers if s.url == server.url)


async def test_calls_of_one_conversation_go_to_one_server_and_conversations_spread():
    servers = [FakeServer() for _ in range(3)]
    async with pool_of(*servers) as pool:
        homes = {}
        for affinity in range(60):
            urls = {(await ask(pool, n, affinity))[0].server for n in range(3)}
            assert len(urls) == 1
            homes[affinity] = urls.pop()
        assert min(Counter(homes.values()).values()) >= 8  # of 60 over 3: never far from 20
        await pool.remove(servers[0].url, deadline_s=1)
        for affinity, home in homes.items():
            now = (await ask(pool, 0, affinity))[0].server
            assert now == home or home == servers[0].url  # only the conversations of the one that left move


async def test_a_server_with_much_more_in_flight_than_the_others_is_passed_over():
    servers = [FakeServer(work_s=1.0) for _ in range(2)]  # none is done before all are asked
    async with pool_of(*servers, max_in_flight=100) as pool:
        await asyncio.gather(*(ask(pool, n, affinity=5) for n in range(60)))
    most = sorted(server.most_in_flight for server in servers)
    assert most[1] <= 1.25 * 30 + 2 and most[0] >= 20


async def test_a_server_never_gets_more_than_its_limit_and_those_who_wait_are_served_in_their_order():
    server = FakeServer(work_s=0.02)
    async with pool_of(server, max_in_flight=2) as pool:
        tasks = [asyncio.create_task(ask(pool, n)) for n in range(9)]
        await asyncio.sleep(0.01)
        assert pool.num_waiting == 7 and pool.num_in_flight == 2
        await asyncio.gather(*tasks)
    assert server.most_in_flight == 2 and server.asked == list(range(9))


async def test_a_pool_is_full_when_one_call_more_would_wait():
    server = FakeServer(work_s=0.1)
    async with pool_of(server, max_in_flight=2) as pool:
        assert not pool.is_full
        calls = [asyncio.create_task(pool.post("/work", {"n": n}, 0, PooledCall())) for n in range(3)]
        await asyncio.sleep(0.05)
        assert pool.is_full and pool.num_waiting == 1
        await asyncio.gather(*calls)
        assert not pool.is_full


async def test_a_call_that_was_cancelled_while_it_waited_or_worked_gives_its_place_back():
    server = FakeServer(work_s=0.05)
    async with pool_of(server, max_in_flight=1) as pool:
        tasks = [asyncio.create_task(ask(pool, n)) for n in range(4)]
        await asyncio.sleep(0.02)
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ask(pool, 4)
        assert pool.num_in_flight == 0 and pool.num_waiting == 0
    assert server.asked == [0, 1, 3, 4]


# asyncio drops a connection that is accepted in the instant in which its server closes, socket and all.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
async def test_a_server_that_dies_hands_its_calls_to_another_and_each_is_counted_once():
    dying, other = FakeServer(work_s=60), FakeServer()
    async with pool_of(dying, other, max_in_flight=50) as pool:
        tasks = [asyncio.create_task(ask(pool, n, affinity=n)) for n in range(20)]
        while sum(task.done() for task in tasks) + dying.in_flight < 20:
            await asyncio.sleep(0.01)
        asked = len(dying.asked)
        assert asked
        await dying.server.close()
        done = await asyncio.gather(*tasks)
        assert {reply.status for _, reply in done} == {200}
        assert {call.server for call, _ in done} == {other.url}
        assert pool.lost_calls == asked == sum(bool(call.lost_with) for call, _ in done)
        while state_of(pool, dying) != "lost":
            await asyncio.sleep(0.01)
    gc.collect()  # here, where the warning is expected, and not in some later test


async def test_a_frozen_server_hands_its_calls_over_and_is_ready_again_when_it_thaws():
    frozen, other = FakeServer(work_s=0.05), FakeServer(work_s=0.05)
    async with pool_of(frozen, other) as pool:
        frozen.thawed.clear()
        done = await asyncio.gather(*(ask(pool, n, affinity=n) for n in range(12)))
        assert {call.server for call, _ in done} == {other.url} and state_of(pool, frozen) == "lost"
        frozen.thawed.set()
        while state_of(pool, frozen) != "ready":
            await asyncio.sleep(0.01)
        servers = {call.server for call, _ in await asyncio.gather(*(ask(pool, n, affinity=n) for n in range(12)))}
        assert servers == {frozen.url, other.url}


async def test_the_only_server_keeps_its_calls_while_it_is_frozen():
    frozen = FakeServer()
    async with pool_of(frozen) as pool:
        frozen.thawed.clear()
        tasks = [asyncio.create_task(ask(pool, n)) for n in range(6)]
        while state_of(pool, frozen) != "lost":
            await asyncio.sleep(0.01)
        assert pool.num_waiting == 2 and pool.num_in_flight == 4
        frozen.thawed.set()
        done = await asyncio.gather(*tasks)
        assert pool.lost_calls == 0 and all(call.attempts == 1 for call, _ in done)


async def test_calls_that_hang_on_a_frozen_server_move_when_another_joins():
    frozen, joiner = FakeServer(), FakeServer()
    await joiner.start()
    async with pool_of(frozen) as pool:
        frozen.thawed.clear()
        task = asyncio.create_task(ask(pool, 1))
        while state_of(pool, frozen) != "lost":
            await asyncio.sleep(0.01)
        pool.add(joiner.url)
        call, reply = await task
        assert (reply.status, call.server, call.lost_with) == (200, joiner.url, [frozen.url])
    await joiner.server.close()


async def test_a_failing_server_is_not_asked_again_while_there_is_another():
    failing, other = FakeServer(), FakeServer()
    failing.status = 500
    async with pool_of(failing, other) as pool:
        done = await asyncio.gather(*(ask(pool, n, affinity=n) for n in range(8)))
        assert all(reply.status == 200 and call.attempts <= 2 for call, reply in done)


async def test_a_leaving_server_finishes_what_it_has_and_gets_no_more():
    leaving, other = FakeServer(work_s=1.0), FakeServer(work_s=1.0)
    async with pool_of(leaving, other, max_in_flight=20) as pool:
        tasks = [asyncio.create_task(ask(pool, n, affinity=n)) for n in range(10)]
        while len(leaving.asked) + len(other.asked) < 10:
            await asyncio.sleep(0.01)
        had = len(leaving.asked)
        assert had
        removal = asyncio.create_task(pool.remove(leaving.url, deadline_s=5))
        await asyncio.sleep(0)
        late = await asyncio.gather(*(ask(pool, n, affinity=n) for n in range(10)))
        done = await asyncio.gather(*tasks)
        await removal
        assert {call.server for call, _ in late} == {other.url} and len(leaving.asked) == had
        assert all(call.attempts == 1 for call, _ in done) and len(pool.servers) == 1
        with pytest.raises(ServiceError, match="is no server of this pool"):
            await pool.remove(leaving.url, deadline_s=1)


async def test_what_a_leaving_server_does_not_finish_in_time_goes_to_another():
    leaving, other = FakeServer(work_s=60), FakeServer()
    async with pool_of(leaving, other, max_in_flight=30) as pool:
        tasks = [asyncio.create_task(ask(pool, n, affinity=n)) for n in range(20)]
        while not leaving.in_flight:
            await asyncio.sleep(0.01)
        await pool.remove(leaving.url, deadline_s=0.1)
        done = await asyncio.gather(*tasks)
        assert {call.server for call, _ in done} == {other.url}


async def test_a_server_that_does_not_answer_yet_gets_no_call_and_calls_wait_for_it():
    server = FakeServer()
    server.thawed.clear()
    await server.start()
    async with open_session() as session, Pool(session, "secret", max_in_flight=1) as pool:
        pool.add(server.url)
        task = asyncio.create_task(ask(pool, 1))
        await asyncio.sleep(0.2)
        assert not server.asked and state_of(pool, server) == "starting"
        server.thawed.set()
        assert (await task)[1].status == 200
    await server.server.close()


async def test_prefix_cache_counters_are_read_from_the_servers_own_page():
    server = FakeServer()
    async with pool_of(server) as pool:
        async with asyncio.timeout(10):
            while not pool.servers[0].cache.queries:
                await asyncio.sleep(0.01)
        assert hit_share([pool.servers[0].cache]) == pytest.approx(0.5)


def test_counters_of_all_engines_add_up_and_nothing_asked_is_no_share():
    cache = PrefixCache()
    cache.update(read_samples(METRICS, NAMES))
    cache.update({})  # a server that does not answer: the last numbers stay
    assert (cache.queries, cache.hits) == (120.0, 60.0)
    assert hit_share([]) is None and hit_share([PrefixCache()]) is None
    assert hit_share([PrefixCache(10, 5), PrefixCache(30, 5)]) == 0.25


class SmallServer(FakeServer):
    """Writes `slots` answers at once, queues the others, and says so."""

    def __init__(self, slots, work_s):
        super().__init__(work_s)
        self.slots = asyncio.Semaphore(slots)
        self.waiting = 0

    async def work(self, request):
        self.waiting += 1
        try:
            await self.slots.acquire()
        finally:
            self.waiting -= 1
        try:
            return await super().work(request)
        finally:
            self.slots.release()

    async def metrics(self, request):
        figures = {"num_requests_running": self.in_flight, "num_requests_waiting": self.waiting}
        figures |= {"num_preemptions_total": 0, "kv_cache_usage_perc": 0.5}
        lines = [f'vllm:{name}{{engine="0"}} {value}\n' for name, value in figures.items()]
        return web.Response(text="".join(lines))


@asynccontextmanager
async def many_asked(pool, num):
    """Calls that wait for the pool, all of them lost in the end."""
    tasks = [asyncio.create_task(ask(pool, n)) for n in range(num)]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_calls_that_a_server_could_only_queue_wait_in_the_service(monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_INTERVAL_S", 0.02)
    server = SmallServer(slots=10, work_s=0.05)
    async with pool_of(server, max_in_flight=40, health_timeout_s=10) as pool, many_asked(pool, 2000):
        seen = 40
        async with asyncio.timeout(20):
            while (seen := min(seen, pool.servers[0].room.size)) > 12:
                await asyncio.sleep(0.01)
        assert pool.room == pool.servers[0].room.size >= 8  # it comes back from below what the server has
        assert pool.num_waiting > 100 and server.most_in_flight == 10


async def test_a_pool_that_does_not_adapt_gives_each_server_what_the_setting_says(monkeypatch):
    monkeypatch.setattr(pool_module, "LOOK_INTERVAL_S", 0.02)
    server = SmallServer(slots=2, work_s=60)
    async with pool_of(server, max_in_flight=8, adaptive=False) as pool, many_asked(pool, 20):
        pool.servers[0].cache = watched = CountedCache()
        async with asyncio.timeout(10):
            while watched.updates < 4:
                await asyncio.sleep(0.01)
        assert (pool.room, pool.servers[0].in_flight, pool.num_waiting) == (8, 8, 12)


class CountedCache(PrefixCache):
    """Counts the looks."""

    updates = 0

    def update(self, samples):
        self.updates += 1
        super().update(samples)


async def test_a_room_that_grows_takes_in_who_waits_and_one_that_is_cut_takes_nothing_away():
    server = FakeServer(work_s=60)
    async with pool_of(server, max_in_flight=10) as pool, many_asked(pool, 20):
        (known,) = pool.servers
        async with asyncio.timeout(10):
            while pool.num_waiting < 10:
                await asyncio.sleep(0.01)
        for waiting, calls in ((5.0, 10), (5.0, 10)):
            pool._look(known, figures(running=5.0, waiting=waiting))
            assert known.in_flight == calls
        assert known.room.size == 8 and pool.num_waiting == 10
        for room in (9, 10):
            pool._look(known, figures(running=10.0, waiting=0.0))
            assert known.room.size == room
        known.room.most = 20
        pool._look(known, figures(running=10.0, waiting=0.0))
        assert (known.room.size, known.in_flight, pool.num_waiting) == (11, 11, 9)


def figures(running, waiting):
    return {RUNNING: [running], WAITING: [waiting], PREEMPTIONS: [0.0], USAGE: [0.5]}
