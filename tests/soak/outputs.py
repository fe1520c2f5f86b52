r"""Outputs of a judge, good ones and damaged ones, drawn from a seeded generator, and what must hold of their reading.

An output is a head (thought and analysis, full of quoted false verdicts) and a tail (the judge's own verdict). The
judge's own numbers are made of the digits 0..4, those it quotes of 5 and 6, so that wherever only one of the two parts
is damaged, what was read tells where it came from:

    damage in       must be read
    nothing         the judge's own numbers
    head, inside    the judge's own numbers, or nothing (inside: the strings of a JSON verdict)
    tail            nothing quoted
    anywhere        what the oracle reads, as in every other case

The oracles are other programs for the same contract: one regular expression, and `json.loads` at every brace.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any, Literal

from reward_server.dialects import Reading, Unreadable, dialect_named

Dialect = Literal["boxed", "json"]
Damage = Literal["nothing", "head", "inside", "tail", "anywhere"]

WORDS = (
    *("the", "answer", "is", "clear", "but", "too", "long,", "it", "says", "{x}", "and", '"y"', "where", "'z'", "was"),
    *("asked;", "\\frac{1}{2}", "\n\n", "-", "so\tbad"),
)
MARKS = (
    *(f"[The {edge} of {name}]" for edge in ("Begin", "End") for name in ("Individual Scores", "Ranking Score")),
    *("<think>", "</think>", "\\boxed{", "}", "{", "[", "]", '"', "\\", '\\"', ",", ":", "\n", " ", "```", "```json\n"),
    *(
        '"score_1": ',
        '"score_2": ',
        '"ranking": ',
        '"overall": ',
        "2",
        "3.4",
        "null",
        "true",
        "-",
        "e0",
        "NaN",
        "\u0663",
    ),
)
QUOTED = {
    "boxed": (
        "[The Begin of Individual Scores]\n\\boxed{5, 5}\n[The End of Individual Scores]",
        "[The Begin of Individual Scores]\\boxed{5}[The End of Individual Scores]",
        "[The Begin of Ranking Score]\n\\boxed{6}\n[The End of Ranking Score]",
    ),
    "json": (
        '{"score_1": 5, "score_2": 5, "ranking": 6}',
        '\n{\n  "score_1": 5,\n  "score_2": 5.0,\n  "ranking": 6\n}\n',
        '```json\n{"overall": {"score_1": 5, "score_2": 5, "ranking": 6}}\n```',
        '", "score_1": 5, "score_2": 5, "ranking": 6}',
        '", "overall": {"score_1": 5, "score_2": 5, "ranking": 6}, "x": "',
        '{\\"score_1\\": 5, \\"score_2\\": 5, \\"ranking\\": 6}',
        '{"score_1": 5}',
    ),
}


@dataclass(frozen=True)
class Output:
    """A judge's output in one dialect: what it is, what was done to it, and the numbers its judge meant."""

    dialect: Dialect
    num_responses: int
    damage: Damage
    genuine: Reading
    text: str


def any_output(rng: Random) -> Output:
    """One output, damaged in one of the ways above."""
    dialect: Dialect = rng.choice(("boxed", "json"))
    num_responses = rng.choice((1, 2))
    numerals = [rng.choice("1234") + rng.choice(("", "", "", ".0", ".4", ".34")) for _ in range(num_responses)]
    rank = rng.choice("1234") if num_responses == 2 else None
    genuine = Reading(tuple(float(numeral) for numeral in numerals), int(rank) if rank else None)
    head, inside, tail = (_boxed if dialect == "boxed" else _json)(rng, numerals, rank)
    damage: Damage = rng.choice(("nothing", "head", "inside", "tail", "tail", "anywhere", "anywhere"))
    text = head + inside + tail
    bounds = {
        "head": (0, len(head)),
        "inside": (len(head), len(head) + len(inside)),
        "tail": (len(head) + len(inside), len(text)),
        "anywhere": (0, len(text)),
    }
    if damage != "nothing":
        low, high = bounds[damage]
        pieces = MARKS if damage == "tail" else (*MARKS, *QUOTED[dialect], *QUOTED[dialect])
        text = text[:low] + damaged(rng, text[low:high], pieces) + text[high:]
    return Output(dialect, num_responses, damage, genuine, text)


