"""A hospital's images: a folder a class or a table of names, turned into the task's bytes; names of files and folders are never shown."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from client.data import deidentify, split
from client.data.images import load
from client.data.reading import read
from client.data.schema import mapping_of
from common.errors import DataError
from common.tasks.objective import MULTICLASS
from common.tasks.pneumonia import Pneumonia
from common.tasks.task import Column, Task

MIRROR = os.environ.get("FEDWARD_DATA_MIRROR", "")
XRAY = Pneumonia().build()
CANARY = "Zqcanary"


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def grey(seed, height=28, width=28):
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images each; files are named after patients."""
    for number in range(3):
        save(tmp_path / "scans" / "normal" / f"P{number}_{CANARY}.png", grey(number))
        save(tmp_path / "scans" / "pneumonia" / f"P{number + 2}_{CANARY}.png", grey(number + 10))
    return tmp_path / "scans"


def read_xrays(source, **table):
    return read(source, XRAY, mapping_of(table, XRAY))


def test_a_folder_a_class_is_read_pixel_by_pixel(folder):
    imported = read_xrays(folder)
    assert not imported.report.problems
    assert imported.records["image"].dtype == np.uint8
    np.testing.assert_array_equal(imported.records["image"], [grey(seed) for seed in (0, 1, 2, 10, 11, 12)])
    assert imported.records["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert XRAY.encode(imported.records, {}).x.shape == (6, 28, 28, 1)


def test_patients_are_read_from_file_names_and_never_parted(folder):
    imported = read_xrays(folder, patient_in_file_name="^(P[0-9]+)_")
    assert imported.patients.tolist() == ["p0", "p1", "p2", "p2", "p3", "p4"]
    parts = split.split(deidentify.deidentify(imported, XRAY, bytes(32)), XRAY, bytes(32), test=0.4)
    assert sum(count["patients"] for count in parts.counts().values()) == 5


def test_folders_may_have_the_hospital_s_own_names(folder):
    (folder / "normal").rename(folder / "gesund")
    imported = read_xrays(folder, columns={"label": {"codes": {"Gesund": "normal", "pneumonia": 1}}})
    assert imported.records["label"].tolist() == [0, 0, 0, 1, 1, 1]


def test_bad_images_are_named_by_place_and_never_by_name(folder):
    whole = (folder / "normal" / f"P1_{CANARY}.png").read_bytes()
    (folder / "normal" / f"P1_{CANARY}.png").write_bytes(whole[: len(whole) // 2])
    (folder / "pneumonia" / f"P3_{CANARY}.png").write_bytes(b"no image")
    (folder / "pneumonia" / f"P4_{CANARY}.png").write_bytes(b"")
    (folder / "pneumonia" / "Thumbs.db").write_bytes(b"left alone")
    imported = read_xrays(folder)
    found = [(problem.folder, problem.row) for problem in imported.report.problems]
    assert found == [("normal", 2), ("pneumonia", 2), ("pneumonia", 3)]
    assert "image 2 of folder 'normal': expected a whole PNG or JPEG image" in imported.report.text()
    assert CANARY not in imported.report.text() + repr(imported)
    assert imported.report.refused
    assert len(read_xrays(folder, on_problem="drop").records["image"]) == 3


def test_a_folder_that_is_no_class_is_counted_and_not_named(folder):
    (folder / CANARY).mkdir()
    imported = read_xrays(folder)
    assert (
        "1 of 3 folders are no class; expected one folder a class, named normal, pneumonia, 0, 1"
        in imported.report.text()
    )
    assert CANARY not in imported.report.text()


def test_a_class_without_a_folder_is_named(folder):
    (folder / "pneumonia").rename(folder.parent / "elsewhere")
    imported = read_xrays(folder)
    assert "note: no folder for the class 'pneumonia': it will have no images" in imported.report.text()
    assert len(imported.records["image"]) == 3


def test_an_empty_folder_is_refused(tmp_path):
    assert "0 of 0 folders are no class" in read_xrays(tmp_path).report.text()
    (tmp_path / "normal").mkdir()
    assert "no PNG or JPEG images" in read_xrays(tmp_path).report.text()


def test_a_file_name_without_a_patient_is_a_problem(folder):
    imported = read_xrays(folder, patient_in_file_name="^(P[34])_")
    assert [(problem.folder, problem.row) for problem in imported.report.problems] == [
        ("normal", 1),
        ("normal", 2),
        ("normal", 3),
        ("pneumonia", 1),
    ]


def test_a_table_of_names_is_read_and_stays_in_its_folder(tmp_path):
    save(tmp_path / "a.png", grey(1))
    save(tmp_path / "below" / "b.jpg", grey(2))
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    save(outside, grey(3))
    table = tmp_path / "scans.csv"
    rows = [
        "file,label,nr",
        "a.png,normal,7",
        "below/b.jpg,1,8",
        f"../{outside.name},1,9",
        f"{CANARY}.png,1,9",
        f"{outside},0,9",
        "below,0,9",
    ]
    table.write_text("\n".join(rows))
    imported = read_xrays(table, patient="nr", columns={"image": "file"}, on_problem="drop")
    assert [(problem.row, problem.column) for problem in imported.report.problems] == [
        (row, "file") for row in (4, 5, 6, 7)
    ]
    assert CANARY not in imported.report.text()
    assert imported.patients.tolist() == ["7", "8"]
    np.testing.assert_array_equal(imported.records["image"][0], grey(1))


def test_a_table_without_the_image_column_is_refused(tmp_path):
    (tmp_path / "scans.csv").write_text("picture,label\na.png,1\n")
    assert "column 'image' is not in the header" in read_xrays(tmp_path / "scans.csv").report.text()


class TestPixels:
    def test_proportions_are_kept_by_cutting_around_the_centre(self, tmp_path):
        pixels = np.zeros((56, 112), np.uint8)
        pixels[:, 28:84] = 200
        save(tmp_path / "wide.png", pixels)
        np.testing.assert_array_equal(load(tmp_path / "wide.png", (28, 28)), np.full((28, 28), 200))

    def test_colours_become_grey_and_grey_becomes_colours(self, tmp_path):
        save(tmp_path / "colour.png", np.full((28, 28, 3), 77, np.uint8))
        save(tmp_path / "clear.png", np.full((28, 28, 4), 77, np.uint8))
        save(tmp_path / "grey.png", np.full((28, 28), 77, np.uint8))
        for name in ("colour.png", "clear.png", "grey.png"):
            assert (load(tmp_path / name, (28, 28)) == 77).all()
            assert load(tmp_path / name, (14, 14, 3)).shape == (14, 14, 3)
            assert (load(tmp_path / name, (14, 14, 3)) == 77).all()

    def test_a_large_photograph_comes_out_as_if_it_had_been_unpacked_in_full(self, tmp_path):
        y, x = np.mgrid[:1500, :2000] / 2000
        pixels = (127 + 120 * np.sin(9 * x + 4 * y)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photograph.jpg", quality=95)
        whole = Image.fromarray(pixels[:, 250:1750]).resize((28, 28), Image.Resampling.BICUBIC)
        assert np.abs(load(tmp_path / "photograph.jpg", (28, 28)).astype(int) - np.asarray(whole)).max() <= 3

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path):
        pixels = np.linspace(0, 65535, 28 * 28).astype(np.uint16).reshape(28, 28)
        save(tmp_path / "deep.png", pixels)
        np.testing.assert_array_equal(load(tmp_path / "deep.png", (28, 28)), pixels >> 8)

    def test_a_turned_image_is_put_upright(self, tmp_path):
        pixels = np.zeros((28, 28), np.uint8)
        pixels[:14] = 255
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=100)
        upright = load(tmp_path / "turned.jpg", (28, 28))
        assert upright[:10].mean() < 5
        assert upright[18:].mean() > 250

    def test_other_formats_are_refused_whatever_they_are_called(self, tmp_path):
        Image.fromarray(grey(1)).save(tmp_path / "scan.bmp")
        (tmp_path / "scan.bmp").rename(tmp_path / "scan.png")
        with pytest.raises(DataError, match="expected a whole PNG or JPEG image"):
            load(tmp_path / "scan.png", (28, 28))

    def test_an_image_of_absurd_size_is_not_unpacked(self, tmp_path, monkeypatch):
        save(tmp_path / "scan.png", grey(1, 64, 64))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(DataError):
            load(tmp_path / "scan.png", (28, 28))

    def test_a_name_in_the_file_s_own_fields_is_left_behind(self, tmp_path):
        fields = PngImagePlugin.PngInfo()
        fields.add_text("PatientName", CANARY)
        Image.fromarray(grey(1)).save(tmp_path / "scan.png", pnginfo=fields)
        assert CANARY.encode() in (tmp_path / "scan.png").read_bytes()
        assert CANARY.encode() not in load(tmp_path / "scan.png", (28, 28)).tobytes()


@pytest.mark.parametrize("source", ["dataset1", "dataset2"])
def test_real_blood_cells_are_read_in_colour(source):
    folder = Path(MIRROR) / "wbc-colour" / source
    if not MIRROR or not folder.is_dir():
        pytest.skip("FEDWARD_DATA_MIRROR names no folder with wbc-colour")
    classes = ("neutrophil", "lymphocyte", "monocyte", "eosinophil", "basophil")
    column = Column("image", "image", "white blood cell", "", 0, 255, shape=(32, 32, 3))
    nothing = lambda *_: None  # noqa: E731
    task = Task("cells", "Cells", (column,), "label", classes, MULTICLASS, nothing, nothing, nothing, nothing, nothing)
    imported = read(folder, task, mapping_of({}, task))
    assert not imported.report.problems
    expected = {"dataset1": [176, 53, 48, 22, 1], "dataset2": [33, 37, 15, 12, 3]}[source]
    assert np.bincount(imported.records["label"]).tolist() == expected
    assert imported.records["image"].shape == (sum(expected), 32, 32, 3)
    assert imported.records["image"].std() > 20
