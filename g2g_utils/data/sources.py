"""The data source that a profile names, as records: one entry point to every loader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from g2g_utils import runs
from g2g_utils.config import Config, ConfigError, HeldOut
from g2g_utils.data import (
    chestxray14,
    folder,
    manifest,
    mimic_cxr,
    ms_cxr,
    openi,
    phantoms,
    radiographs,
    rsna,
    siim,
    tables,
)
from g2g_utils.data.order import position
from g2g_utils.data.record import Example
from g2g_utils.runs import places

SPLITS = ("train", "validation", "test")
SHARES = {"train": 8, "validation": 1, "test": 1}
"""Parts of the patients by split, for a source without splits that serves several."""

CREDENTIALED = frozenset({"mimic_cxr", "ms_cxr"})
"""Sources under a data use agreement. Nothing made from them leaves build/."""


def examples(config: Config, split: str) -> list[Example]:
    """Examples of a split, of as many images as the profile sets.

    Files are named, not opened. The choice of images and patients depends on their ids alone.
    Held-out pairs come in a fixed mixed order (published tables are sorted by class), so that their
    first n are a fair sample.

    Args:
        split: "train", "validation" or "test".

    Raises:
        ConfigError: the split is unknown, or its source has no examples.
    """
    data = config.data
    counts = {"train": data.train, "validation": data.validation, "test": data.test}
    if split not in counts:
        raise ConfigError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    held = held_out(config, split)
    if held is None and data.source == "phantoms":
        return phantoms.generate(counts[split], data.seed, split, **data.world)
    found = _held_examples(config, held, split) if held else _training_examples(config, split)
    if not found:
        raise ConfigError(
            f"profile {config.profile!r}: no {split} examples in {(held or data).root}; "
            f"`python -m g2g_utils.data.check {config.profile}` says why"
        )
    if split == "train" and data.source == "radiographs":
        return found
    chosen = limited(found, counts[split])
    if split != "train":
        chosen = sorted(chosen, key=lambda example: position(example.image_id))
    return [replace(example, split=split) for example in chosen]


def held_out(config: Config, split: str) -> HeldOut | None:
    """The profile's own source of validation or test pairs, or None."""
    return {"validation": config.data.validation_from, "test": config.data.test_from}.get(split)


def credentialed(config: Config) -> bool:
    """True if the profile reads data under a data use agreement."""
    held = (config.data.validation_from, config.data.test_from)
    return bool(CREDENTIALED & {config.data.source, *(h.source for h in held if h)})


def resolve(path: Path) -> Path:
    """Resolve a path of a profile: absolute, below the home folder, or below the repository."""
    return places.ROOT / path.expanduser()


# ---------------------------------------------------------------- which patients and images


def share(found: Iterable[Example], patients: tuple[float, float]) -> list[Example]:
    """Examples of the patients whose place lies in [from, to)."""
    low, high = patients
    return [example for example in found if low <= position(example.subject_id) < high]


def limited(found: list[Example], images: int) -> list[Example]:
    """Examples of at most `images` images, in their order; the same images every time."""
    ids = {example.image_id for example in found}
    if len(ids) <= images:
        return found
    kept = set(sorted(ids, key=position)[:images])
    return [example for example in found if example.image_id in kept]


# ---------------------------------------------------------------- loaders


def _held_examples(config: Config, held: HeldOut, split: str) -> list[Example]:
    root = resolve(held.root)
    images = resolve(held.images) if held.images else None
    if held.source in ("mimic_cxr", "openi"):
        found = _reports(config, held.source, root, images, held.subset or split)
    else:
        found = boxed(held.source, root, images, held.subset)
    return share(found, held.patients)


def boxed(
    source: str,
    root: Path,
    images: Path | None = None,
    subset: str | None = None,
    problems: list[tables.TableError] | None = None,
) -> list[Example]:
    """Image–phrase pairs with boxes, from a source that has them."""
    if source == "ms_cxr":
        return ms_cxr.load(root, images or root, subset, problems)
    if source == "radiographs":
        found = radiographs.pairs(root, problems)
        return [pair for pair in found if subset in (None, pair.split)]
    if subset:
        raise ConfigError(
            f"subset = {subset!r}: only ms_cxr, mimic_cxr and radiographs have splits of their own"
        )
    if source == "folder":
        return folder.load(table(root), images, problems)
    if source == "siim":
        return siim.load(root, images, problems=problems)
    if source == "rsna":
        return rsna.load(root, images, problems=problems)
    return chestxray14.load(root, images, problems=problems)


