"""The contract of every task, and the proof that a task is one file and one line: `Tiny`, below, passes it too."""

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from common import network
from common.config import Choice, RunConfig, merge, parse
from common.errors import DataError
from common.statistics import total
from common.tasks import TASKS
from common.tasks.objective import BINARY
from common.tasks.task import Column, Examples, Task, rows_of, take
from tests.weights import make_base

CODES = ["428", "V27", "Emergency/Trauma", ""]
WORDS = ["fever", "cough", "pain", "血", "压", "高", "160", "left"]
EVENTS = ["diagnosis shock", "diagnosis sepsis", "treatment fluid", "treatment ventilation", "treatment dialysis"]


@dataclass(frozen=True)
class Tiny:
    """A task as small as it gets: is the patient's temperature a fever?"""

    def build(self):
        return Task(
            name="tiny",
            title="Fever",
            columns=(Column("temperature", "number", "body temperature", "°C", 30, 45),),
            label="fever",
            classes=("no", "yes"),
            objective=BINARY,
            summarise=lambda records: {"known": np.array([np.isfinite(records["temperature"]).sum()], np.float64)},
            fit=lambda statistics: {"known": int(statistics["known"][0])},
            encode=encode_tiny,
            classify=classify_tiny,
            build=build_tiny,
            parts={"head": ("output",)},
        )


def encode_tiny(records, _preparation):
    return Examples(
        np.nan_to_num(records["temperature"] - 37, nan=0.0)[:, None].astype(np.float32), classify_tiny(records)
    )


def classify_tiny(records):
    return np.asarray(records.get("fever", np.zeros(rows_of(records))), np.int32)


def build_tiny(_preparation):
    import keras

    inputs = keras.Input((1,))
    return keras.Model(inputs, keras.layers.Dense(1, name="output")(inputs))


# Every task by its defaults, and each other network that an option makes of it.
CHOICES = {name: Choice(name) for name in [*TASKS, "tiny"]} | {
    "heart logistic": Choice("heart", (("model", "logistic"), ("site_intercept", True))),
    "pneumonia batch": Choice("pneumonia", (("normalisation", "batch"), ("width", 4))),
    "readmission logistic": Choice("readmission", (("model", "logistic"), ("minimum_records", 1))),
    "readmission stay": Choice("readmission", (("target", "stay"),)),
    # A network as of 224 pixels would take the contract minutes; nothing in the tasks depends on the size.
    "cells": Choice("cells", (("side", 32), ("width", 4), ("hidden", 8))),
    "cells batch": Choice("cells", (("side", 32), ("width", 4), ("hidden", 8), ("normalisation", "batch"))),
    "cells-vgg16": Choice("cells-vgg16", (("base", "own"), ("side", 32))),
    "cells-vgg16 block": Choice("cells-vgg16", (("base", "own"), ("side", 32), ("train", "block"))),
    "icu lstm": Choice("icu", (("model", "lstm"), ("hours", 5), ("units", 4))),
    "notes attention": Choice("notes", (("model", "attention"), ("classes", "a, b, c"), ("minimum_records", 1))),
    "splice cnn": Choice("splice", (("model", "cnn"), ("filters", 4))),
    "splice kmer": Choice("splice", (("model", "kmer"), ("filters", 4))),
    "splice svm": Choice("splice", (("model", "svm"), ("fourier", 64))),
    "peptides svm": Choice("peptides", (("model", "svm"), ("fourier", 0))),
    "peptides cnn": Choice("peptides", (("model", "cnn"), ("filters", 4))),
    "peptides kmer": Choice("peptides", (("model", "kmer"), ("filters", 4))),
    "survival neural": Choice("survival", (("model", "neural"),)),
}
MOMENTS = [name for name in CHOICES if not name.startswith(("notes", "readmission", "mimic", "treatment"))]


