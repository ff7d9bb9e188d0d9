"""FASTA files: a line ``>name|class`` a record, then its sequence over any number of lines (Pearson and Lipman 1988)."""

from common.errors import DataError

SUFFIXES = (".fasta", ".fa", ".fna", ".faa")
HEADER = ["record", "sequence", "label"]
"""The columns that records make."""


def records(content: str) -> tuple[list[list[str]], list[int]]:
    r"""Return one row a record, in the columns of `HEADER`, and the line on which each starts; the class is what follows the last ``|`` of its first line, or nothing.

    Raises
    ------
    DataError
        For text before the first record.

    >>> records(">seq1|EI\nACGT\nAC\n>seq2|N\nTTGA\n")
    ([['seq1', 'ACGTAC', 'EI'], ['seq2', 'TTGA', 'N']], [1, 4])
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.startswith(">"):
            name, bar, label = line[1:].rpartition("|")
            rows.append([name if bar else label, "", label if bar else ""])
            lines.append(number)
        elif line.strip() and not line.startswith(";"):
            if not rows:
                raise DataError(f"line {number}: expected a record, which begins with '>'; is this a FASTA file?")
            rows[-1][1] += "".join(line.split())
    return [[cell.strip() for cell in row] for row in rows], lines
