"""Large caches as numbered safetensors shards: written atomically, resumable, read lazily.

A shard holds the rows [first, first + count) of every column and, in its header, the digest of
what it was made from and a checksum of its columns. A killed run goes on at the next shard; one
that is truncated, damaged or made from other inputs is noticed and made again.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from g2g_utils import runs

ROWS = 2048  # of a shard: 128 MiB of Stable Diffusion's latents
PROBE = 8  # rows made before anything is written, for the estimate
OPEN_FILES = 64  # shards that a reader keeps open

Columns = dict[str, Tensor]  # name -> [rows, ...]
Maker = Callable[[range], Columns]


class ShardError(ValueError):
    """A cache that cannot be written or read: one line with the file, the problem and the fix."""


@dataclass(frozen=True)
class Shard:
    """One file of a cache: its rows and the digest of what they are made from."""

    path: Path
    rows: range
    digest: str

    def state(self) -> str:
        """ "sound", "absent", or why it must be made again."""
        if not self.path.is_file():
            return "absent"
        try:
            with safe_open(self.path, "pt") as file:
                header = (file.metadata() or {}).get("digest", "")
            made_from, _, checksum = header.partition(" ")
            if made_from != self.digest:
                return "made from other images or weights"
            whole = checksum == runs.once(_checksum_of, self.path)
        except (SafetensorError, OSError) as error:
            return f"truncated or damaged ({error})"
        return "sound" if whole else "damaged (its checksum does not match)"


def _checksum(columns: Columns) -> str:
    """SHA-256 over the names, types, shapes and bytes of columns."""
    found = hashlib.sha256()
    for name, column in sorted(columns.items()):
        found.update(f"{name} {column.dtype} {tuple(column.shape)};".encode())
        found.update(column.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _checksum_of(path: Path) -> str:
    """The checksum of a shard's columns as they lie on the disk."""
    return _checksum(load_file(path))


def layout(folder: Path, ids: Sequence[str], key: str, name: str, rows: int = ROWS) -> list[Shard]:
    """The shards of a cache over items `ids`; `key`: hash of everything else they depend on."""
    count = -(-len(ids) // rows)
    shards = []
    for k in range(count):
        span = range(k * rows, min((k + 1) * rows, len(ids)))
        path = folder / f"{name}-{k:05d}-of-{count:05d}.safetensors"
        shards.append(Shard(path, span, runs.digest([key, list(ids[span.start : span.stop])])))
    return shards


def write(
    folder: Path, ids: Sequence[str], make: Maker, *, key: str, name: str, rows: int = ROWS
) -> None:
    """Write the columns of all items; what is already there and sound is kept.

    make(rows) returns the columns [len(rows), ...] of those items. What is missing, its size and a
    time estimate are printed before it starts. Raises ShardError if the disk cannot hold it.
    """
    shards = layout(folder, ids, key, name, rows)
    if not shards:
        raise ShardError(f"{folder}: nothing to cache; the list of images is empty")
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(folder, name, {shard.path for shard in shards})
    missing = [shard for shard in shards if not _kept(shard)]
    if missing:
        _announce(folder, name, shards, missing, make)
    for shard in missing:
        _save(shard, make(shard.rows), len(shards))


def _kept(shard: Shard) -> bool:
    """True for a sound shard; one that must be made again is announced."""
    state = shard.state()
    if state not in ("sound", "absent"):
        print(f"warning: {shard.path} is {state}; it is made again", file=sys.stderr)
    return state == "sound"


def _tidy(folder: Path, name: str, wanted: set[Path]) -> None:
    """Remove shards of another division and what a killed run left half written."""
    for path in [*folder.glob(f"{name}*.safetensors"), *folder.glob(f".{name}-*.tmp")]:
        if path not in wanted:
            path.unlink()


def _announce(
    folder: Path, name: str, shards: list[Shard], missing: list[Shard], make: Maker
) -> None:
    """Print size and time of what is missing, from a few rows made for the purpose."""
    first = missing[0].rows
    probe = first[: min(PROBE, len(first))]
    make(probe[:1])  # warms up
    begin = time.perf_counter()
    columns = make(probe)
    seconds = (time.perf_counter() - begin) / len(probe)
    row = sum(column.nbytes for column in columns.values()) / len(probe)
    count = sum(len(shard.rows) for shard in missing)
    free = shutil.disk_usage(folder).free
    print(
        f"{name}: {count} of {shards[-1].rows.stop} items to make, {len(missing)} of {len(shards)} "
        f"shards, {_size(row * count)} in {folder} ({_size(free)} free), "
        f"about {_duration(seconds * count)}",
        file=sys.stderr,
    )
    if row * count > free:
        raise ShardError(
            f"{folder}: {_size(row * count)} are needed and {_size(free)} are free; free some or "
            "set G2G_BUILD to a folder on a larger disk, then run again (finished shards are kept)"
        )


def _save(shard: Shard, columns: Columns, count: int) -> None:
    """Write one shard atomically; a full disk is one clear line."""
    wrong = {name: len(c) for name, c in columns.items() if len(c) != len(shard.rows)}
    if wrong:
        raise ValueError(f"{shard.path}: {wrong} rows made where {len(shard.rows)} belong")
    content = save(  # one entry: several come in any order, and equal rows give equal bytes
        {name: column.contiguous() for name, column in columns.items()},
        metadata={"digest": f"{shard.digest} {_checksum(columns)}"},
    )
    try:
        with runs.atomic(shard.path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ShardError(
            f"{shard.path}: could not write {_size(len(content))} ({error.strerror or error}); "
            f"make room or set G2G_BUILD to a larger disk and run again: of {count} shards the "
            "finished ones are kept"
        ) from error


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


# ---------------------------------------------------------------- reading


class Column:
    """A column [n, ...] of a sharded cache, read from disk row by row when indexed.

    Index with an integer, a slice or a tensor of rows; gives float32 tensors. Only what is asked
    for is in memory (files are memory-mapped).
    """

    def __init__(self, folder: Path, name: str, column: str) -> None:
        self.column = column
        self.files = sorted(folder.glob(f"{name}*.safetensors"))
        if not self.files:
            raise ShardError(f"{folder}: no {name} there; delete the folder and make it again")
        self._open: Any = lru_cache(OPEN_FILES)(self._slice)
        shapes = [self._open(k).get_shape() for k in range(len(self.files))]
        self.ends = torch.tensor([shape[0] for shape in shapes]).cumsum(0)
        self.shape = torch.Size((int(self.ends[-1]), *shapes[0][1:]))

    def _slice(self, k: int) -> Any:
        """The column of shard `k`, not yet read."""
        try:
            return safe_open(self.files[k], "pt").get_slice(self.column)
        except (SafetensorError, OSError) as error:
            raise ShardError(
                f"{self.files[k]}: truncated or damaged ({error}); delete it and run again"
            ) from error

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Tensor) -> Tensor:
        wanted = torch.arange(len(self))[rows]
        flat = wanted.reshape(-1)
        shard = torch.searchsorted(self.ends, flat, right=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.long), self.ends])[shard]
        found = [
            self._open(k)[row : row + 1].float()  # autocast on CPUs cannot join float16
            for k, row in zip(shard.tolist(), (flat - starts).tolist(), strict=True)
        ]
        values = torch.cat(found) if found else torch.empty(0, *self.shape[1:])
        return values.reshape(*wanted.shape, *self.shape[1:])
