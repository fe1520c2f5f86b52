"""A verdict that was given before is not asked for again."""

import asyncio

from reward_server.client import RewardClient
from wire.judgement import Message, Verdict


class Service(RewardClient):
    """A client whose service likes longer answers."""

    def __init__(self):
        super().__init__("http://127.0.0.1:9", "token", timeout_s=1.0)
        self.asked = []

    async def judge(self, conversation, responses, seed, vote=0):
        self.asked.append((tuple(responses), seed, vote))
        first, second = responses
        return Verdict(scores=(float(len(first)), float(len(second))), ranking=1 if len(first) > len(second) else 6)


class Memory(dict):
    def recall(self, seed, vote):
        return self.get((seed, vote))

    def note(self, seed, vote, verdict):
        self[seed, vote] = verdict


async def judged(service, memory, answers=("a", "bb", "ccc"), seed=7):
    futures = [asyncio.get_running_loop().create_future() for _ in answers]
    for future, answer in zip(futures, answers, strict=True):
        future.set_result(answer)
    return await service.group([Message(role="user", content="count")], futures, seed, memory)


async def test_a_group_is_scored_from_memory_alone_where_all_its_verdicts_are_known():
    service, memory = Service(), Memory()
    first = await judged(service, memory)
    assert len(service.asked) == len(memory) == 3
    assert await judged(service, memory) == first and len(service.asked) == 3


async def test_another_answer_or_another_seed_is_another_pair():
    service, memory = Service(), Memory()
    await judged(service, memory)
    await judged(service, memory, answers=("a", "bb", "dddd"))
    assert len(service.asked) == 5  # the pair that is left of the ring is known
    await judged(service, memory, seed=8)
    assert len(service.asked) == 8
