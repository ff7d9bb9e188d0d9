"""Finding a data set's files on this computer, and downloading them: the only code that ever does.

Files lie in ``$FEDWARD_DATA/<folder>/``, by default in the user's cache folder, or in ``$FEDWARD_DATA_MIRROR/<folder>/``, where they are
read in place. Their checksums are compared at every reading, whoever put them there.
"""

import hashlib
import os
from pathlib import Path

from common.errors import DataError, Unreachable
from simulations.datasets.dataset import Dataset, File, Table

PACKAGE = Path(__file__).parent


def load(dataset: Dataset) -> Table:
    """Read a data set from this computer; never downloads.

    Raises
    ------
    DataError
        If its files are absent, damaged or not of the expected form; the message says what to do.
    """
    return dataset.read(find(dataset))


def is_here(dataset: Dataset) -> bool:
    """Tell whether all files are on this computer; their content is not looked at."""
    return not dataset.files or any(_complete(dataset, folder) for folder in _folders(dataset))


def is_intact(dataset: Dataset) -> bool:
    """Tell whether all files are on this computer with a known checksum."""
    try:
        find(dataset)
    except DataError:
        return False
    return True


def find(dataset: Dataset) -> Path:
    """Return the folder that holds a data set's files, all with a known checksum; raise `DataError` if there is none."""
    if not dataset.files:
        for file in dataset.shipped:
            if not _is_known(PACKAGE / file.name, file):
                raise DataError(
                    f"{PACKAGE / file.name}: absent, or not as it was shipped; install it again: pip install --force-reinstall --no-deps fedward"
                )
        return PACKAGE
    for folder in _folders(dataset):
        if _complete(dataset, folder):
            for file in dataset.files:
                _verify(dataset, folder / file.name, file)
            return folder
    raise DataError(absence(dataset))


def fetch(dataset: Dataset) -> Path:
    """Return the folder with a data set's files, after downloading what neither the mirror nor the cache has.

    A file gets its name only when it is complete and its checksum is right.

    Raises
    ------
    DataError
        If a file can't be downloaded from anywhere, or arrives with another checksum.
    Unreachable
        If its address does not answer.
    """
    *mirrors, cache = _folders(dataset)
    if not dataset.files or any(_complete(dataset, mirror) for mirror in mirrors):
        return find(dataset)
    for file in dataset.files:
        path = cache / file.name
        if file.url and not _is_known(path, file):
            _download(file, cache)
    return find(dataset)


def _download(file: File, folder: Path) -> None:
    # pooch writes beside the place, compares the checksum, and only then gives the file its name.
    import pooch

    try:
        pooch.retrieve(file.url, file.checksums[0], fname=file.name, path=folder)
    except OSError as error:
        # What the disk refuses has a number, what the network refuses has none.
        if error.errno is not None or isinstance(error, PermissionError):
            raise DataError(
                f"{folder}: cannot be written to ({type(error).__name__}); name another folder in FEDWARD_DATA"
            ) from None
        answer = getattr(error, "response", None)
        reason = type(error).__name__ if answer is None else f"HTTP {answer.status_code}"
        raise Unreachable(f"{file.url}: the download failed ({reason}); check the connection and try again") from None
    except ValueError:
        raise DataError(
            f"{file.url}: what arrived has another checksum than was published; nothing was kept, try again"
        ) from None


def _folders(dataset: Dataset) -> list[Path]:
    """Return where files may lie: the mirror, if one is set, then the cache."""
    mirror, cache = os.environ.get("FEDWARD_DATA_MIRROR"), os.environ.get("FEDWARD_DATA")
    if not cache:
        import pooch

        cache = str(pooch.os_cache("fedward"))
    return [Path(place) / dataset.folder for place in (mirror, cache) if place]


def _complete(dataset: Dataset, folder: Path) -> bool:
    try:
        return all((folder / file.name).is_file() for file in dataset.files)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be looked into ({error.strerror}); mend its permissions or its name"
        ) from None


def _is_known(path: Path, file: File) -> bool:
    if not path.is_file():
        return False
    algorithms = {checksum.partition(":")[0] for checksum in file.checksums}
    return any(f"{algorithm}:{_digest(path, algorithm)}" in file.checksums for algorithm in algorithms)


def _digest(path: Path, algorithm: str) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); mend its permissions or copy it again") from None


def _verify(dataset: Dataset, path: Path, file: File) -> None:
    if not _is_known(path, file):
        again = f"run 'fedward data get {dataset.name}'" if file.url else "copy it again"
        raise DataError(
            f"{path}: damaged or another version: {path.stat().st_size} bytes with an unknown checksum, expected about {file.size}; delete it and {again}"
        )


def absence(dataset: Dataset) -> str:
    """Say that a data set is not here, and what to do."""
    files = ", ".join(f"{dataset.folder}/{file.name}" for file in dataset.files)
    mirror = f"set FEDWARD_DATA_MIRROR to a folder that holds {files}"
    if all(file.url for file in dataset.files):
        return f"data set {dataset.name} is not here: run 'fedward data get {dataset.name}', or {mirror}"
    return f"data set {dataset.name} is not here and can't be downloaded; 'fedward data show {dataset.name}' says where it comes from. If you have a copy, {mirror}"
