"""Run directories: atomic writes, locks and the provenance that makes a number traceable.

`python -m g2g_utils.runs compare A B` shows what differs between two runs and in their metrics.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
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


def disk_is_full(error: BaseException, folder: Path) -> str:
    """One line with the fix if an error came from a full disk (or quota), else nothing."""
    number = getattr(error, "errno", None)
    said = re.search("No space left|PytorchStreamWriter failed writing|quota exceeded", str(error))
    if number in (errno.ENOSPC, errno.EDQUOT) or said:
        return f"the disk of {folder} is full: make room there; then the same command goes on"
    return ""


def last_line(log: Path) -> str:
    """Last line of a job's log that is not empty; nothing without a log."""
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def processes() -> int:
    """How many processes `accelerate launch` started for this one task (torch's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", 1))


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
    """SHA-256 of every file below `folder` except its own run.json, by relative path.

    Shards of a cache are known by their size: they may be many gigabytes, and are asked often.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(folder)): _seal(p) for p in files if p.name[0] != "."}


def _seal(path: Path) -> str:
    """What tells that a file is whole: its SHA-256, or a shard's size."""
    shard = re.search(r"-\d+-of-\d+\.safetensors$", path.name)
    return f"{path.stat().st_size} bytes" if shard else file_digest(path)


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


# --- what differs between two runs ---------------------------------------------------------------

COMPARED = ("parameters", "settings", "git", "packages", "python", "machine", "inputs", "metrics")


def locate_record(place: Path) -> Path:
    """The record of a run: the file itself, run.json of its folder, or NAME.run.json beside it."""
    choices = (place, place / "run.json", place.with_suffix(".run.json"))
    found = next((path for path in choices if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{place} is no run: name a folder with run.json or a *.run.json")
    return found


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, names joined by dots; lists stay as they are."""
    if not isinstance(value, Mapping):
        return {name: value}
    parts = (flat(v, f"{name}.{k}" if name else str(k)) for k, v in value.items())
    return {key: v for part in parts for key, v in part.items()}


def compare(first: Path, second: Path) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Section -> name -> the two runs' values, where they differ (None: absent)."""
    records = [read_json(locate_record(place)) for place in (first, second)]
    found = {}
    for section in COMPARED:
        one, other = (flat(record.get(section) or {}) for record in records)
        names = [*one, *(name for name in other if name not in one)]
        pairs = {name: (one.get(name), other.get(name)) for name in names}
        found[section] = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return {section: pairs for section, pairs in found.items() if pairs}


def describe(differences: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> str:
    """A comparison as text: one line a difference; for numbers also second minus first."""
    lines = []
    for section, pairs in differences.items():
        lines.append(section)
        for name, (one, other) in pairs.items():
            both = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
            gap = f"  ({other - one:+.6g})" if both else ""
            lines.append(f"  {name:32} {_short(one)} -> {_short(other)}{gap}")
    return "\n".join(lines) or "no difference in " + ", ".join(COMPARED)


def _short(value: Any) -> str:
    """A value in at most 40 characters."""
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def main(arguments: list[str] | None = None) -> int:
    """`compare A B`; exit status 0 whether or not they differ, 2 for what is no run."""
    parser = argparse.ArgumentParser(prog="python -m g2g_utils.runs", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser("compare")
    command.add_argument("first", type=Path, help="folder with run.json, or a *.run.json")
    command.add_argument("second", type=Path)
    options = parser.parse_args(arguments)
    try:
        print(describe(compare(options.first, options.second)))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
