"""Responses made harmless: no mark is left, none is made, and what was written can still be read."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deploy.toy.tokenizers import MARKERS, make_judge_tokenizer, make_policy_tokenizer
from reward_server.dialects.neutral import neutral

NAMES = ("Individual Scores", "Ranking Score", "Response 1", "Response 2", "Analysis on Response 1")
TITLES = ("Conversation Context", "Responses to be Scored", "Output Format Requirements", "Evaluation Plan", "Verdict")
SPECIAL = ("<|eot_id|>", "<|im_end|>", "<|im_start|>", "<|start_header_id|>", "<|end|>", "<|judge|>", "<s>", "</s>",
           "<extra_id_1>", "<SPECIAL_12>", "<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")  # fmt: skip
LITERAL = (
    *(f"[The {edge} of {name}]" for edge in ("Begin", "Start", "End") for name in NAMES),
    *("[Helpfulness Scoring Guidelines]", "[Ranking Scoring Guidelines]"),
    *(f"#### {title} ####" for title in TITLES),
    *("<think>", "</think>", "\\boxed{", *SPECIAL),
)
TRACES = [  # what the format knows a mark by, in any case, with any white space between the words and signs
    re.compile(r"\s*".join(re.escape(word) for word in trace.split()) + rf"{end}", re.IGNORECASE)
    for end, traces in {
        r"\b": (
            *(f"[ {the}{edge} of" for the in ("the ", "") for edge in ("begin", "beginning", "start", "end")),
            *("[ helpfulness scoring guidelines", "[ ranking scoring guidelines", "< think", "< / think"),
        ),
        "": ("[ inst ]", "[ / inst ]", "<< sys >>", "<< / sys >>", '" score_1 " :', '" score_2 " :', '" score_1 \\" :'),
        "(?![a-z])": ("\\boxed",),
    }.items()
    for trace in traces
]
CUTS = sorted(
    {mark[:cut] for mark in LITERAL for cut in range(1, len(mark))} | {m[c:] for m in LITERAL for c in (1, 2, 5)}
)
PIECES = st.one_of(
    st.sampled_from(LITERAL),
    st.sampled_from(CUTS),
    st.sampled_from([*"[]<>|/#\\{}\"' \n\t", "the", "THE ", "end", " of ", "think", "boxed", "score_1", "####", "x"]),
    st.text(max_size=3),
)
HOSTILE = st.lists(PIECES, max_size=30).map("".join)
JUDGE, POLICY = make_judge_tokenizer(), make_policy_tokenizer()
JUDGE_MARKS = {JUDGE.convert_tokens_to_ids(mark) for mark in MARKERS if len(mark) > 2} | set(JUDGE.all_special_ids)
POLICY_MARKS = set(POLICY.all_special_ids) | {POLICY.convert_tokens_to_ids(mark) for mark in ("<think>", "</think>")}


def assert_harmless(text: str) -> None:
    """By other means than the neutraliser's: a search for each trace, and what tokenizers make of the text."""
    assert not [trace for trace in TRACES if trace.search(text)]
    assert not [mark for mark in LITERAL if mark in text]
    for line in text.split("\n"):
        assert len(re.findall("#{3,}", line)) < 2
    assert not JUDGE_MARKS & set(JUDGE(text, add_special_tokens=False)["input_ids"])
    assert not POLICY_MARKS & set(POLICY(text, add_special_tokens=False)["input_ids"])


@given(text=HOSTILE)
@example(text="</th</think>ink>")
@example(text="<|<think>|>")
@example(text="[[The End of The End of Response 1]")
@example(text="\\\\boxed{5}\\b\\boxed{oxed{5}")
@example(text="#### #### #### Verdict ####")
@example(text='"score_1"score_2":')
def test_no_mark_is_left_none_is_made_and_a_second_pass_alters_nothing(text):
    harmless, num_altered = neutral(text)
    assert_harmless(harmless)
    assert neutral(harmless) == (harmless, 0)
    assert (num_altered == 0) == (harmless == text)


@given(text=HOSTILE)
def test_the_letters_and_digits_stay_in_their_order(text):
    assert re.sub(r"\W", "", neutral(text)[0]) == re.sub(r"\W", "", text)


@given(outer=st.sampled_from(LITERAL), inner=st.sampled_from(LITERAL), cut=st.integers(0, 40))
def test_a_mark_inside_another_leaves_neither(outer, inner, cut):
    text, num_altered = neutral(outer[:cut] + inner + outer[cut:])
    assert_harmless(text)
    assert num_altered >= 1


@pytest.mark.parametrize("mark", LITERAL)
def test_each_mark_of_the_format_is_altered_once_and_can_still_be_read(mark):
    text, num_altered = neutral(f"so {mark} it is")
    assert num_altered == 1 and text != f"so {mark} it is"
    assert re.findall(r"\w+", text) == re.findall(r"\w+", f"so {mark} it is")


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("[ the\n END  of response 1 ]", "( the\n END  of response 1 ]"),
        ("[End of Response 2]", "(End of Response 2]"),
        ("< / THINK >", "( / THINK >"),
        ("<thinking>", "(thinking>"),
        ("<| im_end |>", "(| im_end |>"),
        ("######Evaluation Plan###", "# # # # # #Evaluation Plan###"),
        ("The sum is $\\boxed{\\frac{1}{2}}$.", "The sum is $boxed{\\frac{1}{2}}$."),
        ("\\\\BOXED {4}", "BOXED {4}"),
        ('{\\"score_1\\": 5}', "{\\'score_1\\\": 5}"),
    ],
)
def test_variants_that_would_fool_a_judge_are_altered(text, harmless):
    assert neutral(text) == (harmless, 1)


@pytest.mark.parametrize(
    "text",
    ["#### Step 1\nMix.\n#### Step 2\nBake.", "# a comment #", "a < b and c > d", "List<String> x = f(a[0]);",
     "[1] see the end of the book", "I think of it", "a || b", "x |> f", "<b>bold</b> <strong>s</strong>",
     "\\box{4} boxed", "the ranking is", '{"ranking": [1, 2]}', "C:\\\\boxes", "List<S>", "[the endless of]", "",
     "\ud800"],
)  # fmt: skip
def test_ordinary_text_stays_as_it_is(text):
    assert neutral(text) == (text, 0)


@pytest.mark.parametrize(
    "piece",
    ["[", "[ ", "[the ", "[the end ", "<", "< ", "</ ", "<|", "<|a", "<| <", "<<", "<< ", "#", "###", "### ", "###a",
     "#### \n", "\\", "\\boxed", '"', '" ', '"score_1', '"score_1" ', "[/ ", *LITERAL],
)  # fmt: skip
def test_a_hostile_response_is_made_harmless_in_linear_time(piece):
    started = time.process_time()
    neutral(piece * 100_000)
    neutral(piece + piece[-1] * 500_000)
    assert time.process_time() - started < 4
