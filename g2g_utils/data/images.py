"""Read image files (PNG, JPEG, TIFF, DICOM) as float32 arrays [H, W] in [0, 1]."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils.data import dicom, rasters, tiff
from g2g_utils.data.pixels import ImageError, check_size, shown

__all__ = ["ImageError", "image_size", "read_image"]


def read_image(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an image file as float32 [H, W] in [0, 1], upright, white = 1.

    The one decoder of every way in. PNG, JPEG, TIFF and other formats of Pillow (1-bit, grey,
    palette, RGB(A), CMYK; 16 bits in each), or DICOM (first frame; modality LUT, then the header's
    window or VOI LUT; MONOCHROME1 is inverted; no header field is kept). Colour becomes luminance,
    transparency black, white-is-zero is inverted. More than 8 bits are scaled by the smallest of 8,
    10, 12, 14, 16 bits that holds the maximum. Colour profiles and gamma are not applied.

    Raises:
        ImageError: the file is none of these, or has more than 100 million pixels; one line.
    """
    path = _existing(path)
    image = shown(_reader(path).read(path))
    if not np.isfinite(image).all():
        raise ImageError(path, "the image holds NaN or infinite values", "export it again")
    return np.clip(image, 0, 1).astype(np.float32, copy=False)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image file as `read_image` would give it, from its header."""
    path = _existing(path)
    height, width = _reader(path).size(path)
    return check_size(path, height, width)


def _reader(path: Path) -> ModuleType:
    """The module whose `read` and `size` know the file."""
    if dicom.is_dicom(path):
        return dicom
    return tiff if tiff.is_tiff(path) else rasters


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    try:
        path.stat()
    except FileNotFoundError:
        pass  # below
    except OSError as error:  # a name that is too long, say
        raise ImageError(path, str(error.strerror), "give the path of an image file") from None
    if path.is_dir():
        raise ImageError(path, "is a directory", "name one image file in it")
    if not path.exists():
        raise ImageError(path, "no such file", "check the spelling and the folder")
    if path.stat().st_size == 0:
        raise ImageError(path, "the file is empty", "download or export it again")
    return path
