"""Which weights are ancestors."""

import pytest

from trainer.lineage import Fork, Lineage
from wire.generation import PolicyVersion

# 0 ran to 9; 1 left it at 5 and ran to 8; 2 left 1 at 6; 3 left 0 at 2; 4 left 1 at 5, where 1 itself began.
FORKS = {1: Fork(0, 5), 2: Fork(1, 6), 3: Fork(0, 2), 4: Fork(1, 5)}


@pytest.mark.parametrize(
    ("current", "ancestors", "others"),
    [
        (0, ["0.0", "0.9"], ["1.5", "2.6", "3.2"]),
        (1, ["0.0", "0.5", "1.5", "1.8"], ["0.6", "2.6", "3.2"]),
        (2, ["0.5", "1.5", "1.6", "2.6", "2.99"], ["0.6", "1.7", "3.2"]),
        (3, ["0.2", "3.3"], ["0.3", "1.5"]),
        (4, ["0.5", "1.5", "4.6"], ["0.6", "1.6", "2.6"]),
        (7, ["7.0"], ["0.0"]),
    ],
)
def test_a_lineage_holds_its_own_versions_and_its_parents_up_to_the_fork(current, ancestors, others):
    lineage = Lineage(current, FORKS)
    assert all(lineage.holds(PolicyVersion.parse(label)) for label in ancestors)
    assert not any(lineage.holds(PolicyVersion.parse(label)) for label in others)


def test_a_fork_that_names_itself_among_its_ancestors_ends_the_chain():
    assert Lineage(1, {1: Fork(0, 3), 0: Fork(1, 2)}).holds(PolicyVersion(0, 3))
