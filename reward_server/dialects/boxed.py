r"""The dialect of NVIDIA's 49B GenRMs: numbers in `\boxed{}`, in sections at the end of the output.

    <think> ... </think> an analysis of each response, and then
    [The Begin of Individual Scores]
    \boxed{4, 2}
    [The End of Individual Scores]
    [The Begin of Ranking Score]
    \boxed{1}
    [The End of Ranking Score]

with one score and no ranking for a single response. Source: NVIDIA-NeMo/RL 27bd6a68, genrm_pairwise_environment.py,
whose parser searches for the sections and falls back to neutral numbers; this one reads the end and gives none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from reward_server.dialects.asking import Asked, ask
from reward_server.dialects.reading import Reading, Unreadable, ranking, score, verdict_in
from wire.judgement import Message

SCORES, RANKING = "Individual Scores", "Ranking Score"
# One box and nothing beside it. Each part begins where the one before cannot go on, so matching takes linear time.
BOX = re.compile(r"\s*\\boxed\{([^{}]*)\}\s*")


class Boxed:
    """Asks and reads a judge of the boxed dialect."""

    def messages(self, conversation: Sequence[Message], responses: Sequence[str]) -> Asked:
        """The conversation and the responses; see `asking.ask`."""
        return ask(conversation, responses)

    def read(self, text: str, num_responses: int) -> Reading:
        """The numbers of the sections that end the output: scores and, for two responses, the ranking behind them.

        A judge may quote a response, and a response may hold a whole false verdict. So no section is searched for: only
        those count with nothing but white space behind them. What is quoted in an analysis has the rest of the analysis
        behind it, and is not read even where the judge's own sections are absent or damaged. A quotation with which an
        output ends looks like the judge's own words; against that, responses hold no such mark when the judge sees them
        (`neutral.py`).

        Raises:
            Unreadable: anything is absent, misplaced, miscounted, out of range or no plain number.
        """
        rest, rank = verdict_in(text), None
        if num_responses == 2:
            rest, box = _last_section(rest, RANKING)
            rank = ranking(box.strip())
        _, box = _last_section(rest, SCORES)
        scores = tuple(score(item.strip()) for item in box.split(","))
        if len(scores) != num_responses:
            raise Unreadable(f"{len(scores)} scores for {num_responses} responses")
        return Reading(scores, rank)


def _last_section(text: str, name: str) -> tuple[str, str]:
    """The text before the section `name` that ends `text`, and the content of its box.

    The section begins at the last begin mark. An earlier one, as of a quotation right before the judge's own section,
    would leave marks or a second box between box and end mark, and there `BOX` allows white space only.
    """
    end_mark = f"[The End of {name}]"
    body = text.rstrip()
    if not body.endswith(end_mark):
        raise Unreadable(f"the output does not end with a section {name}, but with {body[-40:]!r}")
    before, begin_mark, content = body.removesuffix(end_mark).rpartition(f"[The Begin of {name}]")
    if not begin_mark:
        raise Unreadable(f"section {name} has no begin")
    box = BOX.fullmatch(content)
    if not box:
        raise Unreadable(f"section {name} holds more or less than one box: {content.strip()[:40]!r}")
    return before, box[1]
