"""Evaluations beside training: a fleet whose answers are known, and judges that know the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest

from rollout_server.client import Sampling
from trainer.config import RunSettings
from trainer.contest import Contest
from trainer.initial_answers import INITIAL_ANSWERS_FILE
from trainer.prompts import Prompt, hash_seed
from trainer.round import ANSWERS_AT_ONCE, COMPARISONS_AT_ONCE
from wire.errors import ConfigError, ServiceError
from wire.generation import Completion, PolicyVersion, VersionSpan
from wire.judgement import Verdict

NUM = 40
PROMPTS = [Prompt(number, ({"role": "user", "content": f"sea {number}?"},), (number, 5)) for number in range(NUM)]


def quality(prompt: int, step: int) -> int:
    """The planted truth, 1..5, of the answer of a policy of that step; training helps."""
    return min(5, Random(hash_seed("truth", prompt, step)).randint(1, 3) + (step > 0) * Random(prompt).randint(0, 2))


class World:
    """Fleet and judge. An answer's text is its prompt, its writer and its quality; its length grows with the step."""

    def __init__(self) -> None:
        self.live = PolicyVersion(0, 0)
        self.requests: list[dict[str, Any]] = []
        self.writing = self.most_writing = self.judging = self.most_judging = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.lost: set[int] = set()  # prompts that no replica answers
        self.is_missing: Callable[[Sequence[str]], bool] = lambda _: False
        self.said: list[str] = []

    @asynccontextmanager
    async def generate(
        self, token_ids: Sequence[int], num: int, *, seed: int, salt: Callable[[], str], sampling: Any, background: Any
    ) -> AsyncIterator[list[asyncio.Future[Completion]]]:
        assert num == 1
        request = {"seed": seed, "salt": salt(), "sampling": sampling, "background": background}
        self.requests.append(request)
        task = asyncio.create_task(self._write(token_ids[0]))
        try:
            yield [task]
        finally:
            task.cancel()

    async def _write(self, prompt: int) -> Completion:
        self.writing += 1
        self.most_writing = max(self.most_writing, self.writing)
        first = self.live
        try:
            await asyncio.sleep(0)
            await self.go_on.wait()
        finally:
            self.writing -= 1
        if prompt in self.lost:
            raise ServiceError("a prompt was not answered within 5 s")
        ids = (prompt, first.step, *(1,) * (prompt % 3 + first.step))
        spans = (VersionSpan(first.label, 0, 1), VersionSpan(self.live.label, 1, len(ids)))
        return Completion(0, ids, (-0.5,) * len(ids), prompt % 4 > 0, spans, "http://replica-0")

    async def judge(
        self, conversation: Any, responses: Sequence[str], seed: int, vote: int = 0, *, background: Any = None
    ) -> Verdict:
        self.judging += 1
        self.most_judging = max(self.most_judging, self.judging)
        await asyncio.sleep(0)
        self.judging -= 1
        if self.is_missing(responses):
            return Verdict(missing="timeout")
        return Verdict(scores=tuple(float(text.split()[-1]) for text in responses))


def decode(ids: Sequence[int]) -> str:
    return f"{ids[0]} by {ids[1]} {quality(ids[0], ids[1])}"


def contest(world: World, *, judges: Sequence[Any] = (), truth: Any = None, **changes: Any) -> Contest:
    given = {"eval_steps": 10, "response_length": 64, "eval_top_p": 0.9, **changes}
    return Contest(
        RunSettings(device="cpu", **given),
        PROMPTS,
        world,
        [world, *judges],
        decode=decode,
        stop_token_ids=(2,),
        version=lambda: world.live,
        say=world.said.append,
        truth=truth,
    )


def counted(step: int, prompts: Sequence[int] = range(NUM)) -> float:
    """The win rate, straight from the truth."""
    pairs = [(quality(prompt, step), quality(prompt, 0)) for prompt in prompts]
    return sum((ours > theirs) + (ours == theirs) / 2 for ours, theirs in pairs) / len(pairs)


async def settled(running: Contest) -> None:
    while running._running is not None and not running._running.done():
        await asyncio.sleep(0)


