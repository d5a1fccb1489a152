"""Procedural frontal chest X-ray phantoms with impressions, boxes and masks (the miniature world).

Each scene is drawn from a random stream of its own, so that an example depends on `(seed, split,
index)` and the world alone. Rendering is vectorised over batches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils.config import World
from g2g_utils.data.geometry import Box
from g2g_utils.data.phantoms.backgrounds import pick
from g2g_utils.data.phantoms.render import render, steps
from g2g_utils.data.phantoms.scene import ANATOMY, Scene, draw_scene, uniform, world_of
from g2g_utils.data.phantoms.wording import SPLITS, Facts, draw_impression
from g2g_utils.data.record import FINDINGS, Example, Region

__all__ = ["SPLITS", "Example", "Facts", "Region", "World", "drawing", "facts", "generate"]

Array = NDArray[Any]
BATCH = 64
OPAQUE = ("Atelectasis", "Consolidation", "Lung Opacity", "Pneumonia", "Edema")


def tight_box(mask: Array) -> Box:
    """The tight box (x, y, w, h) of a non-empty bool mask [H, W], pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = columns[0], rows[0]
    return float(x), float(y), float(columns[-1] - x + 1), float(rows[-1] - y + 1)


def _absent(facts: Sequence[Facts]) -> list[str]:
    """Findings that the text may truthfully deny."""
    present = {f.finding for f in facts}
    absent = [f for f in FINDINGS if f not in present]
    return [f for f in absent if f != "Lung Opacity" or not present & set(OPAQUE)]


def _stream(seed: int, split: str, index: int, *more: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index, *more])


def _owner(seed: int, split: str, index: int, world: World) -> int:
    """The first image of the patient. Images 2j and 2j + 1 may share a patient."""
    first = index - index % 2
    shared = _stream(seed, split, first, 2).random() < world.second_image
    return first if shared else index


def draw_example(seed: int, split: str, index: int, world: World) -> tuple[Scene, Any]:
    """Draw the scene of an example and then, from the same stream, its wording."""
    rng = _stream(seed, split, index)
    draw = random.Random(int(rng.integers(2**62)))
    patient = _stream(seed, split, _owner(seed, split, index, world), 1)
    if world.backgrounds is None:
        scene = draw_scene(rng, draw, uniform(patient, ANATOMY), world)
    else:  # findings are placed as in an average build
        average = {name: sum(limits) / 2 for name, limits in ANATOMY.items()}
        scene = draw_scene(rng, draw, average, world)
        scene.background = pick(world.backgrounds, split, patient, 2 * world.size)
        scene.natural = world.natural
    text = draw_impression(scene.facts, _absent(scene.facts), scene.devices, split, draw)
    return scene, text


def _record(
    scene: Scene, phrases: list[str], masks: dict[tuple[int, int], Array]
) -> tuple[Region, ...]:
    regions = []
    for r, (facts, phrase) in enumerate(zip(scene.facts, phrases, strict=True)):
        parts = [masks[r, c] for c in range(len(scene.parts[r]))]
        boxes = tuple(tight_box(m) for m in parts if m.any())
        mask = np.logical_or.reduce(parts)
        regions.append(Region(phrase, facts.finding, facts.side, boxes, mask))
    return tuple(regions)


def _batch(indices: range, seed: int, split: str, world: World) -> list[Example]:
    drawn = [draw_example(seed, split, i, world) for i in indices]
    films, masks = render([scene for scene, _ in drawn], world.size)
    examples = []
    for b, (index, (scene, (text, phrases))) in enumerate(zip(indices, drawn, strict=True)):
        own = {(r, c): m for (i, r, c), m in masks.items() if i == b}
        regions = _record(scene, phrases, own)
        subject = f"{split}-{_owner(seed, split, index, world):06d}"
        examples.append(
            Example(
                image=films[b],
                phrase=text,
                finding=None,
                boxes=tuple(box for region in regions for box in region.boxes),
                image_id=f"phantom{seed}-{split}-{index:06d}",
                subject_id=subject,
                split=split,
                regions=regions,
            )
        )
    return examples


def generate(n: int, seed: int, split: str, **world: Any) -> list[Example]:
    """Generate `n` phantoms of a split: image [size, size], impression, and a region per finding.

    An example depends on (seed, split, index) and the world alone: `generate(9, …)[:5]` equals
    `generate(5, …)`. Phrases and subjects of different splits are disjoint.

    Args:
        split: "train", "validation" or "test".
        world: fields of `World`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if n < 0 or seed < 0:
        raise ValueError(f"n and seed must not be negative, got n={n}, seed={seed}")
    settings = world_of(**world)
    starts = range(0, n, BATCH)
    batches = (range(start, min(start + BATCH, n)) for start in starts)
    return [example for batch in batches for example in _batch(batch, seed, split, settings)]


def drawing(index: int, seed: int, split: str, **world: Any) -> dict[str, Array]:
    """How the phantom `index` of `generate` is drawn: name of a step -> image [size, size]."""
    settings = world_of(**world)
    return steps(draw_example(seed, split, index, settings)[0], settings.size)


def facts(n: int, seed: int, split: str, **world: Any) -> list[frozenset[Facts]]:
    """Facts of the phantoms that `generate` draws with these arguments: all that is abnormal.

    What a report denies, and its devices, are not among them.
    """
    settings = world_of(**world)
    scenes = (draw_example(seed, split, index, settings)[0] for index in range(n))
    return [frozenset(scene.facts) for scene in scenes]
