"""Splice junctions: does DNA change at its middle from exon to intron, from intron to exon, or not (Noordewier, Towell and Shavlik 1991, NIPS 3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from common.config import POSITIVE, Range
from common.tasks.alphabets import DNA
from common.tasks.sequences import Defaults, Kind, Sequences

KIND = Kind(
    "splice",
    "Splice junctions in DNA",
    "60 bases around a possible junction",
    DNA,
    ("EI", "IE", "N"),
    aligned=True,
)


@dataclass(frozen=True)
class Splice(Sequences):
    """Settings of the task."""

    letters: Annotated[int, Range(1, 3), "letters of the words that the svm reads place by place"] = 2
    fourier: Annotated[
        int, Range(0, 65_536), "random Fourier features of the svm's Gaussian kernel; 0 for a linear svm"
    ] = 4096
    gamma: Annotated[float, POSITIVE, "that kernel is exp(-gamma * squared distance)"] = 0.001

    def kind(self) -> Kind:
        """Return what the sequences are."""
        return KIND

    def tuned(self) -> Mapping[str, Defaults]:
        """Return the run settings that suit each model."""
        svm = {
            "optimizer": "adam",
            "learning_rate": 0.01,
            "learning_rate_decay": 0.97,
            "batch_size": 64,
            "epochs": 2,
            "weight_decay": 0.00015,
        }
        deep = {"optimizer": "adam", "learning_rate": 0.002, "batch_size": 32, "epochs": 1}
        return {
            "svm": {"rounds": 60, "training": svm},
            "cnn": {"rounds": 20, "training": deep},
            "kmer": {"rounds": 20, "training": deep},
        }
