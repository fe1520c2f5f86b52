"""Answering a benchmark: what is refused before anything is loaded, how turns are asked. The replicas are a fake."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import Request, Response

import trainer.services
from rollout_server.client import Sampling
from rollout_server.fleet import Fleet
from rollout_server.gate import Weights
from tests.rollout_server.world import TOKEN, Server, World
from tests.serving import running_app
from trainer.answer_files import Question
from trainer.answering import Answers, AnswerSettings, _serve_and_ask, find_policy
from trainer.config import RunSettings
from trainer.evaluate import main
from wire.errors import ConfigError, ServiceError
from wire.generation import Completion, PolicyVersion
from wire.membership import TransferReport
from wire.pieces import LOGPROB, PACKED_PATH, TOKEN_ID, Piece, framed

STATE = {"lineage": 1, "step": 40, "next_prompt": 160, "completions_per_step": 16, "num_learner_ranks": 1, "seed": 7}


class Tokenizer:
    """A token is a character. A turn is written `role:content|`, the start of an answer `a:`."""

    def apply_chat_template(self, conversation: Sequence[dict[str, str]], **kwargs: Any) -> list[int]:
        assert kwargs == {"add_generation_prompt": True, "return_dict": False, "enable_thinking": False}
        text = "".join(f"{turn['role'][0]}:{turn['content']}|" for turn in conversation) + "a:"
        return [ord(letter) for letter in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(map(chr, token_ids))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(letter) for letter in text]


class Client:
    """Answers a prompt with `reply` of it, later ones first; fails where the reply is None."""

    def __init__(self, reply: Callable[[str], str | None]) -> None:
        self.reply = reply
        self.prompts: list[str] = []
        self.seeds: list[int] = []

    @asynccontextmanager
    async def generate(
        self, token_ids: Sequence[int], num: int, *, seed: int, salt: Callable[[], str]
    ) -> AsyncIterator[list[asyncio.Future[Completion]]]:
        assert num == 1 and salt() == "salt"
        prompt = "".join(map(chr, token_ids))
        self.prompts.append(prompt)
        self.seeds.append(seed)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        text = self.reply(prompt)
        if text is None:
            future.set_exception(ServiceError("no replica wrote it"))
        else:
            ids = tuple(map(ord, text))
            done = Completion(0, ids, (0.0,) * len(ids), True, ())
            asyncio.get_running_loop().call_later(0.02 / len(self.prompts), future.set_result, done)
        yield [future]


def asked(number: int, first: str, *later: str) -> Question:
    return Question(f"question_id {number}", ({"role": "user", "content": first},), later, {})


def answers_to(*questions: Question, **changes: Any) -> Answers:
    settings = AnswerSettings(device="cpu", **{"max_prompt_length": 100, "response_length": 10, **changes})
    return Answers(settings, Tokenizer(), questions)


async def test_each_turn_is_asked_with_the_answers_before_it_without_their_thoughts() -> None:
    client: Any = Client(lambda prompt: f"<think>hm</think>\n\nno{len(prompt)}\n")
    found = await answers_to(asked(1, "x", "y", "z"), asked(2, "uu")).ask_all(client, "salt")
    assert sorted(client.prompts) == sorted(["u:x|a:", "u:uu|a:", "u:x|a:no6|u:y|a:", "u:x|a:no6|u:y|a:no16|u:z|a:"])
    assert [[answer.text for answer in row] for row in found] == [["no6", "no16", "no27"], ["no7"]]
    assert found[0][1].num_tokens == len("no16")
    assert len(set(client.seeds)) == 4


async def test_answers_are_in_the_questions_order_whoever_is_first() -> None:
    client: Any = Client(lambda prompt: prompt[2:4])
    found = await answers_to(*[asked(n, f"q{n}") for n in range(5)]).ask_all(client, "salt")
    assert [row[0].text for row in found] == ["q0", "q1", "q2", "q3", "q4"]


async def test_a_question_that_nobody_answers_ends_it() -> None:
    client: Any = Client(lambda prompt: None if "q1" in prompt else "yes")
    with pytest.raises(ServiceError, match="no replica wrote it"):
        await answers_to(asked(0, "q0"), asked(1, "q1")).ask_all(client, "salt")


def test_a_prompt_that_cannot_fit_is_known_before_with_the_longest_answers_before_it() -> None:
    one, two = asked(1, "x" * 40), asked(2, "x" * 20, "y" * 20)
    longest = len("u:" + "x" * 20 + "|a:|u:" + "y" * 20 + "|a:") + 10
    answers_to(one, two, max_prompt_length=longest).check()
    with pytest.raises(ConfigError) as error:
        answers_to(one, two, max_prompt_length=longest - 1).check()
    assert f"question_id 2 can need a prompt of {longest} tokens" in str(error.value)
    assert f"max_prompt_length ({longest - 1}); raise it to {longest}" in str(error.value)


def settings_for(checkpoint: Path, **changes: Any) -> AnswerSettings:
    model = {"model_name_or_path": "Qwen/Qwen3-8B"}
    return AnswerSettings(device="cpu", checkpoint=str(checkpoint), **model, **changes)


def test_a_runs_checkpoint_is_loaded_into_its_own_model_and_keeps_its_version(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    policy = find_policy(settings_for(tmp_path, seed=8))  # the seed is that of the answers
    assert (policy.version, policy.learner) == (PolicyVersion(1, 40), str(tmp_path))
    assert policy.settings.model_name_or_path == "Qwen/Qwen3-8B" and policy.settings.kl_coef == 0


def test_a_hugging_face_folder_is_the_model_itself_without_adapters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    policy = find_policy(settings_for(tmp_path, use_peft=True, model_revision="v2"))
    assert policy.learner is None and policy.settings.model_name_or_path == str(tmp_path)
    assert (policy.settings.use_peft, policy.settings.model_revision) == (False, None)


@pytest.mark.parametrize(
    ("state", "changes", "words"),
    [
        (None, {}, "holds neither state.json"),
        ("{", {}, "is no checkpoint of this program"),
        ('{"step": 1}', {}, "is no checkpoint of this program"),
        (json.dumps(STATE), {"num_learner_ranks": 2}, "made with num_learner_ranks 1, here it is 2"),
        (json.dumps(STATE), {"use_peft": True}, "made with adapters none, here it is LoRA"),
    ],
)
def test_a_checkpoint_that_is_none_or_does_not_fit_is_refused(
    tmp_path: Path, state: str | None, changes: dict[str, Any], words: str
) -> None:
    if state is not None:
        (tmp_path / "state.json").write_text(state)
    with pytest.raises(ConfigError) as error:
        find_policy(settings_for(tmp_path, **changes))
    assert str(tmp_path) in str(error.value) and words in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--checkpoint": ""}, "--checkpoint is missing"),
        ({"--export": "gsm8k"}, "export 'gsm8k' is not among arena-hard, mt-bench, wildbench, alpaca-eval"),
        ({"--output": "nowhere/x.jsonl"}, "name a file in a folder that exists"),
        ({"--answer_temperature": "-1"}, r"answer_temperature (-1.0) must be at least 0"),
        ({"--questions": "none.jsonl"}, "questions none.jsonl cannot be read"),
        ({"--checkpoint": "none"}, "checkpoint 'none' holds neither"),
        ({"--surprise": "1"}, "unknown flag '--surprise'"),
    ],
)
def test_the_program_refuses_a_mistake_before_it_loads_anything(
    tmp_path: Path, change: dict[str, str], words: str
) -> None:
    questions = tmp_path / "question.jsonl"
    questions.write_text('{"question_id": 1, "turns": ["a", "b"]}\n')
    (tmp_path / "config.json").write_text("{}")
    flags = {
        **{"--checkpoint": str(tmp_path), "--export": "mt-bench", "--questions": str(questions)},
        **{"--output": str(tmp_path / "m.jsonl"), "--device": "cpu", **change},
    }
    with pytest.raises(ConfigError) as error:
        main([part for pair in flags.items() for part in pair])
    assert words in str(error.value)


def test_its_logs_lie_beside_those_of_a_run_with_the_same_folder() -> None:
    assert AnswerSettings(output_dir="runs/x").log_dir == "runs/x/answering-logs"
    assert RunSettings(output_dir="runs/x").log_dir == "runs/x/logs"
    assert AnswerSettings(output_dir="runs/x", log_dir="elsewhere").log_dir == "elsewhere"


class WritingServer(Server):
    """A replica that writes the letters `yes`, whoever asks."""

    async def answer(self, route: str, request: Request) -> Response:
        if route != PACKED_PATH.strip("/"):
            return await super().answer(route, request)
        body = await request.json()
        self.world.events.append(f"generate at {body['sampling_params']['temperature']}")
        ids, logprobs = np.array([*map(ord, "yes")], TOKEN_ID).tobytes(), np.full(3, -0.5, LOGPROB).tobytes()
        return Response(framed(Piece(0, ids, logprobs, "stop")))


class LoadingWorld(World):
    """Its learner loads checkpoints, too, and what it sends opens the gate, as a rank's last call does."""

    async def send_weights(self, version: PolicyVersion, push_id: str, timeout_s: float) -> TransferReport:
        report = await super().send_weights(version, push_id, timeout_s)
        for server in self.servers:
            server.gate.weights = Weights.WHOLE
        return report

    async def load(self, folder: str) -> None:
        self.events.append(f"load {folder}")

    def begin_at(self, version: PolicyVersion) -> None:
        self.version = version


