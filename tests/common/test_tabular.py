"""The federated preprocessing of tables: lists of codes, ranks, what leaves a hospital and what a row becomes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.privacy.noise import Noise, Source
from common.statistics import total
from common.tasks import tabular
from common.tasks.tabular import FIRST, MISSING, UNSEEN, Tabular, bucket, packed, unpacked
from common.tasks.task import Column, take

TABLE = Tabular(
    (
        Column("age", "number", "age", "years", 0, 100),
        Column("visits", "number", "visits", "visits", 0, 256),
        Column("kind", "code", "kind of stay"),
        Column("ward", "code", "ward"),
    ),
    ranked=("visits",),
    minimum_records=3,
)


def rows(kinds, wards=None, visits=None):
    count = len(kinds)
    return {
        "age": np.linspace(20, 80, count),
        "visits": np.zeros(count) if visits is None else np.asarray(visits, float),
        "kind": np.array(kinds, object),
        "ward": np.array(wards or [""] * count, object),
    }


def agreed(*hospitals):
    return TABLE.fit(total(TABLE.summarise(records) for records in hospitals))


def kinds_of(records, preparation):
    return TABLE.encode(records, preparation)[:, TABLE.features(preparation)].astype(int).tolist()


def test_the_list_holds_what_enough_hospitals_have_in_enough_records():
    preparation = agreed(rows(["a"] * 3 + ["b"] * 3 + ["c"] * 2), rows(["a"] * 4 + ["c"] * 9), rows(["c"] * 2))
    assert preparation["codes"] == [[bucket("kind", "a")], []]


def test_an_unseen_code_has_its_own_number_and_a_missing_one_another():
    preparation = agreed(rows(["a"] * 3 + ["b"] * 3), rows(["a"] * 3 + ["b"] * 3))
    assert sorted(kinds_of(rows(["a", "b"]), preparation)) == [FIRST, FIRST + 1]
    assert kinds_of(rows(["never", ""]), preparation) == [UNSEEN, MISSING]
    assert kinds_of(rows([None, " A "]), preparation) == [MISSING, *kinds_of(rows(["a"]), preparation)]


def test_lists_that_differ_are_told_by_column_and_code():
    preparation = agreed(rows(["male"] * 5 + ["female"] * 5), rows(["1"] * 5 + ["2"] * 5))
    (remark,) = TABLE.remarks(preparation)
    assert "'kind'" in remark
    assert "1, 2, female, male" in remark
    assert TABLE.remarks(agreed(rows(["male"] * 5), rows(["Male "] * 5))) == []


def test_one_hospital_alone_decides_its_own_list():
    assert len(agreed(rows(["a"] * 3 + ["b"] * 2))["codes"][0]) == 1


@given(st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=1, max_size=40))
def test_no_code_of_few_records_leaves_in_any_form(kinds):
    told = TABLE.summarise(rows(kinds))
    for code in "abcd":
        place = bucket("kind", code)
        enough = kinds.count(code) >= TABLE.minimum_records
        assert told["records"][0, place] == (kinds.count(code) if enough else 0)
        assert any(told[f"text{part}"][0, place] for part in range(tabular.WORDS)) == enough


@given(st.text(max_size=20))
def test_the_text_of_a_code_survives_the_sum_of_hospitals(code):
    words = packed(tabular.plain(code))
    shown = unpacked((words + words + words) / 3)
    whole = tabular.plain(code).encode("utf-8", "replace")[:12].decode("utf-8", "ignore").rstrip("\0")
    assert shown == (whole if whole.isprintable() and whole else "?")


def test_two_texts_in_one_place_are_not_shown_as_a_third():
    assert unpacked((packed("ab") + packed("cb")) / 2) in ("?", "bb")  # a mean of bytes tells neither
    assert unpacked((packed("ab") * 2 + packed("zz")) / 3) == "?"


@given(st.lists(st.integers(0, 255), min_size=2, max_size=60))
def test_ranks_are_the_shares_of_the_pool_whoever_holds_the_rows(visits):
    records = rows(["a"] * len(visits), visits=visits)
    parts = [take(records, np.arange(0, len(visits), 2)), take(records, np.arange(1, len(visits), 2))]
    preparation = agreed(*parts)
    column = TABLE.encode(records, preparation)[:, 1] * tabular.RANK_SCALE + 0.5
    below = [np.mean(np.asarray(visits) < value) for value in visits]  # a bin of one whole number starts at it
    np.testing.assert_allclose(column, below, atol=1e-6)
    assert json.loads(json.dumps(preparation)) == preparation


def test_noise_hides_codes_and_lets_frequent_ones_through():
    told = TABLE.summarise(rows(["a"] * 5000 + ["b"] * 4))
    noised = TABLE.noised(told, Noise(Source(bytes(32)), 1.0))
    assert noised["records"][0, bucket("kind", "a")] > 4000
    assert np.count_nonzero(noised["records"]) <= 3
    assert not any(noised[name].any() for name in noised if name not in ("records", "present", "hospitals"))
    assert {name: value.shape for name, value in noised.items()} == {name: value.shape for name, value in told.items()}


def test_nobody_tells_and_the_public_ranges_stand_in():
    nothing = {name: np.zeros_like(value) for name, value in TABLE.summarise(rows(["a"])).items()}
    preparation = TABLE.fit(nothing)
    assert preparation["mean"] == [50, 128]
    assert np.isfinite(TABLE.encode(rows(["a", ""]), preparation)).all()


def test_a_bad_column_of_codes_is_read_as_no_codes():
    records = rows(["a"] * 4) | {"kind": np.full(4, np.nan)}
    assert kinds_of(records, agreed(rows(["a"] * 4), rows(["a"] * 4))) == [MISSING] * 4


@pytest.mark.parametrize("code", ["V27", "v27 ", "Ｖ27"])
def test_case_spaces_and_full_width_forms_do_not_part_codes(code):
    assert kinds_of(rows([code]), agreed(rows(["v27"] * 3), rows(["V27"] * 3))) == [FIRST]


def test_of_codes_that_share_a_place_only_those_of_enough_records_are_told_and_the_most_frequent_names_it(monkeypatch):
    monkeypatch.setattr(tabular, "bucket", lambda _column, _code: 0)
    rare = TABLE.summarise(rows(["aa"] * 2 + ["bb"] * 2))
    assert not any(rare[name][..., 0].any() for name in ("records", "present", "text0", "text1", "text2", "text3"))
    told = TABLE.summarise(rows(["aa"] * 4 + ["bb"] * 3 + ["cc"] * 6 + ["dd"] * 5 + ["ee"] * 2))
    assert told["records"][0, 0] == 18
    assert unpacked(np.array([told[f"text{part}"][0, 0] for part in range(4)])) == "cc"
