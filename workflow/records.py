"""Records that jobs write last: where one or what it names is damaged, its step runs again."""

import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from g2g_utils import runs

ROOM = 2**20  # bytes; with less a disk counts as full
SHOWN: set[Path] = set()  # records that a dry run would make again


def damage(record: Path) -> str:
    """What is wrong with a run's record or with an output that it names; empty if nothing."""
    try:
        for name, digest in runs.read_json(record)["outputs"].items():
            place = record.parent / name
            if not place.is_file():
                return f"{place.name} is gone"
            if runs.file_digest(place) != digest:
                return f"{place.name} is no longer what the run wrote"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return "its record is damaged"
    return ""


def forget(lost: Mapping[Path, str]) -> None:
    """Say why these records no longer count, and remove them, so that their steps run again.

    They then also do so after a kill. A dry run removes nothing, and only shows those steps.
    """
    for record, why in lost.items():
        name = "/".join(record.parts[-2:])
        print(f"[g2g] warning: {name}: {why}; that step runs again", file=sys.stderr)
        if "--dry-run" in sys.argv:
            SHOWN.add(record)
        else:
            record.unlink()


def full_disk(folder: Path) -> str:
    """One line where hardly any room is left; a program that finds none may not say so itself."""
    if shutil.disk_usage(folder).free >= ROOM:
        return ""
    return f"[g2g] the disk of {folder} is full: make room there; then the same command goes on"


def key(value: Any, written: Iterable[Path]) -> Any:
    """What decides whether a step runs again; another value where a dry run is to show that.

    written: the step's records. (Snakemake compares no parameter that is made from `output`.)
    """
    return value if SHOWN.isdisjoint(written) else [value, "again"]
