"""White blood cells in colour: five classes from microscope images of 224x224 pixels (Zheng et al. 2018, Micron 107:55-71)."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import Range
from common.errors import DataError
from common.tasks import pictures
from common.tasks.objective import MULTICLASS
from common.tasks.task import Column, Examples, Preparation, Records, Task, told

CLASSES = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
COLUMNS = (
    Column("image", "image", "one white blood cell under the microscope", "level", 0, 255, shape=pictures.SHAPE),
)


@dataclass(frozen=True)
class Cells(pictures.Changes):
    """Settings of the task: three convolutions with pooling, a dense layer with dropout; 44,398,661 variables at 224 pixels, 2,455,621 at 64."""

    side: Annotated[
        int, Range(32, pictures.SIDE), "pixels of a side that the network sees; images are scaled down to it"
    ] = pictures.SIDE
    width: Annotated[
        int, Range(1, 1024), "filters of the first convolution; the second has twice, the third four times as many"
    ] = 32
    hidden: Annotated[int, Range(1, 4096), "units of the dense layer"] = 512
    dropout: Annotated[float, Range(0, 0.9), "share of the dense layer's outputs dropped in training"] = 0.5
    normalisation: Annotated[Literal["none", "batch"], "batch normalisation after each convolution"] = "none"

    def build(self) -> Task:
        """Return the task."""
        return Task(
            name="cells",
            title="White blood cells in colour",
            columns=COLUMNS,
            label="label",
            classes=CLASSES,
            objective=MULTICLASS,
            summarise=pictures.summarise,
            fit=pictures.fit,
            encode=self.encode,
            classify=classify,
            build=self.network,
            augment=self.augment,
            noised=pictures.noised,
            summary="count, sum and sum of squares of all pixels, by colour",
            parts={"head": ("output",)}
            | ({"normalisation": ("norm_1", "norm_2", "norm_3")} if self.normalisation == "batch" else {}),
            # Chosen by the loss over validation patients of both laboratories, at 64 pixels: stronger colour changes (0.3) were worse.
            defaults={
                "rounds": 50,
                "training": {
                    "optimizer": "adam",
                    "learning_rate": 0.001,
                    "learning_rate_decay": 0.97,
                    "batch_size": 16,
                    "epochs": 1,
                },
            },
        )

    def encode(self, records: Records, _preparation: Preparation) -> Examples:
        """Return the images in the size that the network sees, bytes ``(n, side, side, 3)``. The model standardises them."""
        return Examples(pictures.scaled(pictures.images_of(records), self.side), classify(records))

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model: raw pixels in, five logits out. Scaling is its first layer, whose numbers are constants."""
        import keras

        from common.layers import MaxPool

        inputs = keras.Input((self.side, self.side, 3), name="image")
        scale, mean = (np.asarray(preparation[name]) for name in ("scale", "mean"))
        features = keras.layers.Rescaling((1.0 / scale).tolist(), (-mean / scale).tolist(), name="scaling")(inputs)
        for number in (1, 2, 3):
            filters = self.width * 2 ** (number - 1)
            features = keras.layers.Conv2D(filters, 3, name=f"convolution_{number}")(features)
            if self.normalisation == "batch":
                features = keras.layers.BatchNormalization(name=f"norm_{number}")(features)
            # The maximum of rectified values is the rectified maximum, of a quarter as many.
            features = MaxPool(2, name=f"pool_{number}")(features)
            features = keras.layers.Activation("relu", name=f"relu_{number}")(features)
        flat = keras.layers.Flatten(name="flat")(features)
        hidden = keras.layers.Dense(self.hidden, activation="relu", name="hidden")(flat)
        hidden = keras.layers.Dropout(self.dropout, name="dropout")(hidden)
        return keras.Model(inputs, keras.layers.Dense(len(CLASSES), name="output")(hidden), name="cells")


def classify(records: Records) -> NDArray[np.int32]:
    """Return the class numbers; without a column ``label``, 0. Raise `DataError` for a number that is no class."""
    label = told(records, "label")
    wrong = np.flatnonzero(~np.isin(label, np.arange(len(CLASSES))))
    if len(wrong):
        raise DataError(
            f"label: expected class numbers from 0 to {len(CLASSES) - 1}; {len(wrong)} rows have others, first row {wrong[0]}"
        )
    return label.astype(np.int32)