@pytest.fixture(autouse=True, scope="module")
def _base(tmp_path_factory):
    """Let the frozen base of a transfer task lie on this computer."""
    path = tmp_path_factory.mktemp("weights") / "model.keras"
    make_base(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDWARD_WEIGHTS", str(path))
        yield


@cache
def task_named(name):
    return CHOICES[name].resolve({**TASKS, "tiny": Tiny}, "task").build()


AUGMENTED = [name for name in CHOICES if task_named(name).augment is not None]


@pytest.fixture(params=CHOICES)
def task(request):
    return task_named(request.param)


def column_of(column, rows, generator):
    """Draw a column's values from its own description."""
    if column.variables:
        low, high = ([getattr(each, end) for each in column.variables] for end in ("low", "high"))
        values = generator.uniform(low, high, (rows, *column.shape)).astype(np.float32)
        return np.where(generator.random(values.shape) < 0.8, np.float32(np.nan), values)
    if column.kind == "image":
        return generator.integers(0, 256, (rows, *column.shape), dtype=np.uint8)
    if column.kind == "number":
        return generator.uniform(column.low, column.high, rows)
    cells = {
        "text": lambda: " ".join(generator.choice(WORDS, size=6)),
        "sequence": lambda: "".join(generator.choice([*column.letters], generator.integers(1, 90))),
        "code": lambda: generator.choice(CODES),
        "name": lambda: f"stay {generator.integers(1000)}",
        "codes": lambda: "\n".join(generator.choice(EVENTS, size=3, replace=False)),
        "category": lambda: float(generator.choice(column.codes)),
    }
    return np.array([cells[column.kind]() for _ in range(rows)], float if column.kind == "category" else object)


def missing(column, rows):
    """Return a column that nobody measured."""
    if column.kind in ("text", "sequence", "codes"):
        return np.array([None] * rows, object)
    if column.kind in ("code", "name"):
        return np.full(rows, "", object)
    if column.kind == "series":
        return np.full((rows, *column.shape), np.nan, np.float32)
    if column.kind == "image":
        return np.zeros((rows, *column.shape), np.uint8)
    return np.full(rows, np.nan)


def records_of(task, rows, seed=0):
    generator = np.random.default_rng(seed)
    records = {column.name: column_of(column, rows, generator) for column in task.columns}
    if task.objective.label_shape and len(task.classes) == 1:
        return records | {task.label: column_of(Column(task.label, "codes", "what is recommended"), rows, generator)}
    return records | {task.label: generator.integers(0, len(task.classes), rows)}


def prepared(task, records):
    return task.fit(total([task.summarise(records)]))


def leaves(nested):
    """Yield what is in nested lists and tables, in order."""
    if isinstance(nested, dict | list):
        for part in nested.values() if isinstance(nested, dict) else nested:
            yield from leaves(part)
    else:
        yield nested


@cache
def model_of(task_name):
    """Return the examples and the model of a task, built once for the whole file."""
    task = task_named(task_name)
    records = records_of(task, 12)
    preparation = prepared(task, records)
    return task.encode(records, preparation), network.build(task, preparation, (), seed=3).model


@pytest.fixture(params=CHOICES)
def built(request):
    return task_named(request.param), *model_of(request.param)


def sorts(task):
    """Tell whether a label is the number of a class, and a score the probability of one."""
    return (task.objective.label_dtype, task.objective.label_shape, task.objective.width) == ("int32", (), 0)


def outputs_of(model, x):
    import tensorflow as tf

    return model(tf.cast(x, model.inputs[0].dtype), training=False).numpy()


def gradients_of(task, model, examples, *, training):
    """Return the compiled function from rows and their mask to the gradients of the masked mean loss, as the engine takes them; it is traced once."""
    import tensorflow as tf

    moving, fixed = (
        [variable.value for variable in kind] for kind in (model.trainable_variables, model.non_trainable_variables)
    )
    rows = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (examples.x, examples.y)]

    @tf.function(input_signature=[*rows, tf.TensorSpec((None,), tf.float32)])
    def run(x, y, mask):
        with tf.GradientTape() as tape:
            tape.watch(moving)
            outputs, states = model.stateless_call(moving, fixed, tf.cast(x, model.inputs[0].dtype), training=training)
            loss = tf.reduce_sum(task.objective.loss(y, outputs) * mask) / tf.reduce_sum(mask)
        return [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, moving)], states

    return run


def test_examples_fit_model_and_model_fits_objective(built):
    task, examples, model = built
    assert examples.x.shape == (12, *model.input_shape[1:])
    nobody, none = task.objective.nobody(len(task.classes))
    assert examples.y.dtype == nobody.dtype
    assert examples.y.ndim == nobody.ndim
    assert len(examples.y) == 12
    scores = task.objective.predict(outputs_of(model, examples.x))
    assert scores.shape == (12, none.shape[1])
    if sorts(task):
        np.testing.assert_allclose(scores.sum(axis=1), 1.0)


