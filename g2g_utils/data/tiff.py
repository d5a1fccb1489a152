"""Read TIFF files: what their tags say, through tifffile, and through Pillow what that cannot."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils.data import rasters
from g2g_utils.data.pixels import ImageError, Samples, check_size, warn_frames, warn_stretched

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUBFILE, OLD_SUBFILE, PHOTOMETRIC, ORIENTATION, X_DENSITY, Y_DENSITY = (
    254, 255, 262, 274, 282, 283,
)  # fmt: skip
REDUCED_OR_MASK, OLD_REDUCED = 0b101, 2
WHITE_IS_ZERO, PALETTE, CMYK = 0, 3, 5  # photometric interpretations
COLOURS = {WHITE_IS_ZERO: 1, 1: 1, 2: 3, PALETTE: 1, CMYK: 4}
PREMULTIPLIED, ALPHA = 1, 2  # kinds of extra samples
FIX = "save it as a PNG"
MISSING_CODEC = "imagecodecs"  # the package that tifffile names


def is_tiff(path: Path) -> bool:
    """True for a file that begins as a TIFF or BigTIFF."""
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def size(path: Path) -> tuple[int, int]:
    """(height, width) of the film, upright."""
    with _Opened(path) as page:
        return _turned_size(page)


def read(path: Path) -> Samples:
    """Samples of the first page that is no thumbnail.

    Raises:
        ImageError: damaged, or of a kind that neither tifffile nor Pillow reads rightly.
    """
    with _Opened(path) as page:
        check_size(path, *_turned_size(page))
        warn_frames(path, len(page.parent.pages) - sum(map(_is_reduced, _heads(page.parent))))
        warn_stretched(path, *_density(page))
        if PHOTOMETRIC not in page.tags:
            raise ImageError(path, "TIFF that does not say whether white is zero", FIX)
        if page.photometric not in COLOURS or not _is_flat(page):
            return _through_pillow(path, page)
        try:
            stored = page.asarray()
        except (KeyError, ValueError, NotImplementedError) as error:
            if MISSING_CODEC not in str(error):
                raise
            return _through_pillow(path, page)
        return _samples(path, page, stored)


class _Opened:
    """The film's page of an open file; errors of tifffile become ImageErrors."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        import tifffile

        try:
            self.file = tifffile.TiffFile(self.path)
            return _film_page(self.file)
        except Exception as error:
            self.__exit__(type(error), error)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any = None) -> None:
        if hasattr(self, "file"):
            self.file.close()
        if isinstance(error, Exception) and not isinstance(error, ImageError):
            reason = " ".join(str(error).split())  # tifffile raises many kinds for damaged files
            raise ImageError(self.path, f"unreadable TIFF ({reason})", FIX) from error


def _film_page(file: Any) -> Any:
    """The first page that is no thumbnail or mask; pages below others count last."""
    pages = _heads(file)
    below = [inner for page in pages for inner in page.pages or ()]
    whole = (page for page in [*pages, *below] if not _is_reduced(page))
    return next(whole, pages[0])


def _heads(file: Any) -> list[Any]:
    """The first pages, among which thumbnails are looked for."""
    return list(itertools.islice(file.pages, 16))


def _is_reduced(page: Any) -> bool:
    """True for a thumbnail or a mask of another page."""
    new, old = page.tags.valueof(SUBFILE, 0), page.tags.valueof(OLD_SUBFILE, 1)
    return bool(int(new) & REDUCED_OR_MASK) or old == OLD_REDUCED


def _is_flat(page: Any) -> bool:
    """True for one plane of pixels of one kind of number."""
    return page.dtype is not None and page.dtype.kind in "buif" and "Z" not in page.axes


def _turned_size(page: Any) -> tuple[int, int]:
    height, width = int(page.imagelength), int(page.imagewidth)
    lying = page.tags.valueof(ORIENTATION, 1) in (5, 6, 7, 8)
    return (width, height) if lying else (height, width)


def _density(page: Any) -> tuple[float, float]:
    """Width and height of a pixel in any unit; (1, 1) if the file does not tell."""
    x, y = (page.tags.valueof(tag, (1, 1)) for tag in (X_DENSITY, Y_DENSITY))
    try:
        return float(x[1] / x[0]), float(y[1] / y[0])
    except (TypeError, IndexError, ZeroDivisionError):
        return 1, 1


def _samples(path: Path, page: Any, stored: NDArray[Any]) -> Samples:
    """Samples of decoded numbers, by the tags of their page."""
    values = (
        np.moveaxis(stored, page.axes.index("S"), -1) if "S" in page.axes else stored[..., None]
    )
    count = COLOURS[page.photometric]
    if values.ndim != 3 or values.shape[-1] < count:
        raise ImageError(path, f"TIFF of an unknown kind ({page.axes})", FIX)
    colours = values[..., 0] if count == 1 else values[..., :count]
    if page.photometric == PALETTE:
        colours = _through_colormap(path, colours, page)
    elif colours.dtype == bool:
        colours = colours * np.uint8(255)
    kinds = [int(kind) for kind in page.extrasamples]
    place = next((k for k, kind in enumerate(kinds) if kind in (PREMULTIPLIED, ALPHA)), None)
    found = place is not None and count + place < values.shape[-1]
    return Samples(
        colours,
        values[..., count + (place or 0)] if found else None,
        page.photometric == WHITE_IS_ZERO,
        found and kinds[place or 0] == PREMULTIPLIED,
        int(page.tags.valueof(ORIENTATION, 1)),
    )


def _through_colormap(path: Path, indices: NDArray[Any], page: Any) -> NDArray[Any]:
    """RGB of indices into the page's colours, whose depth is that of their maximum."""
    table = page.colormap
    if table is None or int(indices.max()) >= table.shape[-1]:
        raise ImageError(path, "a palette image without all of its palette", "save it as grey")
    bytes_above = not (table & 255).any()  # 8 bits, in the high bytes of their words
    return np.asarray((table >> 8 if bytes_above else table).T[indices])


def _through_pillow(path: Path, page: Any) -> Samples:
    """Samples of a page whose compression tifffile lacks, if Pillow is right about it."""
    bits, form = page.bitspersample, int(page.sampleformat or 1)
    several = bits > 8 and page.planarconfig == 2 and page.samplesperpixel > 1
    wraps = (form, bits) in ((1, 32), (2, 8))  # unsigned ones are read as signed and the other way
    unknown = page.samplesperpixel > 3 and bits > 8 and page.extrasamples[:1] in ((), (0,))
    below = len(np.atleast_1d(page.treeindex)) > 1
    other = form not in (1, 2, 3, 4)  # complex numbers, say
    if several or wraps or unknown or below or other or page.photometric not in (*COLOURS, 6):
        kind = f"{getattr(page.photometric, 'name', page.photometric)}, {bits} bits"
        packed = getattr(page.compression, "name", page.compression)
        problem = f"TIFF of an unknown kind ({kind}, {packed})"
        raise ImageError(path, problem, FIX)
    return rasters.read(path, page.index)
