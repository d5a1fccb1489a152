"""Records of runs: provenance that makes a number traceable, and checks of what was written."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from g2g_utils.runs.files import digest, file_digest, once, read_json, write_json

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "scikit-learn")
CODE = ("g2g_utils", "workflow", "configs", "notebooks")  # folders whose new files are changes
SUFFIXES = (".py", ".yaml", ".smk")  # of those files
FIGURES = "figures"  # every run writes there, so a difference there is no change of the code
LARGE = 2**24  # bytes; larger files are hashed once a process


class Settings(Protocol):
    """A profile's settings, as records need them (`config.Config` is one)."""

    @property
    def profile(self) -> str:
        """Name of the profile."""

    def model_dump(self) -> dict[str, Any]:
        """All settings as plain data."""


def settings_id(settings: Settings) -> str:
    """Profile and hash of all its settings: the origin of a claim or a figure."""
    return f"{settings.profile}-{digest(settings.model_dump())}"


def processes() -> int:
    """Number of processes that `accelerate launch` started for this task (torch's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Number of this process in its group (torch's RANK); 0 without a group."""
    return int(os.environ.get("RANK", 0))


def git_state(root: Path) -> dict[str, Any]:
    """Commit and dirty flag of the working tree, or nulls outside a checkout.

    Dirty: a tracked file was changed, or git neither tracks nor ignores a file of code. Figures do
    not count: a run draws them anew.
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
    """The processor's model if Linux tells it, else its architecture."""
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


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every output below `folder`, by relative path."""
    return {name: _seal(path) for name, path in _outputs(folder).items()}


def _outputs(folder: Path) -> dict[str, Path]:
    """Files below `folder` by relative path, without hidden ones and run.json."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "run.json")
    named = {str(p.relative_to(folder)): p for p in files}
    return {name: path for name, path in named.items() if not _hidden(name)}


def _hidden(name: str) -> bool:
    """True if a part of a relative path begins with a dot, as locks and temporary files do."""
    return any(part.startswith(".") for part in Path(name).parts)


def _seal(path: Path) -> str:
    """SHA-256 of a file. Records of large ones are checked often, so these are read only once."""
    return once(file_digest, path) if path.stat().st_size >= LARGE else file_digest(path)


def sound_record(path: Path, needed: Iterable[str] = ("key", "outputs")) -> dict[str, Any] | None:
    """Read a run's record with the needed fields; None if absent, or damaged (with a warning)."""
    if not path.is_file():
        return None
    try:
        return _read_record(path, needed)
    except (ValueError, OSError) as error:
        print(f"warning: {error}", file=sys.stderr)
        return None


def _read_record(path: Path, needed: Iterable[str]) -> dict[str, Any]:
    """Read a mapping with the needed fields. Raises ValueError that names the file."""
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get("outputs", {}), dict):
        raise ValueError(f"{path}: damaged, no record of a run; delete it and run again")
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"{path}: damaged, without {', '.join(missing)}; delete it and run again")
    return found


def intact(folder: Path) -> bool:
    """True if run.json exists and the folder holds exactly the outputs that it names, unchanged."""
    found = sound_record(folder / "run.json", ["outputs"])
    if found is None:
        return False
    seals = {name: seal for name, seal in found["outputs"].items() if not _hidden(name)}
    try:
        files = _outputs(folder)
        return files.keys() == seals.keys() and all(_seal(files[n]) == s for n, s in seals.items())
    except OSError:
        return False


def leads_to_product(record: Path) -> bool:
    """True if the workflow's record of a product and the run.json of its folder can be read."""
    found = sound_record(record, ["folder"])
    if found is None:
        return False
    return sound_record(Path(str(found["folder"])) / "run.json", ["key"]) is not None


def record(folder: Path, started: float, **fields: Any) -> None:
    """Write run.json, last: the given fields, then provenance and output hashes."""
    write_json(folder / "run.json", {**fields, **provenance(started), "outputs": hashes(folder)})
