"""Grounding of every row of a table (columns image, phrase), for `ground` on the command line.

The model is loaded once, and not at all where nothing is missing. Every pair has a folder named by
its request, written file by file, so a run that was killed goes on where it stopped. Bad rows are
listed with their line and fix; the good ones are done.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from g2g_utils import runs
from g2g_utils.data import tables
from g2g_utils.data.files import Images
from g2g_utils.data.record import Example
from g2g_utils.experiment import coco, ground_file
from g2g_utils.experiment.ground_file import Asked
from g2g_utils.runs import places

if TYPE_CHECKING:
    from g2g_utils.models import GroundingModel

COLUMNS = ("image", "phrase")
CHUNK = 8  # pairs between two writes, at least
SHOWN = 20  # problems on the screen; the file has all
PAIR = "the pair is left out; mend this line and run the command again"


@dataclass(frozen=True)
class Wanted:
    """What is written for every pair, and how masks are cut."""

    threshold: float | None = None  # of the heat map; None: the method's own mask
    overlays: bool = True
    dicom: bool = False  # also a DICOM segmentation of every film that is DICOM

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(f"--threshold {self.threshold:g}: choose from 0 to below 1")


@dataclass(frozen=True)
class Pair:
    """One line of the table whose image is there and whose phrase can be read."""

    row: tables.Row
    name: str  # of the image, as the table has it
    image: Path
    phrase: str
    size: tuple[int, int]  # height and width of the file

    def error(self, problem: object) -> tables.TableError:
        """A complaint about this line."""
        return self.row.error(str(problem), PAIR)


@dataclass
class Job:
    """A table on its way: its pairs, where they go, and what is wrong with the others."""

    asked: Asked
    wanted: Wanted
    folder: Path
    pairs: list[Pair]
    problems: list[tables.TableError] = field(default_factory=list)

    @cached_property
    def places(self) -> dict[int, Path]:
        """Folder of every pair, by its number."""
        pairs = self.folder / "pairs"
        return {n: pairs / self.asked.name(p.image, p.phrase) for n, p in enumerate(self.pairs)}

    def done(self, number: int) -> bool:
        """True if all files of a pair are there."""
        names = ["maps.npz", "grounding.json"] + ["overlay.png"] * self.wanted.overlays
        return all((self.places[number] / name).is_file() for name in names)


def ground_table(
    config: Any,
    table: Path,
    *,
    arm: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    method: ground_file.Method = "attention",
    wanted: Wanted | None = None,
) -> tuple[list[Path], int]:
    """Ground every row of a CSV with the columns image and phrase; other columns are ignored.

    Writes <out>/<table>-<digest>/ with pairs/ (a folder each, as `ground_file` writes it),
    results.csv, coco.json and problems.csv. What is there already is not made again.

    Args:
        config: the profile.
        table: image names are relative to its folder.
        out: folder for results (default: build/<profile>/grounded).
        arm, seed, method: see `Asked`.
        wanted: see `Wanted`.

    Returns:
        Paths of the tables written, and the number of rows that could not be grounded.

    Raises:
        ValueError: the table cannot be read, or the arm or method is unknown; one line.
    """
    asked, wanted = Asked(config, arm, seed, method), wanted or Wanted()
    if wanted.dicom:
        from g2g_utils.experiment import dicom_seg

        dicom_seg.check_installed()
    problems: list[tables.TableError] = []
    pairs = read(asked, Path(table), problems)
    place = ground_file.writable(out or places.build(config) / "grounded")
    digest = runs.digest([asked.settings, asked.weights], 8)
    job = Job(asked, wanted, place / f"{ground_file.short_name(table.stem)}-{digest}", pairs)
    job.problems = problems
    with runs.lock(job.folder / "lock"):
        _make_missing(job)
        return _write_tables(job), len(job.problems)


def read(asked: Asked, table: Path, problems: list[tables.TableError]) -> list[Pair]:
    """The pairs of a table; a bad line goes to `problems`. Equal lines are one pair."""
    images = Images([table.parent])
    found: dict[tuple[Path, str], Pair] = {}
    for row in tables.read(table, COLUMNS):
        with tables.tolerate(problems):
            pair = _pair(asked, row, images)
            found.setdefault((pair.image, pair.phrase), pair)
    return list(found.values())


def _pair(asked: Asked, row: tables.Row, images: Images) -> Pair:
    """One line, checked as far as can be without reading pixels."""
    from g2g_utils import text

    phrase = row.phrase("phrase", "the phrase is empty", "write what to look for")
    try:
        text.check_phrase(phrase, ground_file.word_filter(asked.config))
    except ValueError as error:
        raise row.error(str(error), "write a finding and where it lies", "phrase") from None
    name = Path(row.text("image", "the image name is empty", "name an image file")).as_posix()
    image = images.find(row, "image", name)
    return Pair(row, name, image, phrase, images.size(image))


def _make_missing(job: Job) -> None:
    """Ground the pairs that are not there yet, chunk by chunk; the model is loaded for them."""
    from tqdm.auto import tqdm

    missing = [number for number in range(len(job.pairs)) if not job.done(number)]
    if not missing:
        return
    grounding = job.asked.config.grounding
    chunk = max(CHUNK, grounding.batch_size // grounding.timesteps)
    model = ground_file.load_model(job.asked)
    with tqdm(total=len(missing), desc="pairs", unit="pair") as bar:
        for start in range(0, len(missing), chunk):
            numbers = missing[start : start + chunk]
            _make(job, model, numbers)
            bar.update(len(numbers))


def _make(job: Job, model: GroundingModel, numbers: Sequence[int]) -> None:
    """Ground and write some pairs. If one of them cannot be, the others are done one by one."""
    examples: dict[int, Example] = {}
    for number in numbers:
        pair = job.pairs[number]
        try:
            example = ground_file.example_of_file(job.asked.config, pair.image, pair.phrase)
        except ValueError as error:
            job.problems.append(pair.error(error))
        else:
            examples[number] = replace(example, image_id=str(pair.image))
    for some in _groups(job, model, examples):
        for number, (result, told) in some.items():
            pair = job.pairs[number]
            about = job.asked.about(pair.image, examples[number].phrase)
            report = {**ground_file.report_of(result, pair.image), **told, **about}
            film = ground_file.film_of(pair.image) if job.wanted.overlays else None
            ground_file.write_files(
                job.asked.config, job.places[number], examples[number], result, report,
                film=film, overlay=job.wanted.overlays,
            )  # fmt: skip


def _groups(
    job: Job, model: GroundingModel, examples: dict[int, Example]
) -> Iterator[dict[int, tuple[Any, dict[str, Any]]]]:
    """Answers to examples by number: all in shared forwards, or one by one if that fails."""
    try:
        found = ground_file.answers(job.asked, model, list(examples.values()))
    except ValueError as error:
        if len(examples) == 1:
            job.problems += [job.pairs[number].error(error) for number in examples]
            return
    else:
        yield dict(zip(examples, found, strict=True))
        return
    for number, example in examples.items():
        yield from _groups(job, model, {number: example})


def _write_tables(job: Job) -> list[Path]:
    """Write results.csv, coco.json and problems.csv of all pairs that are there."""
    there = [number for number in range(len(job.pairs)) if job.done(number)]
    found = [_result(job, number) for number in there]
    results, boxes, bad = (job.folder / n for n in ("results.csv", "coco.json", "problems.csv"))
    _write_csv(results, [row for row, _ in found])
    pairs = ((job.pairs[n].name, job.pairs[n].size, job.pairs[n].phrase) for n in there)
    known = zip(pairs, (regions for _, regions in found), strict=True)
    own = coco.table((*pair, regions) for pair, regions in known)
    settings = {"threshold": job.wanted.threshold, **job.asked.settings}
    info = {"description": ground_file.DISCLAIMER, "parameters": settings}
    runs.write_json(boxes, {"info": info, **own})
    _write_csv(bad, [{"number": n, "problem": str(p)} for n, p in enumerate(job.problems, 1)])
    for problem in job.problems[:SHOWN]:
        print(f"problem: {problem}", file=sys.stderr)
    if len(job.problems) > SHOWN:
        print(f"{len(job.problems) - SHOWN} more problems: {bad}", file=sys.stderr)
    return [results, boxes, bad] if job.problems else [results, boxes]


def _result(job: Job, number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One pair's line of results.csv and its COCO annotations; a DICOM segmentation if asked."""
    pair, folder = job.pairs[number], job.places[number]
    said = runs.read_json(folder / "grounding.json")
    with np.load(folder / "maps.npz") as maps:
        heat, own = maps["heatmap"], maps["mask"]
    mask = coco.film_mask(heat, own, job.wanted.threshold, pair.size)
    regions = coco.regions(mask, coco.in_film(heat, *pair.size))
    if job.wanted.dicom:
        _segment(job, pair, folder, mask)
    novelty, presence = said.get("novelty", {}), said.get("presence", {})
    box = said["mask_box"] or [None] * 4
    return {
        "line": pair.row.place.removeprefix("line "),
        "image": pair.name,
        "phrase": pair.phrase,
        **dict(zip(("peak_x", "peak_y"), said["peak"], strict=True)),
        **dict(zip(tables.BOX_COLUMNS, box, strict=True)),
        "regions": len(regions),
        "mask_fraction": said["mask_fraction"],
        "confidence": said["confidence"],
        "probability": presence.get("probability"),
        "unlike_training": novelty.get("flagged"),
        "folder": folder.relative_to(job.folder).as_posix(),
    }, regions


def _segment(job: Job, pair: Pair, folder: Path, mask: coco.Mask) -> None:
    """Write segmentation.dcm of a DICOM film, or say why there is none."""
    from g2g_utils.experiment import dicom_seg

    try:
        dicom_seg.write(folder / "segmentation.dcm", pair.image, mask, pair.phrase)
    except ValueError as error:
        job.problems.append(pair.row.error(str(error), "leave out --dicom, or use the DICOM file"))


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of equal keys as a CSV; without rows the file is removed."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with runs.atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
