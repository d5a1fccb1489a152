"""Real normal radiographs as backgrounds of phantoms (the harder world)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from g2g_utils.data.geometry import crop_resize
from g2g_utils.data.images import read_image
from g2g_utils.data.phantoms.wording import SPLITS, split_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
LUNG, BRIGHT = 0.28, 0.58  # brightness of lung and tissue after levelling
Source = str | tuple[str, ...]
Frame = tuple[float, float, float, float]  # scale u, v; shift u, v


@lru_cache(maxsize=8)
def files(source: Source) -> dict[str, tuple[Path, ...]]:
    """The images of a folder by split; those of a tuple serve every split.

    An image goes to the split that the hash of its patient picks. The patient is the file name up
    to the first `_`, as ChestX-ray14 names files.

    Raises:
        ValueError: a split has no image.
    """
    if isinstance(source, str):
        folder = Path(source)
        if not folder.is_dir():
            raise ValueError(
                f"World.backgrounds = {source!r} is not a folder of normal radiographs"
            )
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    else:
        return dict.fromkeys(SPLITS, tuple(Path(p) for p in source))
    by_split = {s: tuple(p for p in paths if split_of(p.stem.split("_")[0]) == s) for s in SPLITS}
    for split, found in by_split.items():
        if not found:
            raise ValueError(
                f"World.backgrounds: none of {len(paths)} radiographs falls into the {split} "
                "split; give films of more patients (PNG, JPEG or DICOM)"
            )
    return by_split


@dataclass(frozen=True, eq=False)
class Background:
    """A normal image and the place of its chest: image = body · scale + shift, in half sides."""

    image: NDArray[Any]  # float32 [size, size] in [0, 1], lungs near LUNG, mediastinum near BRIGHT
    scale: tuple[float, float]  # u, v
    shift: tuple[float, float]
    film: NDArray[Any]  # the same before levelling
    gain: float  # of the levelling

    def sample(self, u: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
        """The image at body coordinates [H, W]; black beyond its edge."""
        return self._at(self.image, u, v)

    def with_change(self, change: NDArray[Any], u: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
        """The film in its own exposure, after a change of the levelled image [H, W]."""
        return self._at(self.film, u, v) + change / self.gain

    def _at(self, image: NDArray[Any], u: NDArray[Any], v: NDArray[Any]) -> NDArray[Any]:
        half = image.shape[0] / 2
        column = (u * self.scale[0] + self.shift[0] + 1) * half - 0.5
        row = (v * self.scale[1] + self.shift[1] + 1) * half - 0.5
        return map_coordinates(image, [row, column], order=1, output=np.float32)


def _lungs(u: NDArray[Any], v: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Masks of an average build: the lungs, and the tissue between and around them."""
    side, rise = (np.abs(u) - 0.445) / 0.38, (v + 0.2) / 0.62
    radius = np.sqrt(side**2 + rise**2)
    return radius < 0.9, (radius > 1.15) & (np.abs(u) < 1.0) & (np.abs(v + 0.2) < 0.7)


@lru_cache(maxsize=2048)
def film(path: Path, size: int) -> Background:
    """One background: the frame in which the lungs are darkest, with comparable brightness."""
    image = crop_resize(read_image(path), size)
    v, u = np.mgrid[-1:1:32j, -1:1:32j]
    lungs, tissue = _lungs(u, v)

    def levels(frame: Frame) -> tuple[float, float]:
        seen = Background(image, frame[:2], frame[2:], image, 1.0).sample(u, v)
        return float(seen[lungs].mean()), float(seen[tissue].mean())

    def contrast(frame: Frame) -> float:
        dark, bright = levels(frame)
        return bright - dark

    shifts = (-0.08, 0.0, 0.08), (-0.12, 0.0, 0.12)
    best = max(product((0.68, 0.76, 0.84), (0.76, 0.86, 0.96), *shifts), key=contrast)
    dark, bright = levels(best)
    gain = (BRIGHT - LUNG) / max(bright - dark, 0.1)
    levelled = np.clip((image - dark) * gain + LUNG, 0, 1)
    return Background(levelled, best[:2], best[2:], image, gain)


def pick(source: Source, split: str, rng: np.random.Generator, size: int) -> Background:
    """A background of the split for one patient."""
    choices = files(source)[split]
    return film(choices[int(rng.integers(len(choices)))], size)
