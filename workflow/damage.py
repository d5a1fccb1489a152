"""Records that jobs write last. A step runs again if its record or an output is damaged."""

import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from g2g_utils import runs

ROOM = 2**20  # bytes; with less a disk counts as full
SHOWN: set[Path] = set()  # records that a dry run would make again


def found(record: Path) -> str:
    """Fault of a run's record or of an output that it names; empty if there is none."""
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

    They run again after a kill too. A dry run removes nothing and only shows those steps.
    """
    for record, why in lost.items():
        name = "/".join(record.parts[-2:])
        print(f"[g2g] warning: {name}: {why}; that step runs again", file=sys.stderr)
        if "--dry-run" in sys.argv:
            SHOWN.add(record)
        else:
            record.unlink()


def full_disk(folder: Path) -> str:
    """Print one line if hardly any room is left, since the failing program may not say so."""
    if shutil.disk_usage(folder).free >= ROOM:
        return ""
    return f"[g2g] the disk of {folder} is full: make room there; then the same command goes on"


def key(value: Any, written: Iterable[Path]) -> Any:
    """A value that makes a step run again when it changes; a dry run changes it to show such steps.

    Snakemake compares no parameter that is made from `output`.

    Args:
        written: records of the step.
    """
    return value if SHOWN.isdisjoint(written) else [value, "again"]
