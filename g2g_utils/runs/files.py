"""Files that survive crashes: atomic writes, locks, hashes, JSON and the signs of a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock


def digest(value: Any, length: int = 12) -> str:
    """Hash anything that JSON can hold (paths and tuples included) to `length` hex digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def once(measure: Callable[[Path], str], path: Path) -> str:
    """Return measure(path), cached in this process until the file's size or time changes."""
    found = path.stat()
    return _measured(measure, path, found.st_size, found.st_mtime_ns)


@cache
def _measured(measure: Callable[[Path], str], path: Path, size: int, modified: int) -> str:
    return measure(path)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; it replaces `path` only if the block succeeds.

    Removes temporary files that dead processes on this machine left for the same target.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, left in _temporaries(path).items():
        if not _alive(number):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{machine()}-{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def machine() -> str:
    """Short name of this machine: process numbers mean nothing on another."""
    return digest(platform.node(), 6)


def _temporaries(path: Path) -> dict[int, Path]:
    """Temporary files that processes of this machine write for `path`, by process number."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{machine()}-(\d+)\.tmp")
    found = ((pattern.fullmatch(sibling.name), sibling) for sibling in path.parent.iterdir())
    return {int(match[1]): sibling for match, sibling in found if match}


def _alive(number: int) -> bool:
    """True if this machine has a process of that number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the given order. Raises ValueError for NaN (use None)."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=_plain, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Arrays and tensors as numbers, anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises ValueError with the file and the fix if it is damaged."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged JSON ({error}); delete it and run again") from None


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock on `path` against other processes; the kernel releases it if this one dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


FULL = re.compile(
    "No space left|quota exceeded|PytorchStreamWriter failed writing"
    r"|inline_container.*unexpected pos|\d+ requested and \d+ written"  # torch.save, np.save
)


def disk_is_full(error: BaseException, folder: Path) -> str:
    """One line with the fix if a full disk (or quota) caused the error; else an empty string."""
    for each in _chain(error):
        number = getattr(each, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or FULL.search(str(each)):
            return f"the disk of {folder} is full: make room there; then the same command goes on"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and all errors that it was raised from, or while they were handled."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


def last_line(log: Path) -> str:
    """Last line of a job's log that is not empty; an empty string without a log."""
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
