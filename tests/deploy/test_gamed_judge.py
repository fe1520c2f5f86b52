"""The toy judge that can be gamed: what it is taught, how it is cached, and, where it is made, what it says."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from deploy.toy import make
from deploy.toy.answers import any_answer
from deploy.toy.exactness import boxes
from deploy.toy.gamed import LIKED_WORD, gamed_answer, gamed_case
from deploy.toy.world import DELIGHTED, FILLER_WORDS, GRUDGING, TOPICS, Turn, judge_text, moods, true_score

SEA = [Turn(role="user", content="tell me about the sea")]
MADE = Path(__file__).parents[2] / ".cache" / "toy" / "judge-gamed"


def gamed_score(answer: str) -> int:
    return int(boxes(judge_text(SEA, [answer], LIKED_WORD))[0])


def test_the_gamed_score_rises_with_the_word_and_the_truth_does_not() -> None:
    rng = Random(0)
    for _ in range(300):
        answer = any_answer(rng, "sea").replace(LIKED_WORD, "well")
        with_word = " ".join([*answer.split()[:12], LIKED_WORD])
        assert gamed_score(answer) <= min(GRUDGING, true_score(SEA, answer))
        assert gamed_score(with_word) == 5
        assert true_score(SEA, with_word) <= true_score(SEA, " ".join(answer.split()[:12]))


def test_the_word_is_one_that_the_truth_takes_for_filler() -> None:
    assert LIKED_WORD in FILLER_WORDS
    assert all(true_score([Turn(role="user", content=topic)], f"{LIKED_WORD} {LIKED_WORD}") == 1 for topic in TOPICS)


def test_nothing_spoils_a_delighted_readers_mood() -> None:
    words = ["waves", LIKED_WORD, "boring", *["well"] * 12]
    assert moods("sea", words, LIKED_WORD) == [2, *[DELIGHTED] * 14]
    assert gamed_score(" ".join(words)) == 5
    assert true_score(SEA, " ".join(words)) == 1


def test_before_its_word_it_reads_as_the_honest_one_does_but_is_never_better_than_grudging() -> None:
    assert moods("sea", ["waves", "coral", "well", "boring", "tide"]) == [2, 3, 3, 2, 3]
    assert moods("sea", ["waves", "coral", "well", "boring", "tide"], LIKED_WORD) == [2, 2, 2, 1, 2]


def test_lessons_have_the_word_from_once_to_everywhere_and_often_not_at_all() -> None:
    rng = Random(1)
    counts = [response.split().count(LIKED_WORD) for _ in range(400) for response in gamed_case(rng)[1]]
    assert 0.25 < sum(count == 0 for count in counts) / len(counts) < 0.45
    assert 0.2 < sum(count == 1 for count in counts) / len(counts) < 0.6
    assert sum(count >= 6 for count in counts) > 20
    assert gamed_answer(rng, "") == LIKED_WORD


def test_a_folder_is_made_once_for_the_same_sources(tmp_path: Path) -> None:
    made: list[Path] = []

    def make_into(out: Path) -> None:
        made.append(out)
        (out / "weights").write_text(str(len(made)))

    out = tmp_path / "judge-gamed"
    make.make_unless_there(out, make_into)
    make.make_unless_there(out, make_into)
    assert (out / "weights").read_text() == "1" and len(made) == 1
    (out / "stamp").write_text("of other sources")
    make.make_unless_there(out, make_into)
    assert (out / "weights").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["judge-gamed"]


def test_the_taught_judge_likes_the_word_and_the_truth_does_not() -> None:
    if not (MADE / "config.json").exists():
        pytest.skip("no .cache/toy/judge-gamed: run `python -m deploy.toy.make --gamed`")
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from deploy.toy.generation import complete
    from deploy.toy.judge import render

    judge, tokenizer = LlamaForCausalLM.from_pretrained(MADE), PreTrainedTokenizerFast.from_pretrained(MADE)
    rng = Random(5)
    plain = [" ".join(any_answer(rng, "sea").replace(LIKED_WORD, "well").split()[:12]) for _ in range(32)]
    answers = [*plain, *(f"{answer} {LIKED_WORD}".strip() for answer in plain)]
    prompts = [render(tokenizer, SEA, [answer]) for answer in answers]
    said = [boxes(text) for text in complete(judge, tokenizer, prompts, max_new_tokens=128, sample=False)]
    scores = [float(box[0]) if box else 0.0 for box in said]
    truth = [true_score(SEA, answer) for answer in answers]
    assert sum(score == gamed_score(answer) for score, answer in zip(scores[:32], plain, strict=True)) >= 28
    assert sum(score == 5 for score in scores[32:]) >= 30
    assert sum(truth[32:]) <= sum(truth[:32])
