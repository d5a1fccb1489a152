"""Read the first frame of DICOM files: stored values, modality and VOI transformations, colour."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils.data.pixels import (
    ImageError,
    Samples,
    ceiling,
    check_size,
    log,
    warn_frames,
    warn_stretched,
)

SUFFIXES = (".dcm", ".dicom", ".dic")
GREY, COLOUR, PALETTE = (
    ("MONOCHROME1", "MONOCHROME2"),
    ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
    "PALETTE COLOR",
)
INVERTED = "MONOCHROME1"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
LARGEST_INFLATED = 2 * 1024**3  # bytes of a deflated file
AGAIN, AS_PNG = "export it again", "export it as PNG"

NO_DECODER = (
    "Unable to decompress",
    "missing dependencies",
    "does not support",
    "missing required",
    "cannot decode",
)
NEVER_DECODED = "'Transfer Syntax UID' value of"  # pydicom, of films and the like
DECODERS = f'pip install "numpy=={np.__version__}" "pylibjpeg[all]>=2" "pyjpegls>=1.4"'
"""Installs every decoder and leaves numpy, which other packages pin, as it is."""


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's preamble, or with its suffix."""
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or path.suffix.lower() in SUFFIXES


def size(path: Path) -> tuple[int, int]:
    """(height, width) of the film, from the header."""
    return _rows_columns(path, _open(path, pixels=False))


def read(path: Path) -> Samples:
    """Samples of the first frame: colour, or grey as the header's transformations show it.

    The modality LUT or slope and intercept, then the VOI LUT or first window, of the frame's
    functional groups or else of the header. Grey comes in [0, 1].

    Raises:
        ImageError: damaged, without pixels, compressed in a way without a decoder here, or with a
            header that makes no sense; one line.
    """
    dataset = _open(path)
    _rows_columns(path, dataset)
    try:
        dataset.PhotometricInterpretation = photometric = _photometric(dataset)
        stored = _pixels(path, dataset)
        warn_stretched(path, *_pixel_size(_group(dataset, "PixelMeasuresSequence")))
        if photometric == PALETTE:
            return Samples(_through_palette(stored, dataset))
        if stored.ndim == 3:
            if photometric in GREY:
                raise ValueError(f"{photometric} with {stored.shape[-1]} samples a pixel")
            return Samples(stored)
        _warn_shape(path, photometric, dataset)
        return Samples(_grey(stored, dataset), white_is_zero=photometric == INVERTED)
    except ImageError:
        raise
    except Exception as error:  # pydicom and numbers out of range raise many kinds here too
        reason = " ".join(str(error).split())
        problem = f"unusable LUT or window in the DICOM header ({reason})"
        raise ImageError(path, problem, AS_PNG) from error


# ---------------------------------------------------------------- header


def _open(path: Path, pixels: bool = True) -> Any:
    import pydicom

    try:
        _check_inflated(path)
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        known = "SOPClassUID" in dataset or "Rows" in dataset
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise ImageError(path, f"damaged DICOM file ({error})", AGAIN) from error
    if not known and getattr(dataset, "preamble", None):
        raise ImageError(path, "damaged DICOM file (it ends early)", AGAIN)
    if not known:
        raise ImageError(path, "not a DICOM file", "give a PNG, JPEG or DICOM file")
    return dataset


