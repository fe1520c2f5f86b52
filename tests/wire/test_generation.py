"""Policy versions as labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.generation import PolicyVersion

VERSIONS = st.builds(PolicyVersion, st.integers(0, 99), st.integers(0, 10**6))


@given(VERSIONS)
def test_a_label_is_read_back_as_the_version_it_was_made_of(version: PolicyVersion) -> None:
    assert PolicyVersion.parse(version.label) == version


def test_a_label_is_lineage_dot_step() -> None:
    assert PolicyVersion(0, 7).label == "0.7"
    assert PolicyVersion.parse("2.120") == PolicyVersion(lineage=2, step=120)


@pytest.mark.parametrize("label", ["default", "", "7", "0.", ".7", "0.7.1", "a.b"])
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(ValueError):
        PolicyVersion.parse(label)


@given(VERSIONS, VERSIONS)
def test_lineage_orders_before_step_and_steps_by_number_not_by_text(a: PolicyVersion, b: PolicyVersion) -> None:
    assert (a < b) == ((a.lineage, a.step) < (b.lineage, b.step))
    assert PolicyVersion(0, 9) < PolicyVersion(0, 10) < PolicyVersion(1, 0)
