"""TRL's side of `benchmarks.end_to_end`: its RLOOTrainer on a run's own prompts, judged by the reward service.

The argument is the job, in JSON: `flags` (a run's own), `steps`, `microbatch` (completions of a forward pass), `marks`
(the file that gets a line a step), and `on_replicas`. With that, completions are written by our replicas, which get the
weights first wherever they are new, as TRL does with a server of its own. Without, TRL's own generation writes them.
Both ways the reward function is asynchronous and asks for all verdicts of a step at once.

Servers are spoken to on the event loop that TRL runs for asynchronous reward functions, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TextIO

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from reward_server.client import RewardClient
from reward_server.scheme import Scheme
from reward_server.service import CLIENT_MARGIN_S
from rollout_server.client import RolloutClient, Sampling
from rollout_server.fleet import Fleet
from trainer.config import RunSettings
from trainer.lora import served_weights
from trainer.material import load_material
from trainer.prompts import Prompt, PromptStream, hash_seed
from trainer.publish import TransferSettings, WeightSender, ZeroWeightSource
from trainer.rloo import assemble_reward
from wire.generation import PolicyVersion
from wire.judgement import Message
from wire.membership import Member, TransferReport
from wire.settings import parse_settings
from wire.token import read_or_create_token


class TrainerWeights:
    """TRL's policy as the fleet's push sees it (`rollout_server.push.WeightSender`); the sender is the learner's."""

    def __init__(self, settings: RunSettings, policy: torch.nn.Module, token: str) -> None:
        bucket_bytes = settings.transfer_bucket_mib * 2**20
        dtype = getattr(torch, settings.rollout_dtype)
        source = ZeroWeightSource(served_weights(policy), dtype, bucket_bytes, is_sender=True)
        staging_bytes = settings.transfer_staging_mib * 2**20
        transfer = TransferSettings(settings.transfer_backend, settings.bind_address, bucket_bytes, staging_bytes)
        self._sender = WeightSender(transfer, source, token)

    async def open_transfer(self, members: Sequence[Member], timeout_s: float) -> TransferReport:
        """Form the transfer group."""
        return await asyncio.to_thread(self._sender.open, members, timeout_s)

    async def send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        """Send what the policy holds; the trainer stands still meanwhile."""
        return await asyncio.to_thread(self._sender.send, version.label, push_id, timeout_s)

    def close(self) -> None:
        """Leave the transfer group."""
        self._sender.close()


class Replicas:
    """The joined replicas: they take weights and write completions. All but the constructor runs on one event loop."""

    def __init__(self, settings: RunSettings, token: str, weights: TrainerWeights, stops: tuple[int, ...]) -> None:
        self._settings, self._token, self._weights, self._stops = settings, token, weights, stops
        self._resources = AsyncExitStack()
        self.num_pushes = 0

    async def open(self) -> None:
        """Join the replicas of `rollout_urls`."""
        settings = self._settings
        self._fleet = await self._resources.enter_async_context(Fleet(settings, self._token))
        for url in settings.rollout_urls:
            await self._fleet.add(url)
        sampling = Sampling(settings.response_length, settings.temperature, self._stops)
        client = RolloutClient(
            self._fleet, self._token, sampling, settings.rollout_timeout_s, room=settings.rollout_max_num_seqs
        )
        self._client = await self._resources.enter_async_context(client)

    async def push(self, version: PolicyVersion) -> None:
        """Make the policy's weights live on all of them."""
        await self._fleet.publish(self._weights, version)
        self.num_pushes += 1

    async def write(self, prompts: Sequence[Prompt], version: PolicyVersion) -> list[list[int]]:
        """K completions of each prompt, in its order; seeded and salted as a run's collector does."""
        rows = await asyncio.gather(*(self._write(prompt, version) for prompt in prompts))
        return [ids for row in rows for ids in row]

    async def _write(self, prompt: Prompt, version: PolicyVersion) -> list[list[int]]:
        seed = hash_seed(self._settings.seed, "train", prompt.occurrence, version.label)
        writing = self._client.generate(prompt.token_ids, self._settings.rloo_k, seed=seed, salt=lambda: version.label)
        async with writing as futures:
            return [list(completion.token_ids) for completion in await asyncio.gather(*futures)]

    async def close(self) -> None:
        """Leave them as they are."""
        self._weights.close()
        await self._resources.aclose()


