"""Read image files (PNG, JPEG, TIFF, DICOM) as float32 arrays [H, W] in [0, 1]."""

from __future__ import annotations
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


log = logging.getLogger(__name__)


SMALLEST_SIDE = 8  # pixels: nothing can be seen in less

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")

BIT_DEPTHS = (8, 10, 12, 14, 16)

NO_DECODER = (
    "Unable to decompress",
    "missing dependencies",
    "does not support",
    "missing required",
)

NEVER_DECODED = "'Transfer Syntax UID' value of"  # pydicom, of films and the like



class ImageError(ValueError):
    """An image file that cannot be used: one line with the file, the problem and the fix."""

    def __init__(self, path: Path, problem: str, fix: str) -> None:
        super().__init__(f"{path}: {problem}; {fix}")



# ---------------------------------------------------------------- files


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as float32 [H, W] in [0, 1], upright, white = 1.

    PNG, JPEG and what else Pillow reads (1-bit, grey, palette, RGB(A), CMYK, 16-bit), or DICOM
    (first frame; modality LUT, then the header's window or VOI LUT; MONOCHROME1 is inverted;
    no header field is kept). Colour becomes luminance, transparency black. 16-bit files are
    scaled by the smallest of 8, 10, 12, 14, 16 bits that holds their maximum.
    Raises ImageError for anything else.
    """
    path = _existing(path)
    image = _read_dicom(path) if _is_dicom(path) else _read_pillow(path)
    if not np.isfinite(image).all():
        raise ImageError(path, "the image holds NaN or infinite values", "export it again")
    _check_side(path, *image.shape)
    return np.clip(image, 0, 1).astype(np.float32, copy=False)



def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image file as :func:`read_image` would give it, from its header."""
    path = _existing(path)
    if _is_dicom(path):
        header = _open_dicom(path, pixels=False)
        if "Rows" not in header or "Columns" not in header:
            raise _no_pixels(path, header)
        height, width = int(header.Rows), int(header.Columns)
    else:
        with _open_pillow(path) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # orientation: lying on its side
                width, height = height, width
    _check_side(path, height, width)
    return height, width



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



def _check_side(path: Path, height: int, width: int) -> None:
    if min(height, width) < SMALLEST_SIDE:
        problem = f"the image is only {width}×{height} pixels"
        raise ImageError(path, problem, f"use one of at least {SMALLEST_SIDE} pixels a side")



# ---------------------------------------------------------------- Pillow


def _open_pillow(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        fix = "give a PNG, JPEG or DICOM file (DICOM without preamble needs the suffix .dcm)"
        raise ImageError(path, "not an image", fix) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise _broken(path, error) from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, str(error), "resize the image first") from error



def _broken(path: Path, error: Exception) -> ImageError:
    problem = "truncated or damaged image" if isinstance(error, OSError) else "damaged image"
    return ImageError(path, f"{problem} ({error})", "download or export it again")



def _read_pillow(path: Path) -> np.ndarray:
    with _open_pillow(path) as image:
        try:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                log.warning("%s has %d frames: the first is used", path, frames)
            image.load()
            upright = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise _broken(path, error) from error
        return _grey(upright)



def _grey(image: Image.Image) -> np.ndarray:
    """Any Pillow mode as float [H, W] in [0, 1]."""
    if image.mode.startswith("I"):
        return _scale_integers(np.asarray(image).astype(np.float32))
    if image.mode == "F":
        return _stretch(np.asarray(image, dtype=np.float32))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"), dtype=np.float32) / 255



def _scale_integers(values: np.ndarray) -> np.ndarray:
    peak = float(values.max())
    if values.min() < 0:
        return _stretch(values)
    for bits in BIT_DEPTHS:
        if peak < 2**bits:
            return values / np.float32(2**bits - 1)
    return values / np.float32(peak)



def _stretch(values: np.ndarray) -> np.ndarray:
    """Values already in [0, 1] as they are, others min–max scaled; a constant becomes 0.

    Values with NaN or infinity stay as they are too: they are refused later.
    """
    low, high = float(values.min()), float(values.max())
    if (0 <= low and high <= 1) or not math.isfinite(low + high):
        return values
    return (values - low) / (high - low) if high > low else np.zeros_like(values)