async def test_the_win_rate_is_that_of_the_planted_truth(tmp_path: Path) -> None:
    world = World()
    async with contest(world) as running:
        await running.meet(tmp_path)
        world.live = PolicyVersion(0, 10)
        running.begin_if_due(10)
        await settled(running)
        metrics = running.metrics()
        assert running.metrics() == {}  # each evaluation is told of once
    assert metrics["eval/win_rate"] == pytest.approx(counted(10)) and counted(10) > 0.6
    assert metrics["eval/win_rate_low"] < counted(10) < metrics["eval/win_rate_high"]
    assert metrics["eval/score"] == pytest.approx(sum(quality(prompt, 10) for prompt in range(NUM)) / NUM)
    lengths = [2 + prompt % 3 + 10 for prompt in range(NUM)]
    assert metrics["eval/length"] == pytest.approx(sum(lengths) / NUM)
    assert metrics["eval/truncated"] == 0.25 and metrics["eval/missing"] == 0 and metrics["eval/step"] == 10
    # All answers are longer by the same: there is nothing to control.
    assert metrics["eval/length_controlled_win_rate"] == metrics["eval/win_rate"]
    assert metrics["eval/skipped"] == 0 and "eval/second_win_rate" not in metrics


async def test_answers_are_drawn_as_the_settings_say_in_the_background_and_few_at_once(tmp_path: Path) -> None:
    world = World()
    async with contest(world, eval_temperature=0.6) as running:
        await running.meet(tmp_path)
        assert all(request["background"] is None for request in world.requests)
        initial, world.requests, world.most_writing = world.requests, [], 0
        world.live = PolicyVersion(0, 10)
        running.begin_if_due(10)
        await settled(running)
    assert len(initial) == len(world.requests) == NUM
    assert not any(request["background"].is_set() for request in world.requests)
    assert world.requests[0]["sampling"] == Sampling(64, 0.6, (2,), 0.9)
    assert world.requests[3]["seed"] == hash_seed(42, "eval", 3, "0.10") != initial[3]["seed"]
    assert world.requests[0]["salt"].endswith("-0.10") and initial[0]["salt"].endswith("-0.0")
    assert world.most_writing == ANSWERS_AT_ONCE and world.most_judging == 2 * COMPARISONS_AT_ONCE


async def test_it_begins_when_it_is_due_and_the_next_is_skipped_while_it_runs(tmp_path: Path) -> None:
    world = World()
    async with contest(world) as running:
        await running.meet(tmp_path)
        world.go_on.clear()
        running.begin_if_due(9)
        assert running._running is None
        for step in (10, 11, 20, 30):
            running.begin_if_due(step)  # returns at once
            await asyncio.sleep(0)
        assert running.metrics() == {"eval/skipped": 2} and running.num_skipped == 2
        world.go_on.set()
        await settled(running)
        running.begin_if_due(40)
        assert running.metrics()["eval/step"] == 10
        await settled(running)
        assert running.metrics()["eval/step"] == 40
    assert world.said == [f"evaluation {step} is left out: that of step 10 still runs" for step in (20, 30)]


class Full(World):
    """Training leaves no room at all: only who has lost its patience is served."""

    @asynccontextmanager
    async def generate(
        self, *args: Any, background: Any, **order: Any
    ) -> AsyncIterator[list[asyncio.Future[Completion]]]:
        if background is not None:
            await background.wait()
        async with super().generate(*args, background=background, **order) as futures:
            yield futures

    async def judge(self, *args: Any, background: Any = None, **order: Any) -> Verdict:
        await background.wait()
        return await super().judge(*args, background=background, **order)


@pytest.mark.parametrize(("share", "last"), [(1.0, 11), (0.5, 12), (0.25, 24), (0.0, None)])
async def test_where_training_leaves_no_room_it_ends_within_the_steps_that_its_share_comes_to(
    tmp_path: Path, share: float, last: int | None
) -> None:
    """16 completions and 16 verdicts a step, 40 prompts every 10 steps: 80 verdicts are 5 steps' worth."""
    world, ended = Full(), list[int]()
    async with contest(world, eval_share=share, total_episodes=16 * 60) as running:
        await running.meet(tmp_path)
        for step in range(10, 40):
            running.begin_if_due(step)
            for _ in range(50):
                await asyncio.sleep(0)
            if running.metrics().get("eval/step") == 10:
                ended.append(step - 10)
    assert ended == [] if last is None else 8 <= ended[0] <= last
    assert running.last is None or running.last.missing == 0


