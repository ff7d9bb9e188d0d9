"""What all tasks on biological sequences share: a random forest, a support vector machine and two networks that sort them into classes.

``forest`` and ``svm`` read the first letters place by place and, on request, the shares of all letters and the length; ``cnn`` reads letters, ``kmer`` words of a few letters.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.config import POSITIVE, Range
from common.errors import ConfigError
from common.seeds import seed_for
from common.statistics import Statistics
from common.tasks import bins
from common.tasks.alphabets import Alphabet, composition, words
from common.tasks.forest import Forest
from common.tasks.objective import MULTICLASS, squared_hinge, squared_margins
from common.tasks.task import Column, Examples, Preparation, Records, Task, told

BINS = 32
SHOWN = ("accuracy", "macro_f1", "auroc", "brier")
CLASSES = replace(MULTICLASS, headline="accuracy", shown=SHOWN)
MARGINS = replace(CLASSES, loss=squared_hinge, predict=squared_margins)
Defaults = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """What a task's sequences are. Where they are ``aligned``, a place means the same in each of them, and networks keep apart what stands where."""

    name: str
    title: str
    meaning: str
    alphabet: Alphabet
    classes: tuple[str, ...]
    aligned: bool


@dataclass(frozen=True)
class Sequences(ABC):
    """Settings that tasks on sequences share.

    Edge cases
    ----------
    - A sequence longer than ``length`` is read from its start; the shares of its letters are those of what is read.
    - A letter of several meanings counts in parts; the forest takes every letter that it may be as present.
    - The svm's probabilities are made from its margins, and are no better calibrated than these.
    """

    model: Annotated[
        Literal["forest", "svm", "cnn", "kmer"],
        "random forest from summed histograms, primal SVM, convolutions over letters, or embedded words of letters",
    ] = "forest"
    length: Annotated[int, Range(8, 10_000), "letters read, from the start of a sequence"] = 60
    positions: Annotated[int, Range(0, 10_000), "letters that forest and svm read place by place"] = 60
    composition: Annotated[bool, "forest and svm also read the share of every letter, and the length"] = False
    trees: Annotated[int, Range(1, 10_000), "trees of the forest"] = 200
    depth: Annotated[int, Range(1, 30), "largest depth of a tree; a level is a round"] = 12
    nodes: Annotated[int, Range(3, 2**20), "largest count of a tree's nodes"] = 1023
    tried: Annotated[int, Range(0, 100_000), "columns drawn for a node; 0 for the square root of all"] = 0
    least: Annotated[int, Range(1, 1_000_000), "fewest rows on either side of a split"] = 1
    batch: Annotated[int, Range(1, 10_000), "trees that grow side by side; fewer take less memory and more rounds"] = (
        200
    )
    letters: Annotated[int, Range(1, 3), "letters of the words that the svm reads place by place"] = 1
    fourier: Annotated[
        int, Range(0, 65_536), "random Fourier features of the svm's Gaussian kernel; 0 for a linear svm"
    ] = 2048
    gamma: Annotated[float, POSITIVE, "that kernel is exp(-gamma * squared distance)"] = 0.02
    fourier_seed: Annotated[int, Range(0, 2**32 - 1), "seed of these features, the same at every hospital"] = 0
    filters: Annotated[int, Range(1, 4096), "filters of the convolution, or numbers a word"] = 64
    kernel: Annotated[int, Range(1, 100), "letters that a filter sees"] = 9
    word: Annotated[int, Range(1, 6), "letters of an embedded word"] = 3
    units: Annotated[int, Range(1, 4096), "units of the hidden layer"] = 64
    dropout: Annotated[float, Range(0, 0.9), "share of the hidden layer's inputs dropped in training"] = 0.3

    @abstractmethod
    def kind(self) -> Kind:
        """Return what the sequences are."""

    def tuned(self) -> Mapping[str, Defaults]:
        """Return the run settings that suit each model on these sequences, the forest's rounds aside."""
        return {}

    def build(self) -> Task:
        """Return the task.

        Raises
        ------
        ConfigError
            When a forest or a support vector machine would have nothing to read.
        """
        kind, forest = self.kind(), self.model == "forest"
        self._check_read()
        return Task(
            name=kind.name,
            title=kind.title,
            columns=(Column("sequence", "sequence", kind.meaning, letters=kind.alphabet.symbols),),
            label="label",
            classes=kind.classes,
            objective=MARGINS if self.model == "svm" else CLASSES,
            summarise=self.summarise,
            fit=self.fit,
            encode=self.encode,
            classify=classify,
            build=self.network,
            parts={} if forest else {"head": ("output",)},
            defaults={"rounds": self.forest().rounds} if forest else self.tuned().get(self.model, {}),
            summary="histograms of the share of every letter and of the length",
            learner=self.forest().learner() if forest else None,
        )

    def summarise(self, records: Records) -> Statistics:
        """Count sequences by the share of every letter and by length, in bins of public ranges."""
        values = composition(self.codes(records), self.kind().alphabet)
        return {"count": bins.histogram(values, *self.ranges())}

    def fit(self, statistics: Statistics) -> Preparation:
        """Return, for shares and length, edges of bins for the forest, and mean and deviation for the svm."""
        if not self.composition:
            return {}
        counts = statistics["count"]
        mean, deviation = bins.moments(counts, *self.ranges())
        cuts = bins.edges(counts, *self.ranges(), BINS)
        return {"edges": cuts.ravel().tolist(), "mean": mean.tolist(), "scale": deviation.tolist()}

    def ranges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lowest and highest values that shares and length can have."""
        high = np.ones(len(self.kind().alphabet.letters) + 1)
        high[-1] = self.length + 1
        return np.zeros(len(high)), high

    def codes(self, records: Records) -> NDArray[np.uint8]:
        """Return the codes of the letters, ``(n, length)``."""
        return self.kind().alphabet.encode(records["sequence"], self.length)

    def encode(self, records: Records, preparation: Preparation) -> Examples:
        """Return what the model reads: bins ``(n, columns)`` for the forest, Fourier features for the svm, codes for cnn, words for kmer."""
        codes, label = self.codes(records), classify(records)
        if self.model == "cnn":
            return Examples(codes, label)
        if self.model == "kmer":
            return Examples(words(codes, self.kind().alphabet, self.word), label)
        first = codes[:, : self.positions]
        values = composition(codes, self.kind().alphabet) if self.composition else np.zeros((len(codes), 0))
        if self.model == "forest":
            found = [self.present(first, 1).astype(np.uint8) if self.kind().aligned else first]
            found += [bins.binned(values, np.reshape(preparation["edges"], (-1, BINS - 1)))] if self.composition else []
            return Examples(np.concatenate(found, axis=1), label)
        if self.composition:
            values = (values - np.asarray(preparation["mean"])) / np.asarray(preparation["scale"])
        x = np.concatenate([self.present(first, self.letters), values], axis=1).astype(np.float32)
        return Examples(self.projected(x), label)

    def _check_read(self) -> None:
        places, least = min(self.positions, self.length), self.letters if self.model == "svm" else 1
        if self.model not in ("svm", "forest") or places >= least or (self.composition and not places and least == 1):
            return
        raise ConfigError(
            f"task.positions: expected {least} or more, for words of as many letters to be read, got {places}"
            + ("; or set task.composition" if least == 1 else "; or take fewer task.letters")
        )

    def present(self, codes: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
        """Return 1 for the word of ``size`` letters at every place, ``(n, places * words)``; of single letters, for each that an ambiguous one may be."""
        alphabet = self.kind().alphabet
        if size == 1:
            found = (alphabet.shares > 0).astype(np.float32)[codes]
        else:
            found = np.eye(len(alphabet.letters) ** size + 2, dtype=np.float32)[:, 2:][words(codes, alphabet, size)]
        return found.reshape(len(codes), found.shape[1] * found.shape[2])

    def projected(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return random Fourier features, whose products are a Gaussian kernel's (Rahimi and Recht 2007, algorithm 1)."""
        if not self.fourier:
            return x
        generator = np.random.default_rng(seed_for(self.fourier_seed, "fourier"))
        turns = generator.standard_normal((x.shape[1], self.fourier), np.float32) * np.float32((2 * self.gamma) ** 0.5)
        phases = generator.uniform(0, 2 * np.pi, self.fourier).astype(np.float32)
        middle = self.middle(turns, phases) if self.kind().aligned and not self.composition else 0.0
        return np.asarray((np.cos(x @ turns + phases) - middle) * (2 / self.fourier) ** 0.5, np.float32)

    def middle(self, turns: NDArray[np.float32], phases: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features' mean over words drawn at random for every place, as if words that overlap shared no letters: without it they hardly differ, and gradients take long to part them. No patient has a part in it, and it is the same everywhere."""
        size = len(self.kind().alphabet.letters) ** self.letters
        waves = np.exp(1j * turns.reshape(-1, size, self.fourier)).mean(axis=1).prod(axis=0)
        return np.asarray(np.real(waves * np.exp(1j * phases)), np.float32)

    def columns(self) -> int:
        """Return how many columns forest and linear svm read: one a place and letter or word, but for a forest where sequences are not aligned, one a place."""
        alphabet, places = len(self.kind().alphabet.letters), min(self.positions, self.length)
        size = 1 if self.model == "forest" else self.letters
        apart = 1 if self.model == "forest" and not self.kind().aligned else alphabet**size
        return max(places - size + 1, 0) * apart + (alphabet + 1) * self.composition

    def forest(self) -> Forest:
        """Return the forest; where each letter has a column of its own, and nothing else is read, it has two bins."""
        return Forest(
            self.columns(),
            2 if self.kind().aligned and not self.composition else BINS,
            len(self.kind().classes),
            self.trees,
            self.depth,
            self.nodes,
            self.tried,
            self.least,
            self.batch,
        )

    def network(self, _preparation: Preparation) -> Any:
        """Return the Keras model; of all but the svm, whose outputs are margins, they are logits."""
        import keras

        if self.model == "forest":
            return self.forest().network(keras.Input((self.columns(),), name="bins"), self.kind().name)
        if self.model == "svm":
            inputs = hidden = keras.Input((self.fourier or self.columns(),), name="features")
        else:
            inputs, hidden = self.convolved() if self.model == "cnn" else self.embedded()
            hidden = keras.layers.Dropout(self.dropout, name="dropout")(hidden)
            hidden = keras.layers.Dense(self.units, activation="relu", name="hidden")(hidden)
        outputs = keras.layers.Dense(len(self.kind().classes), name="output")(hidden)
        return keras.Model(inputs, outputs, name=self.kind().name)

    def convolved(self) -> tuple[Any, Any]:
        """Return input and features of a convolution over letters."""
        import keras

        shares = self.kind().alphabet.shares
        inputs = keras.Input((self.length,), dtype="int32", name="codes")
        letters = keras.layers.Embedding(*shares.shape, trainable=False, name="letters")
        letters.build()
        letters.set_weights([shares])
        layer = keras.layers.Conv1D(self.filters, self.kernel, activation="relu", padding="same", name="convolution")
        return inputs, self.gathered(layer(letters(inputs)), inputs)

    def embedded(self) -> tuple[Any, Any]:
        """Return input and features of embedded words."""
        import keras

        vocabulary = len(self.kind().alphabet.letters) ** self.word + 2
        inputs = keras.Input((self.length - self.word + 1,), dtype="int32", name="words")
        layer = keras.layers.Embedding(vocabulary, self.filters, name="embedding")
        return inputs, self.gathered(layer(inputs), inputs)

    def gathered(self, features: Any, inputs: Any) -> Any:
        """Make one vector of all places but those beyond the end: side by side where sequences are aligned, else their mean and maximum."""
        from keras import ops

        present = ops.cast(ops.expand_dims(inputs, 2) > 0, features.dtype)
        features = features * present
        if self.kind().aligned:
            return ops.reshape(features, (-1, features.shape[1] * features.shape[2]))
        count = ops.maximum(ops.sum(present, axis=1), 1.0)
        return ops.concatenate([ops.sum(features, axis=1) / count, ops.max(features, axis=1)], axis=1)


def classify(records: Records) -> NDArray[np.int32]:
    """Return the class numbers; without labels, 0."""
    return told(records, "label").astype(np.int32)
