"""One group's whole way, with the fleet, the judge and the learner as fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from reward_server.client import VerdictMemory
from rollout_server.client import NONE_KNOWN
from trainer.batch import Sample
from trainer.collect import Collector, Logprobs
from trainer.config import RunSettings
from trainer.group import Group
from trainer.ledger import Ledger
from trainer.ledger_past import Past, Remembered
from trainer.lineage import Fork, Lineage
from trainer.prompts import Prompt
from wire.errors import PromptDropped, ServiceError
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import GroupVerdict, Message, MissingReason, PlacedVerdict, Verdict

PROMPT = Prompt(5, ({"role": "user", "content": "sea?"},), (1, 2, 3))


class World:
    """Completion i is `i + 1` tokens; the last is cut at its limit. `events` is what happened, in order."""

    def __init__(self, scores: Sequence[float | None] = (1.0, 2.0, 4.0)) -> None:
        self.scores = scores
        self.events: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.pairing_seeds: list[int] = []
        self.scored: list[Sample] = []
        self.pauses: dict[int, float] = {}
        self.version = self.learner_version = PolicyVersion(0, 7)
        self.steps_during_the_pass = 0
        self.failure: Exception | None = None
        self.judge_hangs = False
        self.missing: MissingReason | None = None  # of one verdict more than the scores need

    @asynccontextmanager
    async def generate(
        self,
        token_ids: Sequence[int],
        num: int,
        *,
        seed: int,
        salt: Callable[[], str],
        known: Mapping[int, Completion] = NONE_KNOWN,
    ) -> AsyncIterator[list[asyncio.Future[Completion]]]:
        self.requests.append({"token_ids": token_ids, "num": num, "seed": seed, "salt": salt()})
        futures = [asyncio.get_running_loop().create_future() for _ in range(num)]
        for index, completion in known.items():
            futures[index].set_result(completion)
        task = asyncio.create_task(self._write(futures))
        try:
            yield futures
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for future in futures:
                if future.done() and not future.cancelled():
                    future.exception()
                future.cancel()
            self.events.append("left generate")

    async def _write(self, futures: list[asyncio.Future[Completion]]) -> None:
        for index, future in enumerate(futures):
            if future.done():
                continue
            await asyncio.sleep(self.pauses.get(index, 0))
            if self.failure is not None and index == 1:
                future.set_exception(self.failure)
                continue
            ids = tuple(range(10, 11 + index))
            spans = (VersionSpan("0.7", 0, len(ids)),)
            finished = index < len(futures) - 1
            future.set_result(Completion(index, ids, (-0.5,) * len(ids), finished, spans, "http://replica-0"))
            self.events.append(f"written {index}")

    async def group(
        self,
        conversation: Sequence[Message],
        completions: Sequence[asyncio.Future[str | None]],
        seed: int,
        memory: VerdictMemory | None = None,
    ) -> GroupVerdict:
        assert list(conversation) == [Message(role="user", content="sea?")]
        self.pairing_seeds.append(seed)
        for index, completion in enumerate(completions):
            text = await completion
            self.events.append(f"judged {index}: {text}")
        if self.judge_hangs:
            await asyncio.Event().wait()
        await asyncio.sleep(0.01)
        lost = [PlacedVerdict(first=0, second=1, verdict=Verdict(missing=self.missing))] if self.missing else []
        return GroupVerdict(scores=tuple(self.scores), verdicts=tuple(lost))

    async def reference(self, samples: Sequence[Sample]) -> list[Logprobs]:
        self.events.append("reference")
        self.scored += samples
        await asyncio.sleep(0)
        self.learner_version = PolicyVersion(0, self.learner_version.step + self.steps_during_the_pass)
        return [([-1.0] * len(s.completion_ids), [-3.0] * len(s.completion_ids)) for s in samples]


def forgetful() -> Ledger:
    """A ledger that is never opened: it recalls nothing and keeps nothing."""
    return Ledger(Path(), Past(PolicyVersion(0, 0), Lineage(0, {})))


def collector(world: World, ledger: Ledger | None = None, **changes: Any) -> Collector:
    settings = RunSettings(
        device="cpu", **{"rloo_k": 3, "kl_coef": 0.1, "missing_eos_penalty": 1.0, "seed": 9, **changes}
    )
    return Collector(
        settings,
        world,
        world,
        world,
        lambda ids: f"text of {len(ids)}",
        version=lambda: world.version,
        learner_version=lambda: world.learner_version,
        ledger=ledger or forgetful(),
    )


async def test_a_group_holds_scores_less_penalty_and_rewards_less_kl() -> None:
    world = World()
    group = await collector(world)(PROMPT)
    assert isinstance(group, Group) and group.prompt is PROMPT
    assert group.texts == ["text of 1", "text of 2", "text of 3"]
    assert group.kl_K == [2.0, 4.0, 6.0]  # own - reference = 2 nats a token
    assert group.entropy_K == [1.0, 2.0, 3.0]
    assert group.scores_K == [1.0, 2.0, 3.0]  # the last was cut: 4 - 1
    assert group.rewards_K == pytest.approx([0.8, 1.6, 2.4])
    assert group.oldest_version == PolicyVersion(0, 7)


async def test_the_learner_scores_the_completions_as_they_were_sampled() -> None:
    world = World()
    await collector(world)(PROMPT)
    assert world.scored == [
        Sample((1, 2, 3), (10,), (-0.5,)),
        Sample((1, 2, 3), (10, 11), (-0.5, -0.5)),
        Sample((1, 2, 3), (10, 11, 12), (-0.5, -0.5, -0.5)),
    ]


async def test_a_missing_verdict_stays_missing_and_its_completion_is_not_trained_on() -> None:
    group = await collector(World(scores=(1.0, None, 4.0)))(PROMPT)
    assert (group.scores_K[1], group.rewards_K[1]) == (None, None)
    assert group.kl_K[1] == 4.0


@pytest.mark.parametrize("scores", [(None, None, None), (3.0, None, None)])
async def test_fewer_than_two_scores_drop_the_prompt_before_the_learner_works_for_it(scores) -> None:
    world = World(scores=scores)
    num = sum(score is not None for score in scores)
    with pytest.raises(PromptDropped, match=f"prompt 5: {num} of 3 completions have a score"):
        await collector(world)(PROMPT)
    assert "reference" not in world.events


async def test_fewer_than_two_completions_that_are_not_masked_drop_the_prompt_too() -> None:
    world = World(scores=(3.0, None, 4.0))  # the last was cut
    await collector(world)(PROMPT)
    with pytest.raises(PromptDropped, match=r"2 of 3 completions have a score .*; 1 were cut and are masked"):
        await collector(world, mask_truncated_completions=True)(PROMPT)
    group = await collector(World(), mask_truncated_completions=True)(PROMPT)
    assert group.scores_K == [1.0, 2.0, 3.0]  # its numbers stay on record


async def test_the_gap_is_over_the_tokens_of_the_weights_that_the_learner_held() -> None:
    world = World()
    group = await collector(world)(PROMPT)
    assert (group.gap.count, group.gap.mean) == (6, -0.5)  # own -1, sampled -0.5
    world.learner_version = PolicyVersion(0, 8)
    assert (await collector(world)(PROMPT)).gap.count == 0


async def test_where_a_step_began_during_the_pass_the_gap_is_not_known() -> None:
    world = World()
    world.steps_during_the_pass = 1
    assert (await collector(world)(PROMPT)).gap.count == 0


async def test_the_judge_reads_a_completion_before_the_last_one_is_written() -> None:
    world = World()
    world.pauses = {2: 0.05}
    await collector(world)(PROMPT)
    assert world.events.index("judged 1: text of 2") < world.events.index("written 2")
    assert world.events[-2:] == ["left generate", "reference"]


async def test_the_stages_are_timed_and_say_who_waits_for_whom() -> None:
    world = World()
    world.pauses = {2: 0.05}
    make = collector(world)
    assert make.slowest() == "nobody"
    task = asyncio.create_task(make(PROMPT))
    await asyncio.sleep(0.01)
    assert make.num_at["replicas"] == 1 and make.slowest() == "replicas"
    group = await task
    assert set(group.seconds) == {"generate", "judge", "reference"}
    assert group.seconds["generate"] >= 0.045 and group.seconds["judge"] >= 0.005
    assert not +make.num_at


async def test_cancellation_leaves_no_task_behind() -> None:
    world = World()
    world.judge_hangs = True
    make = collector(world)
    before = asyncio.all_tasks()
    task = asyncio.create_task(make(PROMPT))
    while "judged 2: text of 3" not in world.events:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
    assert world.events[-1] == "left generate" and not +make.num_at


async def test_a_completion_that_failed_fails_the_group_and_leaves_no_task_behind() -> None:
    world = World()
    world.failure = ServiceError("http://replica-0 is gone")
    before = asyncio.all_tasks()
    with pytest.raises(ServiceError, match="replica-0 is gone"):
        await collector(world)(PROMPT)
    assert asyncio.all_tasks() == before


async def test_seeds_differ_by_purpose_and_occurrence_and_only_the_completions_by_version() -> None:
    world = World()
    make = collector(world)
    await make.judged(PROMPT)
    await make.judged(PROMPT, purpose="held-out")
    await make.judged(Prompt(6, PROMPT.conversation, PROMPT.token_ids))
    world.version = PolicyVersion(1, 7)
    await make.judged(PROMPT)
    assert len({request["seed"] for request in world.requests}) == 4
    assert world.pairing_seeds[0] == world.pairing_seeds[3] and len(set(world.pairing_seeds)) == 3
    salts = [request["salt"].split("-") for request in world.requests]
    assert [version for _, version in salts] == ["0.7"] * 3 + ["1.7"] and len({life for life, _ in salts}) == 1
    assert world.requests[0]["token_ids"] == (1, 2, 3) and world.requests[0]["num"] == 3


async def test_runs_over_the_same_replicas_share_no_cached_prefix_for_their_weights_have_the_same_labels() -> None:
    world = World()
    for _ in range(2):
        await collector(world).judged(PROMPT)
    assert len({request["salt"] for request in world.requests}) == 2


@pytest.mark.parametrize("reason", ["timeout", "server_lost"])
async def test_a_deterministic_run_does_not_go_on_without_a_verdict_that_only_time_took(reason: MissingReason) -> None:
    world = World()
    world.missing = reason
    assert await collector(world)(PROMPT)
    with pytest.raises(ServiceError, match=f"prompt 5: verdicts are missing \\(1 {reason}\\).*resume it"):
        await collector(world, deterministic=True)(PROMPT)


@pytest.mark.parametrize("reason", ["unreadable", "too_long", "refused"])
async def test_a_verdict_that_the_text_itself_cannot_have_is_missing_in_every_run(reason: MissingReason) -> None:
    world = World()
    world.missing = reason
    assert await collector(world, deterministic=True)(PROMPT)


def written_by(version: str, index: int = 1, text_tokens: int = 5) -> Completion:
    ids = tuple(range(30, 30 + text_tokens))
    return Completion(index, ids, (-0.5,) * len(ids), True, (VersionSpan(version, 0, len(ids)),), "http://replica-9")


@pytest.mark.parametrize(
    ("version", "num_before", "is_used"),
    [
        ("0.6", 0, True),  # live is 1.7, and one step may lie between
        ("0.5", 0, False),  # too old by now
        ("0.6", 1, False),  # by the time it is trained on it would be
        ("0.7", 1, True),
        ("1.7", 0, True),
        ("0.8", 0, False),  # of weights that are no ancestor of these
    ],
)
async def test_what_the_ledger_holds_is_used_while_its_weights_are_ancestors_and_young_enough(
    version: str, num_before: int, is_used: bool
) -> None:
    world = World()
    world.version = world.learner_version = PolicyVersion(1, 7)
    remembered = {5: Remembered({1: written_by(version)}, {})}
    ledger = Ledger(Path(), Past(PolicyVersion(1, 7), Lineage(1, {1: Fork(0, 7)}), remembered))
    changes = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "max_lag": 1}
    group = await collector(world, ledger, **changes)(PROMPT, num_before)
    assert (group.completions[1].replica == "http://replica-9") is is_used
    assert ledger.counts == {"reused_completions": int(is_used), "discarded_completions": int(not is_used)}


async def test_held_out_completions_are_not_in_the_ledger() -> None:
    remembered = {5: Remembered({1: written_by("0.7")}, {})}
    ledger = Ledger(Path(), Past(PolicyVersion(0, 7), Lineage(0, {}), remembered))
    world = World()
    judged = await collector(world, ledger).judged(PROMPT, purpose="held-out")
    assert judged.completions[1].replica == "http://replica-0" and not ledger.counts
