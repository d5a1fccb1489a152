"""Run directories: atomic writes, locks and the provenance that makes a number traceable.

`python -m g2g_utils.runs compare A B` shows what differs between two runs and in their metrics.
"""

from __future__ import annotations

import argparse
import errno
import glob
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "scikit-learn")
CODE = ("g2g_utils", "workflow", "configs", "notebooks")  # folders whose new files are changes
SUFFIXES = (".py", ".yaml", ".smk")  # of those files
FIGURES = "figures"  # written by every run, so never a change


def digest(value: Any, length: int = 12) -> str:
    """Stable short hash of anything JSON can hold (paths and tuples included)."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def settings_id(config: Any) -> str:
    """Profile and hash of all its settings: what a claim or a figure was computed under."""
    return f"{config.profile}-{digest(config.model_dump())}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def once(measure: Callable[[Path], str], path: Path) -> str:
    """measure(path), taken once a process while the file's size and time stay what they are."""
    found = path.stat()
    return _measured(measure, path, found.st_size, found.st_mtime_ns)


@cache
def _measured(measure: Callable[[Path], str], path: Path, size: int, modified: int) -> str:
    return measure(path)


# --- atomic writes -------------------------------------------------------------------------------


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` (file or folder to create); renamed only on success.

    A folder that is there stands aside (see `standing`) until the new one is in its place. What
    processes of this machine that are gone left of the same target is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, left in _temporaries(path).items():
        if not _alive(number):
            _remove(left)
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            _remove(_aside(path))
            os.rename(path, _aside(path))
        os.replace(temporary, path)
        if path.is_dir():
            _remove(_aside(path))
    finally:
        _remove(temporary)


def standing(path: Path) -> Path:
    """`path`, or what stands aside if a kill while `atomic` replaced a folder left only that."""
    return path if path.exists() or not _aside(path).exists() else _aside(path)


def tidy(path: Path) -> None:
    """Clear up after killed writers of a folder, of any machine; only its one writer may ask.

    What they left half written goes; what stands aside goes back where only it is there.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove(left)
    if standing(path) != path:
        os.rename(_aside(path), path)
    _remove(_aside(path))


def _aside(path: Path) -> Path:
    """Where a folder stands while it is replaced."""
    return path.with_name(f".{path.name}.old")


def _machine() -> str:
    """A short name of this machine: process numbers mean nothing on another."""
    return digest(platform.node(), 6)


def _temporaries(path: Path) -> dict[int, Path]:
    """Process number -> what that process of this machine wrote, or writes, for `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_machine()}-(\d+)\.tmp")
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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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


FULL = re.compile(
    "No space left|quota exceeded|PytorchStreamWriter failed writing"
    r"|inline_container.*unexpected pos|\d+ requested and \d+ written"  # torch.save, np.save
)


def disk_is_full(error: BaseException, folder: Path) -> str:
    """One line with the fix if an error, or one behind it, came from a full disk (or quota)."""
    for each in _chain(error):
        number = getattr(each, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or FULL.search(str(each)):
            return f"the disk of {folder} is full: make room there; then the same command goes on"
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those it was raised from, or while they were handled."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]


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
    """Commit and dirty flag of the working tree, or nulls outside a checkout.

    Dirty: a tracked file was changed, or code is there that git neither tracks nor ignores.
    Figures do not count: a run draws them anew.
    """

    def git(*words: str) -> str | None:
        try:
            run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        except OSError:
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    code = [f"{folder}/*{suffix}" for folder in CODE for suffix in SUFFIXES]
    inputs = (".", f":(exclude){FIGURES}")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *inputs)
    added = git("ls-files", "--others", "--exclude-standard", "--", *code)
    dirty = None if changed is None else bool(changed or added)
    return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}


def processor() -> str:
    """The processor's model where Linux tells it, else its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def provenance(started: float | None = None) -> dict[str, Any]:
    """Versions, commit, machine, wall seconds since `started` and this process's peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return {
        "git": git_state(Path(__file__).resolve().parents[2]),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cpu_count": os.cpu_count(),
        },
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": None if started is None else round(time.time() - started, 2),
        "peak_memory_mib": round(peak / (2**20 if platform.system() == "Darwin" else 2**10)),
    }


