"""The work that is measured, in numbers alone, so that the limit, the peers and ours each do the same.

Needs nothing but numpy: the peers read it from environments of their own.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Work:
    """A federation of ``hospitals`` that learn the product's ``task``, of which ``cohort`` train in a round.

    ``rows`` are the training patients of a hospital; a tuple is repeated from the start when there are more hospitals. ``parameters`` is the
    model's size with one logit, ``width`` its filters where it is a convolutional one.
    """

    name: str
    title: str
    task: str
    hospitals: int
    cohort: int
    rows: tuple[int, ...]
    shape: tuple[int, ...]
    batch_size: int
    epochs: int
    learning_rate: float
    parameters: int
    width: int = 32

    def rows_of(self, hospital: int) -> int:
        """Return the count of training patients of a hospital."""
        return self.rows[hospital % len(self.rows)]

    @property
    def steps(self) -> int:
        """Return the steps of a round, when the first ``cohort`` hospitals train."""
        return sum(-(-self.rows_of(number) // self.batch_size) for number in range(self.cohort)) * self.epochs

    def patients(self, hospital: int) -> tuple[NDArray[np.generic], NDArray[np.int32]]:
        """Draw a hospital's patients: bytes for images and standardised float32 for tables, and labels 0 or 1."""
        generator = np.random.default_rng([7, hospital])
        size = (self.rows_of(hospital), *self.shape)
        labels = generator.integers(0, 2, size[0], dtype=np.int32)
        if len(self.shape) > 1:
            return generator.integers(0, 256, size, dtype=np.uint8), labels
        return generator.standard_normal(size, dtype=np.float32), labels


CNN = Work(
    name="cnn",
    title="CNN 28x28x1, 10 of 100 hospitals x 128 images",
    task="pneumonia",
    hospitals=100,
    cohort=10,
    rows=(128,),
    shape=(28, 28, 1),
    batch_size=32,
    epochs=1,
    learning_rate=0.02,
    parameters=346_561,
)
HEART = Work(
    name="heart",
    title="MLP 35-16-1, 4 hospitals x 185 patients",
    task="heart",
    hospitals=4,
    cohort=4,
    rows=(185,),
    shape=(35,),
    batch_size=16,
    epochs=4,
    learning_rate=0.1,
    parameters=593,
)
FOUR = replace(CNN, name="cnn4", title="CNN 28x28x1, 4 hospitals x 128 images", hospitals=4, cohort=4)
LARGE = replace(
    FOUR, name="large", title="CNN of 100 MB, 4 hospitals x 32 images", rows=(32,), width=2311, parameters=25_000_000
)
WORKS = {work.name: work for work in (CNN, HEART, FOUR, LARGE)}
