"""The picture of a DICOM file, and nothing else of it: a list of what may be read stands here, and all other fields are never looked at."""

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError, UsageError

SUFFIXES = (".dcm", ".dicom")
ALLOWED = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "BurnedInAnnotation",
    "PixelData",
)
"""Fields by their DICOM names (PS3.6): the form of the pixels, how levels become grey, the pixels. Names, numbers, dates and places of patients stand in others."""
MOST_PIXELS = 2**27
EXPECTED = "expected a whole DICOM file of one image"


def load(path: Path) -> Any:
    """Return the picture, of Pillow, with 8 bits a colour.

    Levels become grey by the file's own window, and where it has none from the darkest to the brightest. *Edge cases*: a file that says text is burnt into its picture is
    refused, and so are several frames; inverted levels (MONOCHROME1) are turned round.

    Raises
    ------
    DataError
        When the file is none of one image; the message names neither file nor content.
    UsageError
        When the reader is not installed.
    """
    try:
        import pydicom
        from pydicom.pixels import pixel_array
    except ImportError:
        raise UsageError("reading DICOM files needs the extra of that name: pip install '.[dicom]'") from None
    from PIL import Image

    try:
        fields = pydicom.dcmread(path, specific_tags=list(ALLOWED))
        _check(fields)
        pixels = pixel_array(fields)
        levels = pixels if pixels.ndim == 3 else _grey(pixels, fields)
        return Image.fromarray(levels.astype(np.uint8))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, RuntimeError, NotImplementedError):
        raise DataError(EXPECTED) from None
    except pydicom.errors.InvalidDicomError:
        raise DataError(EXPECTED) from None


def _check(fields: Any) -> None:
    """Refuse what may show a name, is more than one picture, or would not fit into memory."""
    if str(fields.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise DataError("expected a picture without text in it; the file says that some is burnt in")
    if int(fields.get("NumberOfFrames") or 1) != 1:
        raise DataError(f"{EXPECTED}; it has several")
    if int(fields.Rows) * int(fields.Columns) > MOST_PIXELS:
        raise DataError(f"{EXPECTED} of at most {MOST_PIXELS} pixels")
    if not str(fields.PhotometricInterpretation).startswith(("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_")):
        raise DataError(f"{EXPECTED} in grey levels, RGB or YBR; others, as PALETTE COLOR, are not read")
    if int(fields.SamplesPerPixel) == 3 and int(fields.BitsAllocated) != 8:
        raise DataError(f"{EXPECTED}; colours of more than 8 bits are not read")


def _grey(pixels: Any, fields: Any) -> Any:
    """Map levels to 0 to 255 by the window (PS3.3, C.11.2)."""
    levels = pixels * float(fields.get("RescaleSlope") or 1) + float(fields.get("RescaleIntercept") or 0)
    low, high = float(levels.min()), float(levels.max())
    if fields.get("WindowCenter") is not None and fields.get("WindowWidth") is not None:
        centre, width = (float(np.atleast_1d(fields[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        low, high = centre - width / 2, centre + width / 2
    grey = np.clip((levels - low) / max(high - low, 1e-9), 0, 1) * 255
    return np.round(255 - grey if fields.PhotometricInterpretation == "MONOCHROME1" else grey)
