"""Read image files (PNG, JPEG, TIFF, DICOM) as float32 arrays [H, W] in [0, 1]."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from g2g_utils.data.plain import printable

log = logging.getLogger(__name__)

SMALLEST_SIDE = 8  # pixels: nothing can be seen in less
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BIT_DEPTHS = (8, 10, 12, 14, 16)
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow
ORIENTATION, BITS, PHOTOMETRIC, PLANAR, FORMAT = 274, 258, 262, 284, 339  # tags of EXIF and TIFF
WHITE_IS_ZERO, SIGNED = 0, 2
SQUARE_SLACK = 0.02  # relative; scanners and printers round

NO_DECODER = (
    "Unable to decompress",
    "missing dependencies",
    "does not support",
    "missing required",
)

NEVER_DECODED = "'Transfer Syntax UID' value of"  # pydicom, of films and the like
DECODERS = f'pip install "numpy=={np.__version__}" "pylibjpeg[all]>=2" "pyjpegls>=1.4"'
"""Installs every decoder and leaves numpy, which other packages pin, as it is."""


class ImageError(ValueError):
    """An image file that cannot be used: one line with the file, the problem and the fix."""

    def __init__(self, path: Path, problem: str, fix: str) -> None:
        super().__init__(printable(f"{path}: {problem}; {fix}"))


# ---------------------------------------------------------------- files


def read_image(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an image file as float32 [H, W] in [0, 1], upright, white = 1.

    The one decoder of every way in. PNG, JPEG, TIFF and other formats of Pillow (1-bit, grey,
    palette, RGB(A), CMYK; 16 bits in each), or DICOM (first frame; modality LUT, then the header's
    window or VOI LUT; MONOCHROME1 is inverted; no header field is kept). Colour becomes luminance,
    transparency black, white-is-zero is inverted. More than 8 bits are scaled by the smallest of 8,
    10, 12, 14, 16 bits that holds the maximum.

    Raises:
        ImageError: the file is none of these; one line.
    """
    path = _existing(path)
    if _is_dicom(path):
        image = _read_dicom(path)
    else:
        image = _read_tiff(path) if _is_odd_tiff(path) else _read_pillow(path)
    if not np.isfinite(image).all():
        raise ImageError(path, "the image holds NaN or infinite values", "export it again")
    _check_side(path, *image.shape)
    return np.clip(image, 0, 1).astype(np.float32, copy=False)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image file as `read_image` would give it, from its header."""
    path = _existing(path)
    if _is_dicom(path):
        header = _open_dicom(path, pixels=False)
        if "Rows" not in header or "Columns" not in header:
            raise _no_pixels(path, header)
        try:
            height, width = int(header.Rows), int(header.Columns)
        except Exception as error:  # pydicom reads elements when they are asked for
            raise ImageError(path, f"damaged DICOM file ({error})", "export it again") from error
    elif _is_odd_tiff(path):
        height, width = _read_tiff(path).shape
    else:
        with _open_pillow(path) as image:
            tags = getattr(image, "tag_v2", {})  # of TIFFs Pillow gives the turned size
            width, height = tags.get(256, image.width), tags.get(257, image.height)
            try:
                lying = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            except (OSError, SyntaxError, ValueError) as error:
                raise _broken(path, error) from error
            height, width = (width, height) if lying else (height, width)
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


def _read_pillow(path: Path) -> NDArray[Any]:
    try:
        with _open_pillow(path) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                log.warning("%s has %d frames: the first is used", path, frames)
            _warn_stretched(path, *_density(image))
            if _wide(image):
                return _read_wide(path)
            white_is_zero = _white_is_zero(image)
            image.load()
            grey = _grey(ImageOps.exif_transpose(image))
            return 1 - grey if white_is_zero else grey
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError) as error:
        if isinstance(error, ImageError):
            raise
        raise _broken(path, error) from error


def _density(image: Image.Image) -> tuple[float, float]:
    """Width and height of a pixel in any unit; (1, 1) if the file does not tell."""
    x, y = image.info.get("dpi") or image.info.get("aspect") or (1, 1)
    return (1 / float(x), 1 / float(y)) if x and y else (1, 1)


def _warn_stretched(path: Path, width: float, height: float) -> None:
    """Warn that pixels are not square. The image is used as stored, and boxes fit it."""
    if min(width, height) > 0 and abs(width / height - 1) > SQUARE_SLACK:
        text = "%s: its pixels are %.4g wide and %.4g high; resample it to square ones, boxes too"
        log.warning(text, path, width, height)


def _white_is_zero(image: Image.Image) -> bool:
    """True for TIFFs of more than 8 bits whose zero is white; Pillow inverts the others itself."""
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    wide = image.mode.startswith("I") or image.mode == "F"
    return wide and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


# Pillow keeps the high bytes of 16-bit colour only: such files are decoded twice, the second time
# as if their bytes were swapped.


def _raw_modes(image: Image.Image) -> set[str]:
    """Layout of the bytes of the file's pixels, in Pillow's words such as "RGB;16B"."""
    arguments = (tile[3] for tile in getattr(image, "tile", []))
    return {str(a[0] if isinstance(a, tuple) else a) for a in arguments}


def _wide(image: Image.Image) -> bool:
    """True for colour or transparency of 16 bits a channel."""
    many = len(image.getbands()) > 1
    return many and any(";16" in raw for raw in _raw_modes(image))


def _read_wide(path: Path) -> NDArray[Any]:
    """A file of 16 bits a channel in colour or with transparency."""
    with _open_pillow(path) as image:
        raw = sorted(_raw_modes(image))[0]
        clear = image.info.get("transparency")
    if raw.startswith("LA"):  # its four bytes a pixel are read as four channels
        planes = _decoded(path, {raw: "RGBA"}).astype(np.uint16)
        return _flat(planes[..., ::2] << 8 | planes[..., 1::2])
    low = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[raw[-1]]
    plain = raw.replace("RGBa", "RGBA")  # premultiplied stays so: black lies below it
    high = plain if plain[-1] != "N" else plain[:-1] + {"B": "L", "L": "B"}[low]
    values = _decoded(path, {raw: high}).astype(np.uint16) << 8
    values |= _decoded(path, {raw: plain[:-1] + low})
    if raw.startswith("CMYK"):
        inks = 1 - _scale_integers(values.astype(np.float32))
        return np.asarray((inks[..., :3] * inks[..., 3:]) @ LUMINANCE, np.float32)
    if isinstance(clear, tuple):
        values[(values[..., :3] == clear).all(-1)] = 0
    return _flat(values[..., :3]) if raw.startswith("RGBa") else _flat(values)


def _decoded(path: Path, names: Mapping[str, str]) -> NDArray[Any]:
    """Bytes [H, W, C] of a file whose raw modes are renamed before it is decoded."""
    with _open_pillow(path) as image:
        tiles = []
        for tile in image.tile:  # type: ignore[attr-defined]
            many = isinstance(tile[3], tuple)
            name = names.get(tile[3][0] if many else tile[3])
            if name is None:
                raise ImageError(path, "colour planes of 16 bits", "save it as a PNG")
            tiles.append(tile._replace(args=(name, *tile[3][1:]) if many else name))
        image.tile = tiles  # type: ignore[attr-defined]
        image._mode = next(iter(names.values())).partition(";")[0]  # noqa: SLF001
        image.load()
        image.info.pop("transparency", None)
        return np.asarray(ImageOps.exif_transpose(image))


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    """Integers [H, W, 1 to 4] (grey or RGB, then perhaps transparency) over black, in [0, 1]."""
    colours = 1 if values.shape[-1] < 3 else 3
    scaled = _scale_integers(values[..., :colours].astype(np.float32))
    grey = scaled[..., 0] if colours == 1 else scaled @ LUMINANCE
    if values.shape[-1] == colours:
        return grey
    return grey * _scale_integers(values[..., colours].astype(np.float32))


def _grey(image: Image.Image) -> NDArray[Any]:
    """Any Pillow mode of 8 bits, or of one channel, as float [H, W] in [0, 1]."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        grey = _scale_integers(values)
        clear = image.info.get("transparency")
        return np.where(values == clear, 0, grey) if isinstance(clear, int) else grey
    if image.mode == "F":
        return _stretch(np.asarray(image, dtype=np.float32))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L"), dtype=np.float32) / 255