def damaged(rng: Random, text: str, pieces: tuple[str, ...]) -> str:
    """`text` after one to three mutations; what they put in comes from `pieces` or from the text itself."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        start, other = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        stop = rng.choice((start + 1, start + rng.randint(0, 40), other))
        match rng.randrange(8):
            case 0:
                text = text[:start] + text[stop:]
            case 1:
                text = text[:stop] + text[start:]
            case 2:
                text = text[:start] + text[other:] + text[start:other]
            case 3:
                text = text[:start]
            case 4 if start < other:
                text = text[:start] + text[other - 1] + text[start + 1 : other - 1] + text[start] + text[other:]
            case _:
                text = text[:start] + rng.choice(pieces) + text[rng.choice((start, stop)) :]
    return text


def _prose(rng: Random, dialect: Dialect) -> str:
    parts = [*rng.choices(WORDS, k=rng.randint(2, 12)), *rng.choices(QUOTED[dialect], k=rng.choice((0, 0, 1, 2)))]
    rng.shuffle(parts)
    return " ".join(parts)


def _boxed(rng: Random, numerals: list[str], rank: str | None) -> tuple[str, str, str]:
    """Head and tail; nothing is inside. The head ends with an end of analysis, as a judge's does."""
    thought, analysis = _prose(rng, "boxed"), _prose(rng, "boxed")
    place = len(numerals)
    head = (
        f"<think>{thought}</think>\n[The Begin of Analysis on Response {place}]{analysis}"
        f"[The End of Analysis on Response {place}]{rng.choice(('', chr(10)))}"
    )
    if rng.random() < 0.2:  # right before the judge's own sections: these must be whole for their numbers to be read
        head += f"{QUOTED['boxed'][len(numerals) == 1]}\nso much for that.\n"
    gap = rng.choice(("", "\n", " \n "))
    sections = [("Individual Scores", rng.choice((", ", ",", " ,\n")).join(numerals))]
    sections += [("Ranking Score", rank)] if rank else []
    written = [f"[The Begin of {name}]{gap}\\boxed{{{box}}}{gap}[The End of {name}]" for name, box in sections]
    return head, "", gap.join(written) + gap


def _json(rng: Random, numerals: list[str], rank: str | None) -> tuple[str, str, str]:
    """Head with the object's begin, the content of its string, and the rest of it."""
    fence = rng.random() < 0.5
    names = ("score_1", "score_2")
    numbers = ", ".join(f'"{name}": {numeral}' for name, numeral in zip(names, numerals, strict=False))
    numbers += f', "ranking": {rank}' if rank else ""
    if rng.random() < 0.3:
        numbers = f'"overall": {{{numbers}}}'
    prose = rng.choice(("", f"{_prose(rng, 'json')}\nThe verdict.\n"))
    head = f"<think>{_prose(rng, 'json')}</think>{prose}{chr(10) + '```json' + chr(10) if fence else ''}"
    head += '{"analysis": "'
    return head, json.dumps(_prose(rng, "json"))[1:-1], f'", {numbers}}}{chr(10) + "```" if fence else ""}'


def examine(output: Output) -> tuple[Reading | None, str | None]:
    """What is read in the output, None where it is unreadable, and what is wrong with that, None where nothing is.

    Raises:
        Whatever a reader raises beside `Unreadable`: there is nothing else it may raise.
    """
    try:
        reading = READERS[output.dialect].read(output.text, output.num_responses)
    except Unreadable:
        reading = None
    return reading, _fault(output, reading)


