"""What is wrong with a file: by row and column and what was expected, never by value."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from common.errors import DataError

SHOWN = 5
"""Problems shown of each kind; of the rest the count."""


@dataclass(frozen=True)
class Problem:
    """One problem. ``row`` is the line of the file on which the row starts, the header being 1; 0 stands for the whole file.

    In a Parquet file ``row`` counts rows as if a header were row 1. In a folder of images, ``folder`` names the class and ``row`` is the file's place
    among its images in alphabetical order: file names may hold patients' names.
    """

    kind: str
    expected: str
    row: int = 0
    column: str = ""
    folder: str = ""

    def __str__(self) -> str:
        if self.folder:
            return f"image {self.row} of folder {self.folder!r}: {self.expected}"
        where = [f"row {self.row}"] if self.row else []
        where += [f"column {self.column!r}"] if self.column else []
        return ": ".join(filter(None, [", ".join(where), self.expected]))


@dataclass(frozen=True)
class Report:
    """What reading a file found. ``rows`` were read, ``bad`` of them have problems; with ``drop`` these are left out, else the file is refused."""

    file: str
    rows: int = 0
    bad: int = 0
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    drop: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """How many problems of each kind there are."""
        return dict(Counter(problem.kind for problem in self.problems))

    @property
    def refused(self) -> bool:
        """Whether the file can't be used: a problem of the whole file, a bad row that may not be dropped, or no good row."""
        whole = any(not problem.row for problem in self.problems)
        return whole or self.bad >= self.rows or (self.bad > 0 and not self.drop)

    def check(self) -> None:
        """Raise `DataError`, in one line, where the file is refused."""
        if not self.refused:
            return
        # A problem of the whole file says more than the cells that it spoilt.
        first = next((problem for problem in self.problems if not problem.row), None) or next(iter(self.problems), None)
        found = f"{len(self.problems)} problems; the first: {first}" if first else "no rows"
        raise DataError(f"{self.file}: refused, {found}")

    def text(self, most: int = SHOWN) -> str:
        """Return the report for the terminal, at most ``most`` problems of each kind."""
        return "\n".join([self._summary(), *self._kinds(most), *(f"  note: {note}" for note in self.notes)])

    def _summary(self) -> str:
        if self.refused:
            return f"{self.file}: REFUSED; {self.rows} rows read, {self.bad} with problems"
        kept = f"{self.rows} rows read, {self.rows - self.bad} taken"
        return f"{self.file}: {kept}, {self.bad} with problems dropped" if self.bad else f"{self.file}: {kept}"

    def _kinds(self, most: int) -> Iterator[str]:
        for kind, count in self.counts.items():
            yield f"  {kind} ({count})"
            of_kind = [problem for problem in self.problems if problem.kind == kind]
            yield from (f"    {problem}" for problem in of_kind[:most])
            if count > most:
                yield f"    and {count - most} more"


@dataclass(eq=False)
class Draft:
    """A report while the file is being read. ``bad`` holds positions of rows, from 0; ``lines`` says where in the file they stand."""

    file: str
    lines: list[int] = field(default_factory=list, repr=False)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bad: set[int] = field(default_factory=set)

    def whole(self, kind: str, expected: str, column: str = "") -> None:
        """Take down a problem of the whole file."""
        self.problems.append(Problem(kind, expected, column=column))

    def cell(self, kind: str, expected: str, position: int, column: str) -> None:
        """Take down a problem of one cell."""
        self.bad.add(position)
        self.problems.append(Problem(kind, expected, self.lines[position], column))

    def line(self, problem: Problem, position: int) -> None:
        """Take down a problem of a line of another table, which spoils the row that the line belongs to."""
        self.bad.add(position)
        self.problems.append(problem)

    def report(self, *, drop: bool) -> Report:
        """Return the finished report."""
        return Report(self.file, len(self.lines), len(self.bad), tuple(self.problems), tuple(self.notes), drop)
