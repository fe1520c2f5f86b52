"""A benchmark's questions, answered by the policy of any checkpoint: `python -m trainer.evaluate`.

The fleet is started as for a run, the learner loads the checkpoint and pushes it, and the replicas write. There is no
judge: the benchmark's own program is that.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reward_server.answers import answer_of
from rollout_server.client import RolloutClient, Sampling
from rollout_server.config import RolloutSettings
from trainer.answer_files import FORMS, Answer, Question, Writer, read_questions, write_answers
from trainer.bar import progress_bar
from trainer.config import RunSettings
from trainer.environment import prepare_embedded_ray
from trainer.first_done import first_done
from trainer.joined import is_ready, wait_until_ready
from trainer.material import load_tokenizer, stop_ids
from trainer.pipeline import IN_THE_MAKING
from trainer.prompts import PromptRenderer, hash_seed
from trainer.supervisor import Supervised
from wire import event_loop
from wire.errors import ConfigError, ServiceError
from wire.generation import PolicyVersion
from wire.models import check_model
from wire.settings import parse_settings
from wire.token import read_or_create_token
from wire.waits import waiter, waiting

EMPTY_TURN = {"role": "assistant", "content": ""}


@dataclass
class AnswerSettings(RunSettings):
    """A run's own settings, and what is to be answered."""

    checkpoint: str = field(
        default="", metadata={"help": "A checkpoint-N folder of a run, or a Hugging Face folder (policy, export-N)."}
    )
    export: str = field(default="", metadata={"help": f"The benchmark: {', '.join(FORMS)}."})
    questions: str = field(default="", metadata={"help": "The benchmark's file of questions."})
    output: str = field(default="", metadata={"help": "File for the answers; its name is the model's name in it."})
    answer_temperature: float = field(default=0.0, metadata={"help": "Sampling temperature of answers; 0: greedy."})

    def __post_init__(self) -> None:
        if self.log_dir == RolloutSettings.log_dir:  # not where a run of this output_dir has its own
            self.log_dir = str(Path(self.output_dir) / "answering-logs")
        super().__post_init__()

    def check(self) -> None:
        """Raises ConfigError on what is missing or cannot work; reads no model."""
        super().check()
        for name in ("checkpoint", "export", "questions", "output"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is missing; give --checkpoint, --export, --questions and --output")
        if self.export not in FORMS:
            raise ConfigError(f"export {self.export!r} is not among {', '.join(FORMS)}")
        if not self.answer_temperature >= 0:
            raise ConfigError(f"answer_temperature ({self.answer_temperature}) must be at least 0")
        if not Path(self.output).absolute().parent.is_dir() or Path(self.output).is_dir():
            raise ConfigError(f"output {self.output!r}: name a file in a folder that exists")


@dataclass(frozen=True)
class Policy:
    """Whose answers are wanted. `settings` load it, or the policy under the DeepSpeed checkpoint in `learner`."""

    settings: AnswerSettings
    version: PolicyVersion
    learner: str | None


def find_policy(settings: AnswerSettings) -> Policy:
    """What `checkpoint` names.

    Raises:
        ConfigError: no policy is there, or it does not fit these settings.
    """
    settings = replace(settings, kl_coef=0.0)  # nobody asks for a reference: it need not be loaded
    path = Path(settings.checkpoint)
    if (path / "state.json").is_file():
        check_model(settings.model_name_or_path, "model_name_or_path")
        return Policy(settings, _version_of(path, settings), str(path))
    if (path / "config.json").is_file():
        hugging_face = replace(settings, model_name_or_path=str(path), model_revision=None, use_peft=False)
        return Policy(hugging_face, PolicyVersion(0, 0), None)
    raise ConfigError(
        f"checkpoint {settings.checkpoint!r} holds neither state.json (a checkpoint-N of a run) nor config.json (a "
        "Hugging Face folder: policy, export-N); check the path"
    )


def _version_of(path: Path, settings: AnswerSettings) -> PolicyVersion:
    try:
        state = json.loads((path / "state.json").read_text())
        version = PolicyVersion(int(state["lineage"]), int(state["step"]))
        made = {"num_learner_ranks": state["num_learner_ranks"], "adapters": state.get("adapters", "none")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"checkpoint {path} is no checkpoint of this program: {error!r}") from error
    for name, before in made.items():
        if before != (now := getattr(settings, name)):
            raise ConfigError(f"checkpoint {path} was made with {name} {before}, here it is {now}; give the run's own")
    return version


class Answers:
    """Asks the questions and keeps the answers.

    Args:
        settings: response_length, answer_temperature, max_prompt_length, seed.
        tokenizer: the policy's.
        questions: to be answered.
    """

    def __init__(self, settings: AnswerSettings, tokenizer: Any, questions: Sequence[Question]) -> None:
        self._settings, self._tokenizer, self._questions = settings, tokenizer, questions
        self._renderer = PromptRenderer(
            tokenizer, enable_thinking=settings.enable_thinking, max_prompt_length=settings.max_prompt_length
        )

    def check(self) -> None:
        """Raises ConfigError where a prompt would not fit, answers of full length before it included."""
        longest, name = max((self._longest(question), question.name) for question in self._questions)
        if longest > self._settings.max_prompt_length:
            raise ConfigError(
                f"{name} can need a prompt of {longest} tokens, more than max_prompt_length "
                f"({self._settings.max_prompt_length}); raise it to {longest}"
            )

    def _longest(self, question: Question) -> int:
        """Tokens of its last prompt, with every answer before as long as one can be."""
        turns = list(question.conversation)
        for turn in question.later:
            turns += [EMPTY_TURN, _user(turn)]
        return len(self._renderer.render(turns)) + len(question.later) * self._settings.response_length

    async def ask_all(self, client: RolloutClient, salt: str) -> list[list[Answer]]:
        """An answer to each turn of each question, with a progress bar.

        Raises:
            ServiceError: a question was not answered.
        """
        num_turns = sum(1 + len(question.later) for question in self._questions)
        with progress_bar(total=num_turns, desc="answers", unit="turn", mininterval=1.0) as bar:
            tasks = []
            for number, question in enumerate(self._questions):
                with waiter(f"question {number}"):
                    tasks.append(asyncio.create_task(self._ask(client, salt, number, question, bar)))
            try:
                for number, task in enumerate(tasks):
                    with waiting(f"question {number}", IN_THE_MAKING):
                        await task
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return [task.result() for task in tasks]

    async def _ask(self, client: RolloutClient, salt: str, number: int, question: Question, bar: Any) -> list[Answer]:
        turns, answers = list(question.conversation), list[Answer]()
        for later in (*question.later, None):
            prompt = self._renderer.render(turns)
            if len(prompt) > self._settings.max_prompt_length:  # text need not come back in as many tokens as it had
                raise ServiceError(f"{question.name}: a prompt of {len(prompt)} tokens; raise max_prompt_length to it")
            seed = hash_seed(self._settings.seed, "answer", number, len(answers))
            async with client.generate(prompt, 1, seed=seed, salt=lambda: salt) as (future,):
                completion = await future
            answers.append(self._read(completion.token_ids))
            bar.update()
            if later is not None:
                turns += [{"role": "assistant", "content": answers[-1].text}, _user(later)]
        return answers

    def _read(self, token_ids: Sequence[int]) -> Answer:
        text = answer_of(str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True)))
        return Answer(text, len(self._tokenizer.encode(text, add_special_tokens=False)))


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def _serve_and_ask(
    policy: Policy, answers: Answers, sampling: Sampling, token: str, say: Callable[[str], None]
) -> list[list[Answer]]:
    from trainer.services import running_writers  # imports Ray, which must find its environment prepared

    settings = policy.settings
    async with running_writers(settings, token, say) as writers:

        async def work() -> list[list[Answer]]:
            if policy.learner is not None:
                await writers.learner.load(policy.learner)
            writers.learner.begin_at(policy.version)
            await writers.fleet.publish(writers.learner, policy.version)
            room, least = settings.rollout_max_num_seqs, int(settings.adaptive_in_flight)
            timeout_s = settings.rollout_timeout_s
            async with RolloutClient(writers.fleet, token, sampling, timeout_s, room=room, least=least) as client:
                return await answers.ask_all(client, secrets.token_hex(8))

        return await first_done([writers.watch(), work()])


