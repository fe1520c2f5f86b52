"""Progressive judging of one group, with a judge that is a table."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_server.group import judge_group
from reward_server.pairings import drawn_order, pairing_named
from reward_server.scheme import Scheme
from wire.errors import PromptDropped, ServiceError, Unauthorized
from wire.judgement import Verdict

SEED = 11
RING = Scheme(pairing_named("ring"))


class Table:
    """A judge that scores an answer by the number it ends with, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.seeds: list[int] = []

    async def __call__(self, first: str, second: str | None, seed: int, vote: int) -> Verdict:
        self.asked.append((first, second))
        self.seeds.append(seed)
        answers = [first] if second is None else [first, second]
        scores = tuple(float(answer[-1]) for answer in answers)
        return Verdict(scores=scores, ranking=None if second is None else 3)


async def given_text(text):
    return text


def texts(*texts):
    return [given_text(text) for text in texts]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_full_group_is_judged_in_a_ring():
    table = Table()
    group = await judge_group(table, texts("a 2", "b 3", "<think>c</think> c 4", "d 5"), SEED, RING)
    order, answers = drawn_order(4, SEED), ["a 2", "b 3", "c 4", "d 5"]
    expected = [(order[i], order[(i + 1) % 4]) for i in range(4)]
    assert [(v.first, v.second) for v in group.verdicts] == expected
    assert sorted(table.asked) == sorted((answers[a], answers[b]) for a, b in expected)
    assert group.scores == (2, 3, 4, 5) and group.unjudged == ()
    assert len(set(table.seeds)) == 4


@given(st.lists(st.sampled_from(["x 1", "x 2", "x 3", None, "", "<think> 4"]), max_size=7), st.integers(0, 99))
def test_every_judged_completion_stands_once_in_each_place_whoever_is_left_out(completions, seed):
    async def run():
        table = Table()
        return table, await judge_group(table, texts(*completions), seed, RING)

    table, group = asyncio.run(run())
    answers = [text if text and text.startswith("x") else None for text in completions]
    order = drawn_order(len(completions), seed)
    judged = sorted({answers[k]: k for k in reversed(order) if answers[k]}.values())  # the first of each answer
    assert sorted(v.first for v in group.verdicts) == judged
    if len(judged) == 1:
        assert [(v.first, v.second) for v in group.verdicts] == [(judged[0], None)]
    else:
        assert sorted(v.second for v in group.verdicts) == judged
        in_ring = [k for k in order if k in judged]
        assert [v.first for v in group.verdicts] == in_ring
        assert [v.second for v in group.verdicts] == in_ring[1:] + in_ring[:1]
    assert group.unjudged == tuple(k for k, answer in enumerate(answers) if answer is None)
    assert [round(score) for score in group.scores] == [float((answer or "1")[-1]) for answer in answers]
    assert all(answers[k] == answers[group.same_as[k]] for k in range(len(answers)))
    assert len(table.asked) == len(judged)


async def test_a_pair_is_asked_about_before_the_last_completion_exists():
    table, loop = Table(), asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(4)]
    task = asyncio.create_task(judge_group(table, futures, SEED, RING))
    order = drawn_order(4, SEED)
    futures[order[1]].set_result("second 2")
    await settle()
    assert table.asked == []
    futures[order[2]].set_result("third 3")
    await settle()
    assert table.asked == [("second 2", "third 3")]
    futures[order[3]].set_result(None)  # bridged, but nobody knows yet who follows
    await settle()
    assert len(table.asked) == 1
    futures[order[0]].set_result("first 1")
    group = await task
    assert set(table.asked[1:]) == {("third 3", "first 1"), ("first 1", "second 2")}
    assert group.unjudged == (order[3],)