def _fault(output: Output, reading: Reading | None) -> str | None:
    expected = ORACLES[output.dialect](output.text.split("</think>"), output.num_responses)
    if reading != expected:
        return f"read {reading}, the oracle {expected}"
    if reading is None:
        return "a good output was refused" if output.damage == "nothing" else None
    if not _in_range(reading, output.num_responses):
        return f"out of range: {reading}"
    if output.damage in ("nothing", "head", "inside") and reading != output.genuine:
        return f"read {reading}, the judge wrote {output.genuine}"
    if output.damage == "tail" and (set(str(reading.scores)) | set(str(reading.ranking))) & set("56"):
        return f"read what was quoted: {reading}"
    return None


def _in_range(reading: Reading, num_responses: int) -> bool:
    ranked = reading.ranking in range(1, 7) if num_responses == 2 else reading.ranking is None
    return ranked and len(reading.scores) == num_responses and all(1 <= number <= 5 for number in reading.scores)


def _section(name: str, num_numbers: int) -> str:
    box = ",".join([r"\s*([0-9.]+)\s*"] * num_numbers)
    return rf"\[The Begin of {name}\]\s*\\boxed\{{{box}\}}\s*\[The End of {name}\]\s*"


BOXED_END = {
    1: re.compile(_section("Individual Scores", 1) + r"\Z"),
    2: re.compile(_section("Individual Scores", 2) + _section("Ranking Score", 1) + r"\Z"),
}


def _oracle_boxed(parts: list[str], num_responses: int) -> Reading | None:
    found = BOXED_END[num_responses].search(parts[-1]) if len(parts) > 1 else None
    return _numbers(list(found.groups()), num_responses) if found else None


def _oracle_json(parts: list[str], num_responses: int) -> Reading | None:
    body = re.sub(r"\s*(```)?\s*\Z", "", parts[-1]) if len(parts) > 1 else ""
    for start in (found.start() for found in re.finditer(r"\{", body)):
        before = body[:start]
        try:
            # As pairs, so that a key may be looked for twice; a number stays a list of one, as written.
            pairs = json.loads(body[start:], object_pairs_hook=_Pairs, parse_int=_kept, parse_float=_kept)
        except ValueError:
            continue
        if not re.search(r"(\A|\n)[^\S\n]*(```|```json)?[^\S\n]*\Z", before, re.I):
            return None
        if re.search(r'([\[,]|"\s*:)\s*\Z', before):
            return None
        return _numbers_of(pairs, num_responses)
    return None


class _Pairs(tuple[tuple[str, Any], ...]):
    """An object's pairs; where a key comes twice, `json.loads` gives up."""

    def __new__(cls, pairs: list[tuple[str, Any]]) -> _Pairs:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("duplicate key")
        return super().__new__(cls, pairs)


def _kept(numeral: str) -> Decimal | None:
    """The number, where it is written plainly."""
    return Decimal(numeral) if re.fullmatch(r"[0-9.]+", numeral, re.ASCII) else None


def _numbers_of(pairs: _Pairs, num_responses: int) -> Reading | None:
    keys = ["score_1", "score_2", "ranking"] if num_responses == 2 else ["score_1"]
    value, others = dict(pairs), {"score_2", "ranking"} - set(keys)
    if isinstance(value.get("overall"), _Pairs):
        if {"score_1", "score_2", "ranking"} & value.keys():
            return None
        value = dict(value["overall"])
    if others & value.keys() or not all(isinstance(value.get(key), Decimal) for key in keys):
        return None
    return _numbers([str(value[key]) for key in keys], num_responses)


def _numbers(numerals: list[str], num_responses: int) -> Reading | None:
    """The reading, unless a numeral is none (`4.`, `04`) or out of range, or the ranking no integer."""
    if not all(re.fullmatch(r"[1-9][0-9]*(\.[0-9]+)?", numeral) for numeral in numerals):
        return None
    scores, rest = [Decimal(numeral) for numeral in numerals[:num_responses]], numerals[num_responses:]
    if not all(1 <= number <= 5 for number in scores) or not all(rank in list("123456") for rank in rest):
        return None
    return Reading(tuple(float(number) for number in scores), int(rest[0]) if rest else None)


READERS = {name: dialect_named(name) for name in ("boxed", "json")}
ORACLES = {"boxed": _oracle_boxed, "json": _oracle_json}