def _films_and_phantoms(config: Config, root: Path, split: str) -> list[Example]:
    """Pairs of a pack with boxes; for training its films and the phantoms that the profile adds."""
    if split != "train":
        return [pair for pair in radiographs.pairs(root) if pair.split == split]
    data, films = config.data, radiographs.captioned(root, split)
    normal = tuple(str(film.image) for film in films if film.phrase == radiographs.NORMAL_CAPTION)
    if data.implants and not normal:
        raise ConfigError(f"{root}: no training film without a finding to draw implants into")
    size = {"size": config.image_size}
    implanted = {**size, **data.implant_world, "backgrounds": normal}
    return [
        *limited(films, data.train) * data.repeats,
        *phantoms.generate(data.implants, data.seed, "train", **implanted),
        *phantoms.generate(data.drawn, data.seed + 1, "train", **{**size, **data.world}),
    ]


def table(root: Path) -> Path:
    """Path of the CSV of a folder source: `root` itself, or the only CSV in the folder."""
    found = tables.matching(root, "*.csv") if root.is_dir() else [root]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        problem = f"{len(found)} CSV files there ({names})"
        raise tables.TableError(root, problem, "name the CSV itself as root", kind="file")
    return found[0]


def _training_examples(config: Config, split: str) -> list[Example]:
    data = config.data
    assert data.root is not None  # the configuration's own check
    root, images = resolve(data.root), resolve(data.images) if data.images else None
    if data.source == "radiographs":  # its patients have a split of their own
        return _films_and_phantoms(config, root, split)
    if data.source == "folder":
        found = boxed("folder", root, images)
    else:
        found = _reports(config, data.source, root, images, split)
    return found if data.source == "mimic_cxr" else share(found, own_share(config, split))


def own_share(config: Config, split: str) -> tuple[float, float]:
    """[from, to): the share of the training source's patients that serves a split."""
    parts = {name: SHARES[name] for name in SPLITS if held_out(config, name) is None}
    before = sum(parts[name] for name in list(parts)[: list(parts).index(split)])
    total = sum(parts.values())
    return before / total, (before + parts[split]) / total


def excluded_subjects(config: Config) -> frozenset[str]:
    """Patients of MS-CXR, who are never trained on.

    Raises:
        ConfigError: the profile names no table of MS-CXR, so that they are unknown.
    """
    held = (config.data.validation_from, config.data.test_from)
    roots = [resolve(h.root) for h in held if h and h.source == "ms_cxr"]
    if not roots:
        raise ConfigError(
            "training on mimic_cxr leaves out the patients of MS-CXR, so its table must be known: "
            "set data.test_from to {source: ms_cxr, root: ..., images: ...}"
        )
    return frozenset().union(*map(ms_cxr.subjects, roots))


def _reports(
    config: Config, source: str, root: Path, images: Path | None, split: str
) -> list[Example]:
    """Image–report pairs. build/<profile>/manifests lists those kept and dropped."""
    if source == "openi":
        selection = openi.load(root, images)
        manifest.write(manifests(config), f"openi-{split}", selection)
        return selection.examples
    excluded = excluded_subjects(config)
    reports = resolve(config.data.reports) if config.data.reports else None
    files = [tables.locate(root, p) for p in (mimic_cxr.METADATA, mimic_cxr.SPLIT)]
    stamps = [(f, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = runs.digest([mimic_cxr.RECIPE, root, images, reports, split, sorted(excluded), stamps])
    found = manifest.read(manifests(config), f"mimic_cxr-{split}", key)
    if found is None:
        selection = mimic_cxr.load(root, reports, split, excluded, images=images, progress=True)
        if any(item.reason == mimic_cxr.NO_IMAGE for item in selection.dropped):
            key = ""  # images may still arrive: look again next time
        manifest.write(manifests(config), f"mimic_cxr-{split}", selection, key)
        found = selection.examples
    return found


def manifests(config: Config) -> Path:
    """Folder of the lists of kept and dropped images. They hold report text and stay in build/."""
    return places.build(config) / "manifests"