@pytest.mark.parametrize("arrival", [(0, 1, 2, 3), (3, 1, 0, 2)])
async def test_the_order_of_arrival_changes_nothing(arrival):
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(4)]
    task = asyncio.create_task(judge_group(Table(), futures, SEED, RING))
    for index in arrival:
        futures[index].set_result(f"x {index + 1}")
        await settle()
    assert await task == await judge_group(Table(), texts("x 1", "x 2", "x 3", "x 4"), SEED, RING)


async def test_a_failed_completion_ends_the_group_with_its_own_error_and_cancels_the_rest():
    cancelled = []

    async def endless(name):
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)

    async def judge_pair(first, second, seed, vote):
        return await endless("verdict")

    async def dropped():
        await settle()
        raise PromptDropped("too long")

    with pytest.raises(PromptDropped, match="too long"):
        await judge_group(judge_pair, [*texts("a", "b", "c"), endless("completion"), dropped()], SEED, RING)
    assert sorted(set(cancelled)) == ["completion", "verdict"]
    assert len(asyncio.all_tasks()) == 1


async def test_a_refused_token_is_raised_as_it_is():
    async def judge_pair(first, second, seed, vote):
        raise Unauthorized("no")

    with pytest.raises(Unauthorized):
        await judge_group(judge_pair, texts("a", "b"), SEED, RING)


async def test_cancelling_the_group_cancels_completions_and_verdicts():
    started, cancelled = asyncio.Event(), []

    async def judge_pair(first, second, seed, vote):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append((first, second))

    making = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(judge_group(judge_pair, [*texts("a", "b", "c", "d"), making], SEED, RING))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled and making.cancelled() and len(asyncio.all_tasks()) == 1


async def test_a_group_cancelled_before_it_began_leaves_no_coroutine_behind():
    task = asyncio.create_task(judge_group(Table(), texts("a 1", "b 2"), SEED, RING))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_completion_cancelled_by_its_maker_ends_the_group_instead_of_hanging_it():
    making = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(judge_group(Table(), [*texts("a 1", "b 2"), making], SEED, RING))
    await settle()
    making.cancel()
    with pytest.raises(ServiceError, match="completion 2"):
        await task


async def test_copies_that_arrive_late_change_nothing_in_the_scores():
    """The pairs that a late copy makes needless are given up, and the ring is the one of the distinct answers."""
    loop = asyncio.get_running_loop()
    words = ["x 1", "y 2", "x 1", "z 4"]
    at_once = await judge_group(Table(), texts(*words), SEED, RING)
    for arrival in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 2, 0), (2, 1, 0, 3)):
        futures, table = [loop.create_future() for _ in words], Table()
        task = asyncio.create_task(judge_group(table, futures, SEED, RING))
        for index in arrival:
            futures[index].set_result(words[index])
            await settle()
        assert await task == at_once
    assert len(at_once.verdicts) == 3 and at_once.scores[0] == at_once.scores[2]
    assert at_once.same_as in ((0, 1, 0, 3), (2, 1, 2, 3))


async def test_each_vote_is_a_verdict_of_its_own_with_one_seed_a_pair():
    table = Table()
    group = await judge_group(table, texts("a 1", "b 5", "c 3"), SEED, Scheme(pairing_named("ring"), votes=3))
    assert len(group.verdicts) == 9 and len(set(table.seeds)) == 3
    assert sorted(placed.vote for placed in group.verdicts) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert group.scores == (1, 5, 3)


@pytest.mark.parametrize(("name", "calls"), [("single", 3), ("ring", 3), ("all_pairs", 3), ("both_orders", 6)])
async def test_every_pairing_can_judge_a_group(name, calls):
    aggregation = "least_squares" if name == "all_pairs" else "mean"
    table = Table()
    scheme = Scheme(pairing_named(name), aggregation)
    group = await judge_group(table, texts("a 1", "b 5", "", "c 3"), SEED, scheme)
    assert len(table.asked) == calls and group.unjudged == (2,)
    assert [round(score, 6) for score in group.scores] == [1, 5, 1, 3]