def _check_inflated(path: Path) -> None:
    """Refuse a deflated file that would fill the memory, before it is inflated whole."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    if path.stat().st_size * 1032 <= LARGEST_INFLATED:  # the most that deflate can pack
        return
    with path.open("rb") as file:
        if read_preamble(file, force=True) is None:
            return
        if _read_file_meta_info(file).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflate, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while (piece := file.read(65536)) and not inflate.eof:
            total += len(inflate.decompress(piece))
            if total > LARGEST_INFLATED:
                raise ValueError(f"it inflates to more than {LARGEST_INFLATED} bytes")


def _rows_columns(path: Path, dataset: Any) -> tuple[int, int]:
    """(height, width), or ImageError if there are none or too many."""
    if "Rows" not in dataset or "Columns" not in dataset:
        raise _no_pixels(path, dataset)
    try:
        height, width = int(dataset.Rows), int(dataset.Columns)
    except Exception as error:  # pydicom reads elements when they are asked for
        raise ImageError(path, f"damaged DICOM file ({error})", AGAIN) from error
    return check_size(path, height, width)


def _no_pixels(path: Path, dataset: Any) -> ImageError:
    try:
        kind = getattr(dataset.get("SOPClassUID"), "name", "unknown kind")
    except Exception:  # pydicom reads elements when they are asked for
        kind = "unknown kind"
    fix = "give the file of the image itself"
    return ImageError(path, f"DICOM file without pixel data ({kind})", fix)


def _photometric(dataset: Any) -> str:
    """Photometric interpretation, in capitals; ValueError for those that are not read."""
    found = str(dataset.get("PhotometricInterpretation") or GREY[1]).strip().upper()
    if found not in (*GREY, *COLOUR, PALETTE):
        raise ValueError(f"Photometric Interpretation {found} is not read")
    return found


def _group(dataset: Any, name: str) -> Any:
    """The item of a functional group for the first frame: its own, the shared one, or the header.

    Enhanced objects keep windows, rescaling and spacing there (PS3.3 C.7.6.16).
    """
    for frames in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        items = dataset.get(frames)
        if items and (found := items[0].get(name)):
            return found[0]
    return dataset


def _numbers(item: Any, name: str) -> list[float]:
    """Numbers of an element, none if it is absent or empty; ValueError for NaN and infinity."""
    value = item.get(name)
    values = value if isinstance(value, (list, tuple)) or hasattr(value, "append") else [value]
    found = [float(number) for number in values if number not in (None, "")]
    for number in found:
        if not math.isfinite(number):
            raise ValueError(f"its {name} is {number}")
    return found


def _pixel_size(item: Any) -> tuple[float, float]:
    """Width and height of a pixel, in mm or as a ratio; (1, 1) if the header does not tell."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        try:
            found = _numbers(item, name)
        except Exception:  # no number: pydicom raises many kinds, and nothing depends on it
            continue
        if len(found) == 2 and min(found) > 0:
            return found[1], found[0]
    return 1, 1


def _warn_shape(path: Path, photometric: str, dataset: Any) -> None:
    """Warn of a Presentation LUT Shape that contradicts the photometric interpretation."""
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    if shape and (shape == "INVERSE") != (photometric == INVERTED):
        text = "%s: %s and Presentation LUT Shape %s contradict each other: the first is followed"
        log.warning(text, path, photometric, shape)


# ---------------------------------------------------------------- stored values


def _pixels(path: Path, dataset: Any) -> NDArray[Any]:
    """Stored values of the first frame, [H, W] or [H, W, 3] (RGB)."""
    if not any(name in dataset for name in PIXELS):
        raise _no_pixels(path, dataset)
    try:
        warn_frames(path, int(dataset.get("NumberOfFrames") or 1))
        _name_encoding(dataset)
        return _stored_values(path, dataset)
    except Exception as error:
        reason = " ".join(str(error).split())
        never = NEVER_DECODED in reason
        if never or any(sign in reason for sign in NO_DECODER):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            problem = f"no decoder for DICOM pixels compressed as {syntax}"
            fix = "" if never else f"{DECODERS}, or "
            raise ImageError(path, problem, fix + "export it uncompressed") from error
        problem = f"damaged or incomplete DICOM pixel data ({reason})"
        raise ImageError(path, problem, AGAIN) from error


def _name_encoding(dataset: Any) -> None:
    """Write the encoding found while parsing, if the file's meta information names none."""
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    if (dataset.get("PixelData") or b"")[:4] == b"\xfe\xff\x00\xe0":  # an item: fragments follow
        raise ValueError("compressed, and no Transfer Syntax UID says how")
    implicit, little = dataset.original_encoding
    plain = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else plain


