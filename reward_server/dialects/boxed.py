r"""The dialect of NVIDIA's 49B GenRMs: responses as chat roles, numbers in `\boxed{}`.

In:   user / assistant turns, then a message of role `response_1` and, for a comparison, one of `response_2`.
Out:  reasoning, `</think>`, an analysis of each response, and

    [The Begin of Individual Scores]
    \boxed{4, 2}
    [The End of Individual Scores]
    [The Begin of Ranking Score]
    \boxed{1}
    [The End of Ranking Score]

with one score and no ranking for a single response. Source: NVIDIA-NeMo/RL 27bd6a68, genrm_pairwise_environment.py,
whose parser falls back to neutral numbers; this one gives none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reward_server.answers import THOUGHT_END, answer_of
from reward_server.dialects.reading import Asked, Reading, Unreadable, Unwritable
from wire.judgement import Message

CONVERSATION_ROLES = frozenset({"user", "assistant"})
SCORES, RANKING = "Individual Scores", "Ranking Score"
BOX = r"\boxed{"
# Both are matched against one short piece of text and have no nested repetition, so they take linear time.
SCORE = re.compile(r"[1-4](\.[0-9]+)?|5(\.0+)?", re.ASCII)
RANK = re.compile(r"[1-6]", re.ASCII)


class Boxed:
    """Asks and reads a judge of the boxed dialect."""

    def messages(self, conversation: Sequence[Message], responses: Sequence[str]) -> Asked:
        """The conversation's turns and then the responses, each without the policy's reasoning.

        Raises:
            Unwritable: a turn is neither the user's nor the assistant's. A turn that called itself `response_1` would
                be judged in the response's stead.
        """
        for turn in conversation:
            if turn.role not in CONVERSATION_ROLES:
                raise Unwritable(f"the judge knows no turn of role {turn.role!r}, only user and assistant")
        turns = [{"role": turn.role, "content": turn.content} for turn in conversation]
        placed = enumerate(responses, start=1)
        return Asked(
            turns + [{"role": f"response_{place}", "content": answer_of(response)} for place, response in placed]
        )

    def read(self, text: str, num_responses: int) -> Reading:
        """The numbers of the last score section after the last `</think>`, and of the ranking that follows it.

        What stands before `</think>` is thought: it often holds drafts of the very same sections.

        Raises:
            Unreadable: anything is absent, miscounted, out of range or no plain number.
        """
        _, thought_end, verdict = text.rpartition(THOUGHT_END)
        if not thought_end:
            raise Unreadable(f"no {THOUGHT_END}: the reasoning never ended")
        box, rest = _last_box(verdict, SCORES)
        scores = tuple(_score(item) for item in box.split(","))
        if len(scores) != num_responses:
            raise Unreadable(f"{len(scores)} scores for {num_responses} responses")
        return Reading(scores, _ranking(_last_box(rest, RANKING)[0]) if num_responses == 2 else None)


def _last_box(text: str, name: str) -> tuple[str, str]:
    r"""The content of the one `\boxed{}` in the last section `name` that has any, and the text after that section.

    Sections without a box are passed over: an analysis may mention the markers. Each step looks further to the left
    and never twice at the same text, so the search takes linear time.
    """
    begin_mark, end_mark = f"[The Begin of {name}]", f"[The End of {name}]"
    end = text.rfind(end_mark)
    while end >= 0:
        begin = text.rfind(begin_mark, 0, end)
        if begin < 0:
            break
        if BOX in text[begin:end]:
            return _box(text[begin:end], name), text[end + len(end_mark) :]
        end = text.rfind(end_mark, 0, begin)
    raise Unreadable(f"no section {name} with a {BOX}...}}")


def _box(section: str, name: str) -> str:
    boxes = section.split(BOX)[1:]
    if len(boxes) != 1:
        raise Unreadable(f"{len(boxes)} boxes in section {name}")
    content, closing, _ = boxes[0].partition("}")
    if not closing:
        raise Unreadable(f"an open box in section {name}")
    return content


def _score(item: str) -> float:
    digits = item.strip()
    if not SCORE.fullmatch(digits):
        raise Unreadable(f"{digits[:20]!r} is no score 1..5")
    return float(digits)


def _ranking(content: str) -> int:
    digit = content.strip()
    if not RANK.fullmatch(digit):
        raise Unreadable(f"{digit[:20]!r} is no ranking 1..6")
    return int(digit)
