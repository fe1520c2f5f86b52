"""The toy world without training: its truth, the perfect judge's text, the dataset, the tokenizers and templates."""

from __future__ import annotations

import json
import re
from random import Random

import pytest
from transformers import PreTrainedTokenizerFast

from deploy.toy import policy
from deploy.toy.answers import any_answer, good_answer, mediocre_answer
from deploy.toy.dataset import make_rows
from deploy.toy.exactness import boxes
from deploy.toy.judge import any_case, render, shortened
from deploy.toy.tokenizers import IM_END, make_judge_tokenizer, make_policy_tokenizer
from deploy.toy.world import PATIENCE, RUDE_WORDS, TOPICS, Turn, judge_text, true_score

SEA = [Turn(role="user", content="tell me about the sea")]


@pytest.fixture(scope="session")
def policy_tokenizer() -> PreTrainedTokenizerFast:
    return make_policy_tokenizer()


@pytest.fixture(scope="session")
def judge_tokenizer() -> PreTrainedTokenizerFast:
    return make_judge_tokenizer()


def test_the_truth_walks_up_on_topic_words_and_down_on_rude_ones() -> None:
    assert true_score(SEA, "well waves and coral boring tide") == 3
    assert true_score(SEA, "") == 1
    assert true_score(SEA, "trees moss drums") == 1
    assert true_score(SEA, "waves tide salt shells coral sand") == 5
    assert true_score(SEA, "waves tide salt shells coral sand dumb") == 4


def test_a_reader_tires_after_ten_words() -> None:
    assert true_score(SEA, " ".join(["waves"] * 10)) == 5
    assert true_score(SEA, " ".join(["waves"] * 12)) == 3
    assert true_score(SEA, " ".join(["waves"] * 16)) == 1


def test_the_last_user_turn_decides_the_topic() -> None:
    conversation = [*SEA, Turn(role="assistant", content="waves"), Turn(role="user", content="and the farm")]
    assert true_score(conversation, "cows hay") == 3
    assert true_score(conversation, "waves tide") == 1


def test_the_truth_stays_between_1_and_5_and_no_more_praise_or_abuse_turns_it() -> None:
    rng = Random(0)
    for _ in range(500):
        topic = rng.choice(list(TOPICS))
        question = [Turn(role="user", content=topic)]
        answer = " ".join(any_answer(rng, topic).split()[: PATIENCE - 1])
        score = true_score(question, answer)
        assert 1 <= score <= 5
        assert true_score(question, f"{answer} {rng.choice(TOPICS[topic])}") >= score
        assert true_score(question, f"{answer} {rng.choice(RUDE_WORDS)}") <= score


def test_mediocre_answers_leave_room_and_good_ones_are_good() -> None:
    rng = Random(0)
    mediocre = [true_score(SEA, mediocre_answer(rng, "sea")) for _ in range(1000)]
    good = [true_score(SEA, good_answer(rng, "sea")) for _ in range(1000)]
    assert 2.0 <= sum(mediocre) / 1000 <= 2.5
    assert sum(good) / 1000 >= 4


def test_swapped_responses_swap_the_scores_and_turn_the_ranking_around() -> None:
    rng = Random(0)
    for _ in range(300):
        conversation, responses = any_case(rng)
        if len(responses) < 2 or responses[0].split() == responses[1].split():
            continue
        scores, ranking = boxes(judge_text(conversation, responses))
        swapped_scores, swapped_ranking = boxes(judge_text(conversation, responses[::-1]))
        assert scores.split(", ") == swapped_scores.split(", ")[::-1]
        assert int(ranking) + int(swapped_ranking) == 7


def test_the_perfect_judge_says_the_truth_in_the_protocol() -> None:
    text = judge_text(SEA, ["waves tide", "boring"])
    reasoning, _, verdict = text.partition("</think>")
    assert reasoning.startswith("topic sea")
    for name in ("Analysis on Response 1", "Analysis on Response 2", "Individual Scores", "Ranking Score"):
        assert re.search(rf"\[The Begin of {name}\].*\[The End of {name}\]", verdict, re.DOTALL)
    assert boxes(text) == ["3, 1", "2"]


def test_one_response_gets_one_score_and_no_ranking() -> None:
    text = judge_text(SEA, ["waves tide"])
    assert boxes(text) == ["3"]
    assert "Ranking" not in text
    assert "Response 2" not in text