async def _until_signal(
    policy: Policy, answers: Answers, sampling: Sampling, token: str, say: Callable[[str], None]
) -> list[list[Answer]]:
    """The same with a watchdog; SIGINT and SIGTERM cancel it, and it then stops its parts in order."""
    task = asyncio.current_task()
    assert task is not None
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    from trainer.watchdog import Watchdog  # as above

    watchdog = Watchdog(policy.settings.stall_warn_s, policy.settings.stall_stop_s, say)
    return await first_done([watchdog.watch(), _serve_and_ask(policy, answers, sampling, token, say)])


def answer_benchmark(argv: Sequence[str] | None, say: Callable[[str], None]) -> int:
    """The program: check everything, answer, write.

    Raises:
        ConfigError: before anything is loaded.
        ServiceError: a part failed, the message carries its last words; no file is written.
    """
    settings, _ = parse_settings(AnswerSettings, argv, strict_file=True)
    questions = read_questions(Path(settings.questions), settings.export)
    policy = find_policy(settings)
    for url in settings.rollout_urls:
        is_ready(url)  # refuses one that is not there
    tokenizer = load_tokenizer(policy.settings)
    answers = Answers(policy.settings, tokenizer, questions)
    answers.check()
    stops = stop_ids(policy.settings, tokenizer)
    sampling = Sampling(settings.response_length, settings.answer_temperature, stops)
    token = read_or_create_token(settings.token_file)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not settings.ray_address:
        prepare_embedded_ray()
    wait_until_ready(settings.rollout_urls, policy.settings.startup_timeout_s, say)
    say(f"{len(questions)} questions of {settings.export}, answered by {settings.checkpoint}")
    with Supervised():
        try:
            found = event_loop.run(_until_signal(policy, answers, sampling, token, say))
        except asyncio.CancelledError:
            say("stopped")
            return 130
    output = Path(settings.output)
    writer = Writer(output.stem, settings.answer_temperature, settings.response_length, time.time())
    write_answers(output, settings.export, questions, found, writer)
    say(f"answers: {output}")
    return 0