# --- records of what was made --------------------------------------------------------------------


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every output below `folder`, by relative path."""
    return {name: _seal(path) for name, path in _outputs(folder).items()}


def _outputs(folder: Path) -> dict[str, Path]:
    """Relative path -> file, for all below `folder` that is neither hidden nor a run.json."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "run.json")
    named = {str(p.relative_to(folder)): p for p in files}
    return {name: path for name, path in named.items() if not _hidden(name)}


def _hidden(name: str) -> bool:
    """True if a part of a relative path begins with a dot: locks and what is half written."""
    return any(part.startswith(".") for part in Path(name).parts)


def _seal(path: Path) -> str:
    """SHA-256 of a file. Shards may be many gigabytes, asked for often: read once a process."""
    shard = re.search(r"-\d+-of-\d+\.safetensors$", path.name)
    return once(file_digest, path) if shard else file_digest(path)


def sound_record(path: Path, needed: Iterable[str] = ("key", "outputs")) -> dict[str, Any] | None:
    """A run's record with the needed fields; None if absent, or damaged (with a warning)."""
    if not path.is_file():
        return None
    try:
        return _read_record(path, needed)
    except (ValueError, OSError) as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def _read_record(path: Path, needed: Iterable[str]) -> dict[str, Any]:
    """A mapping with the needed fields, or a ValueError that names the file."""
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("outputs", {}), dict):
        raise ValueError(f"{path}: damaged, no record of a run; delete it and run again")
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"{path}: damaged, without {', '.join(missing)}; delete it and run again")
    return found


def intact(folder: Path) -> bool:
    """True if run.json exists and every output it names is there as it was, and no other."""
    found = sound_record(folder / "run.json", ["outputs"])
    if found is None:
        return False
    seals = {name: seal for name, seal in found["outputs"].items() if not _hidden(name)}
    try:
        files = _outputs(folder)
        return files.keys() == seals.keys() and all(_fits(files[n], s) for n, s in seals.items())
    except OSError:
        return False


def _fits(path: Path, seal: str) -> bool:
    """True if a file has its recorded hash; older records know shards by their size."""
    return seal == f"{path.stat().st_size} bytes" or seal == _seal(path)


def leads_to_product(record: Path) -> bool:
    """True if the workflow's record of a product can be read, and so can its folder's run.json."""
    found = sound_record(record, ["folder"])
    if found is None:
        return False
    return sound_record(Path(str(found["folder"])) / "run.json", ["key"]) is not None


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


class _Absent:
    """The value of a name that a run does not have (null is a value)."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def compare(first: Path, second: Path) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Section -> name -> the two runs' values (maybe ABSENT), where they differ."""
    records = [_read_record(locate_record(place), []) for place in (first, second)]
    found = {}
    for section in COMPARED:
        one, other = (flat(record.get(section) or {}) for record in records)
        names = [*one, *(name for name in other if name not in one)]
        pairs = {name: (one.get(name, ABSENT), other.get(name, ABSENT)) for name in names}
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
            lines.append(f"  {name:32} {' -> '.join(_short(one, other))}{gap}")
    return "\n".join(lines) or "no difference in " + ", ".join(COMPARED)


WIDTH = 40  # characters of a value


def _short(one: Any, other: Any) -> list[str]:
    """Two values as JSON; long ones cut to about WIDTH characters around where they part."""
    texts = [repr(v) if v is ABSENT else json.dumps(v, ensure_ascii=False) for v in (one, other)]
    if max(map(len, texts)) <= WIDTH:
        return texts
    pairs = enumerate(zip(*texts, strict=False))
    parting = next((k for k, (a, b) in pairs if a != b), min(map(len, texts)))
    start = max(0, parting - WIDTH // 2)
    cut = [text[start : start + WIDTH] for text in texts]
    left = "…" * bool(start)
    return [left + c + "…" * (start + WIDTH < len(t)) for c, t in zip(cut, texts, strict=True)]


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
