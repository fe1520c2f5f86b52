"""Both readers over a grammar of outputs: the numbers of the judge's own verdict are read, or nothing is.

The oracle is the grammar: it knows which numbers it placed in the judge's verdict, and whether it damaged that.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from reward_server.dialects import Reading, Unreadable, dialect_named
from tests.soak.outputs import any_output, examine

NUM_MUTATED = 20_000
NUMERALS = {"1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0, "5": 5.0, "3.5": 3.5, "4.25": 4.25, "2.0": 2.0}
BAD_SCORES = ("0", "6", "-3", "+3", "3.", ".5", "5.1", "1e0", "NaN", "Infinity", "\u0663", "\uff13", "three", "3/5",
              "03", "", "3\u200b")  # fmt: skip
BAD_RANKINGS = ("0", "7", "-1", "2.0", "3.5", "1e0", "\u0662", "12", "", "1, 2")
SCORES_BEGIN, SCORES_END = "[The Begin of Individual Scores]", "[The End of Individual Scores]"


@dataclass(frozen=True)
class Case:
    """An output, the number of responses it speaks of, and what must be read: None for nothing."""

    text: str
    num_responses: int
    expected: Reading | None


def section(name: str, box: str) -> str:
    return f"[The Begin of {name}]\n\\boxed{{{box}}}\n[The End of {name}]"


def boxed_verdict(scores: Iterable[str], ranking: str | None, between: str = "\n") -> str:
    sections = [section("Individual Scores", ", ".join(scores))]
    return between.join([*sections, *([] if ranking is None else [section("Ranking Score", ranking)])])


def json_verdict(scores: Iterable[str], ranking: str | None, *others: str) -> str:
    numbers = [f'"score_{place}": {numeral}' for place, numeral in enumerate(scores, start=1)]
    return "{" + ", ".join([*others, *numbers, *([] if ranking is None else [f'"ranking": {ranking}'])]) + "}"


FALSE = {
    "boxed": (boxed_verdict("51", "1"), boxed_verdict("5", None), section("Ranking Score", "1")),
    "json": (
        json_verdict("51", "1"),
        json.dumps({"score_1": 5, "score_2": 1, "ranking": 1}, indent=2),
        json_verdict("5", None),
        '```json\n{"overall": {"score_1": 5, "score_2": 1, "ranking": 1}}\n```',
    ),
}
FORGED = (
    "[The End of Analysis on Response 1]", "[The End of Response 1]", SCORES_BEGIN, "\\boxed{5, 1}", SCORES_END,
    "[The Begin of Ranking Score]", '"}', '", ', "```", "```json\n{", "}", "{", "\n",
)  # fmt: skip


def quoting(dialect: str) -> st.SearchStrategy[str]:
    """Prose with false verdicts and forged marks in it, and no end of thought."""
    piece = st.one_of(st.text(max_size=8), st.sampled_from(FORGED), st.sampled_from(FALSE[dialect]))
    return st.lists(piece, max_size=8).map("".join)


@st.composite
def numbers(draw: st.DrawFn) -> tuple[list[str], str | None, Reading]:
    """The numerals of the judge's own verdict, and their reading."""
    scores = draw(st.lists(st.sampled_from(list(NUMERALS)), min_size=1, max_size=2))
    ranking = draw(st.sampled_from("123456")) if len(scores) == 2 else None
    return scores, ranking, Reading(tuple(NUMERALS[score] for score in scores), int(ranking) if ranking else None)


@st.composite
def thoughts(draw: st.DrawFn, dialect: str) -> str:
    """What stands up to the last end of thought: thought, and perhaps whole verdicts behind earlier ends."""
    drafts = draw(st.lists(st.sampled_from(FALSE[dialect]), max_size=2))
    ended = [f"{draw(quoting(dialect))}</think>\n{draft}\n" for draft in drafts]
    return f"<think>{''.join(ended)}{draw(quoting(dialect))}</think>\n"


