"""The ring of comparisons."""

import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from reward_server.pairings import ring
from reward_server.seeds import derived_seed

SEEDS = st.integers(0, 2**63 - 1)


@given(num=st.integers(0, 20), seed=SEEDS)
def test_a_ring_holds_each_completion_once_and_depends_on_its_seed_alone(num, seed):
    assert sorted(ring(num, seed)) == list(range(num))
    assert ring(num, seed) == ring(num, seed)


def test_every_order_is_drawn_about_equally_often():
    counts = Counter(tuple(ring(3, seed)) for seed in range(6000))
    assert len(counts) == 6 and all(850 < count < 1150 for count in counts.values())


def test_a_ring_is_the_same_in_another_process():
    code = "from reward_server.pairings import ring; print(ring(9, 77))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": salt}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for salt in ("1", "2")
    }
    assert outputs == {str(ring(9, 77))}


@given(seed=SEEDS, first=st.integers(0, 9), second=st.integers(0, 9))
def test_derived_seeds_fit_63_bits_and_tell_their_parts_apart(seed, first, second):
    assert 0 <= derived_seed("pair", seed, first, second) < 2**63
    if first != second:
        assert derived_seed("pair", seed, first, second) != derived_seed("pair", seed, second, first)
