"""`python -m trainer.main --config FILE [--any_flag value]`: the main job.

Checks everything that can be checked, prints the plan, starts (or joins) the three parts, trains, and stops what it
started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout_server.client import RolloutClient, Sampling
from trainer.checkpoint import Checkpoints
from trainer.collect import Collector
from trainer.config import RunSettings
from trainer.dataset import load_conversations
from trainer.environment import prepare_embedded_ray
from trainer.evaluate import HeldOut, Truth, evaluate_held_out, load_truth
from trainer.journal import Journal, write_summary
from trainer.loop import train
from trainer.plan import make_plan
from trainer.preflight import check_environment
from trainer.prompts import Prompt, PromptRenderer, PromptStream
from trainer.supervisor import Supervised
from wire.errors import ConfigError, ServiceError
from wire.generation import PolicyVersion
from wire.settings import parse_settings, run_program
from wire.token import read_or_create_token

if TYPE_CHECKING:
    from trainer.services import Services


def say(line: str) -> None:
    """A line for the person who watches."""
    print(line, flush=True)


@dataclass
class Material:
    """What a run reads before it starts: prompts, held-out prompts, the tokenizer and its stop ids."""

    tokenizer: Any
    stop_token_ids: tuple[int, ...]
    prompts: list[Prompt]
    held_out: list[Prompt]
    truth: Truth | None

    def decode(self, token_ids: Sequence[int]) -> str:
        """A completion's text for the judge, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def load_material(settings: RunSettings) -> Material:
    """Read prompts and tokenizer. Raises ConfigError as the parts do."""
    from transformers import AutoTokenizer

    revision = settings.model_revision or "main"
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model_name_or_path, revision=revision)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the tokenizer of {settings.model_name_or_path!r} cannot be had: {error}") from error
    renderer = PromptRenderer(
        tokenizer, enable_thinking=settings.enable_thinking, max_prompt_length=settings.max_prompt_length
    )
    prompts, dropped = renderer.render_all(load_conversations(settings, settings.dataset_split), "prompts")
    say(f"{len(prompts)} prompts; {dropped} longer than {settings.max_prompt_length} tokens were dropped")
    held_out: list[Prompt] = []
    if settings.num_eval_prompts:
        held_out, _ = renderer.render_all(load_conversations(settings, settings.eval_split), "held-out prompts")
        held_out = held_out[: settings.num_eval_prompts]
    return Material(tokenizer, stop_ids(settings, tokenizer), prompts, held_out, load_truth(settings.truth_function))


