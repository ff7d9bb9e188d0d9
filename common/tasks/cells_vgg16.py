"""White blood cells by transfer: a base that was trained elsewhere stays frozen, and the federation trains a head on its features, or the base's last block too."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from common.config import Range
from common.statistics import Statistics
from common.tasks import bases, pictures
from common.tasks.bases import Base
from common.tasks.cells import CLASSES, COLUMNS, classify
from common.tasks.objective import MULTICLASS
from common.tasks.task import Examples, Preparation, Records, Task, rows_of


@dataclass(frozen=True)
class CellsVgg16:
    """Settings of the task.

    The file of the base lies at every site (environment variable FEDWARD_WEIGHTS, or Keras's own cache) and never travels; the preparation holds its
    SHA-256, and a site whose file has another refuses. Images are not changed at random: their features are computed once.
    """

    base: Annotated[
        Literal["vgg16", "mobilenet", "own"],
        "network that was trained elsewhere: of keras.applications (mobilenet is MobileNetV3Small), or own: a model.keras of Fedward's",
    ] = "vgg16"
    train: Annotated[Literal["head", "block"], "what is trained: the head alone, or the base's last block too"] = "head"
    head_rounds: Annotated[
        int, Range(0, 1_000_000), "with train = block: first rounds, in which the head learns and the block rests"
    ] = 10
    block_rate: Annotated[float, Range(0, 1, open_low=True), "factor on the step size of the base's last block"] = 0.1
    side: Annotated[
        int, Range(32, pictures.SIDE), "pixels of a side that the base sees; images are scaled down to it"
    ] = pictures.SIDE
    hidden: Annotated[int, Range(1, 4096), "units of the head's dense layer"] = 256
    dropout: Annotated[float, Range(0, 0.9), "share of the dense layer's outputs dropped in training"] = 0.5

    def build(self) -> Task:
        """Return the task."""
        block = self.train == "block"
        return Task(
            name="cells-vgg16",
            title="White blood cells in colour, by a network trained elsewhere",
            columns=COLUMNS,
            label="label",
            classes=CLASSES,
            objective=MULTICLASS,
            summarise=summarise,
            fit=self.fit,
            encode=self.encode,
            classify=classify,
            build=self.network,
            summary="count of images",
            parts={"head": ("hidden", "output")} | ({"block": bases.block_of(self.base)} if block else {}),
            rates={"block": self.block_rate} if block else {},
            resting=self.head_rounds,
            defaults={
                "rounds": 40,
                "training": {"optimizer": "adam", "learning_rate": 0.001, "batch_size": 16, "epochs": 1},
            },
        )

    def fit(self, _statistics: Statistics) -> Preparation:
        """Name the base: kind, SHA-256 of the coordinator's file, and what it was trained on. Raise `DataError` where there is no file."""
        sha256, data = bases.digest(self.base), bases.trained_on(self.base)
        return {"base": {"name": self.base, "sha256": sha256, "trained_on": data}}

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return the features that the frozen layers make of the images, float32; raise `DataError` where this site's file is not the run's."""
        images = pictures.scaled(pictures.images_of(records), self.side)
        features = self._opened(preparation).features(images, whole=self.train == "head")
        return Examples(features, classify(records))

    def network(self, preparation: Preparation) -> Any:
        """Return the Keras model of what is trained: features in, five logits out."""
        import keras

        base = self._opened(preparation)
        inputs = keras.Input(base.shape(whole=self.train == "head"), name="features")
        maps, starts = base.last_block(inputs) if self.train == "block" else (inputs, [])
        pooled = keras.layers.GlobalAveragePooling2D(name="mean")(maps) if starts else inputs
        # Bases differ in the size of their features by orders of magnitude; here each image's are brought to mean 0 and deviation 1.
        even = keras.layers.LayerNormalization(center=False, scale=False, name="even")(pooled)
        hidden = keras.layers.Dense(self.hidden, activation="relu", name="hidden")(even)
        hidden = keras.layers.Dropout(self.dropout, name="dropout")(hidden)
        model = keras.Model(inputs, keras.layers.Dense(len(CLASSES), name="output")(hidden), name="cells_head")
        for layer, weights in starts:
            layer.set_weights(weights)
        return model

    def _opened(self, preparation: Preparation) -> Base:
        return bases.load(self.base, str(preparation["base"]["sha256"]), self.side)


def summarise(records: Records) -> Statistics:
    """Return the count of images: the base brings its own standardisation."""
    return {"count": np.array([float(rows_of(records))])}