def test_statistics_of_nobody_have_the_shapes_of_those_of_patients(built):
    task, examples, model = built
    scores = task.objective.predict(outputs_of(model, examples.x))
    for judge, times in ((task.objective.summarise, 1), (task.objective.compare, 2)):
        labels, none = task.objective.nobody(len(task.classes))
        empty, found = judge(labels, *[none] * times), judge(examples.y, *[scores] * times)
        assert {name: value.shape for name, value in empty.items()} == {n: v.shape for n, v in found.items()}


def test_reports_lead_with_metrics_that_there_are(built):
    task, examples, model = built
    statistics = task.objective.summarise(examples.y, task.objective.predict(outputs_of(model, examples.x)))
    assert {task.objective.headline, *task.objective.shown} <= set(task.objective.compute(statistics))
    assert task.objective.criterion in task.objective.values(statistics)


def test_every_variable_gets_a_finite_gradient(built):
    task, examples, model = built
    if task.learner:
        pytest.skip("fitted by sums, without gradients")
    gradients, states = gradients_of(task, model, examples, training=True)(examples.x, examples.y, np.ones(12))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert sum(float(np.abs(gradient).sum()) for gradient in gradients) > 0
    assert len(states) == len(model.non_trainable_variables)


def test_a_masked_row_changes_nothing(built):
    task, examples, model = built
    if task.learner or task.objective.coupled:
        pytest.skip("fitted by sums, or a row that fills up is one more patient to be compared with")
    rows = np.array([0, 1, 2, 3, 0, 0])  # the engine pads a short batch with row 0
    taken = gradients_of(task, model, examples, training=False)
    padded, _ = taken(examples.x[rows], examples.y[rows], np.array([1, 1, 1, 1, 0, 0]))
    exact, _ = taken(examples.x[:4], examples.y[:4], np.ones(4))
    for ours, theirs in zip(padded, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_saved_model_gives_the_same_outputs(built, tmp_path):
    import keras

    from common import layers

    _, examples, model = built
    layers.plain(model).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(outputs_of(model, examples.x), outputs_of(again, examples.x))


def test_encode_repeats_and_leaves_its_input_alone(task):
    records = records_of(task, 9)
    preparation = prepared(task, records)
    before = {name: column.copy() for name, column in records.items()}
    first, second = task.encode(records, preparation), task.encode(records, preparation)
    np.testing.assert_array_equal(first.x, second.x)
    for name, column in records.items():
        np.testing.assert_array_equal(column, before[name])


def test_rows_are_encoded_one_by_one(task):
    records = records_of(task, 9)
    preparation = prepared(task, records)
    rows = np.array([7, 2])
    np.testing.assert_array_equal(
        task.encode(take(records, rows), preparation).x, task.encode(records, preparation).x[rows]
    )


def test_statistics_have_one_shape_whatever_the_records(task):
    many, one = task.summarise(records_of(task, 30)), task.summarise(records_of(task, 1, seed=1))
    assert {name: array.shape for name, array in many.items()} == {name: array.shape for name, array in one.items()}
    assert all(array.dtype == np.float64 and np.isfinite(array).all() for array in many.values())


@pytest.mark.parametrize("name", MOMENTS)  # vocabularies and lists of codes count hospitals too: see their own tests
def test_statistics_of_two_hospitals_add_up_to_those_of_the_pool(name):
    task = task_named(name)
    records = records_of(task, 30)
    parts = [task.summarise(take(records, rows)) for rows in (np.arange(11), np.arange(11, 30))]
    pool = task.summarise(records)
    for key, value in total(parts).items():
        np.testing.assert_allclose(value, pool[key])


def test_preparation_is_json_and_does_not_depend_on_the_order_of_hospitals(task):
    parts = [task.summarise(records_of(task, 20, seed)) for seed in (1, 2, 3)]
    preparation = task.fit(total(parts))
    assert json.loads(json.dumps(preparation)) == preparation
    backwards = task.fit(total(parts[::-1]))
    assert preparation.keys() == backwards.keys()
    for one, other in zip(leaves(preparation), leaves(backwards), strict=True):
        assert one == (pytest.approx(other) if isinstance(other, float) else other)


def test_a_column_that_nobody_measured_is_no_failure(task):
    for column in task.columns:
        records = records_of(task, 6) | {column.name: missing(column, 6)}
        preparation = prepared(task, records)
        examples = task.encode(records, preparation)
        assert np.isfinite(outputs_of(network.build(task, preparation, (), seed=1).model, examples.x)).all()


def test_classes_come_from_the_label_and_are_0_without_it(task):
    records = records_of(task, 40)
    classes = task.classify(records)
    if sorts(task):
        np.testing.assert_array_equal(classes, task.encode(records, prepared(task, records)).y)
    assert set(classes) == set(range(len(task.classes)))
    unlabelled = {name: column for name, column in records.items() if name != task.label}
    np.testing.assert_array_equal(task.classify(unlabelled), np.zeros(40))


def test_every_named_part_names_variables(task):
    preparation = prepared(task, records_of(task, 12))
    everything = network.build(task, preparation, (), seed=1)
    for part, prefixes in task.parts.items():
        kept = [entry.path for entry in network.build(task, preparation, (part,), seed=1).local.entries]
        for prefix in prefixes:
            assert any(path == prefix or path.startswith(prefix + "/") for path in kept)
    assert set(task.local) <= set(task.parts)
    assert everything.shared.size > 0


@pytest.mark.parametrize("name", AUGMENTED)
def test_augmentation_follows_from_its_seed_and_keeps_shape_and_type(name):
    import tensorflow as tf

    task = task_named(name)
    images = tf.constant(task.encode(records_of(task, 8), prepared(task, records_of(task, 8))).x)
    augment = tf.function(
        task.augment,
        input_signature=[tf.TensorSpec([None, *images.shape[1:]], images.dtype), tf.TensorSpec([2], tf.int32)],
    )
    first, again, other = (augment(images, tf.constant(seed)) for seed in ([1, 2], [1, 2], [1, 3]))
    assert first.dtype == images.dtype
    assert first.shape == images.shape
    np.testing.assert_array_equal(first, again)
    assert (first.numpy() != other.numpy()).any()


def test_defaults_are_settings_of_a_run(task):
    run = parse(RunConfig, merge({"task": task.name}, task.defaults))
    assert run.task == Choice(task.name)


def test_units_are_named_where_a_number_has_one(task):
    for column in task.columns:
        assert column.meaning
        if column.kind == "number":
            assert column.unit
            assert np.isfinite([column.low, column.high]).all()


def test_pneumonia_model_has_the_stated_size_and_reads_raw_pixels():
    examples, model = model_of("pneumonia")
    assert examples.x.dtype == np.uint8
    assert model.count_params() == 346_561
    scaled = model.get_layer("scaling")(examples.x.astype(np.float32)).numpy()
    assert abs(scaled.mean()) < 1e-4
    assert scaled.std() == pytest.approx(1.0, abs=1e-4)


def test_pneumonia_moments_are_those_of_the_pixels():
    task = task_named("pneumonia")
    records = records_of(task, 20)
    assert prepared(task, records) == pytest.approx({"mean": records["image"].mean(), "scale": records["image"].std()})


def test_pneumonia_shift_moves_the_picture_and_repeats_its_edge():
    import tensorflow as tf

    task = parse(TASKS["pneumonia"], {"shift": 3, "brightness": 0.0}).build()
    ramp = np.tile(np.arange(28, dtype=np.uint8) * 9, (64, 28, 1))[..., None]
    moved = task.augment(tf.constant(ramp), tf.constant([5, 6])).numpy()
    offsets = moved[:, 0, 14, 0].astype(int) // 9 - 14
    assert set(offsets) == set(range(-3, 4))
    for image, offset in zip(moved, offsets, strict=True):
        np.testing.assert_array_equal(image[0, :, 0], np.clip(np.arange(28) + offset, 0, 27) * 9)


@pytest.mark.parametrize(
    "image", [np.zeros((2, 28, 28), np.float32), np.zeros((2, 28, 27), np.uint8), np.zeros((2, 784), np.uint8)]
)
def test_pneumonia_refuses_images_of_another_type_or_size(image):
    with pytest.raises(DataError, match="image: expected bytes"):
        task_named("pneumonia").encode({"image": image}, {})


def test_brightness_moves_all_pixels_of_an_image_alike_and_no_further_than_it_may():
    import tensorflow as tf

    task = parse(TASKS["pneumonia"], {"shift": 0, "brightness": 0.1}).build()
    grey = np.full((64, 28, 28, 1), 128, np.uint8)
    moved = task.augment(tf.constant(grey), tf.constant([1, 2])).numpy().astype(int) - 128
    by_image = moved.reshape(len(grey), -1)
    assert (by_image == by_image[:, :1]).all()
    assert np.abs(by_image).max() <= 26
    assert by_image[:, 0].min() < -5
    assert by_image[:, 0].max() > 5
