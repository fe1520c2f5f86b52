"""The check over the real API: a good judge passes, a guess and each broken judge is refused with the reason."""

from random import Random

import pytest

from reward_server.agreement import Figures, JudgedPair
from reward_server.check import check_judge, drawn
from reward_server.client import RewardClient
from reward_server.limits import CheckSettings, faults
from reward_server.preferences import PreferencePair
from wire.errors import ConfigError, ServiceError, Unauthorized
from wire.judgement import Message, Verdict
from wire.token import read_token

RANDOM = Random(7)
QUALITY = {f"answer {i}": RANDOM.randint(1, 5) for i in range(400)}


def pair(index):
    """Two answers whose quality is known; people see it, but one time in six they slip."""
    first, second = f"answer {2 * index}", f"answer {2 * index + 1}"
    gap = max(-3, min(3, QUALITY[second] - QUALITY[first]))
    conversation = (Message(role="user", content=f"question {index}"),)
    return PreferencePair(conversation, first, second, -gap if index % 6 == 0 else gap)


PAIRS = [pair(index) for index in range(200)]


def verdict(scores, ranking):
    return Verdict(scores=scores, ranking=ranking, seconds=2.0, completion_tokens=50)


def good(first, second):
    lead = QUALITY[first] - QUALITY[second]
    sure = max(1, 4 - lead) if lead > 0 else min(6, 3 - lead)
    return verdict((QUALITY[first], QUALITY[second]), sure if lead else 3 + (first > second))


def guess(first, second):
    random = Random(f"{first} {second}")
    scores = random.sample(range(1, 6), 2)
    return verdict(scores, random.randint(1, 3) if scores[0] > scores[1] else random.randint(4, 6))


def reads_exchanged(first, second):
    return good(second, first)


def contradicts_itself(first, second):
    seen = good(first, second)
    return seen.model_copy(update={"scores": seen.scores[::-1]})


def likes_place_one(first, second):
    return verdict((4, 3), 2)


def babbles(first, second):
    return Verdict(missing="unreadable", text="as an AI ...", attempts=3)


def too_slow(first, second):
    return good(first, second) if Random(f"{first} {second}").random() > 0.3 else Verdict(missing="timeout")


class Judge:
    """A judge with a whole template, that says what `opinion` says."""

    def __init__(self, opinion):
        self.opinion, self.asked = opinion, []

    async def judge(self, conversation, responses, seed, vote=0):
        self.asked.append(responses)
        return self.opinion(*responses)

    async def render(self, conversation, responses):
        turns = [f"<{turn.role}>{turn.content}" for turn in conversation]
        return "".join([*turns, *(f"<response {i}>{text}" for i, text in enumerate(responses, 1)), "<judge>speak"])


@pytest.fixture
def check(serve, token_file):
    async def run(judge, pairs=PAIRS, **changes):
        lines = []
        async with serve(judge) as url, RewardClient(url, read_token(token_file), timeout_s=5) as client:
            checked = await check_judge(client, CheckSettings(**changes), pairs, lines.append)
        return checked, "\n".join(lines)

    return run


async def test_a_good_judge_passes_and_its_figures_are_told(check):
    judge = Judge(good)
    checked, text = await check(judge)
    assert len(judge.asked) == 2 * 64 and len(set(judge.asked)) == 2 * 64
    assert {(b, a) for a, b in judge.asked} == set(judge.asked)
    assert checked.figures.agreement > 0.7 and checked.figures.num_flips == 0
    assert f"agreement       {checked.figures.agreement:.1%} of" in text and "(at least 60%)" in text
    assert "2.0 s, 50 tokens; 128 were asked for" in text and "a system turn is shown" in text