def stop_ids(settings: RunSettings, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a completion: all of the model's generation_config, else the tokenizer's one."""
    from transformers import GenerationConfig

    revision = settings.model_revision or "main"
    with suppress(OSError):
        ids = GenerationConfig.from_pretrained(settings.model_name_or_path, revision=revision).eos_token_id
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (int(ids),)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"{settings.model_name_or_path!r} names no end-of-sequence token; add a generation_config.json"
        )
    return (int(tokenizer.eos_token_id),)


async def run(settings: RunSettings, material: Material, token: str) -> dict[str, Any]:
    """Start, train, evaluate, export; returns the summary."""
    from trainer.services import running_services  # imports Ray, which must find its environment prepared

    started = time.monotonic()
    async with running_services(settings, token, say) as services:
        watch = asyncio.create_task(services.watch())
        work = asyncio.create_task(_train(settings, material, token, services, started))
        try:
            await asyncio.wait([watch, work], return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()  # raises: a server of the run has ended, and its last words say why
            return await work
        finally:
            for task in (watch, work):
                task.cancel()
            await asyncio.gather(watch, work, return_exceptions=True)


async def _train(
    settings: RunSettings,
    material: Material,
    token: str,
    services: Services,
    started: float,
) -> dict[str, Any]:
    learner, fleet, checkpoints = services.learner, services.fleet, Checkpoints(settings)
    version, next_prompt = PolicyVersion(0, 0), 0
    resume = checkpoints.to_resume()
    if resume is not None:
        path, state = resume
        await learner.load(str(path))
        # A new lineage: what an earlier life of this run wrote at the same steps must not be taken for ours.
        version, next_prompt = PolicyVersion(state.lineage + 1, state.step), state.next_prompt
        say(f"resumed from {path}: step {state.step}")
    sampling = Sampling(settings.response_length, settings.temperature, material.stop_token_ids)
    stream = PromptStream(material.prompts, settings.seed)
    stream.seek(next_prompt)
    live = version

    async def publish(new: PolicyVersion) -> None:
        nonlocal live
        await fleet.publish(learner, new)
        live = new

    first_step, done = version.step, (version, next_prompt)

    async def checkpoint(new: PolicyVersion, next_occurrence: int) -> None:
        nonlocal done
        done = (new, next_occurrence)
        if checkpoints.is_due(new.step):
            await checkpoints.save(learner, *done)

    async def save_what_is_done() -> None:
        """After a failure: a checkpoint of the last whole step, if that is what the learner still holds."""
        reached = done[0].step
        if reached > first_step and learner.num_steps == reached - first_step and not checkpoints.has(reached):
            say(f"checkpoint of step {reached}: {await checkpoints.save(learner, *done)}")

    async with RolloutClient(fleet.ready, token, sampling, settings.rollout_timeout_s) as rollouts:
        collector = Collector(settings, rollouts, services.judge, learner, material.decode, lambda: live)
        journal = Journal(
            settings, first_step=version.step, stop_token_ids=material.stop_token_ids, waits=collector.slowest
        )
        async with journal:
            journal.add_seconds("start", time.monotonic() - started)
            with journal.timed("publish"):
                await publish(version)
            with journal.timed("held_out"):
                before = await evaluate_held_out(collector, material.held_out, material.truth, "held-out, before")
            try:
                version = await train(
                    settings,
                    version=version,
                    prompts=stream,
                    collect=collector,
                    learner=learner,
                    publish=publish,
                    checkpoint=checkpoint,
                    journal=journal,
                )
            except (ServiceError, asyncio.CancelledError):
                with suppress(ServiceError):  # the cause of the end is what must be told
                    await save_what_is_done()
                raise
            with journal.timed("held_out"):
                after = await evaluate_held_out(collector, material.held_out, material.truth, "held-out, after")
            with journal.timed("export"):
                await learner.export(str(Path(settings.output_dir) / "policy"))
            return _summary(settings, version, await fleet.versions(), before, after) | journal.summary()


def _summary(
    settings: RunSettings, version: PolicyVersion, replica_versions: list[str], before: HeldOut, after: HeldOut
) -> dict[str, Any]:
    return {
        "steps": version.step,
        "episodes": version.step * settings.completions_per_step,
        "held_out_score_before": before.score,
        "held_out_score_after": after.score,
        "held_out_truth_before": before.truth,
        "held_out_truth_after": after.truth,
        "held_out_before": asdict(before),
        "held_out_after": asdict(after),
        "policy_version": version.label,
        "replica_versions": replica_versions,
    }


def _cancel_on_signals(task: asyncio.Task[Any]) -> None:
    """SIGINT and SIGTERM cancel the run, which then stops its parts in order; a second signal changes nothing."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, task.cancel)


async def _run_until_signal(settings: RunSettings, material: Material, token: str) -> dict[str, Any]:
    task = asyncio.current_task()
    assert task is not None
    _cancel_on_signals(task)
    return await run(settings, material, token)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, plan, run."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are no news; its failure is, below
    settings, _ = parse_settings(RunSettings, argv, strict_file=True)
    plan = make_plan(settings)
    notes = check_environment(settings)
    say("\n".join(plan.lines()))
    for note in notes:
        say(f"note: {note}")
    if settings.dry_run:
        say("\n".join(["", "settings", *plan.setting_lines()]))
        return 0
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    material = load_material(settings)
    Checkpoints(settings).to_resume()
    token = read_or_create_token(settings.token_file)
    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    if not settings.ray_address:
        prepare_embedded_ray()
    with Supervised():
        try:
            summary = asyncio.run(_run_until_signal(settings, material, token))
        except asyncio.CancelledError:
            say("stopped")
            return 130
    path = Path(settings.output_dir) / "summary.json"
    write_summary(path, summary)
    say(f"summary: {path}")
    for name in ("held_out_score", "held_out_truth"):
        if summary[f"{name}_before"] is not None:
            say(f"{name}: {summary[f'{name}_before']:.2f} -> {summary[f'{name}_after']:.2f}")
    return 0


if __name__ == "__main__":
    run_program(main)