async def test_the_checkpoint_is_loaded_pushed_under_its_version_and_only_then_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real fleet and client, over a server with vLLM's routes behind the real gate."""
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    policy = find_policy(settings_for(tmp_path, adaptive_in_flight=False, rollout_timeout_s=3.0))
    world = LoadingWorld()
    server = WritingServer(world, 0)
    world.servers.append(server)

    @asynccontextmanager
    async def running_writers(settings: RunSettings, token: str, say: Any) -> AsyncIterator[trainer.services.Writers]:
        async with running_app(server) as server.url, Fleet(settings, token, say=say) as fleet:  # type: ignore[arg-type]
            await fleet.add(server.url)
            world.events.clear()
            replicas: Any = SimpleNamespace(tend=asyncio.Event().wait)
            yield trainer.services.Writers(world, fleet, replicas, None, "127.0.0.1")  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.services, "running_writers", running_writers)
    sampling = Sampling(10, 0.0, (0,))
    found = await _serve_and_ask(policy, answers_to(asked(1, "x", "y")), sampling, TOKEN, world.say)
    assert [[answer.text for answer in row] for row in found] == [["yes", "yes"]]
    assert f"load {tmp_path}" in world.events and "generate at 0.0" in world.events
    happened = [event for event in world.happened() if event.startswith(("load", "open", "send", "generate"))]
    assert happened == ["load", "open [0]", "send 1.40", "generate"]


def test_ray_is_not_imported_before_its_environment_is_prepared() -> None:
    """Its core reads the environment once, at import: an embedded cluster would be open, or refuse its own token."""
    code = "import sys, trainer.answering, trainer.main; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
