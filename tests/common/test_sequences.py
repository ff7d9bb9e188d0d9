"""Sequences: alphabets, what is counted of them, and what is said of a wrong letter."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConfigError, DataError
from common.tasks import alphabets, bins
from common.tasks.alphabets import ALPHABETS, DNA, PROTEIN, RNA, composition, words
from common.tasks.peptides import Peptides
from common.tasks.splice import Splice


@pytest.mark.parametrize("module", [alphabets, bins], ids=lambda module: module.__name__)
def test_examples_of_the_docstrings_hold(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("alphabet", ALPHABETS.values(), ids=ALPHABETS)
def test_a_code_says_its_letter_or_equal_shares_of_several(alphabet):
    shares = alphabet.shares
    assert shares.shape == (1 + len(alphabet.symbols), len(alphabet.letters))
    assert not shares[0].any()
    np.testing.assert_array_equal(shares[1 : 1 + len(alphabet.letters)], np.eye(len(alphabet.letters)))
    np.testing.assert_allclose(shares[1:].sum(axis=1), 1.0, rtol=1e-6)
    assert len(set(alphabet.symbols)) == len(alphabet.symbols)


def test_alphabets_have_all_codes_of_iupac():
    assert set(DNA.symbols) == set("ACGTRYSWKMBDHVN")
    assert set(RNA.symbols) == set("ACGURYSWKMBDHVN")
    assert set(PROTEIN.symbols) == set("ACDEFGHIKLMNPQRSTVWYBJZUOX")


@given(st.lists(st.text("ACGTNacgtn", max_size=20), max_size=8), st.integers(1, 25))
def test_codes_read_back_the_first_letters(texts, length):
    codes = DNA.encode(texts, length)
    assert codes.shape == (len(texts), length)
    for text, row in zip(texts, codes, strict=True):
        assert "".join(DNA.symbols[code - 1] for code in row if code) == text.upper()[:length]


@pytest.mark.parametrize(("text", "position"), [("ACGX", 4), ("UACG", 1), ("AC-T", 3), ("AC血T", 3), ("AC T", 3)])
def test_a_wrong_letter_is_named_by_row_and_position_and_nothing_is_shown(text, position):
    with pytest.raises(
        DataError, match=rf"row 2, position {position}: expected a letter of the DNA alphabet"
    ) as caught:
        DNA.encode(["ACGT", text], 2)
    assert text not in str(caught.value)


@given(st.lists(st.text(PROTEIN.letters, min_size=1, max_size=30), min_size=1, max_size=6))
def test_composition_counts_letters(texts):
    found = composition(PROTEIN.encode(texts, 30), PROTEIN)
    for text, row in zip(texts, found, strict=True):
        np.testing.assert_allclose(row[:-1], [text.count(letter) / len(text) for letter in PROTEIN.letters])
        assert row[-1] == len(text)


@given(st.text("ACGT", min_size=3, max_size=12))
def test_words_differ_where_letters_do(text):
    numbers = words(DNA.encode([text], 12), DNA, 3)[0]
    parts = [text[place : place + 3] for place in range(len(text) - 2)]
    assert len(set(numbers[: len(parts)])) == len(set(parts))
    assert numbers[: len(parts)].min() > 1
    assert not numbers[len(parts) :].any()
    assert numbers.max() < 4**3 + 2


@pytest.mark.parametrize("gamma", [0.01, 0.1])
def test_fourier_features_multiply_to_the_kernel_and_are_the_same_everywhere(gamma):
    x = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    recipe = Peptides(model="svm", fourier=20_000, gamma=gamma)
    features = recipe.projected(x)
    kernel = np.exp(-gamma * ((x[:, None] - x) ** 2).sum(axis=2))
    np.testing.assert_allclose(features @ features.T, kernel, atol=0.05)
    np.testing.assert_array_equal(features[3:5], recipe.projected(x)[3:5])


def test_fourier_features_of_aligned_sequences_have_mean_0_over_random_ones():
    texts = ["".join(np.random.default_rng(row).choice([*"ACGT"], 60)) for row in range(500)]
    task = Splice(model="svm", fourier=256, gamma=0.02).build()
    x = task.encode({"sequence": np.array(texts, object)}, {}).x
    assert np.abs(x.mean(axis=0)).max() < 5 * x.std(axis=0).max() / 500**0.5


def test_ambiguous_letters_are_each_that_they_may_be_to_a_forest():
    task = Splice(positions=2, length=8).build()
    x = task.encode({"sequence": np.array(["RA"], object)}, {}).x
    np.testing.assert_array_equal(x, [[1, 0, 1, 0, 1, 0, 0, 0]])


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "svm", "positions": 1, "letters": 2},
        {"model": "svm", "positions": 0, "letters": 2, "composition": True},
        {"model": "svm", "positions": 0, "letters": 1},
        {"model": "forest", "positions": 0},
    ],
)
def test_a_model_that_would_read_nothing_is_refused_before_anything_is_read(settings):
    with pytest.raises(ConfigError, match="task.positions: expected [12] or more"):
        Splice(**settings).build()


@pytest.mark.parametrize("model", ["svm", "forest"])
def test_shares_alone_can_be_read(model):
    task = Splice(model=model, positions=0, letters=1, composition=True).build()
    records = {"sequence": np.array(["ACGT", "GGGG"], object)}
    edges = {"edges": np.linspace(0, 1, 5 * 31).tolist()} if model == "forest" else {}
    assert len(task.encode(records, task.fit(task.summarise({**records, "label": np.zeros(2)})) | edges).x) == 2


def test_what_lies_beyond_the_end_changes_no_output():
    from common import network

    for model in ("cnn", "kmer"):
        short, long = (Peptides(model=model, length=length, filters=4).build() for length in (20, 40))
        records = {"sequence": np.array(["GLWSKIKEVGKE", "KK"], object)}
        outputs = []
        for task in (short, long):
            built = network.build(task, {}, (), seed=1).model
            outputs.append(np.asarray(built(task.encode(records, {}).x.astype(np.int32))))
        np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
