"""Peptides: does a short protein kill microbes (Mueller et al. 2017, Bioinformatics 33:2753)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from common.config import POSITIVE, Range
from common.tasks.alphabets import PROTEIN
from common.tasks.sequences import Defaults, Kind, Sequences

KIND = Kind(
    "peptides",
    "Antimicrobial peptides",
    "amino acids of a peptide",
    PROTEIN,
    ("other", "antimicrobial"),
    aligned=False,
)


@dataclass(frozen=True)
class Peptides(Sequences):
    """Settings of the task."""

    length: Annotated[int, Range(8, 10_000), "letters read, from the start of a sequence"] = 100
    positions: Annotated[int, Range(0, 10_000), "letters that forest and svm read place by place"] = 5
    composition: Annotated[bool, "forest and svm also read the share of every letter, and the length"] = True
    depth: Annotated[int, Range(1, 30), "largest depth of a tree; a level is a round"] = 14
    gamma: Annotated[float, POSITIVE, "that kernel is exp(-gamma * squared distance)"] = 0.01
    word: Annotated[int, Range(1, 6), "letters of a word"] = 2

    def kind(self) -> Kind:
        """Return what the sequences are."""
        return KIND

    def tuned(self) -> Mapping[str, Defaults]:
        """Return the run settings that suit each model."""
        svm = {"optimizer": "adam", "learning_rate": 0.003, "batch_size": 32, "epochs": 2, "weight_decay": 0.0003}
        deep = {"optimizer": "adam", "learning_rate": 0.002, "batch_size": 32, "epochs": 1}
        return {
            "svm": {"rounds": 40, "training": svm},
            "cnn": {"rounds": 30, "training": deep},
            "kmer": {"rounds": 20, "training": deep},
        }
