"""Scenes of phantoms: worlds, patients, poses and findings, drawn as numbers (no pixels).

Everything is laid out in *body coordinates*: u to the image right and v down, both about [-1, 1]
over the thorax. The patient's right is image left, as on a radiograph.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from g2g_utils.config import World
from g2g_utils.data.phantoms.backgrounds import Background
from g2g_utils.data.phantoms.wording import Facts

Array = NDArray[Any]
RIGHT, LEFT = 0, 1  # the patient's lungs; u is negative in the right one
SIGN = (-1.0, 1.0)
SIDES = ("right", "left")
ZONE_SPAN = {"upper": (0.16, 0.32), "mid": (0.4, 0.58), "lower": (0.68, 0.84)}
FOCAL = ("Atelectasis", "Consolidation", "Lung Opacity", "Pneumonia")

# finding -> size word -> range of the extent (body units; Pneumothorax and Edema: lung widths)
EXTENT = {
    "Atelectasis": {"small": (0.11, 0.15), "moderate": (0.19, 0.24), "large": (0.28, 0.34)},
    "Cardiomegaly": {"small": (0.41, 0.45), "moderate": (0.49, 0.54), "large": (0.58, 0.65)},
    "Consolidation": {"small": (0.11, 0.14), "moderate": (0.17, 0.21), "large": (0.25, 0.31)},
    "Edema": {"small": (0.6, 0.7), "moderate": (0.8, 0.95), "large": (1.1, 1.3)},
    "Lung Opacity": {"small": (0.12, 0.15), "moderate": (0.18, 0.22), "large": (0.26, 0.32)},
    "Pleural Effusion": {"small": (0.2, 0.28), "moderate": (0.4, 0.52), "large": (0.68, 0.9)},
    "Pneumonia": {"small": (0.13, 0.16), "moderate": (0.19, 0.23), "large": (0.27, 0.33)},
    "Pneumothorax": {"small": (0.3, 0.38), "moderate": (0.5, 0.62), "large": (0.8, 1.0)},
}
# the patient's build: name -> range (body units)
ANATOMY = {
    "lung_u": (0.41, 0.48),
    "lung_a": (0.34, 0.42),
    "top": (-0.92, -0.8),
    "dome_right": (0.34, 0.52),
    "dome_drop": (0.02, 0.1),  # the left dome lies lower: the liver lifts the right one
    "dome_height": (0.1, 0.2),
    "power": (2.1, 2.9),
    "spine": (0.06, 0.09),
    "mediastinum": (0.13, 0.2),
    "heart_w": (0.26, 0.33),
    "heart_h": (0.27, 0.33),
    "heart_u": (0.07, 0.14),
    "hilum_v": (-0.22, -0.04),
    "rib_count": (8.0, 11.0),
    "rib_phase": (0.0, 1.0),
    "rib_contrast": (0.02, 0.07),
    "clavicle_v": (-0.84, -0.72),
    "clavicle_tilt": (-0.12, 0.2),
    "vessel_phase": (0.0, 6.283),
    "lean": (-0.03, 0.03),
}
# one exposure of that patient
POSE = {
    "air": (0.2, 0.33),  # brightness of the lung
    "tissue": (0.54, 0.66),
    "gain": (0.85, 1.15),
    "offset": (-0.05, 0.05),
    "gamma": (0.85, 1.2),
    "tilt": (-0.06, 0.06),
    "blur": (0.35, 0.65),  # pixels at 64²
    "marker": (0.0, 1.0),
}
DEVICE_KINDS = ("pacemaker", "line", "leads")


@dataclass(frozen=True)
class Part:
    """One lung's share of a finding, as a renderer needs it (`noise`: uniforms in [0, 1))."""

    finding: str
    lung: int
    extent: float
    place: tuple[float, float]  # lateral (-1 medial … 1 costal), height (0 apex … 1 dome)
    kind: str
    noise: Array


@dataclass
class Scene:
    """All parameters of one image, before rendering."""

    params: dict[str, float]
    facts: list[Facts]
    parts: list[list[Part]]
    devices: tuple[str, ...]
    pixels: Array  # noise field [size, size]
    background: Background | None = None  # a real normal film, instead of drawn anatomy
    natural: bool = False  # findings as soft and mottled as on films, in the film's exposure


def world_of(**options: Any) -> World:
    """A validated World. An unknown key is a ValueError that lists the known ones."""
    known = [f.name for f in fields(World)]
    for key in options:
        if key not in known:
            raise ValueError(f"unknown phantom option {key!r}; known: {', '.join(known)}")
    return World(**options)


