"""Answers of the toy world: the mediocre ones a policy starts from, and the wide range a judge must read."""

from __future__ import annotations

from random import Random

from deploy.toy.world import FILLER_WORDS, MAX_WORDS, RUDE_WORDS, TOPICS

ALL_TOPIC_WORDS = tuple(word for words in TOPICS.values() for word in words)


def mixed_answer(rng: Random, topic: str, num_words: int, shares: tuple[float, float, float, float]) -> str:
    """`num_words` words drawn with `shares`: on the topic, of any topic, rude, filler."""
    pools = (TOPICS[topic], ALL_TOPIC_WORDS, RUDE_WORDS, FILLER_WORDS)
    return " ".join(rng.choice(pool) for pool in rng.choices(pools, weights=shares, k=num_words))


def mediocre_answer(rng: Random, topic: str) -> str:
    """What the policy is taught before any RL: mostly filler, true score about 2.2 on average."""
    return mixed_answer(rng, topic, rng.randint(3, 10), (0.25, 0.10, 0.12, 0.53))


def good_answer(rng: Random, topic: str) -> str:
    """Nothing but words of the topic, as a policy writes after much RL."""
    return mixed_answer(rng, topic, rng.randint(3, 12), (1.0, 0.0, 0.0, 0.0))


def any_answer(rng: Random, topic: str) -> str:
    """Any answer a policy might come to, from empty to full length: RL moves the policy, the judge must stay right."""
    num_words = rng.randint(0, MAX_WORDS)
    kind = rng.random()
    if kind < 0.45:
        weights = [rng.expovariate(1.0) for _ in range(4)]
        return mixed_answer(rng, topic, num_words, (weights[0], weights[1], weights[2], weights[3]))
    if kind < 0.60:
        return mixed_answer(rng, topic, num_words, (1.0, 0.0, 0.0, 0.0))
    if kind < 0.72:
        return mixed_answer(rng, topic, num_words, (0.85, 0.05, 0.05, 0.05))
    if kind < 0.82:  # a policy that has collapsed onto a word or two
        words = mixed_answer(rng, topic, rng.randint(1, 3), (1.0, 0.3, 0.3, 0.3)).split()
        return " ".join(rng.choice(words) for _ in range(num_words))
    if kind < 0.94:
        shares = [0.0, 0.0, 0.0, 0.0]
        shares[rng.randrange(1, 4)] = 1.0
        return mixed_answer(rng, topic, num_words, (shares[0], shares[1], shares[2], shares[3]))
    return _with_unknown_words(rng, mixed_answer(rng, topic, min(num_words, 10), (0.4, 0.1, 0.1, 0.4)))


def _with_unknown_words(rng: Random, answer: str) -> str:
    """Some words run together or torn, as sampled tokens sometimes are; the truth counts them as filler."""
    words = answer.split()
    for i in range(len(words)):
        if rng.random() < 0.2:
            words[i] = rng.choice((words[i] + rng.choice(FILLER_WORDS), words[i][:-1], words[i] + "."))
    return " ".join(word for word in words if word)
