"""DICOM: the picture comes out right, and of all other fields nothing is even read."""

import numpy as np
import pytest

from client.data import dicom
from client.data.images import load
from client.data.reading import read
from client.data.schema import mapping_of
from common.errors import DataError
from common.tasks.pneumonia import Pneumonia

pydicom = pytest.importorskip("pydicom", reason="the extra 'dicom' is not installed")
CANARY = "Zqcanary"
XRAY = Pneumonia().build()


def write(path, pixels, **fields):
    """Write a DICOM file with patient fields that must never come out."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    file.PatientName, file.PatientID, file.StudyDescription = CANARY, CANARY, CANARY
    file.Rows, file.Columns = pixels.shape[:2]
    colours = pixels.shape[2] if pixels.ndim == 3 else 1
    file.SamplesPerPixel = colours
    file.PhotometricInterpretation = "RGB" if colours == 3 else "MONOCHROME2"
    if colours == 3:
        file.PlanarConfiguration = 0
    bits = pixels.dtype.itemsize * 8
    file.BitsAllocated, file.BitsStored, file.HighBit = bits, bits, bits - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in fields.items():
        setattr(file, name, value)
    file.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def ramp(dtype=np.uint16, low=0, high=4095):
    return np.linspace(low, high, 28 * 28).astype(dtype).reshape(28, 28)


def test_levels_are_mapped_by_the_window(tmp_path):
    write(tmp_path / "a.dcm", ramp(), WindowCenter=1000, WindowWidth=500)
    expected = np.round(np.clip((ramp().astype(float) - 750) / 500, 0, 1) * 255)
    np.testing.assert_array_equal(load(tmp_path / "a.dcm", (28, 28)), expected)


def test_of_several_windows_the_first_counts(tmp_path):
    write(tmp_path / "a.dcm", ramp(), WindowCenter=[1000, 3000], WindowWidth=[500, 100])
    write(tmp_path / "b.dcm", ramp(), WindowCenter=1000, WindowWidth=500)
    np.testing.assert_array_equal(*(load(tmp_path / name, (28, 28)) for name in ("a.dcm", "b.dcm")))


def test_without_a_window_the_whole_range_is_used_also_of_hounsfield_units(tmp_path):
    units = ramp(np.int16, -1024, 3071)
    write(tmp_path / "a.dcm", units, RescaleSlope=2, RescaleIntercept=-100)
    grey = load(tmp_path / "a.dcm", (28, 28)).astype(int)
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)
    assert (np.diff(grey.reshape(-1)) >= 0).all()


def test_inverted_levels_are_turned_round(tmp_path):
    write(tmp_path / "a.dcm", ramp())
    write(tmp_path / "b.dcm", ramp(), PhotometricInterpretation="MONOCHROME1")
    one, other = (load(tmp_path / name, (28, 28)).astype(int) for name in ("a.dcm", "b.dcm"))
    assert np.abs(one + other - 255).max() <= 1


def test_colours_stay_colours(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (28, 28, 3), np.uint8)
    write(tmp_path / "a.dcm", pixels)
    np.testing.assert_array_equal(load(tmp_path / "a.dcm", (28, 28, 3)), pixels)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"BurnedInAnnotation": "YES"}, "some is burnt in"),
        ({"NumberOfFrames": 2}, "it has several"),
        ({"Rows": 65535, "Columns": 65535}, "at most"),
    ],
)
def test_what_may_show_a_name_or_is_no_single_picture_is_refused(tmp_path, fields, expected):
    write(tmp_path / "a.dcm", ramp(), **fields)
    with pytest.raises(DataError, match=expected):
        load(tmp_path / "a.dcm", (28, 28))


@pytest.mark.parametrize("keep", [0, 100, 140, 400, 1200])
def test_a_torn_file_is_refused_without_its_name(tmp_path, keep):
    write(tmp_path / f"{CANARY}.dcm", ramp())
    torn = tmp_path / f"{CANARY}.dcm"
    torn.write_bytes(torn.read_bytes()[:keep])
    with pytest.raises(DataError) as error:
        load(torn, (28, 28))
    assert str(error.value).startswith(dicom.EXPECTED)
    assert CANARY not in str(error.value)


def test_no_field_outside_the_list_is_read(tmp_path):
    write(tmp_path / "a.dcm", ramp())
    fields = pydicom.dcmread(tmp_path / "a.dcm", specific_tags=list(dicom.ALLOWED))
    assert {element.keyword for element in fields} <= set(dicom.ALLOWED)
    assert CANARY not in str(fields)
    assert not {"PatientName", "PatientID", "StudyDescription", "StudyDate"} & set(dicom.ALLOWED)


def test_a_folder_may_mix_them_with_other_images(tmp_path):
    from PIL import Image

    write(tmp_path / "normal" / "P1.dcm", ramp())
    write(tmp_path / "normal" / "P2.dcm", ramp(), BurnedInAnnotation="YES")
    (tmp_path / "pneumonia").mkdir()
    Image.fromarray(ramp(np.uint8, 0, 255)).save(tmp_path / "pneumonia" / "P3.png")
    imported = read(tmp_path, XRAY, mapping_of({"on_problem": "drop"}, XRAY))
    assert imported.records["label"].tolist() == [0, 1]
    assert imported.report.counts == {"image": 1}
    assert "image 2 of folder 'normal': expected a picture without text in it" in imported.report.text()


def test_a_palette_is_refused_and_not_read_as_grey(tmp_path):
    write(tmp_path / "a.dcm", ramp(np.uint8, 0, 255), PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(DataError, match="PALETTE COLOR"):
        load(tmp_path / "a.dcm", (28, 28))