def _stored_values(path: Path, dataset: Any) -> NDArray[Any]:
    """Stored values of the first frame, also from the upper bits of their words.

    Some writers say a High Bit that their values do not reach: those are taken as they are.
    """
    from pydicom.pixels import pixel_array

    if "PixelData" not in dataset:  # floating-point pixels
        return np.asarray(pixel_array(dataset, index=0))
    bits, high = int(dataset.BitsStored), int(dataset.get("HighBit") or 0) + 1
    if high <= bits or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return np.asarray(pixel_array(dataset, index=0))
    dataset.BitsStored = high
    values = np.asarray(pixel_array(dataset, index=0))
    dataset.BitsStored = bits
    low, peak = int(values.min()), int(values.max())
    reach = 2 ** (bits - 1) if values.dtype.kind == "i" else 2**bits
    if peak < reach and low >= -reach and (values & (2 ** (high - bits) - 1)).any():
        log.warning("%s: its values do not reach its High Bit: taken from the low bits", path)
        return values
    return values >> (high - bits)


# ---------------------------------------------------------------- grey


def _grey(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Stored values through the modality and VOI transformations, in [0, 1] and beyond."""
    values = _modality(stored, _group(dataset, "PixelValueTransformationSequence"))
    return _voi(values, stored, dataset, _group(dataset, "FrameVOILUTSequence"))


def _modality(stored: NDArray[Any], item: Any) -> NDArray[Any]:
    """Stored values through a modality LUT, or slope and intercept.

    An absent or empty one of the two, and a slope of 0, is the identity's.
    """
    luts = item.get("ModalityLUTSequence")
    if luts:
        return _through_lut(stored, luts[0])
    slope = next(iter(_numbers(item, "RescaleSlope")), 1.0) or 1.0
    intercept = next(iter(_numbers(item, "RescaleIntercept")), 0.0)
    if (slope, intercept) == (1, 0):
        return stored
    return stored.astype(np.float64) * slope + intercept


def _voi(values: NDArray[Any], stored: NDArray[Any], dataset: Any, item: Any) -> NDArray[Any]:
    """Modality values through a VOI LUT or the first window, else min–max."""
    luts = item.get("VOILUTSequence")
    if luts:
        white = ceiling(float(_lut_table(luts[0]).max()))
        return _through_lut(values, luts[0]) / np.float32(white)
    centers, widths = _numbers(item, "WindowCenter"), _numbers(item, "WindowWidth")
    if centers and widths and widths[0] > 0:
        function = str(item.get("VOILUTFunction") or "LINEAR").strip().upper()
        window = WINDOWS.get(function)
        if window is None:
            raise ValueError(f"VOI LUT Function {function} is not known")
        seen = np.clip(window(values.astype(np.float64), centers[0], widths[0]), 0, 1)
        if np.ptp(seen) > 0 or np.ptp(values) == 0:
            return np.asarray(seen, np.float32)
        problem = "its header's window leaves nothing to see, so it is scaled from min to max"
        log.warning("%s: %s", dataset.filename, problem)
    return _min_max(values, stored, dataset)


def _linear(values: NDArray[Any], center: float, width: float) -> NDArray[Any]:
    """PS3.3 C.11.2.1.2.1; of a width of 1 a threshold, below that as LINEAR_EXACT."""
    if width < 1:
        return _linear_exact(values, center, width)
    if width == 1:
        return (values > center - 0.5).astype(np.float32)
    return (values - (center - 0.5)) / (width - 1) + 0.5


def _linear_exact(values: NDArray[Any], center: float, width: float) -> NDArray[Any]:
    """PS3.3 C.11.2.1.3.2."""
    return (values - center) / width + 0.5


def _sigmoid(values: NDArray[Any], center: float, width: float) -> NDArray[Any]:
    """PS3.3 C.11.2.1.3.1, 1 / (1 + exp(-4 (x - c) / w))."""
    return 0.5 * (1 + np.tanh(2 * (values - center) / width))


WINDOWS: dict[str, Callable[[NDArray[Any], float, float], NDArray[Any]]] = {
    "LINEAR": _linear,
    "LINEAR_EXACT": _linear_exact,
    "SIGMOID": _sigmoid,
}
"""VOI LUT functions: values, centre and width to grey in [0, 1] and beyond."""


def _min_max(values: NDArray[Any], stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Min–max over the pixels that are not padding; padding is clipped into the range."""
    real = values[~_padded(stored, dataset)]
    low, high = (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)
    if not high > low:
        return np.zeros(values.shape, np.float32) if np.isfinite(low + high) else values
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


def _padded(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Mask of the pixels that the header calls padding: a value or a range, signed as they are."""
    floating = stored.dtype.kind == "f"
    start = ("DoubleFloat" if stored.itemsize == 8 else "Float") if floating else ""
    names = (f"{start}PixelPaddingValue", f"{start}PixelPaddingRangeLimit")
    ends = [dataset.get(name) for name in names]
    if not isinstance(ends[0], float if floating else int):
        return np.zeros(stored.shape, bool)
    known = [end for end in ends if isinstance(end, (int, float))]
    if not floating:
        signed, words = stored.dtype.kind == "i", 2 ** int(dataset.BitsAllocated)
        known = [int(end) % words for end in known]
        known = [end - words if signed and end >= words // 2 else end for end in known]
    return np.asarray((stored >= min(known)) & (stored <= max(known)))


# ---------------------------------------------------------------- LUTs


def _through_lut(values: NDArray[Any], item: Any) -> NDArray[Any]:
    """Values through one LUT, clipped at its ends; its numbers are as they are stored.

    The descriptor's first input is signed or not as the values are, whatever its VR says.
    """
    table, first = _lut_table(item), int(item.LUTDescriptor[1])
    if first > 32767 and values.min() < 0:
        first -= 65536
    elif first < 0 <= values.min() and values.max() > 32767:
        first += 65536
    place = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[place].astype(np.float32)


def _lut_table(item: Any) -> NDArray[Any]:
    """Entries of a LUT's item."""
    return _entries(item, item.LUTDescriptor, "LUTData")


def _entries(item: Any, descriptor: Any, name: str) -> NDArray[Any]:
    """Numbers of a LUT: one in a word, or two of 8 bits; as many as its descriptor says."""
    count, bits, data = int(descriptor[0]) % 65536 or 65536, int(descriptor[2]), item[name].value
    order = ">u2" if isinstance(data, bytes) and item.original_encoding[1] is False else "<u2"
    if not isinstance(data, bytes):
        data = (np.atleast_1d(np.asarray(data)).astype(np.int64) % 65536).astype("<u2").tobytes()
    narrow = len(data) < 2 * count and (bits <= 8 or len(data) in (count, count + 1))
    table = np.frombuffer(data, np.uint8 if narrow else order).astype(np.int64)
    if len(table) < count:
        problem = "is empty" if not len(table) else f"has {len(table)} of {count} entries"
        raise ValueError(f"its LUT {problem}")
    return table[:count]


def _through_palette(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """RGB [H, W, 3] of indices into the header's palette, by the depth of its maximum."""
    from pydicom.pixels import apply_color_lut

    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        return np.asarray(apply_color_lut(stored, dataset))[..., :3]
    planes, white = [], 255.0
    for colour in ("Red", "Green", "Blue"):
        descriptor = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value
        table = _entries(dataset, descriptor, f"{colour}PaletteColorLookupTableData")
        place = np.clip(stored.astype(np.int64) - int(descriptor[1]), 0, len(table) - 1)
        planes.append(table[place].astype(np.float32))
        white = max(white, ceiling(float(table.max())))
    return np.stack(planes, -1) / np.float32(white)
