"""The model behind a task: weights that follow from the seed alone, and two vectors that together are the model."""

import random
from dataclasses import replace

import numpy as np
import pytest

from common.network import build, dumps, initial
from common.seeds import seed_for
from common.tasks.heart import Heart

PREPARATION = {"mean": [0.0] * 5, "scale": [1.0] * 5}


def task(**settings):
    return Heart(hidden=3, **settings).build()


def with_norm():
    """Return the task with a model that has weights of every kind: moved by gradients, not moved, and random states."""

    def network(_preparation):
        import keras

        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(3, name="hidden")(inputs)
        hidden = keras.layers.BatchNormalization(name="norm")(hidden)
        hidden = keras.layers.Dropout(0.5, name="dropout")(hidden)
        return keras.Model(inputs, keras.layers.Dense(1, name="output")(hidden))

    return replace(task(), build=network, parts={"normalisation": ("norm",), "head": ("output",)})


class TestSeed:
    def test_initial_weights_follow_from_the_seed_alone(self):
        first, layout = initial(task(), PREPARATION, (), 7)
        random.seed(99)
        np.random.default_rng(3).random(5)
        again, same = initial(task(), PREPARATION, (), 7)
        np.testing.assert_array_equal(first, again)
        assert layout == same
        other, _ = initial(task(), PREPARATION, (), 8)
        assert np.abs(first - other).max() > 0.01

    def test_pythons_own_generator_is_put_back(self):
        random.seed(5)
        expected = [random.random() for _ in range(3)]
        random.seed(5)
        initial(task(), PREPARATION, (), 7)
        assert [random.random() for _ in range(3)] == expected

    def test_it_is_put_back_when_the_model_can_not_be_built(self):
        random.seed(5)
        before = random.getstate()
        with pytest.raises(KeyError):
            build(task(), {}, (), 7)
        assert random.getstate() == before

    def test_keeping_a_part_at_the_hospital_changes_no_first_weight(self):
        whole = build(with_norm(), PREPARATION, (), 7).vectors()[0]
        network = build(with_norm(), PREPARATION, ("head",), 7)
        shared, local = network.vectors()
        assert shared.size + local.size == whole.size
        np.testing.assert_array_equal(np.sort(np.concatenate([shared, local])), np.sort(whole))

    def test_words_make_independent_seeds(self):
        seeds = [
            seed_for(*words)
            for words in [(1, "train", 3, "a"), (1, "train", 31, "a"), (13, "train", 1, "a"), (1, "train3", "a")]
        ]
        drawn = {np.random.default_rng(seed).integers(2**62) for seed in seeds}
        assert len(drawn) == len(seeds)
        assert np.random.default_rng(seed_for(1, "x")).random() == np.random.default_rng(seed_for(1, "x")).random()


class TestParts:
    def test_a_part_stays_out_of_the_shared_vector(self):
        network = build(with_norm(), PREPARATION, ("normalisation",), 1)
        assert {entry.path.split("/")[0] for entry in network.local.entries} == {"norm"}
        assert {entry.path.split("/")[0] for entry in network.shared.entries} == {"hidden", "output"}
        assert [entry.trainable for entry in network.local.entries] == [True, True, False, False]

    def test_a_prefix_is_a_whole_name(self):
        """'output' is no part of 'output_2'."""
        network = build(replace(task(), parts={"head": ("hid", "output/b")}), PREPARATION, ("head",), 1)
        assert network.local.entries == ()

    def test_several_parts_overlap_without_harm(self):
        network = build(task(), PREPARATION, ("intercept", "head", "intercept"), 1)
        assert [entry.path for entry in network.local.entries] == ["output/kernel", "output/bias"]

    @pytest.mark.parametrize("parts", [(), ("normalisation",), ("head",), ("normalisation", "head")])
    def test_interleave_and_divide_undo_each_other(self, parts):
        network = build(with_norm(), PREPARATION, parts, 1)
        weights = list(range(len(network.model.weights)))
        assert network.interleave(*network.divide(weights)) == weights
        assert [len(kind) for kind in network.divide(weights)] == [
            len(network.shared.entries),
            len(network.local.entries),
        ]

    @pytest.mark.parametrize("parts", [(), ("normalisation",)])
    def test_vectors_undoes_assign(self, parts):
        network = build(with_norm(), PREPARATION, parts, 1)
        shared = np.arange(network.shared.size, dtype=np.float32)
        local = -np.arange(network.local.size, dtype=np.float32)
        network.assign(shared, local)
        for vector, expected in zip(network.vectors(), (shared, local), strict=True):
            np.testing.assert_array_equal(vector, expected)

    def test_random_states_of_dropout_are_no_weights(self):
        network = build(with_norm(), PREPARATION, (), 1)
        # hidden 4*3+3, norm 4*3, output 3+1
        assert network.shared.size == 15 + 12 + 4


def test_the_digest_changes_with_the_architecture():
    digests = {
        initial(Heart(model=model, hidden=hidden).build(), preparation, parts, 1)[1].digest
        for model, hidden, preparation, parts in [
            ("mlp", 3, PREPARATION, ()),
            ("mlp", 4, PREPARATION, ()),
            ("logistic", 3, PREPARATION, ()),
            ("mlp", 3, {"mean": [0.0] * 6, "scale": [1.0] * 6}, ()),
            ("mlp", 3, PREPARATION, ("intercept",)),
        ]
    }
    assert len(digests) == 5
    assert initial(task(), PREPARATION, (), 1)[1].digest == initial(task(), PREPARATION, (), 2)[1].digest


def test_a_preparation_is_written_the_same_whatever_its_order():
    assert dumps({"b": [1.5], "a": 2}) == dumps({"a": 2, "b": [1.5]}) == '{"a":2,"b":[1.5]}'
