"""Partitions: one contract that every partitioner passes, and what sets each apart."""

import re
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fedward
from common.errors import ConfigError
from simulations import hospitals as virtual
from simulations import partition, scenario
from simulations.datasets import DATASETS
from simulations.datasets.dataset import Dataset, Table
from simulations.partition import MINIMUM, NATURAL, PARTITIONERS, Facts, deal, split

SPECS = {
    "iid": ("iid",),
    "dirichlet": ("dirichlet", "dirichlet:0.1", "dirichlet:100", "dirichlet:1e-6"),
    "quantity": ("quantity", "quantity:0.2", "quantity:1e6"),
    "pathological": ("pathological", "pathological:1", "pathological:3", "pathological:1000"),
    "feature": ("feature", "feature:0", "feature:1"),
}


def make_table(patients, classes, seed, rows=3, tested=0.0):
    """Make up a table whose patients have one to ``rows`` rows each, in random order, and one class for all of them."""
    draw = np.random.default_rng(seed)
    patient = draw.permutation(np.repeat(np.arange(patients) * 7 + 3, draw.integers(1, rows + 1, patients)))
    label = draw.integers(0, classes, patients)[(patient - 3) // 7]
    records = {"image": draw.integers(0, 256, (len(label), 2, 2)).astype(np.uint8), "label": label}
    test = draw.random(patients)[(patient - 3) // 7] < tested if tested else None
    return Table(records, label, tuple(f"class {number}" for number in range(classes)), patient, test=test)


def generator(seed=0):
    return np.random.default_rng(seed)


tables = st.builds(
    make_table,
    patients=st.integers(20, 150),
    classes=st.integers(2, 6),
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 3),
    tested=st.sampled_from((0.0, 0.3)),
)


def shares_of(table, dealt):
    """Return the share of every class at every hospital."""
    counts = np.array([np.bincount(table.label[rows], minlength=len(table.classes)) for rows in dealt.values()])
    return counts / counts.sum(axis=1, keepdims=True)


def test_every_partitioner_is_under_contract():
    assert SPECS.keys() == PARTITIONERS.keys()


@pytest.mark.parametrize("kind", PARTITIONERS)
@settings(max_examples=40)
@given(data=st.data(), table=tables, hospitals=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_a_partition_deals_every_row_once_and_parts_no_patient(kind, data, table, hospitals, seed):
    spec = data.draw(st.sampled_from(SPECS[kind]))
    try:
        dealt = deal(table, spec, hospitals, generator(seed))
    except ConfigError:
        with pytest.raises(
            ConfigError,
            match=r"simulation\.partition: .*(take --hospitals|data are too few|take more hospitals or a larger x|no smaller count)",
        ):
            deal(table, spec, hospitals, generator(seed))
        return
    assert len(dealt) == hospitals
    assert list(dealt) == sorted(dealt)
    rows = list(dealt.values())
    assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(table)))
    assert all((np.diff(part) > 0).all() for part in rows)
    whose = [set(table.patient[part].tolist()) for part in rows]
    assert sum(map(len, whose)) == len(set(table.patient.tolist()))
    training = np.ones(len(table), bool) if table.test is None else ~table.test
    assert min(training[part].sum() for part in rows) >= MINIMUM
    again = deal(table, spec, hospitals, generator(seed))
    assert all(np.array_equal(again[name], dealt[name]) for name in dealt)


@pytest.mark.parametrize("kind", PARTITIONERS)
def test_easy_deals_succeed_and_follow_the_seed(kind):
    table = make_table(400, 3, seed=1)
    first, second = (deal(table, kind, 4, generator(seed)) for seed in (1, 2))
    assert any(not np.array_equal(first[name], second[name]) for name in first)