def test_the_rows_have_the_columns_of_the_real_dataset() -> None:
    rows = {split: make_rows(split, seed=1) for split in ("train", "validation")}
    english = {split: sum(row["language"] == "english" for row in of) for split, of in rows.items()}
    assert (len(rows["train"]), len(rows["validation"])) == (1200, 160)
    assert english["train"] >= 700 and english["validation"] >= 96
    for row in rows["train"] + rows["validation"]:
        assert list(row) == [
            "domain", "language", "context", "response1", "response2", "overall_preference", "individual_preference",
        ]  # fmt: skip
        assert (row["language"] == "english") == (row["domain"] in ("general", "stem"))
        assert row["context"][-1]["role"] == "user"
        assert row["overall_preference"] in range(-3, 4)
        assert 1 <= len(row["individual_preference"]) <= 3
        for opinion in row["individual_preference"]:
            assert list(opinion) == ["score", "reasoning", "feedback1", "feedback2"]
    assert any(row["overall_preference"] == 0 for row in rows["train"])
    assert any(len(row["context"]) > 1 for row in rows["train"])


def test_no_context_and_no_last_question_of_validation_occurs_in_training() -> None:
    train, validation = make_rows("train", seed=1), make_rows("validation", seed=1)
    for part in (lambda row: json.dumps(row["context"]), lambda row: row["context"][-1]["content"]):
        assert not {part(row) for row in train} & {part(row) for row in validation}


def test_the_rows_follow_from_the_seed() -> None:
    assert make_rows("validation", seed=1) == make_rows("validation", seed=1)
    assert make_rows("validation", seed=1) != make_rows("validation", seed=2)


def test_any_text_survives_both_tokenizers(
    policy_tokenizer: PreTrainedTokenizerFast, judge_tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "Ünïcode 你好\n\n\t  [odd] foo-bar A1B2 </think> waves"
    for tokenizer in (policy_tokenizer, judge_tokenizer):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_every_toy_word_is_one_token(policy_tokenizer: PreTrainedTokenizerFast) -> None:
    for topic, words in TOPICS.items():
        for word in (topic, *words, *RUDE_WORDS):
            assert len(policy_tokenizer.tokenize(word)) == len(policy_tokenizer.tokenize(f" {word}")) == 1


def test_with_thinking_off_the_empty_thinking_block_belongs_to_the_prompt(
    policy_tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = policy.render(policy_tokenizer, SEA)
    asked = "<|im_start|>user\ntell me about the sea<|im_end|>\n<|im_start|>assistant\n"
    assert prompt == asked + "<think>\n\n</think>\n\n"
    assert policy_tokenizer.apply_chat_template(SEA, tokenize=False, add_generation_prompt=True) == asked
    assert policy_tokenizer.eos_token == IM_END


def test_the_judge_template_takes_one_response_or_two(judge_tokenizer: PreTrainedTokenizerFast) -> None:
    system = Turn(role="system", content="be kind")
    assert render(judge_tokenizer, [system, *SEA], ["waves and tide", "salt"]) == (
        "<|judge|>#### Conversation ####\nSystem: be kind\nUser: tell me about the sea\n#### Responses ####\n"
        "[The Begin of Response 1] A1 waves A2 and A3 tide[The End of Response 1]\n"
        "[The Begin of Response 2] B1 salt[The End of Response 2]\n#### Verdict ####\n"
    )
    assert "Response 2" not in render(judge_tokenizer, SEA, ["waves"])


def test_a_verdict_on_two_answers_of_ten_words_takes_at_most_110_tokens(
    judge_tokenizer: PreTrainedTokenizerFast,
) -> None:
    answer = " ".join(["waves"] * 10)
    assert len(judge_tokenizer(judge_text(SEA, [answer, answer]))["input_ids"]) <= 110


def test_the_mark_that_ends_the_judges_reasoning_is_no_special_token(judge_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = judge_tokenizer("</think>")["input_ids"]
    assert len(ids) == 1
    assert judge_tokenizer.decode(ids, skip_special_tokens=True) == "</think>"


def test_short_lessons_keep_the_conversation() -> None:
    assert shortened((SEA, ["a b c d", ""]), 2) == (SEA, ["a b", ""])
