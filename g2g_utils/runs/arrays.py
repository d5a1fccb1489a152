"""Large arrays on disk: written in blocks of rows, resumable, checked, read as memory maps.

A folder holds NAME.npy of every column, [n, ...], and blocks.json with a hash of the inputs and a
checksum of every finished block. A killed run goes on at the next block. A damaged block is found
by its checksum, and only that block is made again.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from g2g_utils.runs.files import digest, disk_is_full, read_json, write_json

BLOCKS = "blocks.json"
ROWS = 2048  # rows of a block: 128 MiB of Stable Diffusion's latents
PROBE = 8  # rows made before anything is written, for the estimate of size and time

Columns = Mapping[str, NDArray[Any]]  # name -> [rows, ...]
Maker = Callable[[range], Columns]


class ArrayError(ValueError):
    """Arrays that cannot be written or read: one line with the file, the problem and the fix."""


@dataclass(frozen=True)
class _Column:
    """One array of a folder. Rows are written with plain writes.

    (A write into a memory map of a full disk would end the process.)
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]  # n, ...

    def prepare(self) -> None:
        """Give the file its header and full length; keeps the rows that are there."""
        self.path.touch()
        with open(self.path, "r+b") as file:
            names = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, names)  # type: ignore[no-untyped-call]
            file.truncate(file.tell() + self.dtype.itemsize * int(np.prod(self.shape)))

    def map(self) -> np.memmap[Any, Any]:
        """The whole array, memory-mapped."""
        found: np.memmap[Any, Any] = np.load(self.path, mmap_mode="r")
        return found

    def put(self, start: int, rows: NDArray[Any]) -> None:
        """Write rows from row `start` on."""
        if rows.shape[1:] != self.shape[1:] or rows.dtype != self.dtype:
            raise ValueError(f"{self.path}: rows {rows.dtype} {rows.shape} do not fit {self.shape}")
        with open(self.path, "r+b") as file:
            file.seek(self.map().offset + start * rows[0].nbytes)
            file.write(rows.data)


def write(
    folder: Path,
    ids: Sequence[str],
    make: Maker,
    *,
    key: str,
    name: str,
    batch: int,
    rows: int = ROWS,
) -> None:
    """Write the columns of all items; keeps the sound blocks that are there.

    Prints the number of missing items, their size and a time estimate before it starts.

    Args:
        folder: its only writer is this process.
        ids: one for each item; together they tell the inputs apart.
        make: returns the columns [len(rows), ...] of at most `batch` rows.
        key: hash of everything else that the columns depend on.
        name: of the items, for messages.
        batch: rows that are made at once.
        rows: rows of a block.

    Raises:
        ArrayError: there are no items, or the disk cannot hold them.
    """
    if not ids:
        raise ArrayError(f"{folder}: nothing to cache; the list of images is empty")
    folder.mkdir(parents=True, exist_ok=True)
    spans = [range(k, min(k + rows, len(ids))) for k in range(0, len(ids), rows)]
    origin = digest([key, rows, list(ids)])
    sums = _sound(folder, origin, spans)
    missing = [span for span, found in zip(spans, sums, strict=True) if not found]
    if not missing:
        return
    example = _announce(folder, name, spans, missing, make)
    done = len(ids) - sum(map(len, missing))
    with _full_disk(folder), tqdm(total=len(ids), initial=done, desc=name, mininterval=2) as bar:
        columns = _columns(folder, example, len(ids))
        for span in missing:
            sums[span.start // rows] = _fill(columns, span, make, batch, bar)
            shapes = {n: [c.dtype.str, c.shape] for n, c in columns.items()}
            write_json(folder / BLOCKS, {"origin": origin, "columns": shapes, "sums": sums})


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """Turn the error of a full disk into an ArrayError."""
    try:
        yield
    except OSError as error:
        if full := disk_is_full(error, folder):
            more = "finished blocks are kept; G2G_BUILD may name a folder on a larger disk"
            raise ArrayError(f"{full} ({more})") from error
        raise


def _sound(folder: Path, origin: str, spans: list[range]) -> list[str]:
    """Checksums of the blocks that are as they were written, "" for all others (with a warning)."""
    none = [""] * len(spans)
    if not (folder / BLOCKS).is_file():
        return none
    try:
        record = read_json(folder / BLOCKS)
        if record["origin"] != origin:
            raise ValueError(f"{folder} is made from other images or weights")
        columns = [
            _Column(folder / f"{name}.npy", np.dtype(dtype), tuple(shape))
            for name, (dtype, shape) in record["columns"].items()
        ]
        sums = list(zip(spans, record["sums"], strict=True))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"warning: {error}; it is made again", file=sys.stderr)
        return none
    for column in columns:
        column.prepare()
    maps = {column.path.stem: column.map() for column in columns}
    return [known if _fits(folder, maps, span, known) else "" for span, known in sums]


