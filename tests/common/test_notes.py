"""Notes: what leaves a hospital, what the vocabulary keeps, and how text becomes numbers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Choice
from common.errors import ConfigError, DataError
from common.statistics import total
from common.tasks import task_of
from common.tasks.notes import Notes
from common.tasks.text import BUCKETS, bucket, buckets, tokens

NAME = "wojciechowska"
texts = st.text(st.sampled_from("ab 血压1,"), max_size=12)


def records_of(*notes):
    return {"text": np.array(notes, object), "label": np.zeros(len(notes), int)}


def vocabulary(task, *hospitals):
    return task.fit(total([task.summarise(hospital) for hospital in hospitals]))["buckets"]


def test_a_rare_name_changes_nothing_in_what_leaves():
    task = Notes(minimum_records=3).build()
    common = ["fever and cough"] * 5
    plain = task.summarise(records_of(*common, "cough", "cough"))
    named = task.summarise(records_of(*common, f"cough {NAME}", f"{NAME} {NAME} {NAME} cough"))
    assert plain["records"][bucket("cough")] == 7
    for key, value in plain.items():
        np.testing.assert_array_equal(named[key], value)
    assert named["records"][bucket(NAME)] == named["present"][bucket(NAME)] == 0


def test_a_name_in_enough_records_does_leave_as_the_docstring_says():
    statistics = Notes(minimum_records=3).build().summarise(records_of(NAME, NAME, NAME))
    assert statistics["records"][bucket(NAME)] == 3
    assert statistics["present"][bucket(NAME)] == 1


def test_no_text_is_among_the_statistics():
    for value in Notes(minimum_records=1).build().summarise(records_of(NAME)).values():
        assert value.dtype == np.float64


def test_a_word_of_one_hospital_alone_is_not_kept():
    task = Notes(minimum_records=1, minimum_hospitals=2).build()
    ours, theirs = records_of(f"cough {NAME}", NAME), records_of("cough fever")
    assert vocabulary(task, ours, theirs) == [bucket("cough")]
    assert set(vocabulary(task, ours)) == {bucket("cough"), bucket(NAME)}  # one hospital alone decides for itself


def test_a_federation_smaller_than_the_minimum_needs_every_hospital():
    task = Notes(minimum_records=1, minimum_hospitals=5).build()
    assert vocabulary(task, records_of("a b"), records_of("a c"), records_of("a b")) == [bucket("a")]


@given(
    st.lists(st.lists(texts, min_size=1, max_size=6), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(3, 6),
)
def test_vocabulary_agrees_with_counting_words(notes, minimum_records, minimum_hospitals, size):
    task = Notes(
        minimum_records=minimum_records, minimum_hospitals=minimum_hospitals, vocabulary=size, length=8
    ).build()
    records, hospitals = Counter(), Counter()
    for hospital in notes:
        count = Counter(bucket(token) for note in hospital for token in set(tokens(note, 8)))
        reported = {number: times for number, times in count.items() if times >= minimum_records}
        records.update(reported)
        hospitals.update(set(reported))
    kept = [number for number in records if hospitals[number] >= min(minimum_hospitals, len(notes))]
    expected = sorted(kept, key=lambda number: (-records[number], number))[: size - 2]
    assert vocabulary(task, *(records_of(*hospital) for hospital in notes)) == expected


@settings(max_examples=40)  # every hospital's report is an array of 262,144 counts
@given(st.lists(texts, min_size=2, max_size=8), st.data())
def test_without_a_minimum_counts_of_records_add_up_to_those_of_the_pool(notes, data):
    cut = data.draw(st.integers(1, len(notes) - 1))
    task = Notes(minimum_records=1).build()
    parts = total([task.summarise(records_of(*notes[:cut])), task.summarise(records_of(*notes[cut:]))])
    np.testing.assert_array_equal(parts["records"], task.summarise(records_of(*notes))["records"])
    assert parts["hospitals"] == 2


def test_encoding_numbers_words_by_frequency_pads_right_and_marks_the_unknown():
    task = Notes(minimum_records=1, length=4).build()
    records = records_of("cough cough fever", "cough 血", "cough fever")
    preparation = {"buckets": vocabulary(task, records)}
    x = task.encode(records_of("fever cough xyz", "", "cough fever cough fever cough"), preparation).x
    np.testing.assert_array_equal(x, [[3, 2, 1, 0], [0, 0, 0, 0], [2, 3, 2, 3]])
    assert x.dtype == np.int32


def test_missing_text_has_no_words():
    np.testing.assert_array_equal(buckets(["", None, float("nan"), "。 ,"], 3), np.full((4, 3), -1))
    assert buckets([], 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fever, COUGH;no-pain", ["fever", "cough", "no", "pain"]),
        ("高血压160/95 mmHg", ["高", "血", "压", "000", "00", "mmhg"]),
        ("ＣＴ检查：２次", ["ct", "检", "查", "0", "次"]),
        ("dr. müller_ward B12", ["dr", "müller", "ward", "b00"]),
        ("𠀀病", ["𠀀", "病"]),
        ("١٢٣", ["000"]),
    ],
)
def test_words_and_chinese_characters_are_told_apart_run_by_run(text, expected):
    assert tokens(text, 99) == expected


@given(st.text(max_size=60), st.integers(1, 20))
def test_tokens_of_any_text_are_few_and_without_digits_or_space(text, most):
    found = tokens(text, most)
    assert len(found) <= most
    assert found == tokens(text, 99)[:most]
    for token in found:
        assert not any(
            character.isspace() or (character.isdigit() and character.isdecimal() and character != "0")
            for character in token
        )
        assert 0 <= bucket(token) < BUCKETS


def test_buckets_are_the_same_for_ever():
    # A model in use was trained with these numbers: a change of the hash is a change of every saved model.
    assert [bucket(token) for token in ("fever", "血", "000")] == [59264, 97573, 236809]


@pytest.mark.parametrize("classes", ["", "one", "a,a", "a,,b"])
def test_classes_are_two_or_more_different_names(classes):
    with pytest.raises(ConfigError, match=r"task\.classes"):
        task_of(Choice("notes", (("classes", classes),)))


def test_a_label_that_is_no_class_is_refused_by_row():
    with pytest.raises(DataError, match="first row 1"):
        Notes(classes="a,b").build().classify({"text": np.array(["x", "y"], object), "label": np.array([1, 7])})


@pytest.mark.parametrize("model", ["lstm", "attention"])
def test_padding_changes_no_output(model):
    import keras

    preparation = {"buckets": list(range(20))}
    words = np.array([[5, 3, 9, 1], [4, 0, 0, 0]], np.int32)
    short, long = (Notes(model=model, length=length).build().build(preparation) for length in (4, 9))
    long.set_weights(short.get_weights())
    padded = np.pad(words, ((0, 0), (0, 5)))
    ours, theirs = (keras.ops.convert_to_numpy(m(x, training=False)) for m, x in ((short, words), (long, padded)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert np.abs(ours[0] - ours[1]).max() > 1e-4
