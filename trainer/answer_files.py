"""The files of four benchmarks: their questions are read, and answers written, as their own tools do it.

    arena-hard    question.jsonl -> data/BENCH/model_answer/MODEL.jsonl    lmarena/arena-hard-auto, v0.1 and v2.0
    mt-bench      question.jsonl -> data/mt_bench/model_answer/MODEL.jsonl lm-sys/FastChat, llm_judge
    wildbench     rows of the data set -> result_dirs/wild_bench/MODEL.json    allenai/WildBench
    alpaca-eval   rows of the data set -> model_outputs.json               tatsu-lab/alpaca_eval

Questions are JSON lines or one JSON list. Arena-Hard's two versions are told apart by their fields. Those tools take a
model's name from the answers file's own name, so ours is that too.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wire.errors import ConfigError

Row = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
CODE_BLOCK = re.compile(r"```[^`]*```")


@dataclass(frozen=True)
class Question:
    """`conversation` ends in the user turn that is answered first; `later` are the user's turns after that. `row` is
    what the file has, `name` what tells the question from others."""

    name: str
    conversation: tuple[dict[str, str], ...]
    later: tuple[str, ...]
    row: Row


@dataclass(frozen=True)
class Answer:
    """The policy's answer to one turn, without its thought; `num_tokens` are the policy's own, the thought's left
    out."""

    text: str
    num_tokens: int


@dataclass(frozen=True)
class Writer:
    """Who answered, how and when (seconds of the wall clock)."""

    model: str
    temperature: float
    max_tokens: int
    at: float


@dataclass(frozen=True)
class Form:
    """A benchmark's way to write: `ask` raises ValueError on a row that is no question. `has_ids`: its answers are
    found by an id, which must be one question's alone."""

    ask: Callable[[Row], Question]
    answered: Callable[[Question, Sequence[Answer], Writer], dict[str, Any]]
    is_lines: bool
    has_ids: bool = True


def read_questions(path: Path, form: str) -> list[Question]:
    """The questions of a file, in its order.

    Raises:
        ConfigError: there is no such file, or a row of it is no question of this benchmark; the message names the row.
    """
    ask, questions = FORMS[form].ask, list[Question]()
    rows = _rows(path)
    for place, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError("it is no JSON object")
            questions.append(ask(row))
        except ValueError as error:
            raise ConfigError(f"questions {path}, {place}: {error}; this is no question of {form}") from None
    names: dict[str, str] = {}
    for (place, _), question in zip(rows, questions, strict=True):
        if FORMS[form].has_ids and question.name in names:
            raise ConfigError(f"questions {path}, {place}: {question.name} is that of {names[question.name]} too")
        names[question.name] = place
    if not questions:
        raise ConfigError(f"questions {path} is empty; name a file with questions of {form}")
    return questions


def _rows(path: Path) -> list[tuple[str, Any]]:
    """The rows with their places: `line 3`, or `row 3` of a list."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"questions {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if text.lstrip().startswith("["):
        return [(f"row {number}", row) for number, row in enumerate(_parsed(text, f"questions {path}"), start=1)]
    lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [(place, _parsed(line, f"questions {path}, {place}")) for place, line in lines]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; give JSON lines, or one JSON list") from None


def write_answers(
    path: Path, form: str, questions: Sequence[Question], answers: Sequence[Sequence[Answer]], writer: Writer
) -> None:
    """Write the file, whole or not at all: an answer to each turn of each question, in the questions' order."""
    found = [FORMS[form].answered(*pair, writer) for pair in zip(questions, answers, strict=True)]
    if FORMS[form].is_lines:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    else:
        text = json.dumps(found, ensure_ascii=False, indent=2) + "\n"
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


# --- Arena-Hard and MT-Bench


def _ask_arena_hard(row: Row) -> Question:
    """v0.1 has `question_id` and `turns` of `{"content": ...}`, v2.0 `uid` and `prompt`."""
    if "turns" not in row:
        return Question(f"uid {_id_in(row, 'uid')}", (_user(_text_in(row, "prompt")),), (), row)
    turns = [_text_in(turn, "content") if isinstance(turn, dict) else "" for turn in _list_in(row, "turns")]
    return _in_turns(row, turns)


def _ask_mt_bench(row: Row) -> Question:
    return _in_turns(row, _list_in(row, "turns"))