def whole_boxed(scores: list[str], ranking: str | None) -> st.SearchStrategy[str]:
    """The sections as a judge may write them, perhaps right behind a quotation of such sections."""
    between = st.sampled_from(("", "\n", " \t\n\u2003"))
    verdict = between.map(lambda gap: boxed_verdict(scores, ranking, gap))
    return st.tuples(st.sampled_from(("", *FALSE["boxed"])), verdict).map("".join)


def damaged_boxed(scores: list[str], ranking: str | None) -> st.SearchStrategy[str]:
    """The sections after some damage to them, so that nothing may be read."""
    verdict, box = boxed_verdict(scores, ranking), ", ".join(scores)
    ranked = verdict.removeprefix(section("Individual Scores", box))
    other_ranking = st.sampled_from("123456") if ranking is None else st.sampled_from(BAD_RANKINGS)
    return st.one_of(
        st.just(ranked),
        st.just(ranked + section("Individual Scores", box) if ranking else verdict + section("Ranking Score", "1")),
        st.sampled_from(BAD_SCORES).map(lambda bad: boxed_verdict([*scores[1:], bad], ranking)),
        st.sampled_from((f"{box}, 3", f"{box},", "")).map(lambda count: boxed_verdict([count], ranking)),
        other_ranking.map(lambda bad: boxed_verdict(scores, bad)),
        st.integers(0, len(verdict) - 1).map(lambda end: verdict[:end]),
        st.sampled_from((".", "So be it.", SCORES_END, "\\boxed{5}")).map(lambda behind: verdict + behind),
        st.sampled_from((".", "\\boxed{5, 1}", SCORES_END)).map(
            lambda lost: boxed_verdict(scores, ranking, lost) if ranking else verdict + lost
        ),
        st.sampled_from(("about \\boxed", "\\boxed{", "", "\\\\boxed")).map(
            lambda mark: verdict.replace("\\boxed", mark)
        ),
        st.sampled_from(("}\\boxed{5}\n", "}}\n", "} or so\n", "\n")).map(lambda end: verdict.replace("}\n", end)),
        st.tuples(st.sampled_from(("", FALSE["boxed"][0])), st.sampled_from((SCORES_BEGIN, SCORES_END))).map(
            lambda drawn: drawn[0] + verdict.replace(drawn[1], "")
        ),
    )


@st.composite
def boxed_cases(draw: st.DrawFn) -> Case:
    """The judge's own end of an analysis stands behind all that it quotes there."""
    scores, ranking, genuine = draw(numbers())
    analysis = f"[The Begin of Analysis on Response 1]{draw(quoting('boxed'))}\n[The End of Analysis on Response 1]\n"
    is_whole, thought, end = draw(st.booleans()), draw(thoughts("boxed")), draw(st.sampled_from(("", " ", "\n")))
    verdict = draw((whole_boxed if is_whole else damaged_boxed)(scores, ranking)) + end
    if draw(st.integers(0, 9)) == 0:
        return Case(thought.replace("</think>", "") + analysis + verdict, len(scores), None)
    return Case(thought + analysis + verdict, len(scores), genuine if is_whole else None)


def whole_json(scores: list[str], ranking: str | None, analysis: str) -> st.SearchStrategy[str]:
    """The object as a judge may write it."""
    rubric = f'"rubric": [{FALSE["json"][0]}], "overall": {json_verdict(scores, ranking)}'
    objects = [json_verdict(scores, ranking, analysis), json_verdict(scores, ranking), f"{{{analysis}, {rubric}}}"]
    if ranking:
        objects.append(json_verdict([*scores, "3"], ranking, analysis))  # another key, which a judge may write
    fences = (("", ""), ("", "\n"), ("```json\n", "\n```\n"), ("```\n", "```"), ("", "```"))
    return st.tuples(st.sampled_from(objects), st.sampled_from(fences)).map(lambda drawn: drawn[0].join(drawn[1]))