def uniform(rng: np.random.Generator, ranges: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Draw one value per name, uniformly from its (low, high)."""
    low, high = np.array(list(ranges.values())).T
    values = low + (high - low) * rng.random(len(ranges))
    return dict(zip(ranges, values.tolist(), strict=True))


def _draw_pose(rng: np.random.Generator, world: World) -> dict[str, float]:
    pose = uniform(rng, POSE)
    zoom, aspect, shift_x, shift_y, turn, noise = rng.random(6).tolist()
    zoom = world.zoom[0] + zoom * (world.zoom[1] - world.zoom[0])
    stretch = (world.aspect[0] + aspect * (world.aspect[1] - world.aspect[0])) ** 0.5
    pose |= {"scale_x": zoom * stretch, "scale_y": zoom / stretch}
    pose |= {
        name: (2 * s - 1) * world.shift for name, s in (("shift_x", shift_x), ("shift_y", shift_y))
    }
    pose["turn"] = math.radians(world.rotation) * (2 * turn - 1)
    pose["noise"] = world.noise[0] + noise * (world.noise[1] - world.noise[0])
    return pose


def _landmarks(part: Part, build: dict[str, float]) -> list[tuple[float, float]]:
    """Points (u, v) that must lie in the frame, so that the finding is seen as described."""
    top, sign = build["top"], SIGN[part.lung]
    dome = build["dome_right"] + (build["dome_drop"] if part.lung == LEFT else 0)

    def at(lateral: float, height: float) -> tuple[float, float]:
        return sign * (build["lung_u"] + lateral * build["lung_a"]), top + height * (dome - top)

    if part.finding in FOCAL:
        (u, v), reach = at(*part.place), 0.6 * part.extent
        return [(u - reach, v), (u + reach, v), (u, v - reach), (u, v + reach)]
    if part.finding == "Cardiomegaly":
        return [(0.1 - 0.8 * part.extent, dome), (0.1 + 0.8 * part.extent, dome), (0.1, dome - 0.5)]
    if part.finding == "Edema":
        return [at(-0.9, 0.3), at(0.2, 0.6)]
    if part.finding == "Pleural Effusion":
        return [at(-0.6, 1), at(0.6, 1.05), at(0, 0.95 - 0.7 * part.extent)]
    return {
        "apical": [at(-0.5, 0.05), at(0.5, 0.05), at(0, 0.4)],
        "lateral": [at(0.85, 0.3), at(0.9, 0.7)],
        "basal": [at(0.8, 0.9), at(-0.3, 0.9)],
    }[part.kind]


def _in_frame(points: list[tuple[float, float]], pose: dict[str, float]) -> bool:
    cos, sin = math.cos(pose["turn"]), math.sin(pose["turn"])
    for u, v in points:
        u, v = u * pose["scale_x"], v * pose["scale_y"]
        x, y = cos * u - sin * v + 2 * pose["shift_x"], sin * u + cos * v + 2 * pose["shift_y"]
        if max(abs(x), abs(y)) > 0.96:
            return False
    return True


def _fit_pose(
    rng: np.random.Generator, world: World, points: list[tuple[float, float]]
) -> dict[str, float]:
    """Draw a pose whose frame keeps the landmarks; the last draw if none does."""
    for _ in range(40):
        pose = _draw_pose(rng, world)
        if _in_frame(points, pose):
            return pose
    zoom = world.zoom[0]
    return pose | {"scale_x": zoom, "scale_y": zoom, "shift_x": 0.0, "shift_y": 0.0}


class _Planner:
    """Draws findings into free (lung, zone) slots, so that no two hide each other."""

    def __init__(self, rng: np.random.Generator, draw: random.Random, world: World) -> None:
        self.rng, self.draw, self.world = rng, draw, world
        self.free = {(lung, zone) for lung in (RIGHT, LEFT) for zone in ZONE_SPAN}
        self.facts: list[Facts] = []
        self.parts: list[list[Part]] = []

    def fill(self, count: int) -> None:
        """Place up to `count` findings; fewer only if the lungs are full."""
        for _ in range(30):
            if len(self.facts) == count:
                return
            taken = {f.finding for f in self.facts}
            options = [f for f in self.world.findings if f not in taken]
            last = self.facts[-1].finding if self.facts else ""
            once = sum(f.finding == last for f in self.facts) == 1
            if last in FOCAL and once and self.draw.random() < self.world.same_finding:
                self._focal(last, other_than=self.parts[-1][0].lung)
            elif options:
                self._add(self.draw.choice(options))

    def _add(self, finding: str) -> None:
        if finding in FOCAL:
            self._focal(finding)
        else:
            special = {
                "Cardiomegaly": self._cardiomegaly,
                "Edema": self._edema,
                "Pleural Effusion": self._effusion,
                "Pneumothorax": self._pneumothorax,
            }
            special[finding]()

    def _take(self, slots: set[tuple[int, str]]) -> bool:
        if not slots <= self.free:
            return False
        self.free -= slots
        return True

    def _size(self) -> str:
        return self.draw.choice(("small", "moderate", "large"))

    def _part(self, finding: str, lung: int, size: str, kind: str = "", **place: float) -> Part:
        low, high = EXTENT[finding][size]
        extent = low + (high - low) * self.draw.random()
        spot = (place.get("lateral", 0.0), place.get("height", 0.5))
        return Part(finding, lung, extent, spot, kind, self.rng.random(24))

    def _keep(self, facts: Facts, parts: list[Part]) -> None:
        self.facts.append(facts)
        self.parts.append(parts)

    def _focal(self, finding: str, other_than: int | None = None) -> None:
        slots = sorted(s for s in self.free if s[0] != other_than)
        if not slots:
            return
        lung, zone = self.draw.choice(slots)
        self.free.discard((lung, zone))
        size, (low, high) = self._size(), ZONE_SPAN[zone]
        height = low + (high - low) * self.draw.random()
        lateral = -0.4 + 0.95 * self.draw.random()
        if lung == LEFT and zone == "lower":  # beside the heart, not behind it
            lateral = 0.1 + 0.45 * self.draw.random()
        near = "apical" if height < 0.22 else "basal" if height > 0.76 else None
        near = "perihilar" if zone == "mid" and lateral < -0.1 else near
        part = self._part(finding, lung, size, lateral=lateral, height=height)
        self._keep(Facts(finding, SIDES[lung], zone, size, near), [part])

    def _cardiomegaly(self) -> None:
        size = self._size()
        if size == "small" or self._take({(LEFT, "lower")}):
            self._keep(
                Facts("Cardiomegaly", None, None, size), [self._part("Cardiomegaly", LEFT, size)]
            )

    def _edema(self) -> None:
        size = self._size()
        both = self.draw.random() < 1 - self.world.bilateral
        lungs = (RIGHT, LEFT) if both else (self.draw.choice((RIGHT, LEFT)),)
        if self._take({(lung, "mid") for lung in lungs}):
            side = "bilateral" if both else SIDES[lungs[0]]
            self._keep(
                Facts("Edema", side, "mid", size, "perihilar"),
                [self._part("Edema", lung, size) for lung in lungs],
            )

    def _effusion(self) -> None:
        size = self._size()
        both = self.draw.random() < self.world.bilateral
        lungs = (RIGHT, LEFT) if both else (self.draw.choice((RIGHT, LEFT)),)
        zones = ("mid", "lower") if size == "large" else ("lower",)
        if self._take({(lung, zone) for lung in lungs for zone in zones}):
            side = "bilateral" if both else SIDES[lungs[0]]
            self._keep(
                Facts("Pleural Effusion", side, "lower", size, "basal"),
                [self._part("Pleural Effusion", lung, size) for lung in lungs],
            )

    def _pneumothorax(self) -> None:
        size, lung = self._size(), self.draw.choice((RIGHT, LEFT))
        kind = self.draw.choice(("apical", "apical", "lateral", "lateral", "basal"))
        zones = {"apical": ("upper",), "lateral": ("upper", "mid", "lower"), "basal": ("lower",)}
        more = ("mid",) if size == "large" else ()
        if self._take({(lung, zone) for zone in zones[kind] + more}):
            zone = {"apical": "upper", "basal": "lower"}.get(kind, "lateral")
            near = None if kind == "lateral" else kind
            part = self._part("Pneumothorax", lung, size, kind)
            self._keep(Facts("Pneumothorax", SIDES[lung], zone, size, near), [part])


def draw_scene(
    rng: np.random.Generator, draw: random.Random, build: dict[str, float], world: World
) -> Scene:
    """Draw one image of a patient: findings, exposure, devices and noise."""
    planner = _Planner(rng, draw, world)
    if draw.random() >= world.normal:
        planner.fill(draw.choices((1, 2, 3), world.counts)[0])
    parts = planner.parts
    points = [(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.2), (0.5, 0.2)]
    points += [point for region in parts for part in region for point in _landmarks(part, build)]
    params = build | _fit_pose(rng, world, points)
    devices = (draw.choice(DEVICE_KINDS),) if draw.random() < world.devices else ()
    noise = rng.standard_normal((world.size, world.size), dtype=np.float32)
    pixels = noise * np.float32(params["noise"])
    return Scene(params, planner.facts, parts, devices, pixels)
