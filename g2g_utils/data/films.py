"""Training images that stay in their files until they are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils.data.geometry import crop_resize
from g2g_utils.data.images import read_image

THREADS = min(16, 2 * (os.cpu_count() or 1))  # decoding releases Python's lock


class Films:
    """Image files behind the interface of one uint8 array [n, S, S].

    Each index (an integer, a slice or an array of rows) reads and crops its files. Raises
    ImageError for a bad file.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[str | Path], size: int) -> None:
        self.paths, self.size = list(map(str, paths)), size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, S, S)."""
        return len(self.paths), self.size, self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        wanted = np.arange(len(self))[rows]
        if wanted.ndim == 0:
            return self._read(int(wanted))
        out = np.empty((len(wanted), self.size, self.size), np.uint8)
        with ThreadPoolExecutor(THREADS) as pool:
            for k, image in enumerate(pool.map(self._read, wanted.tolist())):
                out[k] = image
        return out

    def _read(self, row: int) -> NDArray[Any]:
        return to_bytes(crop_resize(read_image(self.paths[row]), self.size))


def to_bytes(images: NDArray[Any]) -> NDArray[Any]:
    """Convert images in [0, 1] to uint8."""
    return np.round(images * 255).astype(np.uint8)