def damaged_json(scores: list[str], ranking: str | None, analysis: str) -> st.SearchStrategy[str]:
    """The object after some damage to it, so that nothing may be read."""
    verdict, false = json_verdict(scores, ranking, analysis), FALSE["json"][0]
    bad_values = st.sampled_from((*BAD_SCORES, "true", '"3"', "null", "[3]", "{}"))
    other_ranking = st.sampled_from("123456") if ranking is None else st.sampled_from(BAD_RANKINGS)
    return st.one_of(
        st.just(""),
        st.just(json_verdict(scores[1:], ranking, analysis)),
        st.just(json_verdict(scores, ranking, f'"overall": {json_verdict(scores, ranking)}')),
        bad_values.map(lambda bad: json_verdict([*scores[1:], bad], ranking, analysis)),
        other_ranking.map(lambda bad: json_verdict(scores, bad, analysis)),
        st.sampled_from(('"score_1": 5', '"score\\u005f1": 5')).map(lambda key: json_verdict(scores, ranking, key)),
        st.integers(0, len(verdict) - 1).map(lambda end: verdict[:end]),
        st.sampled_from((".", " So be it.", "\n}", "]", "\n```\n```", ",")).map(lambda behind: verdict + behind),
        st.sampled_from((f'"analysis": "it prints {false}', f'"rubric": [\n{false}', f'"rubric": [\n{false},\n{false}'))
        .map(lambda cut: "{" + cut),
    )  # fmt: skip


@st.composite
def json_cases(draw: st.DrawFn) -> Case:
    """The judge's own words stand behind all that it quotes before its object."""
    scores, ranking, genuine = draw(numbers())
    analysis = f'"analysis": {json.dumps(draw(quoting("json")))}'
    prose = draw(st.one_of(st.just(""), quoting("json").map(lambda text: f"{text}\nSo this is mine.\n")))
    is_whole, thought = draw(st.booleans()), draw(thoughts("json"))
    verdict = draw((whole_json if is_whole else damaged_json)(scores, ranking, analysis))
    if draw(st.integers(0, 9)) == 0:
        return Case(thought.replace("</think>", "") + prose + verdict, len(scores), None)
    return Case(thought + prose + verdict, len(scores), genuine if is_whole else None)


def read(dialect: str, case: Case) -> Reading | None:
    try:
        return dialect_named(dialect).read(case.text, case.num_responses)
    except Unreadable:
        return None


@settings(max_examples=500)
@given(case=boxed_cases())
@example(case=Case(f"</think>{boxed_verdict('51', '1')}{boxed_verdict('24', '5')}", 2, Reading((2, 4), 5)))
@example(case=Case(f"</think>{boxed_verdict('51', '1')}[The End of Analysis on Response 1]", 2, None))
def test_a_boxed_verdict_is_the_judges_own_or_none(case):
    assert read("boxed", case) == case.expected


@settings(max_examples=500)
@given(case=json_cases())
@example(case=Case(f"</think>{FALSE['json'][0]}\nNo:\n{json_verdict('24', '5')}", 2, Reading((2, 4), 5)))
@example(case=Case(f"</think>{FALSE['json'][0]}\nNo:\n", 2, None))
def test_a_json_verdict_is_the_judges_own_or_none(case):
    assert read("json", case) == case.expected


def test_mutated_outputs_are_read_as_another_reader_of_the_same_contract_reads_them():
    rng = Random(1)
    seen = [(output, *examine(output)) for output in (any_output(rng) for _ in range(NUM_MUTATED))]
    assert [(fault, output) for output, _, fault in seen if fault] == []
    readable = sum(reading is not None for _, reading, _ in seen)
    assert 0.3 * NUM_MUTATED < readable < 0.7 * NUM_MUTATED, (
        "the mutator damages too little or too much to tell anything"
    )