# ---------------------------------------------------------------- TIFF beside Pillow's


def _is_odd_tiff(path: Path) -> bool:
    """True for a TIFF that Pillow does not know or reads wrongly.

    Signed ones; of 16 bits planes of colour and turned images; of 8 bits turned grey ones.
    """
    with path.open("rb") as file:
        if file.read(4) not in TIFF_MAGIC:
            return False
    try:
        with Image.open(path) as image:
            tags = getattr(image, "tag_v2", {})
            turned, bits = tags.get(ORIENTATION, 1) != 1, max(tags.get(BITS, (8,)))
            signed = max(tags.get(FORMAT, (1,))) == SIGNED
            grey = image.mode == "L" and turned and bits == 8
            return signed or grey or (bits > 8 and (turned or tags.get(PLANAR) == 2))
    except UnidentifiedImageError:
        return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # said later


def _read_tiff(path: Path) -> NDArray[Any]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page: Any = file.pages[0]
            stored, axes, photometric = page.asarray(), page.axes, int(page.photometric)
            extra = [int(kind) for kind in page.extrasamples]
            turned = int(page.tags.valueof(ORIENTATION, 1))
    except Exception as error:  # tifffile raises many kinds for damaged files
        reason = " ".join(str(error).split())
        raise ImageError(path, f"unreadable TIFF ({reason})", "save it as a PNG") from error
    whole = stored.ndim == len(axes)
    several = whole and "S" in axes
    values = np.moveaxis(stored, axes.index("S"), -1) if several else stored[..., None]
    if photometric not in (0, 1, 2) or values.ndim != 3 or not whole:
        problem = f"TIFF of an unknown kind ({axes}, photometric {photometric})"
        raise ImageError(path, problem, "save it as a PNG")
    colours = 3 if photometric == 2 else 1
    kept = values[..., : colours + (extra[:1] == [2])]
    grey = _flat(kept) if np.issubdtype(kept.dtype, np.integer) else _stretch(kept[..., 0])
    grey = 1 - grey if photometric == WHITE_IS_ZERO else grey
    return _upright(np.asarray(grey, np.float32), turned)


