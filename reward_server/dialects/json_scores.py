"""The dialect of NVIDIA's 235B and later GenRMs: the numbers in a JSON object that ends the output.

    <think> ... </think> perhaps an analysis, and then
    ```json
    {"response_1_analysis": "...", "response_2_analysis": "...", "score_1": 4, "score_2": 2, "ranking": 1}
    ```

with `score_1` alone for a single response; the fence may be absent, and the newest judges put the three numbers under a
key `overall`. Sources: NVIDIA-NeMo/RL b096f4c16 (the contract), NVIDIA-NeMo/Gym 07d6b0d0, genrm_compare/utils.py, whose
parser takes what it finds and falls back to neutral numbers; this one reads the end and gives none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from reward_server.dialects.asking import Asked, ask
from reward_server.dialects.reading import Reading, Unreadable, ranking, score, verdict_in
from wire.judgement import Message

FENCE = "```"
LINE_BEFORE = ("", FENCE, f"{FENCE}json")
NUMBERS = ("score_1", "score_2", "ranking")
DELIMITER = re.compile(r'["{}]')


class JsonScores:
    """Asks and reads a judge of the JSON dialect.

    Args:
        principle: what the judge shall judge by, in words; for judges whose template takes the role `principle`.
    """

    def __init__(self, principle: str | None = None) -> None:
        self._principle = principle

    def messages(self, conversation: Sequence[Message], responses: Sequence[str]) -> Asked:
        """The conversation, the principle if there is one, and the responses; see `asking.ask`."""
        return ask(conversation, responses, self._principle)

    def read(self, text: str, num_responses: int) -> Reading:
        """The numbers of the JSON object that ends the output.

        Raises:
            Unreadable: there is none, or a number is absent, out of range or no plain number.
        """
        verdict = _last_object(verdict_in(text))
        inner = verdict.get("overall")
        if isinstance(inner, dict):
            if any(name in verdict for name in NUMBERS):
                raise Unreadable("numbers both beside overall and under it")
            verdict = inner
        if num_responses == 1 and any(name in verdict for name in NUMBERS[1:]):
            raise Unreadable("numbers of two responses for one")
        scores = tuple(score(_numeral(verdict, name)) for name in NUMBERS[:num_responses])
        return Reading(scores, ranking(_numeral(verdict, "ranking")) if num_responses == 2 else None)


class _Numeral(str):
    """A number as written. So 1e0 stays one text and 1 another, and no digits are too many to convert."""


def _numeral(verdict: dict[str, Any], name: str) -> str:
    value = verdict.get(name)
    if not isinstance(value, _Numeral):
        raise Unreadable(f"{name} is no number but {type(value).__name__}")
    return value


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object with which `text` ends, white space and one closing fence aside.

    It begins a line: a JSON string has no line breaks, so what a judge quotes within one begins no line, not even where
    the judge forgets to escape quotation marks and ends right behind it. And it is not part of a longer value that was
    cut: of an evaluation by several principles, the first would look like the whole.
    """
    body = text.rstrip().removesuffix(FENCE).rstrip()
    start = _start_of_object(body)
    before = body[:start]
    if before.rpartition("\n")[2].strip().lower() not in LINE_BEFORE:
        raise Unreadable(f"the object at the end does not begin a line, but follows {before[-40:]!r}")
    ahead = before.rstrip()
    if ahead.endswith(("[", ",")) or (ahead.endswith(":") and ahead[:-1].rstrip().endswith('"')):
        raise Unreadable(f"the object at the end is part of one that was cut: it follows {ahead[-40:]!r}")
    try:
        verdict: dict[str, Any] = DECODER.decode(body[start:])
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the object at the end is no JSON: {str(error)[:100]}") from error
    return verdict


def _start_of_object(text: str) -> int:
    r"""Where the one suffix of `text` begins that may be a JSON object.

    Braces are counted from the end, those in strings aside. Read backwards, JSON is as plain as forwards: a quotation
    mark bounds a string unless an odd number of backslashes precedes it. So every JSON object that ends `text` begins
    where the count first comes to zero: there is at most one, and it need not be searched for. The walk looks at each
    delimiter once and at each backslash at most once, so it takes linear time; so does the decoder.
    """
    depth, in_string = 0, False
    if text.endswith("}"):
        for mark in reversed(list(DELIMITER.finditer(text))):
            if mark[0] == '"':
                in_string ^= not _is_escaped(text, mark.start())
            elif not in_string:
                depth += 1 if mark[0] == "}" else -1
                if depth == 0:
                    return mark.start()
    raise Unreadable(f"the output does not end with a JSON object, but with {text[-40:]!r}")


def _is_escaped(text: str, place: int) -> bool:
    start = place
    while start and text[start - 1] == "\\":
        start -= 1
    return (place - start) % 2 == 1


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; of two values for one key, none is the judge's."""
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Unreadable("a key stands twice in one object")
    return value


def _refused(constant: str) -> Any:
    raise Unreadable(f"{constant} is no JSON")


DECODER = json.JSONDecoder(
    object_pairs_hook=_without_duplicates, parse_int=_Numeral, parse_float=_Numeral, parse_constant=_refused
)