def _in_turns(row: Row, turns: Sequence[Any]) -> Question:
    if not all(isinstance(turn, str) and turn for turn in turns):
        raise ValueError("'turns' holds something that is no text")
    return Question(f"question_id {_id_in(row, 'question_id')}", (_user(turns[0]),), tuple(turns[1:]), row)


def _answer_arena_hard(question: Question, answers: Sequence[Answer], writer: Writer) -> dict[str, Any]:
    """Style control reads `metadata` (v2.0) or `conv_metadata` (v0.1): the token count first, then the signs of
    markdown, and nothing else."""
    row, style = question.row, _style(answers[0])
    if "turns" in row:
        turns = [{"content": answer.text, "token_len": answer.num_tokens} for answer in answers]
        return _in_choices(question, turns, writer) | ({"conv_metadata": style} if len(answers) == 1 else {})
    messages = [*question.conversation, {"role": "assistant", "content": {"answer": answers[0].text}}]
    return {
        "uid": row["uid"],
        "ans_id": uuid.uuid4().hex,
        "model": writer.model,
        "messages": messages,
        "tstamp": writer.at,
        "metadata": style,
    }


def _answer_mt_bench(question: Question, answers: Sequence[Answer], writer: Writer) -> dict[str, Any]:
    return _in_choices(question, [answer.text for answer in answers], writer)


def _in_choices(question: Question, turns: Sequence[Any], writer: Writer) -> dict[str, Any]:
    return {
        "question_id": question.row["question_id"],
        "answer_id": uuid.uuid4().hex,
        "model_id": writer.model,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": writer.at,
    }


def _style(answer: Answer) -> dict[str, Any]:
    """Length and markdown of an answer, code blocks left out, by the names that Arena-Hard's style control knows."""
    text = CODE_BLOCK.sub("", answer.text)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, text, re.MULTILINE))

    return {
        "token_len": answer.num_tokens,
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


# --- WildBench and AlpacaEval


def _ask_wildbench(row: Row) -> Question:
    turns = []
    for turn in _list_in(row, "conversation_input"):
        if not isinstance(turn, dict) or turn.get("role") not in ROLES:
            raise ValueError("'conversation_input' holds a turn without a role")
        turns.append({"role": turn["role"], "content": _text_in(turn, "content")})
    if turns[-1]["role"] != "user":
        raise ValueError("'conversation_input' does not end in a user turn")
    return Question(f"session_id {_id_in(row, 'session_id')}", tuple(turns), (), row)


def _answer_wildbench(question: Question, answers: Sequence[Answer], writer: Writer) -> dict[str, Any]:
    """`model_input` is what WildBench's own programs put where a chat template was not theirs to fill."""
    return {
        "session_id": question.row["session_id"],
        "chat_history": [turn["content"] for turn in question.conversation],
        "model_input": "n/a",
        "output": [answers[0].text],
        "generator": writer.model,
        "configs": {
            "engine": "vllm",
            "repetition_penalty": 1.0,
            "temperature": writer.temperature,
            "top_p": 1.0,
            "max_tokens": writer.max_tokens,
        },
        "dataset": "wild_bench",
        "primary_tag": question.row.get("primary_tag", ""),
    }


def _ask_alpaca_eval(row: Row) -> Question:
    text = _text_in(row, "instruction")
    return Question(f"instruction {text[:40]!r}", (_user(text),), (), row)


def _answer_alpaca_eval(question: Question, answers: Sequence[Answer], writer: Writer) -> dict[str, Any]:
    return {
        "instruction": question.row["instruction"],
        "output": answers[0].text,
        "generator": writer.model,
        "dataset": question.row.get("dataset", ""),
    }


# --- fields


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _text_in(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name!r} is no text")
    return value


def _list_in(row: Row, name: str) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name!r} is no list of turns")
    return value


def _id_in(row: Row, name: str) -> str | int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{name!r} is missing")
    return value


FORMS = {
    "arena-hard": Form(_ask_arena_hard, _answer_arena_hard, is_lines=True),
    "mt-bench": Form(_ask_mt_bench, _answer_mt_bench, is_lines=True),
    "wildbench": Form(_ask_wildbench, _answer_wildbench, is_lines=False),
    "alpaca-eval": Form(_ask_alpaca_eval, _answer_alpaca_eval, is_lines=False, has_ids=False),
}