def _upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """An image turned as its orientation tag says (1 to 8)."""
    image = image.T if orientation >= 5 else image
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image[:, ::-1] if orientation in (2, 3, 6, 7) else image


def _scale_integers(values: NDArray[Any]) -> NDArray[Any]:
    """Integers, as floats, by the smallest depth that holds them; signed ones min–max scaled."""
    if values.min() < 0:
        return _stretch(values)
    return values / np.float32(_ceiling(float(values.max())))


def _ceiling(peak: float) -> float:
    """White of integers with this maximum: that of the smallest bit depth that holds it."""
    return next((2.0**bits - 1 for bits in BIT_DEPTHS if peak < 2**bits), peak)


def _stretch(values: NDArray[Any]) -> NDArray[Any]:
    """Values in [0, 1] unchanged, others min–max scaled. A constant becomes 0.

    Values with NaN or infinity stay unchanged too; they are refused later.
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
    try:
        kind = getattr(dataset.get("SOPClassUID"), "name", "unknown kind")
    except Exception:  # pydicom reads elements when they are asked for
        kind = "unknown kind"
    fix = "give the file of the image itself"
    return ImageError(path, f"DICOM file without pixel data ({kind})", fix)


def _dicom_pixels(path: Path, dataset: Any) -> NDArray[Any]:
    """Stored values of the first frame, [H, W] or [H, W, 3] (RGB)."""
    if "PixelData" not in dataset:
        raise _no_pixels(path, dataset)
    try:
        if (frames := int(dataset.get("NumberOfFrames") or 1)) > 1:
            log.warning("%s has %d frames: the first is used", path, frames)
        _name_encoding(dataset)
        return _stored_values(dataset)
    except Exception as error:
        reason = " ".join(str(error).split())
        never = NEVER_DECODED in reason
        if never or any(sign in reason for sign in NO_DECODER):
            syntax = dataset.file_meta.TransferSyntaxUID.name
            problem = f"no decoder for DICOM pixels compressed as {syntax}"
            fix = "" if never else f"{DECODERS}, or "
            raise ImageError(path, problem, fix + "export it uncompressed") from error
        problem = f"damaged or incomplete DICOM pixel data ({reason})"
        raise ImageError(path, problem, "export it again") from error


def _name_encoding(dataset: Any) -> None:
    """Write the encoding found while parsing, if the file's meta information names none."""
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    if dataset.PixelData[:4] == b"\xfe\xff\x00\xe0":  # an item: fragments follow
        raise ValueError("compressed, and no Transfer Syntax UID says how")
    implicit, little = dataset.original_encoding
    plain = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else plain