@given(patients=st.integers(8, 200), hospitals=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_iid_deals_equal_shares(patients, hospitals, seed):
    table = make_table(patients, 2, seed, rows=1)
    sizes = [len(rows) for rows in deal(table, "iid", hospitals, generator(seed)).values()]
    assert max(sizes) - min(sizes) <= 1


def test_a_small_concentration_skews_classes_more_than_a_large_one():
    table = make_table(3000, 4, seed=2, rows=1)
    overall = np.bincount(table.label) / len(table)

    def skew(spec):
        dealt = [deal(table, spec, 6, generator(seed)) for seed in range(20)]
        return np.mean([np.abs(shares_of(table, parts) - overall).sum(axis=1).mean() / 2 for parts in dealt])

    skews = [skew(spec) for spec in ("dirichlet:0.1", "dirichlet:1", "dirichlet:10", "dirichlet:1000")]
    assert skews[0] > skews[1] + 0.1 > skews[2] + 0.2
    assert skews[3] < 0.03


@pytest.mark.parametrize("x", [0.05, 0.5, 5.0])
def test_shares_have_the_moments_of_the_dirichlet_distribution(x):
    draws = np.array([partition._dirichlet(4, x, draw) for draw in [generator(3)] for _ in range(8_000)])
    assert np.allclose(draws.sum(axis=1), 1)
    assert np.allclose(draws.mean(axis=0), 1 / 4, atol=0.015)
    assert np.allclose(draws.var(axis=0), (1 / 4) * (3 / 4) / (4 * x + 1), rtol=0.08)


def test_the_smallest_concentration_gives_one_hospital_everything():
    for seed in range(50):
        shares = partition._dirichlet(5, 1e-6, generator(seed))
        assert np.sort(shares)[-1] == pytest.approx(1)
        assert np.isfinite(shares).all()


def test_no_place_in_the_list_of_hospitals_is_favoured():
    """A class of one patient goes to each of four hospitals equally often, whatever its number."""
    facts = Facts(np.array([0]), np.zeros(1))
    counts = np.bincount([partition.dirichlet(facts, 4, 0.5, generator(seed))[0] for seed in range(2000)], minlength=4)
    assert (np.abs(counts - 500) < 100).all()  # five standard deviations


@settings(max_examples=100)
@given(
    classes=st.integers(2, 7),
    hospitals=st.integers(1, 12),
    x=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_pathological_gives_at_most_x_classes(classes, hospitals, x, seed):
    table = make_table(300, classes, seed)
    assume(len(np.unique(table.label)) == classes)
    if hospitals * min(x, classes) < classes:
        with pytest.raises(ConfigError, match=r"leave no place for all \d classes; take more hospitals or a larger x"):
            deal(table, f"pathological:{x}", hospitals, generator(seed))
        return
    dealt = deal(table, f"pathological:{x}", hospitals, generator(seed))
    assert max(len(set(table.label[rows].tolist())) for rows in dealt.values()) <= x


def test_pathological_mixes_which_classes_meet():
    table = make_table(2000, 10, seed=4, rows=1)
    dealt = deal(table, "pathological:2", 40, generator())
    pairs = {tuple(np.unique(table.label[rows]).tolist()) for rows in dealt.values()}
    assert len(pairs) > 10


def test_feature_zero_sorts_images_by_brightness_and_one_mixes_them():
    table = make_table(400, 2, seed=5, rows=1)
    brightness = table.records["image"].mean(axis=(1, 2))
    parts = [brightness[rows] for rows in deal(table, "feature:0", 5, generator()).values()]
    assert all(low.max() <= high.min() for low, high in pairwise(parts))
    assert {len(part) for part in parts} == {80}
    half = [brightness[rows].mean() for rows in deal(table, "feature:0.5", 5, generator()).values()]
    mixed = [brightness[rows].mean() for rows in deal(table, "feature:1", 5, generator()).values()]
    sort = np.ptp([part.mean() for part in parts])
    assert sort > 1.5 * np.ptp(half) > 3 * np.ptp(mixed)


def test_feature_sorts_texts_by_length():
    draw = generator(6)
    texts = np.array(["a" * length for length in draw.permutation(100)], object)
    label = draw.integers(0, 2, 100)
    table = Table({"text": texts, "label": label}, label, ("a", "b"), np.arange(100))
    lengths = [{len(text) for text in texts[rows]} for rows in deal(table, "feature:0", 4, generator()).values()]
    assert lengths == [set(range(start, start + 25)) for start in (0, 25, 50, 75)]


def test_feature_sorts_tables_by_their_first_component_and_never_by_the_label():
    draw = generator(7)
    common = draw.normal(size=200)
    columns = {name: common * factor + draw.normal(0, 0.1, 200) for name, factor in (("a", 1), ("b", -50), ("c", 3))}
    columns["a"][::9] = np.nan
    columns["unknown"] = np.full(200, np.nan)
    label = draw.integers(0, 2, 200)

    def dealt(label):
        records = {**columns, "num": label.astype(float) * 1000}
        table = Table(records, label, ("no", "yes"), np.arange(200), target="num")
        return deal(table, "feature:0", 4, generator())

    parts = [common[rows].mean() for rows in dealt(label).values()]
    assert parts == sorted(parts, reverse=bool(parts[0] > parts[-1]))
    assert np.ptp(parts) > 2  # of a standard deviation of 1
    assert all(np.array_equal(a, b) for a, b in zip(dealt(label).values(), dealt(1 - label).values(), strict=True))


def test_quantity_changes_sizes_and_leaves_label_shares_alike():
    table = make_table(20_000, 2, seed=8, rows=1)
    dealt = deal(table, "quantity:1", 6, generator(1))
    sizes = np.array([len(rows) for rows in dealt.values()])
    assert sizes.max() > 3 * sizes.min()
    share = table.label.mean()
    errors = np.sqrt(share * (1 - share) / sizes)
    assert (np.abs(shares_of(table, dealt)[:, 1] - share) < 4 * errors).all()
    even = [len(rows) for rows in deal(table, "quantity:1e6", 6, generator(1)).values()]
    assert max(even) < 1.02 * min(even)


@pytest.mark.parametrize("spec", ["iid", "feature:0.1", "pathological:2", "quantity:50", "dirichlet:1000"])
def test_ten_thousand_hospitals_take_seconds(spec):
    # By class, six patients a hospital would leave some hospital with none.
    hospitals = 2_000 if spec.startswith("dirichlet") else 10_000
    draw = generator(9)
    label = draw.integers(0, 10, 60_000)
    images = draw.integers(0, 256, (60_000, 4, 4)).astype(np.uint8)
    table = Table({"image": images, "label": label}, label, tuple("abcdefghij"), np.arange(60_000))
    begun = time.process_time()
    assert len(deal(table, spec, hospitals, generator())) == hospitals
    assert time.process_time() - begun < 5


def test_natural_takes_the_hospitals_of_the_data():
    plain = make_table(60, 2, seed=10, rows=1)
    names = np.array(["west", "east", "north"])[np.arange(len(plain)) % 3]
    table = Table(plain.records, plain.label, plain.classes, plain.patient, hospital=names)
    for count in (0, 3):
        dealt = deal(table, NATURAL, count, generator())
        assert list(dealt) == ["east", "north", "west"]
        assert all((names[rows] == name).all() and len(rows) == 20 for name, rows in dealt.items())


@pytest.mark.parametrize(
    ("spec", "hospitals", "message"),
    [
        (
            "dirichet:1",
            4,
            r"simulation.partition: unknown kind 'dirichet'; did you mean 'dirichlet'\? Known: .*natural",
        ),
        ("dirichlet:0", 4, r"'dirichlet:0': expected a number from 1e-06 to 1000000 \(concentration over classes"),
        ("dirichlet:much", 4, r"'dirichlet:much': expected a number"),
        ("quantity:nan", 4, r"'quantity:nan': expected a number"),
        (
            "pathological:1.5",
            4,
            r"'pathological:1.5': expected a whole number from 1 to 1000 \(classes of a hospital\)",
        ),
        ("feature:2", 4, r"'feature:2': expected a number from 0 to 1"),
        ("iid:3", 4, r"simulation.partition: 'iid' takes no x, got '3'"),
        ("natural:3", 3, r"simulation.partition: 'natural' takes no x, got '3'"),
        ("iid", 0, r"simulation.hospitals: 'iid' needs a count of hospitals, for example --hospitals 10"),
        ("natural", 0, r"simulation.partition: this data set names no hospitals of its own; choose iid, dirichlet"),
        (
            "iid",
            41,
            r"'iid' over 41 hospitals leaves 'hospital-\d+' with fewer than 2 rows; with this seed at most 40 can be had: take --hospitals 40$",
        ),
    ],
)
def test_a_wrong_partition_is_refused_with_what_to_do(spec, hospitals, message):
    with pytest.raises(ConfigError, match=message):
        deal(make_table(80, 2, seed=11, rows=1), spec, hospitals, generator())


@settings(max_examples=60)
@given(
    spec=st.sampled_from([spec for specs in SPECS.values() for spec in specs]),
    table=tables,
    hospitals=st.integers(5, 200),
    seed=st.integers(0, 2**32),
)
def test_what_the_refusal_says_to_type_works(spec, table, hospitals, seed):
    try:
        deal(table, spec, hospitals, generator(seed))
    except ConfigError as error:
        message = str(error)
    else:
        return
    even = re.search(r"--partition iid --hospitals (\d+)", message)
    if even:
        assert len(deal(table, "iid", int(even[1]), generator(seed))) == int(even[1])
    own = re.search(r"at most (\d+) can be had: take --hospitals \1\b", message)
    if own:
        assert 0 < int(own[1]) < hospitals
        assert len(deal(table, spec, int(own[1]), generator(seed))) == int(own[1])
    assert own or even or "data are too few" in message or "larger x" in message


def test_a_hospital_of_the_data_that_is_too_small_is_dealt_anew():
    plain = make_table(60, 2, seed=10, rows=1)
    names = np.where(np.arange(len(plain)) == 7, "lone", "large")
    table = Table(plain.records, plain.label, plain.classes, plain.patient, hospital=names)
    with pytest.raises(ConfigError, match=r"leaves 'lone' .*; deal anew: --partition iid --hospitals 2$"):
        deal(table, NATURAL, 0, generator())


def test_another_count_than_the_data_have_is_refused():
    plain = make_table(60, 2, seed=10, rows=1)
    table = Table(plain.records, plain.label, plain.classes, plain.patient, hospital=np.array(["a", "b"])[plain.label])
    with pytest.raises(ConfigError, match=r"simulation.hospitals: the data come from 2 hospitals, not 5; leave it out"):
        deal(table, NATURAL, 5, generator())


def test_the_help_names_every_kind(capsys):
    with pytest.raises(SystemExit):
        fedward.main(["simulate", "--help"])
    words = capsys.readouterr().out
    assert all(kind in words for kind in [NATURAL, *PARTITIONERS])


@settings(max_examples=100)
@given(
    patients=st.integers(1, 80),
    classes=st.integers(1, 5),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32),
)
def test_a_split_draws_whole_patients_and_their_share_of_every_class(patients, classes, share, seed):
    table = make_table(patients, classes, seed)
    drawn = split(table.label, table.patient, share, generator(seed))
    assert drawn.shape == (len(table),)
    assert not set(table.patient[drawn]) & set(table.patient[~drawn])
    assert not drawn.all()
    _, first = np.unique(table.patient, return_index=True)
    count = min(round(share * patients), patients - 1)
    assert drawn[first].sum() == count
    for number in np.unique(table.label):
        own = drawn[first][table.label[first] == number]
        assert abs(own.sum() - count / patients * len(own)) < 1
    assert np.array_equal(drawn, split(table.label, table.patient, share, generator(seed)))


def test_a_split_of_nobody_is_empty():
    assert split(np.zeros(0, int), np.zeros(0, int), 0.3, generator()).shape == (0,)


def test_a_split_gives_every_patient_the_same_chance():
    label = np.repeat([0, 1], [7, 13])
    often = np.mean([split(label, np.arange(20), 0.3, generator(seed)) for seed in range(3000)], axis=0)
    for number in (0, 1):  # within a class, all have the same chance: five standard deviations
        own = often[label == number]
        assert (np.abs(own - own.mean()) < 5 * np.sqrt(0.3 * 0.7 / 3000)).all()


def test_no_patient_of_a_simulation_is_at_two_hospitals_or_in_two_parts(make_patients, monkeypatch):
    records = dict(make_patients(300, 12))
    patient = np.repeat(np.arange(100), 3)
    label = (records["num"] > 0).astype(np.int64)
    records |= {"who": patient}

    def read(_folder):
        return Table(records, label, ("no disease", "disease"), patient, target="num")

    dataset = Dataset("many-rows", "SYNTHETIC", "heart", "", "", "", 300, read, synthetic=True)
    monkeypatch.setitem(DATASETS, "many-rows", dataset)
    tables = {
        "evaluation": {"validation": 0.2},
        "simulation": {"dataset": "many-rows", "hospitals": 5, "partition": "dirichlet:1"},
    }
    population = virtual.populate(scenario.read(tables))
    parts = [
        set(part["who"].tolist())
        for hospital in population.hospitals
        for part in (hospital.train, hospital.validation, hospital.test)
    ]
    assert len(parts) == 15
    assert sum(map(len, parts)) == 100
    assert all(len(hospital.train["who"]) for hospital in population.hospitals)
