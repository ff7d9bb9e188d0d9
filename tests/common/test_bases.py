"""Frozen bases: from a file every site holds, never made up, never sent; their features are those of the network itself, computed once a picture."""

import doctest
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from client.hospital import Hospital
from client.worker import Worker
from common import backend, flower, network
from common.config import parse
from common.errors import ConfigError, DataError
from common.tasks import TASKS, bases, pictures, read_run
from common.tasks.task import take
from server import rounds
from server.plan import Plan
from simulations.engines import grid_of
from simulations.hospitals import seats_of
from tests.weights import make_base

SIDE = 32
SETTINGS = {"base": "own", "side": SIDE, "hidden": 8, "head_rounds": 0}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Let a small base lie at this site; return its file."""
    path = tmp_path / "weights" / "model.keras"
    make_base(path)
    monkeypatch.setenv(bases.FOLDER, str(path.parent))
    return path


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Let this computer have no weights at all; return the home of Keras."""
    monkeypatch.delenv(bases.FOLDER, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras" / "models").mkdir(parents=True)
    return tmp_path / "keras"


def images(rows, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (rows, SIDE, SIDE, 3), np.uint8)


def records(rows, seed=0):
    draw = np.random.default_rng(seed)
    return {"image": draw.integers(0, 256, (rows, *pictures.SHAPE), np.uint8), "label": draw.integers(0, 5, rows)}


def task_with(**settings):
    return parse(TASKS["cells-vgg16"], SETTINGS | settings).build()


def test_doctests():
    assert doctest.testmod(bases).failed == 0


class TestFiles:
    @pytest.mark.parametrize("name", bases.KINDS)
    def test_without_weights_nothing_is_made_up(self, name, nowhere):
        with pytest.raises(DataError, match=bases.FOLDER):
            task_with(base=name).fit({"images": np.ones(1)})

    def test_the_error_says_what_to_do(self, nowhere):
        with pytest.raises(
            DataError, match=r"keras\.applications\.VGG16\(include_top=False\).*or train a base with Fedward"
        ):
            bases.find("vgg16")

    def test_keras_s_own_download_counts_with_keras_s_own_checksum(self, nowhere, monkeypatch):
        path = nowhere / "models" / bases.KINDS["vgg16"].file
        path.write_bytes(b"as Keras left it")
        with pytest.raises(DataError, match="damaged or another version"):
            bases.find("vgg16")
        checksum = hashlib.md5(b"as Keras left it").hexdigest()
        monkeypatch.setitem(bases.KINDS, "vgg16", replace(bases.KINDS["vgg16"], md5=checksum))
        assert bases.find("vgg16") == path

    def test_checksums_are_those_of_keras(self):
        backend.start()  # before Keras, so that it does not load what nobody here uses
        from keras.src.applications import mobilenet_v3, vgg16

        assert bases.KINDS["mobilenet"].md5 == mobilenet_v3.WEIGHTS_HASHES["small_224_1.0_float"][1]
        assert bases.KINDS["vgg16"].file == vgg16.WEIGHTS_PATH_NO_TOP.rpartition("/")[2]

    def test_a_file_or_its_folder_may_be_named(self, own, monkeypatch):
        assert bases.find("own") == own
        monkeypatch.setenv(bases.FOLDER, str(own))
        assert bases.find("own") == own
        assert len(bases.digest("own")) == 64

    def test_a_site_with_another_file_refuses(self, own):
        task = task_with()
        preparation = task.fit({})
        make_base(own, seed=2)
        with pytest.raises(DataError, match=r"its SHA-256 is [0-9a-f]{64}, and the run's base 'own' has"):
            task.encode(records(2), preparation)

    @pytest.mark.parametrize("content", [b"", b"no network", b"PK\x03\x04 torn"])
    def test_a_file_that_is_no_network_is_named(self, own, content):
        own.write_bytes(content)
        with pytest.raises(DataError, match="is no network of the kind 'own'"):
            bases.load("own", bases.digest("own"), SIDE)

    def test_what_it_was_trained_on_is_told_by_its_run_or_its_checksum(self, own, monkeypatch):
        assert bases.trained_on("own").startswith("not told")
        (own.parent / "run.json").write_text(json.dumps({"data": {"name": "cells", "title": "Cells of a laboratory"}}))
        assert task_with().fit({})["base"]["trained_on"] == "cells: Cells of a laboratory"
        kind, file = bases.KINDS["vgg16"], own.parent / bases.KINDS["vgg16"].file
        file.write_bytes(b"weights")
        assert bases.trained_on("vgg16").startswith("not told")
        same = replace(kind, md5=hashlib.md5(b"weights").hexdigest())
        monkeypatch.setattr(bases, "KINDS", {**bases.KINDS, "vgg16": same})
        assert bases.trained_on("vgg16") == "ImageNet, by keras.applications.VGG16"


class TestFeatures:
    def test_they_are_what_the_network_gives(self, own):
        import keras

        base = bases.load("own", bases.digest("own"), 24)
        model = keras.saving.load_model(own)
        maps = keras.Model(model.inputs[0], model.layers[-3].output)
        pixels = images(5)[:, :24, :24]
        expected = maps(pixels.astype(np.float32), training=False).numpy().mean(axis=(1, 2))
        np.testing.assert_allclose(base.features(pixels, whole=True), expected, rtol=1e-5, atol=1e-6)

    def test_the_last_block_goes_on_where_the_frozen_layers_end(self, own):
        """Frozen layers and a copy of the last block, its normalisation folded in, make the whole base."""
        import keras

        base = bases.load("own", bases.digest("own"), SIDE)
        inputs = keras.Input(base.shape(whole=False))
        outputs, starts = base.last_block(inputs)
        block = keras.Model(inputs, outputs)
        for layer, weights in starts:
            layer.set_weights(weights)
        assert [layer.name for layer, weights in starts if weights] == list(bases.block_of("own"))
        assert len(block.trainable_weights) == len(block.weights) == 2
        together = block(base.features(images(3), whole=False)).numpy().mean(axis=(1, 2))
        np.testing.assert_allclose(together, base.features(images(3), whole=True), rtol=1e-4, atol=1e-5)

    def test_a_picture_is_computed_once(self, own, monkeypatch):
        base = bases.load("own", bases.digest("own"), SIDE)
        asked = []
        functions = dict(base._functions)
        monkeypatch.setitem(
            base.__dict__, "_functions", {True: lambda batch: asked.append(1) or functions[True](batch)}
        )
        base.known.clear()
        first = base.features(images(20), whole=True)
        again = base.features(images(20)[::-1], whole=True)[::-1]
        assert len(asked) == 2  # two batches, and none for what is known
        np.testing.assert_array_equal(first, again)

    def test_beyond_what_is_remembered_it_is_computed_again(self, own, monkeypatch):
        base = bases.load("own", bases.digest("own"), SIDE)
        base.known.clear()
        first = base.features(images(7), whole=False)
        base.known.clear()
        monkeypatch.setattr(bases, "MOST_BYTES", first[0].nbytes * 2)
        np.testing.assert_array_equal(base.features(images(7), whole=False), first)
        assert len(base.known) == 2

    def test_a_grey_base_sees_how_bright_a_colour_is(self, own):
        make_base(own, channels=1)
        base = bases.load("own", bases.digest("own"), SIDE)
        grey = np.repeat(images(3)[..., :1], 3, axis=-1)
        tinted = grey.copy()
        tinted[..., 0] //= 2
        assert np.abs(base.features(grey, whole=True) - base.features(tinted, whole=True)).max() > 0.01


class TestRound:
    def run(self, settings, number=1):
        tables = {"task": {"name": "cells-vgg16", **SETTINGS, **settings}, "rounds": number}
        worker = Worker()
        hospitals = [
            Hospital(name, *(records(6, seed + part) for part in range(3))) for seed, name in ((1, "a"), (9, "b"))
        ]
        with flower.identity(1):
            return rounds.run(grid_of(seats_of(hospitals, worker, bytes(32))), Plan(read_run(tables)))

    @pytest.mark.parametrize("train", ["head", "block"])
    def test_frozen_layers_are_in_no_byte_of_a_round(self, own, train):
        outcome = self.run({"train": train})
        head = 6 * 8 + 8 + 8 * 5 + 5
        block = (3 * 3 * 4 * 6 + 6) if train == "block" else 0
        assert outcome.model.weights.size == head + block
        (record,) = outcome.rounds
        for sent in (record.bytes_down, record.bytes_up):
            assert 0 <= sent - 2 * 4 * (head + block) < 60_000, "beyond the weights, statistics alone"
        assert outcome.model.base["sha256"] == bases.digest("own")

    def moved(self, number=1, **settings):
        """Return, by variable, how far a run went from where it began."""
        outcome = self.run({"train": "block", "dropout": 0.0, **settings}, number)
        task = outcome.coordinator.plan.task
        built = network.build(task, json.loads(outcome.model.preparation), (), 1)
        pairs = zip(built.shared.split(built.vectors()[0]), built.shared.split(outcome.model.weights), strict=True)
        paths = (entry.path for entry in built.shared.entries)
        return dict(zip(paths, (float(np.abs(new - old).max()) for old, new in pairs), strict=True))

    def test_the_last_block_moves_slower(self, own):
        fast, slow = self.moved(block_rate=1.0), self.moved(block_rate=0.01)
        assert slow["block_1/kernel"] == pytest.approx(fast["block_1/kernel"] / 100, rel=0.05)
        assert slow["output/kernel"] > fast["output/kernel"] / 2

    def test_the_last_block_rests_while_the_head_learns(self, own):
        first, later = self.moved(2, head_rounds=2), self.moved(3, head_rounds=2)
        assert first["block_1/kernel"] == first["block_1/bias"] == 0 < first["output/kernel"]
        assert later["block_1/kernel"] > 0

    def test_it_starts_from_the_base_s_own_weights(self, own):
        task = task_with(train="block")
        built = network.build(task, task.fit({}), (), 1)
        kernel = dict(zip((e.path for e in built.shared.entries), built.shared.split(built.vectors()[0]), strict=True))
        base = bases.load("own", bases.digest("own"), SIDE)
        np.testing.assert_array_equal(kernel["block_1/kernel"], bases._folded(*base.chain[:2])[0])

    def test_scaffold_is_refused_where_parts_move_slower(self, own):
        with pytest.raises(ConfigError, match="moves block slower"):
            _ = Plan(read_run({"task": {"name": "cells-vgg16", "train": "block"}, "strategy": "scaffold"})).strategy

    def test_rows_are_encoded_alike_in_whatever_company(self, own):
        task = task_with()
        rows, preparation = records(20), task.fit({})
        all_of_them = task.encode(rows, preparation).x
        bases._load.cache_clear()
        np.testing.assert_array_equal(task.encode(take(rows, np.array([17, 3])), preparation).x, all_of_them[[17, 3]])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels"), [("mobilenet", 576), ("vgg16", 512)])
def test_the_networks_of_keras_are_cut_where_their_last_block_begins(name, channels, tmp_path, monkeypatch):
    """With weights drawn for this test alone, in the files' own form."""
    import h5py
    import keras
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(1)
    make = {"mobilenet": keras.applications.MobileNetV3Small, "vgg16": keras.applications.VGG16}[name]
    model = make(include_top=False, weights=None, input_shape=(SIDE, SIDE, 3))
    path = tmp_path / bases.KINDS[name].file
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    monkeypatch.setenv(bases.FOLDER, str(path))
    base = bases.load(name, bases.digest(name), SIDE)
    inputs = keras.Input(base.shape(whole=False))
    outputs, starts = base.last_block(inputs)
    block = keras.Model(inputs, outputs)
    for layer, weights in starts:
        layer.set_weights(weights)
    assert [layer.name for layer, weights in starts if weights] == list(bases.block_of(name))
    together = block(base.features(images(2), whole=False)).numpy().mean(axis=(1, 2))
    whole = base.features(images(2), whole=True)
    assert whole.shape == (2, channels)
    np.testing.assert_allclose(together, whole, rtol=1e-3, atol=1e-4)