async def test_pushes_go_on_meanwhile_and_the_versions_that_wrote_are_told(tmp_path: Path) -> None:
    world = World()
    async with contest(world) as running:
        await running.meet(tmp_path)
        world.go_on.clear()
        world.live = PolicyVersion(0, 10)
        running.begin_if_due(10)
        while world.writing < ANSWERS_AT_ONCE:
            await asyncio.sleep(0)
        world.live = PolicyVersion(0, 12)
        world.go_on.set()
        await settled(running)
        running.metrics()
    found = running.summary()["evaluation"]
    assert (found["oldest_version"], found["newest_version"], found["step"]) == ("0.10", "0.12", 10)


async def test_what_is_missing_is_left_out_and_counted(tmp_path: Path) -> None:
    world = World()
    async with contest(world) as running:
        await running.meet(tmp_path)
        world.lost = {1, 2, 3}
        world.is_missing = lambda responses: any(text.split()[0] in ("4", "5") for text in responses)
        world.live = PolicyVersion(0, 10)
        running.begin_if_due(10)
        await settled(running)
        metrics = running.metrics()
    there = [prompt for prompt in range(NUM) if prompt not in (1, 2, 3, 4, 5)]
    assert metrics["eval/missing"] == pytest.approx(5 / NUM)
    assert metrics["eval/win_rate"] == pytest.approx(counted(10, there))
    assert world.said == [
        "evaluation 10: 3 answers or comparisons failed; the first: a prompt was not answered within 5 s"
    ]


async def test_a_judge_that_is_silent_leaves_no_win_rate_and_no_made_up_one(tmp_path: Path) -> None:
    world = World()
    async with contest(world) as running:
        await running.meet(tmp_path)
        world.is_missing = lambda responses: True
        world.live = PolicyVersion(0, 10)
        await running.finish(10)
    assert running.last is not None
    assert running.last.win_rate is running.last.score is running.last.length_controlled_win_rate is None
    assert running.last.missing == 1 and "eval/win_rate" not in running.last.metrics()


async def test_a_second_judge_has_a_word_of_its_own(tmp_path: Path) -> None:
    class Contrary(World):
        async def judge(self, *args: Any, **kwargs: Any) -> Verdict:
            verdict = await super().judge(*args, **kwargs)
            return Verdict(scores=tuple(6 - score for score in verdict.scores or ()))

    world = World()
    async with contest(world, judges=[Contrary()]) as running:
        await running.meet(tmp_path)
        world.live = PolicyVersion(0, 10)
        running.begin_if_due(10)
        await settled(running)
        metrics = running.metrics()
    assert metrics["eval/second_win_rate"] == pytest.approx(1 - counted(10))
    assert metrics["eval/judge_gap"] == pytest.approx(2 * counted(10) - 1)
    assert metrics["eval/second_score"] == pytest.approx(6 - metrics["eval/score"])
    assert metrics["eval/judge_gap_low"] < metrics["eval/judge_gap"] < metrics["eval/judge_gap_high"]
    gained = fmean(quality(prompt, 10) - quality(prompt, 0) for prompt in range(NUM))
    assert (metrics["eval/margin"], metrics["eval/second_margin"]) == pytest.approx((gained, -gained))
    assert metrics["eval/score_gap"] == pytest.approx(2 * gained)
    assert 0 < metrics["eval/score_gap_low"] < metrics["eval/score_gap"] < metrics["eval/score_gap_high"]


async def test_a_gap_is_that_of_the_prompts_on_which_both_judges_have_a_word(tmp_path: Path) -> None:
    world, second = World(), World()
    second.is_missing = lambda responses: responses[0].split()[0] in ("0", "1", "2", "3")
    world.is_missing = lambda responses: responses[0].split()[0] in ("4", "5")
    async with contest(world, judges=[second]) as running:
        await running.meet(tmp_path)
        world.live = PolicyVersion(0, 10)
        running.begin_if_due(10)
        await settled(running)
        metrics = running.metrics()
    assert metrics["eval/win_rate"] != metrics["eval/second_win_rate"] and metrics["eval/judge_gap"] == 0
    assert metrics["eval/judge_gap_low"] < 0 < metrics["eval/judge_gap_high"]
    assert metrics["eval/margin"] != metrics["eval/second_margin"] and metrics["eval/score_gap"] == 0
    assert metrics["eval/score_gap_low"] < 0 < metrics["eval/score_gap_high"]


