"""Colour pictures: their moments against numpy, and random changes that do what their settings say and no more."""

import numpy as np
import pytest

from common.config import parse
from common.errors import DataError
from common.privacy.noise import Noise, Source
from common.secagg.fixed import MOST
from common.tasks import TASKS, pictures
from common.tasks.pictures import SHAPE, Changes

NOTHING = Changes(flip=False, rotation=0.0, zoom=0.0, brightness=0.0, colour=0.0)
SIDE = 33  # odd, so that a pixel lies in the centre


def drawn(rows, seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (rows, side, side, 3), np.uint8)


def smooth(rows, side=SIDE):
    """Return pictures without sharp edges, which turning and scaling hardly harm."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(3 * x + 2 * y), np.cos(4 * y), np.sin(5 * x)]
    return np.repeat((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)[None], rows, axis=0)


def changed(images, seed=(1, 2), **settings):
    import tensorflow as tf

    changes = Changes(**({name: getattr(NOTHING, name) for name in Changes.__dataclass_fields__} | settings))
    run = tf.function(
        changes.augment,
        input_signature=[tf.TensorSpec([None, *images.shape[1:]], tf.uint8), tf.TensorSpec([2], tf.int32)],
    )
    return run(tf.constant(images), tf.constant(seed)).numpy()


class TestMoments:
    def test_they_are_those_of_the_pixels_by_colour(self):
        images = np.random.default_rng(1).integers(0, 200, (4, *SHAPE), np.uint8)
        images[..., 2] //= 3
        told = pictures.fit(pictures.summarise({"image": images}))
        np.testing.assert_allclose(told["mean"], images.mean(axis=(0, 1, 2)))
        np.testing.assert_allclose(told["scale"], images.std(axis=(0, 1, 2)))

    def test_nobody_and_impossible_sums_give_the_range_of_a_byte(self):
        nobody = pictures.summarise({"image": np.zeros((0, *SHAPE), np.uint8)})
        assert pictures.fit(nobody)["mean"] == [128.0] * 3
        assert (
            pictures.fit({"count": np.ones(3), "sum": np.array([-1.0, 3, 3]), "squares": np.ones(3)})["scale"]
            == [64.0] * 3
        )

    def test_a_million_images_fit_into_a_secure_sum(self):
        one = pictures.summarise({"image": np.full((1, *SHAPE), 255, np.uint8)})
        assert max(float(value.max()) for value in one.values()) * 1e6 < MOST

    def test_one_image_moves_the_scaled_sums_by_no_more_than_their_sensitivity(self):
        brightest = pictures.summarise({"image": np.full((1, *SHAPE), 255, np.uint8)})
        seen = []

        def noise(values, sensitivity):
            seen.append((values, sensitivity))
            return values

        back = pictures.noised(brightest, noise)
        assert np.linalg.norm(seen[0][0]) == pytest.approx(seen[0][1])
        for name, value in brightest.items():
            np.testing.assert_allclose(back[name], value)

    def test_noise_from_a_source_keeps_the_shapes(self):
        statistics = pictures.summarise({"image": drawn(1, side=224)})
        private = pictures.noised(statistics, Noise(Source(bytes(32)), 1.0))
        assert {name: value.shape for name, value in private.items()} == {
            name: value.shape for name, value in statistics.items()
        }


class TestSize:
    def test_the_size_at_hand_is_not_touched(self):
        images = drawn(2)
        assert pictures.scaled(images, SIDE) is images

    def test_a_smaller_picture_has_the_same_mean(self):
        images = smooth(2, side=224)
        small = pictures.scaled(images, 64)
        assert small.shape == (2, 64, 64, 3)
        np.testing.assert_allclose(small.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=1)

    @pytest.mark.parametrize("image", [np.zeros((2, 224, 224), np.uint8), np.zeros((1, *SHAPE), np.float32), drawn(2)])
    def test_pictures_of_another_type_or_size_are_refused(self, image):
        with pytest.raises(DataError, match=r"image: expected bytes of shape \(n, 224, 224, 3\)"):
            pictures.images_of({"image": image})


class TestChanges:
    def test_without_any_nothing_changes(self):
        np.testing.assert_array_equal(changed(drawn(4)), drawn(4))

    def test_flips_mirror_each_axis_for_half_of_the_pictures(self):
        images = drawn(64)
        flipped = changed(images, flip=True)
        ways = {(1, 1): 0, (1, -1): 0, (-1, 1): 0, (-1, -1): 0}
        for image, result in zip(images, flipped, strict=True):
            (way,) = [way for way in ways if np.array_equal(result, image[:: way[0], :: way[1]])]
            ways[way] += 1
        assert min(ways.values()) >= 6
        assert sum(ways.values()) == 64

    def test_a_turn_goes_around_the_centre_and_no_further_than_it_may(self):
        images = smooth(16)
        turned = changed(images, rotation=20.0)
        middle = SIDE // 2
        assert np.abs(turned[:, middle, middle].astype(int) - images[:, middle, middle]).max() <= 1
        assert (turned != images).any(axis=(1, 2, 3)).all()
        from PIL import Image

        image = Image.fromarray(images[0])
        centre = slice(10, 23)
        for result in turned:
            angles = np.arange(-21, 21.5, 0.5)
            off = [
                np.abs(
                    np.asarray(image.rotate(angle, Image.Resampling.BILINEAR))[centre, centre].astype(int)
                    - result[centre, centre]
                ).mean()
                for angle in angles
            ]
            assert min(off) < 1.5
            assert abs(angles[np.argmin(off)]) <= 20.5

    def test_zoom_changes_the_size_about_the_centre(self):
        y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2
        disc = np.where((x**2 + y**2) < 64, 250, 5).astype(np.uint8)
        areas = (changed(np.repeat(disc[None, ..., None], 3, axis=-1).repeat(32, axis=0), zoom=0.3)[..., 0] > 127).sum(
            axis=(1, 2)
        )
        area = (disc > 127).sum()
        assert 0.6 * 0.49 * area < areas.min() < 0.8 * area
        assert 1.2 * area < areas.max() < 1.1 * 1.69 * area

    def test_brightness_moves_all_colours_alike_and_colour_each_by_itself(self):
        grey = np.full((64, SIDE, SIDE, 3), 100, np.uint8)
        lit = changed(grey, brightness=0.1).astype(int) - 100
        assert (lit == lit[:, :1, :1, :1]).all()
        assert 15 < np.abs(lit).max() <= 26
        tinted = changed(grey, colour=0.2).astype(int) - 100
        assert (tinted == tinted[:, :1, :1]).all()
        assert (tinted[:, 0, 0, 0] != tinted[:, 0, 0, 1]).any()
        assert 12 < np.abs(tinted).max() <= 20

    def test_cells_train_on_changed_pictures_and_the_task_s_settings_reach_them(self):
        task = parse(
            TASKS["cells"], {"rotation": 0.0, "zoom": 0.0, "flip": False, "colour": 0.0, "brightness": 0.5}
        ).build()
        import tensorflow as tf

        dark = np.full((8, SIDE, SIDE, 3), 10, np.uint8)
        assert task.augment(tf.constant(dark), tf.constant([1, 2])).numpy().max() > 50


def test_labels_that_are_no_class_are_refused_by_row():
    task = parse(TASKS["cells"], {}).build()
    with pytest.raises(DataError, match=r"label: expected class numbers from 0 to 4; 1 rows have others, first row 1"):
        task.classify({"label": np.array([0, 7, 4])})