# ---------------------------------------------------------------- DICOM


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or path.suffix.lower() in DICOM_SUFFIXES



def _open_dicom(path: Path, pixels: bool = True) -> Any:
    import pydicom

    try:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        known = "SOPClassUID" in dataset or "Rows" in dataset
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise ImageError(path, f"damaged DICOM file ({error})", "export it again") from error
    if not known:
        raise ImageError(path, "not a DICOM file", "give a PNG, JPEG or DICOM file")
    return dataset



def _no_pixels(path: Path, dataset: Any) -> ImageError:
    kind = getattr(dataset.get("SOPClassUID"), "name", "unknown kind")
    fix = "give the file of the image itself"
    return ImageError(path, f"DICOM file without pixel data ({kind})", fix)



def _dicom_pixels(path: Path, dataset: Any) -> np.ndarray:
    """Stored values of the first frame, [H, W] or [H, W, 3] (RGB)."""
    from pydicom.pixels import pixel_array

    if "PixelData" not in dataset:
        raise _no_pixels(path, dataset)
    try:
        if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
            log.warning("%s has %d frames: the first is used", path, frames)
        return pixel_array(dataset, index=0)
    except Exception as error:
        reason = " ".join(str(error).split())
        never = NEVER_DECODED in reason
        if never or any(sign in reason for sign in NO_DECODER):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            problem = f"no decoder for DICOM pixels compressed as {syntax}"
            fix = "" if never else 'pip install "pylibjpeg[all]" pyjpegls, or '
            raise ImageError(path, problem, fix + "export it uncompressed") from error
        problem = f"damaged or incomplete DICOM pixel data ({reason})"
        raise ImageError(path, problem, "export it again") from error



def _read_dicom(path: Path) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    dataset = _open_dicom(path)
    stored = _dicom_pixels(path, dataset)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    try:
        bits = int(dataset.BitsStored)
        if photometric == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)
            bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        if stored.ndim == 3:
            luminance = stored.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
            return luminance / np.float32(2**bits - 1)
        _fill_rescale(dataset)
        grey = _windowed(apply_modality_lut(stored, dataset), stored, dataset)
    except Exception as error:  # pydicom and numbers out of range raise many kinds here too
        problem = f"unusable LUT or window in the DICOM header ({error})"
        raise ImageError(path, problem, "export it as PNG") from error
    return 1 - grey if photometric == "MONOCHROME1" else grey



def _fill_rescale(dataset: Any) -> None:
    """Put the identity where the header names a rescaling but leaves it empty (or slope 0)."""
    if "RescaleSlope" in dataset:
        dataset.RescaleSlope = dataset.RescaleSlope or 1
    if "RescaleIntercept" in dataset:
        dataset.RescaleIntercept = dataset.RescaleIntercept or 0



def _has_window(dataset: Any) -> bool:
    """True if the header has a window (the first counts) with a positive width."""
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    return center is not None and width is not None and float(np.ravel(width)[0]) > 0



def _windowed(values: np.ndarray, stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Modality values through the header's VOI LUT or first window, else min–max, to [0, 1]."""
    from pydicom.pixels import apply_voi, apply_windowing

    luts = dataset.get("VOILUTSequence")
    if luts:
        bits = int(luts[0].LUTDescriptor[2])
        return apply_voi(values.astype(np.int64), dataset).astype(np.float32) / (2**bits - 1)
    if _has_window(dataset):
        far = np.array([-1e9, 1e9])  # what the window's ends are mapped to
        low, high = apply_windowing(far, dataset)
        shown = apply_windowing(values.astype(np.float64), dataset)
        if np.ptp(shown) > 0 or np.ptp(values) == 0:
            span = high - low  # negative where the rescaling inverts
            return ((shown - low) / (span or 1e-9)).astype(np.float32)
        problem = "its header's window leaves nothing to see, so it is scaled from min to max"
        log.warning("%s: %s", dataset.filename, problem)
    return _min_max(values.astype(np.float32), stored, dataset)



def _min_max(values: np.ndarray, stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Min–max over the pixels that are not padding; padding is clipped into the range."""
    padding = dataset.get("PixelPaddingValue")
    real = values[stored != padding] if isinstance(padding, int) else values
    low, high = (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)