@pytest.mark.parametrize(
    ("opinion", "message"),
    [
        (guess, r"flips \d\d\.\d%, and check_max_flips is 40\.0%.*agreement \d\d\.\d% of"),
        (
            reads_exchanged,
            r"fit: agreement \d\d\.\d% of \d+ pairs.*below a half, the responses are in each other's place",
        ),
        (contradicts_itself, r"fit: contradictions \d\d\.\d%.*check_max_contradictions is 25\.0%"),
        (likes_place_one, r"flips 100\.0%, and check_max_flips is 40\.0%.*agreement unknown"),
        (babbles, r"fit: unreadable 100\.0%, and check_max_unreadable is 5\.0%: judge_dialect 'boxed'"),
        (too_slow, r"fit: missing \d\d\.\d%.*by reason: timeout \d+;.*raise judge_timeout_s"),
    ],
)
async def test_an_unfit_judge_is_refused_with_figure_limit_and_causes(check, opinion, message):
    with pytest.raises(ConfigError, match=message):
        await check(Judge(opinion))


def found(opinion):
    judged = [JudgedPair(p, opinion(p.response1, p.response2), opinion(p.response2, p.response1)) for p in PAIRS[:64]]
    return faults(CheckSettings(), Figures.of(judged))


def test_of_a_hundred_guesses_none_passes():
    kinds = [lambda first, second, kind=kind: guess(f"{kind} {first}", f"{kind} {second}") for kind in range(100)]
    assert all(found(kind) for kind in kinds)


def test_of_a_hundred_judges_that_err_as_real_ones_do_most_pass():
    def erring(kind):
        """Sees a fifth of the pairs wrong in one place or the other, and then contradicts nobody but the people."""

        def opinion(first, second):
            seen = good(first, second)
            err = Random(f"{kind} {first} {second}").random() < 0.1
            return verdict(seen.scores[::-1], 7 - seen.ranking) if err else seen

        return opinion

    assert sum(not found(erring(kind)) for kind in range(100)) >= 95


async def test_a_template_without_the_responses_is_refused_before_anything_is_judged(check):
    judge = Judge(good)

    async def render(conversation, responses):
        return "".join(f"<{turn.role}>{turn.content}" for turn in conversation) + "<judge>"

    judge.render = render
    with pytest.raises(ConfigError, match="leaves out the turn of role response_1"):
        await check(judge)
    assert judge.asked == []


async def test_pairs_that_people_found_equal_do_not_count_for_agreement(check):
    equal = [pair for pair in PAIRS if not pair.preference]
    decided = [pair for pair in PAIRS if pair.preference][: 64 - len(equal)]
    checked, _ = await check(Judge(good), [*equal, *decided])
    assert len(equal) > 10 and checked.figures.num_compared == len(decided)
    with pytest.raises(ConfigError, match="agreement unknown"):
        await check(Judge(good), equal)
    assert await check(Judge(good), equal, check_min_agreement=0.0)


async def test_a_limit_is_a_setting(check):
    with pytest.raises(ConfigError, match=r"and check_min_agreement is 101\.0%"):
        await check(Judge(good), check_min_agreement=1.01)
    assert await check(Judge(likes_place_one), check_min_agreement=0.0, check_max_flips=1.0)


async def test_check_pairs_says_how_many_are_judged(check):
    judge = Judge(good)
    await check(judge, check_pairs=5, check_min_agreement=0.0)
    assert len(judge.asked) == 10


def test_the_same_pairs_are_drawn_at_each_call_from_all_over_the_split():
    assert drawn(PAIRS, 64) == drawn(PAIRS, 64)
    places = [PAIRS.index(one) for one in drawn(PAIRS, 64)]
    assert len(set(places)) == 64 and min(places) < 20 and max(places) > 180
    assert sorted(PAIRS.index(one) for one in drawn(PAIRS[:3], 64)) == [0, 1, 2]


async def test_a_service_that_goes_away_is_no_missing_verdict(serve, token_file):
    async with RewardClient("http://127.0.0.1:9", read_token(token_file), timeout_s=0.2) as client:
        with pytest.raises(ServiceError, match="no reward service answers"):
            await check_judge(client, CheckSettings(), PAIRS, print)


async def test_a_wrong_token_is_said_so(serve):
    async with serve(Judge(good)) as url, RewardClient(url, "wrong", timeout_s=5) as client:
        with pytest.raises(Unauthorized):
            await check_judge(client, CheckSettings(), PAIRS, print)
