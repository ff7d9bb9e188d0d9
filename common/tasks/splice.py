"""Splice junctions: does DNA change at its middle from exon to intron, from intron to exon, or not (Noordewier, Towell and Shavlik 1991, NIPS 3)."""

from collections.abc import Mapping
from dataclasses import dataclass

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

    def kind(self) -> Kind:
        """Return what the sequences are."""
        return KIND

    def tuned(self) -> Mapping[str, Defaults]:
        """Return the run settings that suit each model."""
        svm = {"optimizer": "adam", "learning_rate": 0.01, "batch_size": 32, "epochs": 2}
        deep = {"optimizer": "adam", "learning_rate": 0.002, "batch_size": 32, "epochs": 1}
        return {
            "svm": {"rounds": 40, "training": svm},
            "cnn": {"rounds": 20, "training": deep},
            "kmer": {"rounds": 20, "training": deep},
        }
