"""What the policy answered before training, made once and kept: what every later answer is compared with.

    OUTPUT_DIR/initial_answers.jsonl, one line a prompt, in their order
    {"asked": "5f0c...", "text": "waves and tide", "num_tokens": 4, "finished": true, "oldest": "0.0", "newest": "0.0"}

`asked` is a hash of the prompt's tokens and of the sampling: answers to something else are not taken for these.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rollout_server.client import Sampling
from trainer.config import RunSettings
from trainer.prompts import Prompt, hash_seed
from wire.errors import ConfigError
from wire.generation import Completion, PolicyVersion

INITIAL_ANSWERS_FILE = "initial_answers.jsonl"
REMEDY = "give the run the evaluation settings that it began with, or eval_steps 0"
ONLY_THEN = f"a resumed run can no longer ask the initial policy, so {REMEDY}"


class Answer(msgspec.Struct, frozen=True):
    """One answer to a held-out prompt. `oldest` and `newest` are the labels of the versions that wrote tokens of it."""

    asked: str
    text: str
    num_tokens: int
    finished: bool
    oldest: str
    newest: str

    @classmethod
    def of(cls, prompt: Prompt, sampling: Sampling, completion: Completion, text: str) -> Answer:
        """What the completion is as an answer."""
        versions = sorted(PolicyVersion.parse(span.version) for span in completion.versions)
        return cls(
            asked_of(prompt, sampling),
            text,
            len(completion.token_ids),
            completion.finished,
            versions[0].label,
            versions[-1].label,
        )


def sampling_of(settings: RunSettings, stop_token_ids: Sequence[int]) -> Sampling:
    """How the answers of evaluations are drawn."""
    return Sampling(settings.response_length, settings.eval_temperature, tuple(stop_token_ids), settings.eval_top_p)


def asked_of(prompt: Prompt, sampling: Sampling) -> str:
    """Names the question, and how an answer to it is drawn."""
    return f"{hash_seed(prompt.token_ids, sampling):016x}"


def write_answers(folder: Path, answers: Sequence[Answer]) -> None:
    """Write the file whole or not at all."""
    path = folder / INITIAL_ANSWERS_FILE
    folder.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".partial")
    with aside.open("wb") as file:
        file.write(msgspec.json.Encoder().encode_lines(list(answers)))
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def check_there(settings: RunSettings) -> None:
    """Whether a run that is resumed finds the file that it will need.

    Raises:
        ConfigError: it is not.
    """
    path = Path(settings.output_dir) / INITIAL_ANSWERS_FILE
    if settings.eval_steps and settings.num_eval_prompts and not path.is_file():
        raise ConfigError(f"{path}: No such file; eval_steps is {settings.eval_steps}, and {ONLY_THEN}")


def read_answers(folder: Path, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
    """What an earlier life of the run wrote.

    Raises:
        ConfigError: there is no such file, or it holds answers to other prompts, or drawn in another way.
    """
    path = folder / INITIAL_ANSWERS_FILE
    try:
        answers = msgspec.json.Decoder(Answer).decode_lines(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; {ONLY_THEN}") from error
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {error}; {REMEDY}") from error
    if [answer.asked for answer in answers] != [asked_of(prompt, sampling) for prompt in prompts]:
        raise ConfigError(
            f"{path} holds {len(answers)} answers, and they are not to these {len(prompts)} prompts at temperature "
            f"{sampling.temperature:g}, top_p {sampling.top_p:g} and {sampling.max_tokens} tokens; {REMEDY}"
        )
    return answers
