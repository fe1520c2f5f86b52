"""The learner ranks driven together; the actors are fakes with Ray's `method.remote(...)`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rollout_server.push import Superseded
from trainer.batch import MiniBatch, Sample, build_batch
from trainer.collect import Logprobs
from trainer.config import RunSettings
from trainer.ranks import Learner
from trainer.stats import StepStats
from wire.errors import ServiceError
from wire.generation import PolicyVersion
from wire.membership import Member, Outcome, TransferReport

MEMBER = Member("http://a", 1, "b007")
WHOLE = TransferReport({MEMBER.url: Outcome.DONE}, {})


class Method:
    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.call = call

    def remote(self, *args: Any) -> Awaitable[Any]:
        return self.call(*args)


class Ranks:
    """What all ranks saw; `running` are the calls that are under way on each."""

    def __init__(self, num: int = 2) -> None:
        self.actors = [Actor(self, rank) for rank in range(num)]
        self.calls: list[tuple[int, str]] = []
        self.arguments: dict[str, list[tuple[Any, ...]]] = {}
        self.running: dict[int, str] = {}
        self.failing: dict[tuple[int, str], Exception] = {}
        self.hanging: set[tuple[int, str]] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_samples: list[int] = []
        self.sends_beside = False
        self.beside: list[str] = []
        self.beside_gate = asyncio.Event()

    def methods(self, rank: int) -> list[str]:
        return [method for r, method in self.calls if r == rank]


class Actor:
    """One rank: own log-probs are the completion's tokens, the reference's their negatives."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank = ranks, rank

    def __getattr__(self, name: str) -> Method:
        if name.endswith("_beside"):
            return Method(lambda *args: self.run_beside(name))
        return Method(lambda *args: self.run(name, args))

    async def run_beside(self, name: str) -> TransferReport:
        assert self.rank == 0
        self.ranks.beside.append(name)
        await self.ranks.beside_gate.wait()
        return WHOLE

    async def run(self, name: str, args: tuple[Any, ...]) -> Any:
        ranks = self.ranks
        others = {method for rank, method in ranks.running.items() if rank != self.rank}
        assert self.rank not in ranks.running and others <= {name}, f"{name} on {self.rank} beside {ranks.running}"
        ranks.running[self.rank] = name
        ranks.calls.append((self.rank, name))
        ranks.arguments.setdefault(name, []).append(args)
        try:
            if (self.rank, name) in ranks.hanging:
                await asyncio.Event().wait()
            await asyncio.sleep(0.001 * (self.rank + 1))
            await ranks.gate.wait()
            if (self.rank, name) in ranks.failing:
                raise ranks.failing[self.rank, name]
            return self.answer(name, args)
        finally:
            del ranks.running[self.rank]

    def answer(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "reference":
            self.ranks.num_samples.append(sum(len(samples) for samples in args[0]))
            return [
                [(list(map(float, s.completion_ids)), [-float(t) for t in s.completion_ids]) for s in samples]
                for samples in args[0]
            ]
        if name == "step":
            return StepStats(loss=0.25, num_tokens=10, grad_norm=2.0)
        facts = {"num_parameters": 5, "sends_beside": self.ranks.sends_beside}
        return {"pick_port": 4711, "setup": facts, "open_transfer": WHOLE, "send_weights": WHOLE}.get(name)


def learner(ranks: Ranks, **changes: Any) -> Learner:
    defaults = {"local_rollout_forward_batch_size": 4, "max_prompt_length": 4, "response_length": 4}
    settings = RunSettings(device="cpu", num_learner_ranks=len(ranks.actors), **{**defaults, **changes})
    return Learner(ranks.actors, settings)


def group(*tokens: int, length: int = 1) -> list[Sample]:
    """Samples whose completion is one token, repeated."""
    return [Sample((1,), (token,) * length, (0.0,) * length) for token in tokens]


def rows(*tokens: int, length: int = 1) -> list[Logprobs]:
    return [([float(token)] * length, [-float(token)] * length) for token in tokens]


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
async def test_each_group_gets_its_own_rows_back_in_order(num_ranks: int) -> None:
    ranks = Ranks(num_ranks)
    driver = learner(ranks)
    groups = [tuple(range(start, start + 4)) for start in range(0, 40, 4)]
    answers = await asyncio.gather(*(driver.reference(group(*tokens)) for tokens in groups))
    assert answers == [rows(*tokens) for tokens in groups]


async def test_samples_that_are_equal_get_a_row_each() -> None:
    driver = learner(Ranks())
    first, second = await asyncio.gather(driver.reference(group(7, 7, 8)), driver.reference(group(7, 9)))
    assert (first, second) == (rows(7, 7, 8), rows(7, 9))


async def test_samples_of_different_lengths_keep_their_order_though_ranks_get_the_longest_first() -> None:
    driver = learner(Ranks())
    samples = [*group(1, length=1), *group(2, length=4), *group(3, length=2)]
    assert await driver.reference(samples) == [*rows(1), *rows(2, length=4), *rows(3, length=2)]


async def test_groups_that_wait_together_are_scored_together_up_to_the_limit() -> None:
    ranks = Ranks(2)
    ranks.gate.clear()
    driver = learner(ranks)  # 4 a rank: 8 at once
    tasks = [asyncio.create_task(driver.reference(group(*range(3)))) for _ in range(5)]
    await asyncio.sleep(0.01)
    ranks.gate.set()
    await asyncio.gather(*tasks)
    passes = [sum(pair) for pair in zip(ranks.num_samples[::2], ranks.num_samples[1::2], strict=True)]
    assert sum(passes) == 15 and max(passes) <= 8
    assert passes == [6, 6, 3]


async def test_a_deterministic_run_scores_each_group_alone_whoever_waits_with_it() -> None:
    ranks = Ranks(1)
    ranks.gate.clear()
    driver = learner(ranks, deterministic=True)
    tasks = [asyncio.create_task(driver.reference(group(*range(3)))) for _ in range(4)]
    await asyncio.sleep(0.01)
    ranks.gate.set()
    await asyncio.gather(*tasks)
    assert ranks.num_samples == [3, 3, 3, 3]


async def test_a_group_larger_than_the_limit_is_scored_alone() -> None:
    ranks = Ranks(1)
    driver = learner(ranks, local_rollout_forward_batch_size=2)
    await asyncio.gather(driver.reference(group(1, 2, 3)), driver.reference(group(4, 5, 6)))
    assert ranks.num_samples == [3, 3]


async def test_one_call_runs_at_a_time_and_all_ranks_see_one_order() -> None:
    ranks = Ranks(3)  # an actor asserts that nothing runs beside it
    driver = learner(ranks)
    batch = build_batch(group(1, 2), num_ranks=3, num_mini_batches=1, token_budget=8)
    await asyncio.gather(
        driver.reference(group(1, 2)),
        driver.step(batch),
        driver.open_transfer([MEMBER], 5.0),
        driver.reference(group(3, 4)),
        driver.send_weights(PolicyVersion(0, 1), "push", 5.0),  # the version after the step
        driver.save("folder"),
        driver.load("folder"),
        driver.export("folder"),
        driver.export_adapter("folder"),
    )
    assert ranks.methods(0) == ranks.methods(1) == ranks.methods(2)
    assert sorted(set(ranks.methods(0))) == [
        "export", "export_adapter", "load", "open_transfer", "reference", "save", "send_weights", "step"
    ]  # fmt: skip


async def test_a_rank_without_work_runs_as_many_passes_as_the_others() -> None:
    ranks = Ranks(3)
    await learner(ranks).reference(group(1))
    passes = [len(args[0]) for args in ranks.arguments["reference"]]
    assert passes == [1, 1, 1] and ranks.num_samples.count(0) == 2


async def test_a_step_gives_each_rank_its_share_and_adds_the_ranks_up() -> None:
    ranks = Ranks(2)
    batch = [[MiniBatch([group(1)], 2)], [MiniBatch([group(2)], 2)]]
    stats = await learner(ranks).step(batch)
    assert [args[0] for args in ranks.arguments["step"]] == batch
    assert (stats.loss, stats.num_tokens, stats.grad_norm) == (0.5, 20, 2.0)


async def test_setup_lets_all_ranks_meet_at_rank_0s_port() -> None:
    ranks = Ranks(2)
    assert await learner(ranks).setup("127.0.0.1") == {"num_parameters": 5, "sends_beside": False}
    assert ranks.arguments["setup"] == [("127.0.0.1", 4711)] * 2
    assert ranks.calls[0] == (0, "pick_port") and ranks.methods(1) == ["setup"]


async def test_a_rank_that_fails_is_named_at_once_though_the_others_wait_for_it() -> None:
    ranks = Ranks(3)
    ranks.failing[1, "save"] = OSError(28, "No space left on device")
    ranks.hanging |= {(0, "save"), (2, "save")}
    with pytest.raises(ServiceError, match=r"learner rank 1: save: OSError: .*No space left on device"):
        async with asyncio.timeout(5):
            await learner(ranks).save("folder")


async def test_of_a_wrapped_error_the_cause_is_told() -> None:
    class Wrapped(Exception):
        cause = ServiceError("CUDA out of memory on learner rank 0\nHalve max_tokens_per_microbatch")

    ranks = Ranks(1)
    ranks.failing[0, "step"] = Wrapped("a traceback\nof many lines")
    with pytest.raises(ServiceError, match="rank 0: step: ServiceError: Halve max_tokens_per_microbatch"):
        await learner(ranks).step([[]])


async def test_a_missed_deadline_names_rank_and_method() -> None:
    ranks = Ranks(3)
    ranks.hanging |= {(2, "save")}
    with pytest.raises(ServiceError, match="learner rank 2 did not finish save within 0 s"):
        await learner(ranks, learner_timeout_s=0.1).save("folder")


async def test_a_transfer_has_its_own_deadline(monkeypatch) -> None:
    monkeypatch.setattr("trainer.ranks.TRANSFER_MARGIN_S", 0.05)
    ranks = Ranks(2)
    ranks.hanging |= {(1, "send_weights")}
    with pytest.raises(ServiceError, match="learner rank 1 did not finish send_weights within 0 s"):
        await learner(ranks, learner_timeout_s=600.0).send_weights(PolicyVersion(0, 0), "push", 0.1)


async def test_only_the_version_that_the_ranks_hold_can_be_sent() -> None:
    ranks = Ranks(1)
    driver = learner(ranks)
    driver.begin_at(PolicyVersion(2, 30))
    assert driver.version == PolicyVersion(2, 30)
    await driver.step(build_batch(group(1, 2), num_ranks=1, num_mini_batches=1, token_budget=8))
    with pytest.raises(Superseded, match=r"version 2\.30: the learner holds 2\.31"):
        await driver.send_weights(PolicyVersion(2, 30), "push", 5.0)
    assert await driver.send_weights(PolicyVersion(2, 31), "push", 5.0) == WHOLE
    assert ranks.methods(0) == ["step", "send_weights"]


async def test_where_rank_0_holds_all_weights_it_sends_them_beside_a_reference_pass_and_the_step_waits() -> None:
    ranks = Ranks(2)
    ranks.sends_beside = True
    driver = learner(ranks)
    await driver.setup("127.0.0.1")
    ranks.calls.clear()
    release = asyncio.Event()
    ranks.beside_gate = release
    sending = asyncio.create_task(driver.send_weights(PolicyVersion(0, 0), "push", 5.0))
    await asyncio.sleep(0.01)
    assert await driver.reference(group(1)) == rows(1)  # not held up
    stepping = asyncio.create_task(driver.step([[MiniBatch([group(1)], 2)], [MiniBatch([group(2)], 2)]]))
    await asyncio.sleep(0.02)
    assert "step" not in ranks.methods(0)  # the weights that are being sent must not change
    release.set()
    assert await sending == WHOLE
    await stepping
    assert ranks.beside == ["send_weights_beside"] and ranks.methods(1) == ["reference", "step"]


async def test_a_failed_pass_fails_the_groups_in_it_and_the_next_is_tried_anew() -> None:
    ranks = Ranks(2)
    ranks.failing[0, "reference"] = RuntimeError("boom")
    driver = learner(ranks)
    results = await asyncio.gather(*(driver.reference(group(1, 2)) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in results] == ["learner rank 0: reference: RuntimeError: boom"] * 3
    ranks.failing.clear()
    assert await driver.reference(group(5)) == rows(5)


async def test_after_a_failed_pass_those_that_still_waited_get_an_answer_too() -> None:
    ranks = Ranks(1)
    ranks.failing[0, "reference"] = RuntimeError("boom")
    driver = learner(ranks, local_rollout_forward_batch_size=2)
    async with asyncio.timeout(5):
        results = await asyncio.gather(*(driver.reference(group(1, 2)) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in results] == [ServiceError] * 3
    assert ranks.num_samples == [] and len(ranks.methods(0)) == 3


async def test_closing_ends_the_wait_of_every_group() -> None:
    ranks = Ranks(1)
    ranks.hanging.add((0, "reference"))
    driver = learner(ranks, local_rollout_forward_batch_size=2)
    tasks = [asyncio.create_task(driver.reference(group(1, 2))) for _ in range(3)]
    await asyncio.sleep(0.01)
    await driver.close()
    async with asyncio.timeout(5):
        await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)


async def test_a_group_that_gave_up_waiting_harms_no_other() -> None:
    ranks = Ranks(2)
    ranks.gate.clear()
    driver = learner(ranks)
    tasks = [asyncio.create_task(driver.reference(group(token))) for token in (1, 2)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    ranks.gate.set()
    assert await tasks[1] == rows(2)


async def test_closing_asks_every_rank_and_minds_no_error() -> None:
    ranks = Ranks(2)
    ranks.failing[0, "close"] = RuntimeError("dead already")
    await learner(ranks).close()
    assert ranks.methods(0) == ranks.methods(1) == ["close"]