async def test_where_the_truth_is_known_it_is_told_of_both_answers(tmp_path: Path) -> None:
    world = World()
    async with contest(world, truth=lambda _, text: float(text.split()[-1]) / 2) as running:
        await running.meet(tmp_path)
        world.live = PolicyVersion(0, 10)
        running.begin_if_due(10)
        await settled(running)
        metrics = running.metrics()
    assert metrics["eval/truth"] == pytest.approx(metrics["eval/score"] / 2)
    assert running.last is not None
    assert running.last.initial_truth == pytest.approx(sum(quality(prompt, 0) for prompt in range(NUM)) / NUM / 2)


async def test_a_resumed_run_has_the_initial_answers_and_asks_nobody_for_them(tmp_path: Path) -> None:
    world = World()
    async with contest(world) as running:
        await running.meet(tmp_path)
    assert len((tmp_path / INITIAL_ANSWERS_FILE).read_text().splitlines()) == NUM
    assert [path.name for path in tmp_path.iterdir()] == [INITIAL_ANSWERS_FILE]
    later = World()
    later.live = PolicyVersion(0, 7)
    async with contest(later) as resumed:
        await resumed.meet(tmp_path)
        assert not later.requests
        later.live = PolicyVersion(0, 10)
        await resumed.finish(10)
    assert resumed.last is not None and resumed.last.win_rate == pytest.approx(counted(10))


async def test_a_resumed_run_without_them_or_with_others_is_refused(tmp_path: Path) -> None:
    world = World()
    world.live = PolicyVersion(0, 7)
    with pytest.raises(ConfigError, match=r"initial_answers.jsonl: No such file.*eval_steps 0"):
        await contest(world).meet(tmp_path)
    world.live = PolicyVersion(0, 0)
    await contest(world).meet(tmp_path)
    world.live = PolicyVersion(0, 7)
    with pytest.raises(ConfigError, match=r"40 answers, and they are not to these 40 prompts at temperature 0.2"):
        await contest(world, eval_temperature=0.2).meet(tmp_path)
    (tmp_path / INITIAL_ANSWERS_FILE).write_text('{"asked": 3}\n')
    with pytest.raises(ConfigError, match=r"initial_answers.jsonl: Expected `str`"):
        await contest(world).meet(tmp_path)


async def test_the_end_waits_for_the_final_policys_own_and_drops_an_older_one(tmp_path: Path) -> None:
    world = World()
    async with contest(world) as running:
        await running.meet(tmp_path)
        world.go_on.clear()
        world.live = PolicyVersion(0, 10)
        running.begin_if_due(10)
        await asyncio.sleep(0)
        world.go_on.set()
        world.live = PolicyVersion(0, 15)
        await running.finish(15)
        metrics = running.metrics()
    assert metrics["eval/step"] == 15 and metrics["eval/skipped"] == 1
    assert metrics["eval/win_rate"] == pytest.approx(counted(15))
    assert running.summary()["evaluation"]["newest_version"] == "0.15"


async def test_the_end_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    world = World()
    before = asyncio.all_tasks()
    async with contest(world, eval_wait_s=0.05) as running:
        await running.meet(tmp_path)
        world.go_on.clear()
        await running.finish(15)
    assert running.last is None and running.summary() == {"evaluation": None, "evaluations_skipped": 1}
    assert running.metrics() == {"eval/skipped": 1} and not world.writing
    assert "did not end within 0.05 s; raise eval_wait_s" in world.said[-1]
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("changes", [{"eval_steps": 0}])
async def test_where_it_is_off_nothing_is_asked(tmp_path: Path, changes: dict[str, Any]) -> None:
    world = World()
    async with contest(world, **changes) as running:
        await running.meet(tmp_path)
        running.begin_if_due(10)
        await running.finish(20)
    assert not world.requests and not list(tmp_path.iterdir()) and running.metrics() == {}


async def test_a_defect_is_not_hidden(tmp_path: Path) -> None:
    world = World()
    async with contest(world) as running:
        await running.meet(tmp_path)
        world.judge = None  # type: ignore[assignment,method-assign]
        running.begin_if_due(10)
        await settled(running)
        with pytest.raises(TypeError):
            running.begin_if_due(11)