def _fits(folder: Path, maps: Columns, span: range, known: str) -> bool:
    """True if a finished block has its checksum; False and a warning if it is damaged."""
    if not known:
        return False
    hashes = {name: hashlib.sha256(m[span.start : span.stop].data) for name, m in maps.items()}
    sound = _checksum(hashes) == known
    if not sound:
        rows = f"rows {span.start} to {span.stop - 1}"
        print(f"warning: {folder}: {rows} are damaged; they are made again", file=sys.stderr)
    return sound


def _checksum(hashes: Mapping[str, Any]) -> str:
    """One checksum of a block from those of its columns."""
    return digest({name: found.hexdigest() for name, found in hashes.items()}, 64)


def _columns(folder: Path, example: Columns, count: int) -> dict[str, _Column]:
    """Files for `count` rows like those of the example, ready to be filled."""
    columns = {
        name: _Column(folder / f"{name}.npy", rows.dtype, (count, *rows.shape[1:]))
        for name, rows in example.items()
    }
    for column in columns.values():
        column.prepare()
    return columns


def _fill(
    columns: Mapping[str, _Column], span: range, make: Maker, batch: int, bar: tqdm[Any]
) -> str:
    """Make and write one block, batch by batch; returns its checksum."""
    hashes = {name: hashlib.sha256() for name in columns}
    for start in range(span.start, span.stop, batch):
        rows = range(start, min(start + batch, span.stop))
        for name, made in make(rows).items():
            if len(made) != len(rows):
                raise ValueError(f"{name}: {len(made)} rows made where {len(rows)} belong")
            values = np.ascontiguousarray(made)
            columns[name].put(start, values)
            hashes[name].update(values.data)
        bar.update(len(rows))
    return _checksum(hashes)


def _announce(
    folder: Path, name: str, spans: list[range], missing: list[range], make: Maker
) -> Columns:
    """Print size and time of all that is missing, judged by a few rows; returns these rows."""
    probe = missing[0][:PROBE]
    make(probe[:1])  # warms up
    begin = time.perf_counter()
    columns = make(probe)
    seconds = (time.perf_counter() - begin) / len(probe)
    row = sum(column.nbytes for column in columns.values()) / len(probe)
    count = sum(map(len, missing))
    free = shutil.disk_usage(folder).free
    print(
        f"{name}: {count} of {spans[-1].stop} items to make, {len(missing)} of {len(spans)} "
        f"blocks, {_size(row * count)} in {folder} ({_size(free)} free), "
        f"about {_duration(seconds * count)}",
        file=sys.stderr,
    )
    if row * count > free:
        raise ArrayError(
            f"{folder}: {_size(row * count)} are needed and {_size(free)} are free; free some or "
            "set G2G_BUILD to a folder on a larger disk, then run again (finished blocks are kept)"
        )
    return columns


def read(folder: Path, name: str) -> NDArray[Any]:
    """A column [n, ...] as a memory map: only the rows that are indexed are read.

    Writing into it changes the copy in memory, never the file. Raises ArrayError if it is missing
    or truncated.
    """
    path = folder / f"{name}.npy"
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError) as error:
        raise ArrayError(
            f"{path}: missing or damaged ({error}); delete {folder} and run again"
        ) from error
    return found


def _size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
