"""Sums that prepare the data: no row moves them further than their noise is scaled by, and without any the preparation is that of public ranges."""

import numpy as np
import pytest

from common.privacy.noise import Noise, Source
from common.tasks import heart, pneumonia
from common.tasks.notes import Notes
from common.tasks.task import take

KEY = bytes(range(32))


class Asked:
    """Noise that is none, and keeps what it was asked to cover."""

    multiplier = 0.0

    def __call__(self, values, sensitivity):
        self.values, self.sensitivity = np.array(values), sensitivity
        return values


def moved(task, records, row):
    """Return how far one row moves what is noised, and by how much the noise is scaled."""
    seen = []
    for chosen in (np.arange(row.stop), np.delete(np.arange(row.stop), row.start)):
        asked = Asked()
        task.noised(task.summarise(take(records, chosen)), asked)
        seen.append(asked)
    return np.linalg.norm(seen[0].values - seen[1].values), seen[0].sensitivity


@pytest.mark.parametrize("level", [0, 128, 255])
def test_no_image_moves_the_moments_further_than_the_noise_covers(level):
    images = np.full((4, 28, 28), level, np.uint8)
    far, covered = moved(pneumonia, {"image": images, "label": np.zeros(4)}, slice(2, 4))
    assert 0 < far <= covered * (1 + 1e-9)


def test_no_note_moves_the_counts_further_than_the_noise_covers():
    task = Notes(length=6, minimum_records=3)
    texts = np.array(["a b c d e f"] * 3, object)
    far, covered = moved(task, {"text": texts}, slice(0, 3))
    # The third record brings six words over the minimum of three at once.
    assert far == pytest.approx(3 * np.sqrt(6)) == covered


def test_noised_counts_keep_common_words_and_hardly_any_that_no_record_has():
    task = Notes(length=4, minimum_records=3)
    told = task.summarise({"text": np.array(["fever cough"] * 400, object)})
    kept = task.noised(told, Noise(Source(KEY), 5.0))
    assert set(np.flatnonzero(told["records"])) <= set(np.flatnonzero(kept["records"]))
    assert (kept["present"] > 0).sum() <= 2 + 3


def test_without_any_the_preparation_is_that_of_public_ranges():
    nothing = {name: np.zeros(1) for name in ("count", "sum", "squares")}
    assert pneumonia.fit(nothing) == {"mean": 128.0, "scale": 64.0}
    features = len(heart.TABLE.ranges()[0])
    made = heart.TABLE.fit({name: np.zeros(features) for name in nothing})
    assert made["mean"][0] == 59.0  # the middle of ages from 18 to 100
    assert made["scale"][0] == 20.5
    assert all(scale > 0 for scale in made["scale"])
