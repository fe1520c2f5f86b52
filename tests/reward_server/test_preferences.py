"""Rows that people compared: what counts as a pair, and every way in which a row is none."""

import json

import datasets
import pytest

from reward_server.preferences import DataSettings, PreferencePair, load_pairs, pair_in, turns_in
from wire.errors import ConfigError
from wire.judgement import Message

USER = {"role": "user", "content": "sea?"}
ROW = {
    "context": [USER],
    "language": "english",
    "domain": "general",
    "response1": "waves",
    "response2": "tide",
    "overall_preference": -2,
}
PAIR = PreferencePair((Message(**USER),), "waves", "tide", -2, "general")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def load(tmp_path):
    def call(*rows, **changes):
        (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return load_pairs(DataSettings(dataset_name=str(tmp_path), **changes), "validation")

    return call


def test_a_row_becomes_a_pair_and_keys_beside_it_do_no_harm():
    assert pair_in(ROW) == PAIR
    assert pair_in(ROW | {"individual_preference": [{"score": -2, "feedback1": "x"}], "new": 1}) == PAIR
    assert pair_in({key: value for key, value in ROW.items() if key != "domain"}).domain == ""


NO_PAIR = [
    {"response1": None},
    {"response2": ""},
    {"response1": " \n"},
    {"overall_preference": None},
    {"context": []},
    {"context": [USER, {"role": "assistant", "content": "well"}]},
    {"context": [{"role": "user", "content": None}]},
]


@pytest.mark.parametrize("changes", NO_PAIR)
def test_a_row_without_a_pair_is_none_and_no_error(changes):
    assert pair_in(ROW | changes) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overall_preference": 4}, r"`overall_preference` \(4\) must be a whole number -3\.\.3"),
        ({"overall_preference": -0.5}, "must be a whole number"),
        ({"overall_preference": True}, "must be a whole number"),
        ({"overall_preference": "1"}, "must be a whole number"),
        ({"response2": ["tide"]}, "`response2` must be text, not list"),
        ({"context": "sea?"}, "`context` must be a list of role/content turns"),
        ({"context": None}, "`context` must be a list of role/content turns"),
    ],
)
def test_a_row_of_another_shape_is_an_error_that_names_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        pair_in(ROW | changes)


def test_every_preference_of_the_scale_is_kept_ties_too():
    assert [pair_in(ROW | {"overall_preference": n}).preference for n in range(-3, 4)] == list(range(-3, 4))


def test_turns_keep_their_roles_and_order():
    context = [{"role": "system", "content": "be kind"}, USER, {"role": "assistant", "content": "yes"}, USER]
    assert turns_in(context) == [Message(**turn) for turn in context]


def test_a_split_gives_its_pairs_in_the_wanted_language_and_counts_the_rest(load):
    pairs, num_skipped = load(ROW, *(ROW | changes for changes in NO_PAIR), ROW | {"language": "korean"})
    assert (pairs, num_skipped) == ([PAIR], len(NO_PAIR))


def test_all_languages_are_kept_where_none_is_named(load):
    assert len(load(ROW, ROW | {"language": "korean"}, dataset_language="")[0]) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"context": [USER], "language": "english"}], "has no column response1, response2, overall_preference"),
        ([ROW, ROW | {"overall_preference": 7}], r"\(validation\): row 2 of those kept: `overall_preference` \(7\)"),
        ([ROW | {"response1": None}], "holds no two responses that people compared; 1 rows were skipped"),
    ],
)
def test_a_split_that_cannot_be_used_is_one_clear_error(load, rows, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(*rows)
    assert "\n" not in str(error.value)
