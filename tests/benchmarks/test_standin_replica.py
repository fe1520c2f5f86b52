"""The stand-in replicas: lengths that follow from seeds, a clock that pauses, the real client and fleet over them."""

import asyncio
from statistics import fmean

import pytest

from benchmarks.standin_fleet import StandInFleet, StandInSender
from benchmarks.standin_replica import Clock, length_of
from rollout_server.client import RolloutClient, Sampling
from rollout_server.config import RolloutSettings
from rollout_server.fleet import Fleet
from rollout_server.membership import State
from wire.generation import PolicyVersion

SAMPLING = Sampling(max_tokens=400, temperature=1.0, stop_token_ids=(2,))


def test_a_length_follows_from_the_seed_has_the_mean_asked_for_and_is_cut():
    lengths = [length_of(seed, 200.0, 0.5, 10_000) for seed in range(4000)]
    assert lengths == [length_of(seed, 200.0, 0.5, 10_000) for seed in range(4000)]
    assert fmean(lengths) == pytest.approx(200, rel=0.03)
    assert max(length_of(seed, 200.0, 0.5, 300) for seed in range(4000)) == 300
    assert {length_of(seed, 50.0, 0.0, 300) for seed in range(10)} == {50}


async def test_a_clock_stands_still_while_it_is_paused():
    now = 10.0
    clock = Clock(lambda: now)
    now = 12.0
    clock.pause()
    now = 20.0
    assert clock.is_paused and clock.read() == 2.0
    waiting = asyncio.create_task(clock.until(2.0))
    await asyncio.sleep(0)
    clock.resume()
    await waiting
    now = 21.0
    assert clock.read() == 3.0


async def test_replicas_serve_after_a_push_and_come_back_empty_with_another_boot_id():
    settings = RolloutSettings(device="cpu", probe_interval_s=0.05)
    async with (
        StandInFleet(2, mean_tokens=300, spread=0.3) as standins,
        Fleet(settings, "token") as fleet,
        RolloutClient(fleet, "token", SAMPLING, 30.0) as rollouts,
    ):
        for url in standins.urls:
            await fleet.add(url)
        await fleet.publish(StandInSender("token"), PolicyVersion(0, 3))
        async with rollouts.generate((5, 6), 4, seed=40, salt=lambda: "0.3") as futures:
            completions = await asyncio.gather(*futures)
        lengths = [length_of(40 + i, 300, 0.3, 400) for i in range(4)]
        assert [len(completion.token_ids) for completion in completions] == lengths
        assert [completion.finished for completion in completions] == [length < 400 for length in lengths]
        assert all(
            [(span.version, span.start, span.end) for span in completion.versions] == [("0.3", 0, length)]
            for completion, length in zip(completions, lengths, strict=True)
        )

        before = fleet.membership.find(standins.urls[0])
        await standins.take(0)
        tending = asyncio.create_task(fleet.tend())
        async with asyncio.timeout(20):
            while before.state is not State.LOST:
                await fleet.changed(1.0)
            await standins.give(0)
            while len(fleet.ready()) < 2:
                await fleet.changed(1.0)
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
        after = fleet.membership.find(standins.urls[0])
        assert after.boot_id != before.boot_id and await fleet.versions() == ["0.3", "0.3"]
