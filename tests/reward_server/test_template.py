"""Templates that leave something out, mix something up or never ask: each is refused, with the reason."""

import re

import pytest

from reward_server.client import RewardClient
from reward_server.template import CONVERSATION, RESPONSES, fault_in, prove_template
from wire.errors import ConfigError, ServiceError
from wire.token import read_token

ROLES = ["user", "assistant", "user", "response_1", "response_2"]
WORDS = [*(turn.content for turn in CONVERSATION), *RESPONSES]


def chat(turns):
    """Every turn under its role's name, then the judge is asked to speak."""
    return "".join(f"<{role}>{text}<end>" for role, text in turns) + "<judge>"


def sections(turns):
    """A conversation and responses in brackets, with instructions around: the GenRMs' way."""
    text = "Score the responses.\n#### Conversation ####\n"
    for role, content in turns:
        if role.startswith("response"):
            number = role[-1]
            text += f"[The Begin of Response {number}]\n{content}\n[The End of Response {number}]\n"
        else:
            text += f"{role.capitalize()}: {content}\n"
    return text + "#### Output ####\nwrite \\boxed{x, y}"


def without(*left_out):
    return lambda turns: chat([turn for turn in turns if turn[0] not in left_out])


def swapped(turns):
    order = [i for i, (role, _) in enumerate(turns) if role.startswith("response")]
    turns = list(turns)
    texts = [turns[i][1] for i in reversed(order)]
    for i, text in zip(order, texts, strict=True):
        turns[i] = (turns[i][0], text)
    return chat(turns)


def of_one_role(turns):
    return "".join(f"<turn>{text}<end>" for _, text in turns) + "<judge>"


BAD = {
    "responses unknown": (without("response_1", "response_2"), "leaves out the turn of role response_1"),
    "second response unknown": (without("response_2"), "leaves out the turn of role response_2"),
    "answers of the assistant dropped": (without("assistant"), "leaves out the turn of role assistant"),
    "only the last turn": (lambda turns: chat(turns[2:]), "leaves out the turn of role user"),
    "a response twice": (lambda turns: chat([*turns, turns[-1]]), r"shows 2 times the turn of role response_"),
    "responses exchanged": (swapped, "shows user, assistant, user, response_2, response_1 where"),
    "responses first": (lambda turns: chat([*turns[3:], *turns[:3]]), "shows response_1, response_2, user"),
    "no roles": (of_one_role, "does not tell role user from assistant"),
    "responses run together": (
        lambda turns: chat(turns[:3]) + " ".join(text for _, text in turns[3:]) + "<judge>",
        "puts nothing between the turns of role response_1 and response_2",
    ),
    "a response looks like a user's turn": (
        lambda turns: chat([(role if role == "assistant" else "user", text) for role, text in turns]),
        "does not tell role response_1 from user",
    ),
    "nobody asked": (lambda turns: chat(turns).removesuffix("<judge>"), "asks for no verdict"),
    "nobody asked, ends numbered": (
        lambda turns: "".join(f"<{role}>{text}</{role[-1]}>\n" for role, text in turns),
        "asks for no verdict",
    ),
    "ends with the response": (lambda turns: chat(turns).removesuffix("<end><judge>"), "asks for no verdict"),
}


@pytest.mark.parametrize("template", [chat, sections])
def test_a_whole_template_has_no_fault(template):
    turns = list(zip(ROLES, WORDS, strict=True))
    assert fault_in(template(turns), ROLES, WORDS) is None
    assert fault_in(template(turns[:4]), ROLES[:4], WORDS[:4]) is None


@pytest.mark.parametrize(("template", "message"), BAD.values(), ids=BAD.keys())
def test_a_fault_is_found_and_named(template, message):
    fault = fault_in(template(list(zip(ROLES, WORDS, strict=True))), ROLES, WORDS)
    assert fault is not None and re.search(message, fault)


class Renderer:
    """A judge's server with `template`; a system turn is refused unless `system` is true."""

    def __init__(self, template, system=False):
        self.template, self.system, self.rendered = template, system, []

    async def judge(self, conversation, responses, seed, vote=0):
        raise AssertionError("nothing is to be judged here")

    async def render(self, conversation, responses):
        if conversation[0].role == "system" and not self.system:
            raise ServiceError("no turn of role 'system'")
        turns = [(turn.role, turn.content) for turn in conversation]
        turns += [(f"response_{place}", text) for place, text in enumerate(responses, start=1)]
        self.rendered.append(turns)
        return self.template(turns)


async def proof(serve, token_file, judge):
    async with serve(judge) as url, RewardClient(url, read_token(token_file), timeout_s=5) as client:
        return await prove_template(client, "boxed")


async def test_both_orders_one_response_and_a_system_turn_are_tried(serve, token_file):
    judge = Renderer(sections, system=True)
    template = await proof(serve, token_file, judge)
    assert template.system_turn == "shown" and all(word in template.prompt for word in WORDS)
    tried = [[text for role, text in turns if role.startswith("response")] for turns in judge.rendered]
    assert tried == [list(RESPONSES), list(reversed(RESPONSES)), [RESPONSES[0]], list(RESPONSES)]


async def test_what_becomes_of_a_system_turn_is_told_and_not_required(serve, token_file):
    assert (await proof(serve, token_file, Renderer(chat))).system_turn == "refused"
    assert (await proof(serve, token_file, Renderer(without("system"), system=True))).system_turn == "left out"


@pytest.mark.parametrize(("template", "message"), BAD.values(), ids=BAD.keys())
async def test_a_wrong_template_is_refused_with_the_reason_and_the_usual_causes(serve, token_file, template, message):
    with pytest.raises(ConfigError, match=f"{message}.*no GenRM of judge_dialect boxed.*The prompt ends"):
        await proof(serve, token_file, Renderer(template))


def only_two(turns):
    if not any(role == "response_2" for role, _ in turns):
        raise ServiceError("jinja: 'response_2' is undefined")
    return chat(turns)


async def test_a_template_that_fails_on_a_role_is_refused_with_its_own_words(serve, token_file):
    with pytest.raises(ConfigError, match=r"fails on user, assistant, user, response_1: .*'response_2' is undefined"):
        await proof(serve, token_file, Renderer(only_two))


async def test_a_template_that_shows_the_responses_in_an_order_of_its_own_is_refused(serve, token_file):
    def ordered(turns):
        texts = sorted(text for role, text in turns if role.startswith("response"))
        return chat([*turns[:3], *((f"response_{i}", text) for i, text in enumerate(texts, start=1))])

    with pytest.raises(ConfigError, match="response_2, response_1 where"):
        await proof(serve, token_file, Renderer(ordered))


async def test_a_service_that_is_not_there_is_no_fault_of_the_template(token_file):
    async with RewardClient("http://127.0.0.1:9", read_token(token_file), timeout_s=1) as client:
        with pytest.raises(ServiceError, match="no reward service answers"):
            await prove_template(client, "boxed")
