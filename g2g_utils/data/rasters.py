"""Read PNG, JPEG and other formats through Pillow, with the low bytes that it leaves out."""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from g2g_utils.data.pixels import ImageError, Samples, check_size, warn_frames, warn_stretched

FORMATS = ("PNG", "JPEG", "TIFF", "JPEG2000", "BMP", "DIB", "GIF", "WEBP", "PPM")
ORIENTATION, PHOTOMETRIC, WHITE_IS_ZERO = 274, 262, 0  # a tag of EXIF; one of TIFF, its value
AGAIN = "download or export it again"
WIDE_FIX = "save it as a PNG of 16 bits a channel"

MODES = {
    "1": "L", "L": "L", "LA": "LA", "La": "La", "RGB": "RGB", "RGBX": "RGB", "RGBA": "RGBA",
    "RGBa": "RGBa", "CMYK": "CMYK", "YCbCr": "RGB", "F": "F", "I": "I", "I;16": "I;16",
    "I;16L": "I;16", "I;16B": "I;16B", "I;16N": "I;16N",
}  # fmt: skip
"""Mode of Pillow that the pixels of a mode are taken from."""

OTHERS = {
    b"\x93NUMPY": ("a NumPy array", "save its image as a PNG (8 or 16 bits)"),
    b"PK\3\4": ("a ZIP archive", "unpack it and give one image file"),
    b"\x1f\x8b": ("a gzip archive, perhaps NIfTI", "unpack it and save the image as a PNG"),
    b"%PDF": ("a PDF", "save its image as a PNG"),
    b"NRRD": ("an NRRD volume", "save one slice as a PNG"),
    b"ObjectType": ("a MetaImage volume", "save one slice as a PNG"),
    b"\x89HDF": ("an HDF5 file", "save its image as a PNG"),
    b"<": ("text of a web page", "download the file itself"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the file with git lfs pull"),
}
"""First bytes of files that are no images here, what they are, and what to do."""

NIFTI = (b"n+1\0", b"ni1\0")


def size(path: Path) -> tuple[int, int]:
    """(height, width) as the image is shown, from its header."""
    with _opened(path) as image:
        return _turned_size(image)


def read(path: Path, frame: int = 0) -> Samples:
    """Samples of one frame; the others are warned of.

    Colour profiles and gamma (iCCP, gAMA, ICC of JPEG) are not applied: stored values are shown.

    Raises:
        ImageError: damaged, no image, or more bits a channel than are read.
    """
    with _opened(path) as image:
        check_size(path, image.height, image.width)
        if frame:
            image.seek(frame)
        if image.format != "TIFF":  # said by its reader
            warn_frames(path, getattr(image, "n_frames", 1))
            warn_stretched(path, *_density(image))
        check_depth(path, image)
        samples = _wide(path, frame) if _is_wide(image) else _samples(path, image)
        if image.format == "TIFF":  # Pillow has turned it
            return samples
        return samples._replace(orientation=image.getexif().get(ORIENTATION, 1))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image of Pillow; what Pillow raises inside becomes an ImageError."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise _named(path) from None
    except Image.DecompressionBombError as error:
        raise ImageError(path, str(error), "resize the image first") from error
    except (
        OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error,
    ) as error:  # fmt: skip
        problem = "truncated or damaged image" if isinstance(error, OSError) else "damaged image"
        raise ImageError(path, f"{problem} ({error})", AGAIN) from error


def _named(path: Path) -> ImageError:
    """What a file is that Pillow does not know."""
    with path.open("rb") as file:
        start = file.read(65536)
    for sign, (kind, fix) in OTHERS.items():
        if start.lstrip().startswith(sign):
            return ImageError(path, f"not an image but {kind}", fix)
    if start[4:8] == b"ftyp":
        return ImageError(path, "an image of the HEIF or AVIF kind", "save it as a PNG")
    if start[344:348] in NIFTI:
        return ImageError(path, "not an image but a NIfTI volume", "save one slice as a PNG")
    if start.startswith(b"\xff\xd8") and (bits := _jpeg_bits(start)) not in (0, 8):
        return ImageError(path, f"a JPEG of {bits} bits", WIDE_FIX)
    fix = "give a PNG, JPEG or DICOM file (DICOM without preamble needs the suffix .dcm)"
    return ImageError(path, "not an image", fix)


def _jpeg_bits(start: bytes) -> int:
    """Bits a sample of a JPEG, from its frame header; 0 if there is none."""
    at = 2
    while at + 5 <= len(start) and start[at] == 0xFF:
        kind, length = start[at + 1], int.from_bytes(start[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return start[at + 4]
        at += 2 + length
    return 0


def _turned_size(image: Image.Image) -> tuple[int, int]:
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    width, height = int(tags.get(256, image.width)), int(tags.get(257, image.height))
    lying = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if lying else (height, width)


def _density(image: Image.Image) -> tuple[float, float]:
    """Width and height of a pixel in any unit; (1, 1) if the file does not tell."""
    x, y = image.info.get("dpi") or image.info.get("aspect") or (1, 1)
    return (1 / float(x), 1 / float(y)) if x and y else (1, 1)


# ---------------------------------------------------------------- one byte a channel


def _samples(path: Path, image: Image.Image) -> Samples:
    """Samples of an image of 8 bits a channel, or of one channel."""
    raw = _raw_modes(image)
    image.load()
    clear = image.info.get("transparency")
    if image.mode in ("P", "PA"):
        _check_palette(path, image)
        image = image.convert("RGB" if image.mode == "P" and clear is None else "RGBA")
        clear = None
    if image.mode not in MODES:
        raise ImageError(path, f"colours of an unknown kind ({image.mode})", WIDE_FIX)
    mode = MODES[image.mode]
    values = np.asarray(image if mode == image.mode else image.convert(mode))
    if image.format == "JPEG2000":
        values = _jpeg2000(path, values)
    several = mode in ("LA", "La", "RGBA", "RGBa")
    colours = values[..., :-1] if several else values
    alpha = values[..., -1] if several else _seen(values, clear, raw)
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    inverted = mode[0] in "IF" and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO  # else Pillow's work
    single = colours[..., 0] if several and mode[0] == "L" else colours
    return Samples(single, alpha, inverted, mode in ("La", "RGBa"))


def _check_palette(path: Path, image: Image.Image) -> None:
    """Refuse a PNG whose indices have no colour."""
    palette = image.palette
    known = len(palette.palette) // len(palette.mode) if palette else 0
    indices = image.getchannel(0) if image.mode == "PA" else image
    if image.format == "PNG" and int(np.asarray(indices).max()) >= known:
        raise ImageError(path, "a palette image without all of its palette", AGAIN)


def _seen(values: NDArray[Any], clear: Any, raw: set[str]) -> NDArray[Any] | None:
    """Mask of pixels that are not the transparent grey or colour of a PNG; None if it has none.

    The header counts in the file's depth, of which Pillow scales 2 and 4 bits to 8.
    """
    if isinstance(clear, tuple) and values.ndim == 3:
        return np.asarray((values != clear).any(-1))
    if not isinstance(clear, int):
        return None
    scale = next((s for end, s in {"L;2": 85, "L;4": 17}.items() if end in raw), 1)
    return np.asarray(values != clear * scale)


# ---------------------------------------------------------------- more bits a channel

# Pillow keeps the high bytes of 16-bit colour only: such files are decoded twice, the second time
# as if their bytes were swapped.


def _raw_modes(image: Image.Image) -> set[str]:
    """Layout of the bytes of the file's pixels, in Pillow's words such as "RGB;16B"."""
    arguments = (tile[3] for tile in getattr(image, "tile", []))
    return {str(a[0] if isinstance(a, tuple) else a) for a in arguments}


def _is_wide(image: Image.Image) -> bool:
    """True for colour or transparency of 16 bits a channel."""
    many = len(image.getbands()) > 1
    return many and any(";16" in raw for raw in _raw_modes(image))


def _wide(path: Path, frame: int) -> Samples:
    """A file of 16 bits a channel in colour or with transparency."""
    with Image.open(path, formats=FORMATS) as image:
        image.seek(frame)
        raw = sorted(_raw_modes(image))[0]
        clear = image.info.get("transparency")
    if raw.startswith("LA"):  # its four bytes a pixel are read as four channels
        planes = _decoded(path, frame, {raw: "RGBA"}).astype(np.uint16)
        values = planes[..., ::2] << 8 | planes[..., 1::2]
        return Samples(values[..., 0], values[..., 1])
    low = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[raw[-1]]
    plain = raw.replace("RGBa", "RGBA")  # premultiplied stays so
    high = plain if plain[-1] != "N" else plain[:-1] + {"B": "L", "L": "B"}[low]
    values = _decoded(path, frame, {raw: high}).astype(np.uint16) << 8
    values |= _decoded(path, frame, {raw: plain[:-1] + low})
    if raw.startswith("CMYK"):
        return Samples(values)
    alpha = values[..., 3] if values.shape[-1] == 4 else _seen(values, clear, set())
    return Samples(values[..., :3], alpha, premultiplied=raw.startswith("RGBa"))


def _decoded(path: Path, frame: int, names: Mapping[str, str]) -> NDArray[Any]:
    """Bytes [H, W, C] of a file whose raw modes are renamed before it is decoded."""
    with Image.open(path, formats=FORMATS) as opened:
        image: Any = opened
        image.seek(frame)
        tiles = []
        for tile in image.tile:
            many = isinstance(tile[3], tuple)
            name = names.get(tile[3][0] if many else tile[3])
            if name is None:
                raise ImageError(path, "colour planes of 16 bits", WIDE_FIX)
            tiles.append(tile._replace(args=(name, *tile[3][1:]) if many else name))
        image.tile = tiles
        image._mode = next(iter(names.values())).partition(";")[0]  # noqa: SLF001
        image.load()
        return np.asarray(image)


def check_depth(path: Path, image: Image.Image) -> None:
    """Refuse colour of more than 8 bits that Pillow would cut to 8."""
    if image.format == "JPEG2000":
        bits = max(abs(b) for b in _jpeg2000_bits(path))
        if bits > 8 and not image.mode.startswith("I"):
            raise ImageError(path, f"a JPEG 2000 in colour of {bits} bits", WIDE_FIX)
    if image.format == "PPM" and len(image.getbands()) > 1:
        arguments = (tile[3] for tile in getattr(image, "tile", []))
        whites = [n for a in arguments if isinstance(a, tuple) for n in a if isinstance(n, int)]
        if max(whites, default=255) > 255:
            raise ImageError(path, "a PPM of more than 8 bits a channel", WIDE_FIX)


def _jpeg2000_bits(path: Path) -> list[int]:
    """Bits of each component of a JPEG 2000 codestream (its SIZ marker); negative if signed."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(b"\xff\x4f\xff\x51")
        if at < 0:
            raise ValueError("no codestream")
        (count,) = struct.unpack_from(">H", data, at + 40)
        sizes = [data[at + 42 + 3 * k] for k in range(count)]
    return [-((s & 127) + 1) if s & 128 else s + 1 for s in sizes]


def _jpeg2000(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    """Stored values of a JPEG 2000, which Pillow shifts to 8 or 16 bits and makes unsigned."""
    bits = _jpeg2000_bits(path)[0]
    wide = 8 * values.itemsize
    if bits < 0:
        values = values.astype(np.int32) - 2 ** (wide - 1)
    return values >> (wide - abs(bits)) if abs(bits) > 8 else values