class JudgedReward:
    """The reward function: all groups of a step are judged at once, paired and scored as a run does."""

    def __init__(self, settings: RunSettings, token: str, stops: tuple[int, ...]) -> None:
        self._settings, self._token, self._stops = settings, token, frozenset(stops)
        self._client: RewardClient | None = None
        self.counts = Counter[str]()

    async def __call__(
        self,
        prompts: list[list[dict[str, str]]],
        completions: list[list[dict[str, str]]],
        completion_ids: list[list[int]],
        occurrence: list[int],
        **_: Any,
    ) -> list[float | None]:
        """One score a completion, less the penalty where it was cut; None where it has no score."""
        k = self._settings.rloo_k
        texts = [completion[0]["content"] for completion in completions]
        starts = range(0, len(texts), k)
        groups = [self._group(prompts[i], texts[i : i + k], occurrence[i]) for i in starts]
        scores = [score for row in await asyncio.gather(*groups) for score in row]
        self.counts["completions"] += len(texts)
        self.counts["tokens"] += sum(map(len, completion_ids))
        return [self._reward(score, ids[-1]) for score, ids in zip(scores, completion_ids, strict=True)]

    async def _group(self, turns: list[dict[str, str]], texts: list[str], occurrence: int) -> Sequence[float | None]:
        if self._client is None:
            settings = self._settings
            assert settings.reward_url
            timeout_s = settings.judge_timeout_s + CLIENT_MARGIN_S
            client = RewardClient(settings.reward_url, self._token, timeout_s, scheme=Scheme.of(settings))
            self._client = await client.__aenter__()
        seed = hash_seed(self._settings.seed, "train", occurrence)
        verdict = await self._client.group([Message(**turn) for turn in turns], [_given(text) for text in texts], seed)
        given = [placed.verdict for placed in verdict.verdicts]
        self.counts["verdicts"] += sum(one.missing is None for one in given)
        self.counts["missing"] += sum(one.missing is not None for one in given)
        return verdict.scores

    def _reward(self, score: float | None, last_token: int) -> float | None:
        if score is None:
            return None
        penalty = self._settings.missing_eos_penalty
        finished = last_token in self._stops
        return assemble_reward(score, finished=finished, kl=0.0, kl_coef=0.0, missing_eos_penalty=penalty)[0]

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.__aexit__(None, None, None)


def _given(text: str) -> asyncio.Future[str | None]:
    future: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    future.set_result(text)
    return future


class OnReplicas(RLOOTrainer):
    """RLOOTrainer whose completions our replicas write."""

    replicas: Replicas
    stream: PromptStream
    pushed = -1  # optimizer steps behind the weights that the replicas hold

    def on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of `work`, done on the loop of the reward functions while this thread waits."""
        return asyncio.run_coroutine_threadsafe(work, self.async_loop).result()

    def _generate_single_turn(self, prompt_ids: Any, images: Any, multimodal_fields: Any) -> list[list[int]]:
        prompts = [next(self.stream) for _ in range(len(prompt_ids) // self.num_generations)]
        rendered = [prompt.token_ids for prompt in prompts for _ in range(self.num_generations)]
        assert rendered == [tuple(ids) for ids in prompt_ids], "TRL's prompts are not the run's"
        version = PolicyVersion(0, self.state.global_step)
        if self.pushed != version.step:
            self.on_loop(self.replicas.push(version))
            self.pushed = version.step
        completions: list[list[int]] = self.on_loop(self.replicas.write(prompts, version))
        return completions


class Marks(TrainerCallback):
    """A line a step: when it ended, and the work so far."""

    def __init__(self, file: TextIO, reward: JudgedReward) -> None:
        self._file, self._reward = file, reward
        self.replicas: Replicas | None = None

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        pushes = self.replicas.num_pushes if self.replicas else 0
        mark = {"step": state.global_step, "time": time.time(), **self._reward.counts, "pushes": pushes}
        self._file.write(json.dumps(mark) + "\n")


def train(job: dict[str, Any], settings: RunSettings, token: str, marks: TextIO) -> None:
    """Train over the run's first prompts, in its order."""
    material = load_material(settings, print)
    stops = material.stop_token_ids
    reward = JudgedReward(settings, token, stops)
    marking = Marks(marks, reward)
    stream = PromptStream(material.prompts, settings.seed)
    rows = [next(stream) for _ in range(job["steps"] * settings.prompts_per_step)]
    trainer = (OnReplicas if job["on_replicas"] else RLOOTrainer)(
        model=settings.model_name_or_path,
        reward_funcs=reward,
        args=trl_settings(job, settings),
        train_dataset=Dataset.from_dict(
            {
                "prompt": [list(row.conversation) for row in rows],
                "occurrence": [row.occurrence for row in rows],
            }
        ),
        processing_class=material.tokenizer,
        callbacks=[marking],
    )
    if isinstance(trainer, OnReplicas):
        stream.seek(0)
        trainer.stream = stream
        weights = TrainerWeights(settings, trainer.model, token)
        marking.replicas = trainer.replicas = Replicas(settings, token, weights, stops)
        trainer.on_loop(trainer.replicas.open())
    trainer.train()
    if isinstance(trainer, OnReplicas):
        trainer.on_loop(trainer.replicas.close())
    asyncio.run_coroutine_threadsafe(reward.close(), trainer.async_loop).result()


def trl_settings(job: dict[str, Any], settings: RunSettings) -> RLOOConfig:
    """The run's settings by TRL's names. A step is one generation and one optimizer step; no log, no checkpoint."""
    completions, microbatch = settings.completions_per_step, job["microbatch"]
    return RLOOConfig(
        output_dir=settings.output_dir,
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=completions // microbatch,
        num_generations=settings.rloo_k,
        num_iterations=1,
        max_completion_length=settings.response_length,
        temperature=settings.temperature,
        chat_template_kwargs={"enable_thinking": settings.enable_thinking},
        beta=settings.kl_coef,
        max_steps=job["steps"],
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=round(settings.warmup_ratio * settings.num_steps),
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=settings.bf16,
        use_cpu=True,
        dataloader_pin_memory=False,
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        model_init_kwargs={"dtype": "float32"},
    )


def main() -> None:
    """As the module says."""
    job = json.loads(sys.argv[1])
    settings, _ = parse_settings(RunSettings, job["flags"], strict_file=True)
    with Path(job["marks"]).open("w", buffering=1) as marks:
        train(job, settings, read_or_create_token(settings.token_file), marks)


if __name__ == "__main__":
    main()