def _stored_values(dataset: Any) -> NDArray[Any]:
    """Stored values of the first frame, also from the upper bits of their words."""
    from pydicom.pixels import pixel_array

    bits, high = int(dataset.BitsStored), int(dataset.get("HighBit", 0)) + 1
    if high <= bits or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return np.asarray(pixel_array(dataset, index=0))
    dataset.BitsStored = high
    values = np.asarray(pixel_array(dataset, index=0)) >> (high - bits)
    dataset.BitsStored = bits
    return values


def _read_dicom(path: Path) -> NDArray[Any]:
    dataset = _open_dicom(path)
    stored = _dicom_pixels(path, dataset)
    try:
        photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        _warn_stretched(path, *_pixel_size(dataset))
        if photometric == "PALETTE COLOR":
            return _through_palette(stored, dataset) @ LUMINANCE
        if stored.ndim == 3:
            return _flat(stored)
        grey = _windowed(_modality(stored, dataset), stored, dataset)
    except Exception as error:  # pydicom and numbers out of range raise many kinds here too
        reason = " ".join(str(error).split())
        problem = f"unusable LUT or window in the DICOM header ({reason})"
        raise ImageError(path, problem, "export it as PNG") from error
    return 1 - grey if photometric == "MONOCHROME1" else grey


def _pixel_size(dataset: Any) -> tuple[float, float]:
    """Width and height of a pixel, in mm or as a ratio; (1, 1) if the header does not tell."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        height, width = dataset.get(name) or (0, 0)
        if float(height) > 0 and float(width) > 0:
            return float(width), float(height)
    return 1, 1


def _through_palette(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """RGB of indices into the header's palette, scaled by its own maximum."""
    from pydicom.pixels import apply_color_lut

    colour = apply_color_lut(stored, dataset).astype(np.float32)
    wide = int(dataset.RedPaletteColorLookupTableDescriptor[2]) > 8
    names = [f"{name}PaletteColorLookupTableData" for name in ("Red", "Green", "Blue")]
    tables = [dataset[name].value for name in names if name in dataset and wide]
    peak = max((int(np.frombuffer(table, "<u2").max()) for table in tables), default=0)
    return colour / np.float32(_ceiling(max(peak, float(colour.max()))))


def _modality(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Stored values through the header's modality LUT, or its slope and intercept.

    An absent or empty one of the two, and a slope of 0, is the identity's.
    """
    luts = dataset.get("ModalityLUTSequence")
    if luts:
        return _through_lut(stored, luts[0])
    if "RescaleSlope" not in dataset and "RescaleIntercept" not in dataset:
        return stored
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    slope, intercept = float(slope or 1) or 1.0, float(intercept or 0)
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept  # for the window's ends
    return stored.astype(np.float64) * slope + intercept


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
    """Entries of a LUT, one in a byte or in a word."""
    count, _, bits = (int(number) for number in item.LUTDescriptor)
    count, data = count % 65536 or 65536, item["LUTData"].value
    if isinstance(data, bytes):
        narrow = bits <= 8 and len(data) < 2 * count
        words = ">u2" if item.original_encoding[1] is False else "<u2"
        data = np.frombuffer(data, np.uint8 if narrow else words)
    table = np.atleast_1d(np.asarray(data)).astype(np.int64) % 65536
    if not len(table):
        raise ValueError("its LUT is empty")
    return table[:count]


def _has_window(dataset: Any) -> bool:
    """True if the header has a window (the first counts) with a positive width."""
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    return center is not None and width is not None and float(np.ravel(width)[0]) > 0


def _windowed(values: NDArray[Any], stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Modality values through the header's VOI LUT or first window, else min–max, to [0, 1]."""
    from pydicom.pixels import apply_windowing

    luts = dataset.get("VOILUTSequence")
    if luts:
        white = _ceiling(float(_lut_table(luts[0]).max()))
        return _through_lut(values, luts[0]) / np.float32(white)
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


def _min_max(values: NDArray[Any], stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Min–max over the pixels that are not padding; padding is clipped into the range."""
    real = values[~_padded(stored, dataset)]
    low, high = (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _padded(stored: NDArray[Any], dataset: Any) -> NDArray[Any]:
    """Mask of the pixels that the header calls padding: a value or a range, signed as they are."""
    ends = [dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")]
    if not isinstance(ends[0], int):
        return np.zeros(stored.shape, bool)
    signed, words = stored.dtype.kind == "i", 2 ** int(dataset.BitsAllocated)
    known = [int(end) % words for end in ends if isinstance(end, int)]
    known = [end - words if signed and end >= words // 2 else end for end in known]
    return (stored >= min(known)) & (stored <= max(known))
