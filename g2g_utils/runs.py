"""Run directories: atomic writes, locks and the provenance that makes a number traceable.

`python -m g2g_utils.runs compare A B` shows what differs between two runs and in their metrics.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "scikit-learn")


def digest(value: Any, length: int = 12) -> str:
    """Stable short hash of anything JSON can hold (paths and tuples included)."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (file or folder to create); renamed only on success."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            _remove(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    """Delete a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the given order, NaN refused (use None)."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=_plain, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Numbers out of arrays and tensors, text out of paths."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def read_json(path: Path) -> Any:
    """Read a JSON file; a damaged one is an error that names it and the fix."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged JSON ({error}); delete it and run again") from None


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an inter-process lock on `path` (released by the kernel when the process dies)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield


def report(metrics: Mapping[str, Any]) -> None:
    """Hand numbers of a notebook over to its run: they go to the file named by G2G_METRICS.

    Later calls add to earlier ones; NaN and infinities become null. Without that variable (a
    notebook opened by hand) nothing is written. Values that are no numbers are an error.
    """
    target = os.environ.get("G2G_METRICS")
    if not target:
        return
    path = Path(target)
    known = read_json(path) if path.exists() else {}
    write_json(path, {**known, **{name: _number(name, v) for name, v in metrics.items()}})


def _number(name: str, value: Any) -> float | int | None:
    """A finite number, or None in the place of NaN and infinities."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float):
        raise TypeError(f"metric {name!r} = {value!r} is no number: report numbers only")
    return value if math.isfinite(value) else None


def rank() -> int:
    """Number of this process in its group (torch's RANK); 0 without a group."""
    return int(os.environ.get("RANK", 0))


def git_state(root: Path) -> dict[str, Any]:
    """Commit and dirty flag of the working tree, or nulls outside a checkout."""

    def git(*words: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        except OSError:
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def provenance(started: float | None = None) -> dict[str, Any]:
    """Versions, commit, machine, wall seconds since `started` and this process's peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return {
        "git": git_state(Path(__file__).resolve().parent.parent),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "cpu_count": os.cpu_count()},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": None if started is None else round(time.time() - started, 2),
        "peak_memory_mib": round(peak / (2**20 if platform.system() == "Darwin" else 2**10)),
    }


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` except its own run.json, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(folder)): file_digest(p) for p in files if p.name[0] != "."}


def intact(folder: Path) -> bool:
    """True if run.json exists and every output it names is there with its recorded hash."""
    record = folder / "run.json"
    if not record.is_file():
        return False
    try:
        return hashes(folder) == read_json(record)["outputs"]
    except (ValueError, KeyError, OSError):
        return False


def holds(record: Path, names: Iterable[str]) -> bool:
    """True if a run's record can be read and each named output has the hash it recorded."""
    try:
        outputs = read_json(record)["outputs"]
        return all(file_digest(record.parent / name) == outputs[name] for name in names)
    except (ValueError, KeyError, TypeError, OSError):
        return False


def leads_to_product(record: Path) -> bool:
    """True if the workflow's record of a product can be read and its folder holds a run.json."""
    try:
        return (Path(read_json(record)["folder"]) / "run.json").exists()
    except (ValueError, KeyError, TypeError):
        return False


def record(folder: Path, started: float, **fields: Any) -> None:
    """Write run.json, last: parameters and metrics, then provenance and output hashes."""
    write_json(folder / "run.json", {**fields, **provenance(started), "outputs": hashes(folder)})
