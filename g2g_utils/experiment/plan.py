"""Plan of a profile: its products, their dependencies and keys, and where finished ones lie.

A product is a folder below build/<profile>/ (or shipped in weights/<profile>/) that ends with
run.json. Its name ends with the hash of the settings that determine it, so that runs with other
settings lie beside each other and nothing computed is ever overwritten. Nothing heavy is imported
here: a plan takes about a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from g2g_utils import runs
from g2g_utils.config import Config
from g2g_utils.experiment.product import KINDS, present, split
from g2g_utils.runs import places

RECIPE = 1  # raise when a recipe changes what it makes


def plan(config: Config) -> dict[str, list[str]]:
    """Every product of the profile and the products it needs, in an order that can be made."""
    names = [name for kind in KINDS.values() for name in kind.names(config)]
    return {name: needs(config, name) for name in names}


def needs(config: Config, name: str) -> list[str]:
    """Products of the profile that a product is made from; `name` may have an unplanned seed."""
    kind, item = split(name)
    return present(config, kind.needs(config, item))


def parameters(config: Config, name: str) -> dict[str, Any]:
    """The settings that determine a product, without those of its dependencies."""
    kind, item = split(name)
    base = {"recipe": RECIPE, "image_size": config.image_size}
    return base | kind.parameters(config, item)


def key(config: Config, name: str) -> str:
    """Hash of all settings that determine a product, those of its dependencies included."""
    own = parameters(config, name)
    return runs.digest([own, {dep: key(config, dep) for dep in needs(config, name)}])


def bundles(config: Config) -> dict[str, list[str]]:
    """Products by the job that makes them, where one job makes several: start-up costs more."""
    found: dict[str, list[str]] = {}
    for kind in KINDS.values():
        for item, name in zip(kind.items(config), kind.names(config), strict=True):
            found.setdefault(kind.bundle(config, item) if kind.bundle else name, []).append(name)
    return {job: names for job, names in found.items() if len(names) > 1}


def inputs(config: Config, name: str) -> dict[str, str]:
    """Hash of the files of each product that a product was made from, as their records say."""
    found = {}
    for dep in needs(config, name):
        choices = (folder(config, dep), places.weights(config) / dep)
        records = (runs.sound_record(place / "run.json") for place in choices)
        if record := next(filter(None, records), None):
            found[dep] = runs.digest(record["outputs"])
    return found


def pipeline(config: Config, arm: str) -> Path | None:
    """Folder of the pipeline that an arm loads in place of the profile's parts, or None."""
    own = config.training.arms[arm].pipeline
    return places.ROOT / Path(own).expanduser() if own else None


def folder(config: Config, name: str) -> Path:
    """Folder of a product: its name and key below the profile's build folder."""
    return places.build(config) / f"{name}-{key(config, name)}"


def find(config: Config, name: str) -> Path | None:
    """Folder of a finished, sound product with the right key, made here or shipped; else None."""
    shipped = [] if config.retrain else [places.weights(config) / name]
    wanted = key(config, name)
    for place in [folder(config, name), *shipped]:
        if _sound(place, wanted):
            return place
    return None


def _sound(folder: Path, wanted: str) -> bool:
    """True if the recorded key is the wanted one and no file is missing or damaged."""
    record = runs.sound_record(folder / "run.json")
    if record is None or record["key"] != wanted:
        return False
    if runs.intact(folder):
        return True
    print(f"warning: {folder} is damaged; it is made again", file=sys.stderr)
    return False
