"""Lists of what a loader kept and dropped, and why: written beside the run, read back next time."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from g2g_utils import runs
from g2g_utils.data.record import Example

KEPT = ("image", "phrase", "image_id", "subject_id", "split")


@dataclass(frozen=True, slots=True)
class Dropped:
    """An image or a report that gives no pair. `detail` adds to the reason."""

    image_id: str
    subject_id: str
    split: str
    reason: str
    detail: str = ""


class Selection(NamedTuple):
    """Pairs of a split, the images and reports dropped, and facts for the summary."""

    examples: list[Example]
    dropped: list[Dropped]
    facts: dict[str, Any]


def summary(selection: Selection) -> dict[str, Any]:
    """Counts of the kept images and of every reason to drop one."""
    return {
        "kept": len(selection.examples),
        "subjects": len({example.subject_id for example in selection.examples}),
        "dropped": dict(Counter(item.reason for item in selection.dropped).most_common()),
        **selection.facts,
    }


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with runs.atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(header)
        out.writerows(rows)


def write(folder: Path, name: str, selection: Selection, key: str = "") -> Path:
    """Write `NAME-kept.csv`, `NAME-dropped.csv`, and last `NAME.json` with the counts and the key.

    Both tables name patients' images and hold report text: the folder must lie below build/.
    """
    kept = ((e.image, e.phrase, e.image_id, e.subject_id, e.split) for e in selection.examples)
    _write_csv(folder / f"{name}-kept.csv", KEPT, kept)
    columns = [field.name for field in fields(Dropped)]
    dropped = ([getattr(item, column) for column in columns] for item in selection.dropped)
    _write_csv(folder / f"{name}-dropped.csv", columns, dropped)
    runs.write_json(folder / f"{name}.json", {"key": key, **summary(selection)})
    return folder / f"{name}.json"


def read(folder: Path, name: str, key: str) -> list[Example] | None:
    """Pairs of an earlier run with the same key, or None."""
    record = folder / f"{name}.json"
    if not record.is_file() or runs.read_json(record).get("key") != key:
        return None
    with (folder / f"{name}-kept.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != runs.read_json(record)["kept"]:
        return None
    return [
        Example(Path(r["image"]), r["phrase"], None, (), r["image_id"], r["subject_id"], r["split"])
        for r in rows
    ]
