"""Salted messages: the same content comes out, under names that nobody can foretell."""

import hashlib
from unittest import mock

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from hypothesis import given
from hypothesis import strategies as st

from common import flower, messages, salt, wire

# Flower's own, where it lays out its tables.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")

RUN = 1
CONTENTS = st.builds(
    lambda arrays, texts, count: RecordDict(
        {
            "arrays": wire.to_record({name: np.array(values, np.float32) for name, values in arrays.items()}),
            "nothing": ArrayRecord(),
            "config": ConfigRecord(texts),
            "metrics": MetricRecord({"num-examples": count}),
        }
    ),
    st.dictionaries(st.sampled_from("abc"), st.lists(st.floats(width=32, allow_nan=False), max_size=5)),
    st.dictionaries(st.sampled_from("abc"), st.text(max_size=5) | st.integers(0, 9) | st.binary(max_size=5)),
    st.integers(0, 2**60),
)


def plain():
    """Return a content of which every part can be foretold by who knows the settings."""
    arrays = {"weights": np.zeros(1000, np.float32), "nothing": np.zeros(0, np.float32)}
    return messages.pack_request("{}", arrays, {"server-round": 2})


def parts(content):
    return {tree.object_id for tree in iterate_object_tree(get_object_tree(content))}


small = pytest.mark.parametrize("most", [salt.SMALL, -1], ids=["small", "large"])


@small
@given(content=CONTENTS)
def test_the_same_content_comes_out(most, content):
    with flower.identity(RUN), mock.patch.object(salt, "SMALL", most):
        message = Message(content, 7, "train")
        there = flower.message_from(flower.message_bytes(salt.salted(message)))
    assert salt.desalted(there).content == content
    assert salt.desalted(there).metadata == message.metadata


@small
@given(content=CONTENTS)
def test_no_part_of_it_has_the_same_name_twice(most, content):
    before = parts(content)
    with mock.patch.object(salt, "SMALL", most):
        once, again = parts(salt.salt(content)), parts(salt.salt(content))
    assert not once & again
    assert not once & before
    assert parts(content) == before, "it was changed in place"


def test_a_small_message_is_one_record(monkeypatch):
    """Each part travels by requests of its own; of a large one, no more of them than there were."""
    content = messages.pack_request("{}", {"weights": np.zeros(1000, np.float32)}, {})
    assert len(parts(salt.salt(content))) == 2
    monkeypatch.setattr(salt, "SMALL", 3999)
    assert len(parts(salt.salt(content))) == len(parts(content))


def test_what_was_not_salted_stays_as_it_is():
    content = plain()
    assert salt.desalt(content) is content


@small
@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: record.pop(salt.SALT),
        lambda record: record.update({salt.SALT: b"short"}),
        lambda record: record.update({salt.SALT: "a text"}),
        lambda record: record.update({salt.SALT: bytes(salt.KEY_BYTES)}),
        lambda record: record.update({salt.PACKED: b"\xff\xff"}),
        lambda record: record.update({salt.PACKED: "a text"}),
        lambda record: record.clear(),
    ],
    ids=["no key", "short key", "text for a key", "another key", "no message", "text for a message", "nothing"],
)
def test_what_was_salted_wrongly_ends_in_no_error(most, spoil, monkeypatch):
    monkeypatch.setattr(salt, "SMALL", most)
    content = salt.salt(plain())
    spoil(next(iter(content.config_records.values())))
    found = salt.desalt(content)
    assert found is content or found == plain() or salt.PACKED in found["config"]


def test_an_array_that_was_not_salted_leaves_all_as_it_is(monkeypatch):
    monkeypatch.setattr(salt, "SMALL", -1)
    content = salt.salt(plain())
    content["arrays"]["weights"] = Array("float32", (0,), wire.RAW, b"")
    assert salt.desalt(content) is content


@pytest.fixture
def store(tmp_path):
    found = SqlObjectStore(str(tmp_path / "flower.db"))
    found.initialize()
    return found


def falsely(part):
    """Announce one part of somebody's message as made of something else, in a message of one's own."""
    mine, other = (hashlib.sha256(text + part.encode()).hexdigest() for text in (b"mine", b"other"))
    return ObjectTree(object_id=mine, children=[ObjectTree(object_id=part, children=[ObjectTree(object_id=other)])])


@pytest.mark.parametrize("part", sorted(parts(plain())))
def test_flower_refuses_what_another_announced_falsely(store, part):
    """It is what salt is for; where a release of Flower mends it, this fails, and `common.salt` can go."""
    store.preregister(RUN, falsely(part))
    with pytest.raises(ValueError, match="different children"):
        store.preregister(RUN, get_object_tree(plain()))


@small
def test_salted_parts_cannot_be_announced_falsely(store, most, monkeypatch):
    monkeypatch.setattr(salt, "SMALL", most)
    for content in (plain(), salt.salt(plain())):
        for part in parts(content):
            store.preregister(RUN, falsely(part))
    tree = get_object_tree(salt.salt(plain()))
    assert len(store.preregister(RUN, tree)) == len(list(iterate_object_tree(tree)))
