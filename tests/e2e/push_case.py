"""One learner, one fleet: push, step, push, compare. A program: a JSON object as argument, one printed at the end."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import aiohttp

from rollout_server.fleet import Fleet
from tests.e2e.conftest import ROOT, TOY
from trainer.batch import Sample, build_batch
from trainer.config import RunSettings
from trainer.environment import prepare_embedded_ray
from trainer.supervisor import Supervised
from wire.generation import PolicyVersion
from wire.token import auth_headers, read_token


def samples_of(num: int) -> list[Sample]:
    """Random tokens: nothing that a model could have learned by heart."""
    rng = random.Random(7)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 800) for _ in range(size))

    completions = [draw(rng.randrange(6, 16)) for _ in range(num)]
    return [
        Sample(draw(rng.randrange(4, 60)), ids, (-7.0,) * len(ids), (-1.0) ** i) for i, ids in enumerate(completions)
    ]


async def replica_logprobs(session: aiohttp.ClientSession, url: str, sample: Sample) -> list[float]:
    """The replica's log-probs of the sample's completion tokens, as tokens of a prompt."""
    ids = [*sample.prompt_ids, *sample.completion_ids]
    body = {"token_ids": ids, "sampling_params": {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}}
    async with session.post(f"{url}/inference/v1/generate", json=body) as reply:
        assert reply.status == 200, await reply.text()
        rows = (await reply.json())["prompt_logprobs"]
    start = len(sample.prompt_ids)
    return [rows[start + i][str(token)]["logprob"] for i, token in enumerate(sample.completion_ids)]


async def compare(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Findings for each fleet."""
    from trainer.placement import place_learner, ray_cluster
    from trainer.ranks import Learner

    settings = RunSettings(
        model_name_or_path=str(TOY / "policy"),
        device="cpu",
        bf16=case["dtype"] == "bfloat16",
        rollout_dtype=case["dtype"],
        num_learner_ranks=case["ranks"],
        deepspeed=str(ROOT / "configs" / "deepspeed" / f"zero{case['stage']}.json"),
        token_file=case["token_file"],
        output_dir=case["output_dir"],
        use_peft=case.get("use_peft", False),
        learning_rate=case.get("learning_rate", 3e-3),
        warmup_ratio=0.0,
        max_tokens_per_microbatch=200,
        transfer_bucket_mib=1,
        transfer_timeout_s=60,
        learner_timeout_s=200,
    )
    with ray_cluster(settings):
        ranks, meeting_host = await place_learner(settings, print)
        learner = Learner(ranks, settings)
        await learner.setup(meeting_host)
        findings = [
            await push_step_push(learner, settings, urls, PolicyVersion(0, 2 * index))
            for index, urls in enumerate(case["fleets"])
        ]
        await learner.close()
    return findings


async def push_step_push(learner: Any, settings: RunSettings, urls: list[str], first: PolicyVersion) -> dict[str, Any]:
    """Differences of the tokens' log-probs, learner against each replica, after a step that changed them."""
    token, samples = read_token(settings.token_file), samples_of(16)
    learner.begin_at(PolicyVersion(first.lineage, first.step - learner.num_steps))
    async with Fleet(settings, token) as fleet, aiohttp.ClientSession(headers=auth_headers(token)) as session:
        for url in urls:
            await fleet.add(url)
        await fleet.publish(learner, first)
        before = [own for own, _ in await learner.reference(samples)]
        ranks, budget = settings.num_learner_ranks, settings.microbatch_tokens
        await learner.step(build_batch(samples, num_ranks=ranks, num_mini_batches=1, token_budget=budget))
        second = PolicyVersion(0, first.step + 1)
        await fleet.publish(learner, second)
        own = [row for row, _ in await learner.reference(samples)]
        replicas = {url: [await replica_logprobs(session, url, sample) for sample in samples] for url in urls}
        return {
            "versions": await fleet.versions(),
            "pushed": second.label,
            "largest_difference": {url: largest(own, theirs) for url, theirs in replicas.items()},
            "mean_difference": max(mean(own, theirs) for theirs in replicas.values()),
            "mean_change": mean(own, before),
            "num_tokens": sum(map(len, own)),
        }


def distances(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> list[float]:
    """Distances between two ragged tables of the same shape."""
    return [abs(x - y) for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True)]


def largest(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Largest distance."""
    return max(distances(a, b))


def mean(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """Mean distance."""
    return sum(distances(a, b)) / len(distances(a, b))


if __name__ == "__main__":
    prepare_embedded_ray()
    with Supervised():
        findings = asyncio.run(compare(json.loads(sys.argv[1])))
    print(json.dumps(findings))
