"""Procedural frontal chest X-ray phantoms with impressions, boxes and masks (the miniature world).

Scenes are drawn one by one from their own random streams, so that an example depends on
``(seed, split, index)`` alone; rendering is vectorised over batches. Everything is laid out in
*body coordinates*: u to the image right and v down, both about [-1, 1] over the thorax. The
patient's right is image left, as on a film.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from g2g_utils.data.phantom_text import SPLITS, Facts, draw_impression
from g2g_utils.data.record import FINDINGS, Box, Example, Region

Array = np.ndarray
BATCH = 64
RIGHT, LEFT = 0, 1  # the patient's lungs; u is negative in the right one
SIGN = (-1.0, 1.0)
SIDES = ("right", "left")
ZONE_SPAN = {"upper": (0.16, 0.32), "mid": (0.4, 0.58), "lower": (0.68, 0.84)}
FOCAL = ("Atelectasis", "Consolidation", "Lung Opacity", "Pneumonia")
OPAQUE = ("Atelectasis", "Consolidation", "Lung Opacity", "Pneumonia", "Edema")

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
class World:
    """What may be set about the phantoms; every field is an argument of :func:`generate`."""

    size: int = 64  # side of the square image, pixels (>= 32)
    zoom: tuple[float, float] = (0.7, 1.2)  # thorax size / image size
    aspect: tuple[float, float] = (0.84, 1.2)  # thorax width / height, 1 = unstretched
    shift: float = 0.25  # largest shift of the thorax, fraction of the image side
    rotation: float = 5.0  # largest in-plane rotation, degrees
    normal: float = 0.08  # share of images without a finding
    counts: tuple[float, float, float] = (0.28, 0.47, 0.25)  # 1, 2, 3 findings among the others
    findings: tuple[str, ...] = FINDINGS  # classes that occur
    same_finding: float = 0.2  # chance that a focal finding recurs in the other lung
    bilateral: float = 0.3  # chance that an effusion takes both sides, 1 − it for one-sided edema
    devices: float = 0.25  # share of images with a pacemaker, line or leads
    second_image: float = 0.3  # share of patients with two images
    noise: tuple[float, float] = (0.01, 0.025)  # standard deviation of the noise

    def __post_init__(self) -> None:
        checks = {
            "size": self.size >= 32,
            "zoom": 0.4 <= self.zoom[0] <= self.zoom[1] <= 1.5,
            "aspect": 0.5 <= self.aspect[0] <= self.aspect[1] <= 2,
            "shift": 0 <= self.shift <= 0.3,
            "rotation": 0 <= self.rotation <= 20,
            "counts": len(self.counts) == 3 and abs(sum(self.counts) - 1) < 1e-6,
            "findings": bool(self.findings) and set(self.findings) <= set(FINDINGS),
            "noise": 0 <= self.noise[0] <= self.noise[1],
        }
        for name in ("normal", "same_finding", "bilateral", "devices", "second_image"):
            checks[name] = 0 <= getattr(self, name) <= 1
        for name, ok in checks.items():
            if not ok:
                raise ValueError(f"World.{name} = {getattr(self, name)!r} is out of range")


@dataclass(frozen=True)
class Part:
    """One lung's share of a finding: what a renderer needs (``noise``: uniforms in [0, 1))."""

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


def world_of(**options: Any) -> World:
    """A validated World; an unknown key is a ValueError that lists the known ones."""
    known = [f.name for f in fields(World)]
    for key in options:
        if key not in known:
            raise ValueError(f"unknown phantom option {key!r}; known: {', '.join(known)}")
    return World(**options)


# ---------------------------------------------------------------- scenes


def _uniform(rng: np.random.Generator, ranges: dict[str, tuple[float, float]]) -> dict[str, float]:
    low, high = np.array(list(ranges.values())).T
    values = low + (high - low) * rng.random(len(ranges))
    return dict(zip(ranges, values.tolist(), strict=True))


def _draw_pose(rng: np.random.Generator, world: World) -> dict[str, float]:
    pose = _uniform(rng, POSE)
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
    """Points (u, v) that must lie in the frame for the finding to be seen as described."""
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
    """A pose whose frame may cut the thorax but not the landmarks (the last draw if none does)."""
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
        """Place up to ``count`` findings (fewer only if the lungs are full)."""
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


def _draw_scene(
    rng: np.random.Generator, draw: random.Random, build: dict[str, float], world: World
) -> Scene:
    """One image of a patient of that build: findings, exposure, devices and noise."""
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


# ---------------------------------------------------------------- rendering


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _bump(x: Array) -> Array:
    return np.exp(-x * x)


def _mix(density: Array, level: Array | float, amount: Array) -> Array:
    return density + (level - density) * amount


class _Body:
    """Coordinates and anatomy of a batch of scenes; all fields float32 [B, H, W]."""

    def __init__(self, params: Sequence[dict[str, float]], size: int) -> None:
        names = params[0].keys()
        self.p = {n: np.array([q[n] for q in params], np.float32)[:, None, None] for n in names}
        self.size = size
        p = self.p
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
        x, y = axis[None, None, :] - 2 * p["shift_x"], axis[None, :, None] - 2 * p["shift_y"]
        cos, sin = np.cos(p["turn"]), np.sin(p["turn"])
        self.u = (cos * x + sin * y) / p["scale_x"]
        self.v = (cos * y - sin * x) / p["scale_y"]
        self.pixel = 2 / size / np.sqrt(p["scale_x"] * p["scale_y"])  # body units a pixel
        lungs = [self._lung(lung) for lung in (RIGHT, LEFT)]
        # each [B, 2, H, W]: lateral, radius (1 = outline), height in the lung, soft lung mask
        self.lateral, self.radius, self.height, self.lung = (
            np.stack(parts, 1) for parts in zip(*lungs, strict=True)
        )

    def _lung(self, lung: int) -> tuple[Array, Array, Array, Array]:
        p = self.p
        dome = p["dome_right"] + (p["dome_drop"] if lung == LEFT else 0)
        centre, half = (p["top"] + 0.68) / 2, (0.68 - p["top"]) / 2
        lateral = (SIGN[lung] * self.u - p["lung_u"] - SIGN[lung] * p["lean"]) / p["lung_a"]
        rise = (self.v - centre) / half
        radius = (np.abs(lateral) ** p["power"] + np.abs(rise) ** p["power"]) ** (1 / p["power"])
        floor = dome + p["dome_height"] * (np.minimum(np.abs(lateral), 1.3) ** 2)
        inside = _sigmoid((1 - radius) * 30) * _sigmoid((floor - self.v) * 35)
        height = (self.v - p["top"]) / (dome - p["top"])
        return lateral, radius, height, inside

    def heart(self) -> Array:
        """Elliptic radius of the heart: 1 on its outline."""
        p = self.p
        big = np.maximum(p["heart_w"] - 0.33, 0)
        high = p["heart_h"] + 0.5 * big
        du = (self.u - p["heart_u"] - 0.2 * big) / p["heart_w"]
        dv = (self.v - p["dome_right"] + 0.6 * high) / high
        return np.sqrt(du**2 + (dv - 0.25 * du) ** 2)

    def density(self) -> Array:
        """The normal film: 0 is black, 1 is white."""
        u, v, p = self.u, self.v, self.p
        both = np.minimum(self.lung.sum(1), 1)
        width = 0.34 + 0.82 * _sigmoid((v + 1.02) * 14)
        trunk = _sigmoid((width - np.abs(u)) * 16)
        density = p["tissue"] * trunk + 0.04
        density = density + 0.12 * _sigmoid((v - 0.55) * 8) * trunk  # abdomen
        density = _mix(density, p["air"], both)
        density = density + both * self._markings()
        middle = p["mediastinum"] * (1 + 0.25 * np.tanh(2 * (v + 0.1)))
        density = _mix(density, 0.74, _sigmoid((middle - np.abs(u)) * 30) * trunk)
        heart = _sigmoid((1 - self.heart()) * 12)
        density = _mix(density, 0.78, heart * 0.95)
        density = density + 0.1 * _bump(u / p["spine"]) * trunk
        return density + self._bones(trunk)

    def _markings(self) -> Array:
        """Hila and vessels that fan out from them; vanish where air fills the pleura."""
        p = self.p
        side = np.abs(self.u) - 0.16
        rise = self.v - p["hilum_v"]
        reach = np.sqrt(side**2 + rise**2)
        angle = np.arctan2(rise, side)
        fan = np.maximum(np.cos(7 * angle + p["vessel_phase"] + np.sign(self.u)), 0) ** 2
        hilum = 0.2 * _bump(side / 0.13) * _bump(rise / 0.17)
        return hilum + 0.13 * fan * np.exp(-reach / 0.35)

    def _bones(self, trunk: Array) -> Array:
        u, v, p = self.u, self.v, self.p
        bow = v + 0.35 * (np.abs(u) - 0.45) ** 2 - 0.18 * np.abs(u)
        wave = np.cos(2 * np.pi * (bow * p["rib_count"] / 1.9 + p["rib_phase"]))
        cage = (
            _sigmoid((0.96 - np.abs(u)) * 20) * _sigmoid((0.6 - v) * 12) * _sigmoid((v + 0.95) * 12)
        )
        ribs = p["rib_contrast"] * wave * cage
        line = v - p["clavicle_v"] + p["clavicle_tilt"] * (np.abs(u) - 0.3)
        clavicle = 0.12 * _bump(line / 0.035) * _sigmoid((np.abs(u) - 0.1) * 30)
        return (ribs + clavicle * _sigmoid((0.95 - np.abs(u)) * 20)) * trunk


class _Lesions:
    """Parts of one finding, gathered over a batch: fields [K, H, W], scalars [K, 1, 1]."""

    def __init__(self, body: _Body, images: list[int], parts: list[Part]) -> None:
        lung = np.array([p.lung for p in parts])
        index = np.array(images)
        self.lateral, self.radius = body.lateral[index, lung], body.radius[index, lung]
        self.height, self.lung = body.height[index, lung], body.lung[index, lung]
        self.u, self.v, self.pixel = body.u[index], body.v[index], body.pixel[index]
        self.p = {name: value[index] for name, value in body.p.items()}
        self.sign = np.array(SIGN, np.float32)[lung][:, None, None]
        self.extent = self._column([p.extent for p in parts])
        self.noise = np.array([p.noise for p in parts], np.float32)[:, :, None, None]
        self.kinds = [p.kind for p in parts]
        lateral = self._column([p.place[0] for p in parts])
        height = self._column([p.place[1] for p in parts])
        top, dome = self.p["top"], self.p["dome_right"]
        dome = dome + self.p["dome_drop"] * (self.sign > 0)
        self.du = self.u - self.sign * (self.p["lung_u"] + lateral * self.p["lung_a"])
        self.du = self.du - self.p["lean"]
        self.dv = self.v - top - height * (dome - top)

    @staticmethod
    def _column(values: list[float]) -> Array:
        return np.array(values, np.float32)[:, None, None]

    def wobble(self, amount: float) -> Array:
        """A factor about 1 that varies with the angle: an irregular outline."""
        angle, n = np.arctan2(self.dv, self.du), 2 * np.pi * self.noise
        return 1 + amount * (np.sin(2 * angle + n[:, 0]) + 0.7 * np.sin(5 * angle + n[:, 1]))

    def texture(self) -> Array:
        """A mottled field in [0, 1]."""
        n = 2 * np.pi * self.noise
        a = np.sin(17 * self.u + 9 * self.v + n[:, 2]) * np.sin(19 * self.v - 7 * self.u + n[:, 3])
        return 0.5 + 0.5 * a


# A renderer gives (change, mask): the change adds to the density, the mask is the lesion's extent.
Rendered = tuple[Array, Array]


def _atelectasis(k: _Lesions) -> Rendered:
    tilt = (k.noise[:, 4] - 0.5) * 1.0
    along = np.cos(tilt) * k.du + np.sin(tilt) * k.dv
    across = np.cos(tilt) * k.dv - np.sin(tilt) * k.du + 0.3 * (k.noise[:, 5] - 0.5) * along**2
    thick = np.maximum(1.15 * k.pixel, 0.045 + 0.1 * k.extent)
    band = _sigmoid((1 - np.abs(across) / thick) * 5) * _sigmoid((1 - np.abs(along) / k.extent) * 9)
    band = band * k.lung
    return 0.46 * band, band > 0.45


def _consolidation(k: _Lesions) -> Rendered:
    r = np.hypot(k.du, k.dv * (0.8 + 0.4 * k.noise[:, 6])) / k.extent * k.wobble(0.14)
    blob = _sigmoid((1 - r) * 9) * k.lung
    return blob * (0.36 + 0.16 * k.texture()), blob > 0.45


def _opacity(k: _Lesions) -> Rendered:
    r = np.hypot(k.du, k.dv * (0.75 + 0.5 * k.noise[:, 6])) / k.extent
    blob = np.exp(-1.1 * r**2) * k.lung
    return 0.42 * blob, (r < 1) & (k.lung > 0.5)


def _pneumonia(k: _Lesions) -> Rendered:
    foci = np.zeros_like(k.du)
    radius = np.maximum(0.3 * k.extent, 1.2 * k.pixel)
    for i in range(7):
        angle = 2 * np.pi * (i / 6 + 0.12 * k.noise[:, 7 + i])
        reach = 0.0 if i == 6 else k.extent * (0.62 + 0.3 * k.noise[:, 14 + i])
        d2 = (k.du - reach * np.cos(angle)) ** 2 + (k.dv - reach * np.sin(angle)) ** 2
        foci = np.maximum(foci, np.exp(-0.9 * d2 / radius**2))
    foci = foci * k.lung
    return 0.46 * foci, foci > 0.35


def _edema(k: _Lesions) -> Rendered:
    side = np.maximum(k.lateral + 0.95, 0) / (1.25 * k.extent)
    rise = (k.height - 0.46) / (0.24 + 0.2 * (k.extent - 0.5))
    haze = np.exp(-1.1 * (side**2 + rise**2)) * k.lung
    return haze * (0.42 + 0.2 * k.texture()), (haze > 0.36) & (k.lung > 0.5)


def _effusion(k: _Lesions) -> Rendered:
    climb = np.clip((k.lateral + 1) / 2, 0, 1) ** 2
    top = 0.98 - k.extent * (0.62 + 0.45 * climb)
    inside = _sigmoid((1 - k.radius) * 30) * _sigmoid((k.height - top) * 30)
    lowest = k.v < k.p["dome_right"] + k.p["dome_drop"] + k.p["dome_height"]
    level = 0.8 - k.p["air"]
    return level * inside * k.lung, (inside > 0.5) & lowest & (k.lung > 0.25)


def _pneumothorax(k: _Lesions) -> Rendered:
    p = k.p
    out, down = (
        k._column(
            [
                {"apical": (0.0, 0.7), "lateral": (0.85, 0.0)}.get(kind, (0, 0))[i]
                for kind in k.kinds
            ]
        )
        for i in (0, 1)
    )
    basal = k._column([float(kind == "basal") for kind in k.kinds])
    rise = (k.v - (p["top"] + 0.68) / 2) / ((0.68 - p["top"]) / 2)
    lung = (np.abs(k.lateral + out * k.extent), np.abs(rise - down * k.extent))
    edge = (lung[0] ** p["power"] + lung[1] ** p["power"]) ** (1 / p["power"]) - 1
    low = k.height + 0.15 * k.lateral - (1.02 - 0.42 * k.extent)
    edge = np.where(basal > 0, low, edge)  # the collapsed lung lies where edge < 0
    air = _sigmoid(edge * 30) * k.lung
    line = _bump(edge / 0.08) * k.lung
    return 0.2 * line - (p["air"] - 0.02) * air, (edge > 0.05) & (k.lung > 0.5)


RENDERERS: dict[str, Callable[[_Lesions], Rendered]] = {
    "Pneumothorax": _pneumothorax,  # first: it removes the markings that others cover
    "Edema": _edema,
    "Lung Opacity": _opacity,
    "Pneumonia": _pneumonia,
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Pleural Effusion": _effusion,
}


def _add_devices(body: _Body, scenes: Sequence[Scene], density: Array) -> None:
    """Draw pacemakers, lines and leads over the film (in place)."""
    kinds = np.array([s.devices[0] if s.devices else "" for s in scenes])
    pixel = body.pixel
    for kind in DEVICE_KINDS:
        at = np.flatnonzero(kinds == kind)
        if at.size:
            u, v, width = body.u[at], body.v[at], pixel[at]
            density[at] = np.maximum(density[at], _DEVICES[kind](u, v, width))


def _pacemaker(u: Array, v: Array, pixel: Array) -> Array:
    box = _sigmoid((0.1 - np.maximum(np.abs(u - 0.6), np.abs(v + 0.72))) * 60)
    lead = _bump((u - 0.1 - 0.5 * _bump((v - 0.35) / 1.1 + 1)) / (0.8 * pixel))
    return np.maximum(box, 0.9 * lead * _sigmoid((v + 0.7) * 30) * _sigmoid((0.3 - v) * 30))


def _central_line(u: Array, v: Array, pixel: Array) -> Array:
    course = _bump((u + 0.13 + 0.2 * np.maximum(-0.5 - v, 0)) / (0.7 * pixel))
    return 0.92 * course * _sigmoid((0.05 - v) * 30) * _sigmoid((v + 1.2) * 30)


def _leads(u: Array, v: Array, pixel: Array) -> Array:
    dots = [(-0.7, -0.62), (0.72, -0.6), (0.62, 0.45)]
    spots = [_sigmoid((1.6 * pixel - np.hypot(u - x, v - y)) / (0.4 * pixel)) for x, y in dots]
    wire = _bump((u - 0.72 + 0.12 * (v + 0.6)) / (0.45 * pixel)) * (v > -0.6) * (v < 0.45)
    return np.maximum(np.maximum.reduce(spots), 0.6 * wire)


_DEVICES = {"pacemaker": _pacemaker, "line": _central_line, "leads": _leads}


def _expose(density: Array, body: _Body, scenes: Sequence[Scene]) -> Array:
    """Exposure, blur, noise and 8-bit rounding: float32 [B, H, W] in [0, 1]."""
    p, size = body.p, body.size
    across = np.linspace(-1, 1, size, dtype=np.float32)[None, None, :]
    film = (density - 0.45) * p["gain"] + 0.45 + p["offset"] + p["tilt"] * across
    film = np.clip(film, 0, 1) ** p["gamma"]
    film = _blur(film, p["blur"].ravel() * size / 64)
    film = film + np.stack([s.pixels for s in scenes])
    return (np.rint(np.clip(film, 0, 1) * 255) / 255).astype(np.float32)


def _blur(film: Array, sigma: Array) -> Array:
    """A small Gaussian blur, each image with its own sigma (pixels)."""
    for image, width in zip(film, sigma, strict=True):
        rows = gaussian_filter1d(image, width, axis=0, truncate=3)
        gaussian_filter1d(rows, width, axis=1, truncate=3, output=image)
    return film


def _render_finding(
    body: _Body, density: Array, finding: str, jobs: list[tuple[int, int, int, Part]]
) -> Iterator[tuple[int, int, int, Array]]:
    """Add all parts of one finding to the films; yields (image, region, part, mask [H, W])."""
    lesions = _Lesions(body, [job[0] for job in jobs], [job[3] for job in jobs])
    change, mask = RENDERERS[finding](lesions)
    if finding == "Pneumothorax":
        level = density[[job[0] for job in jobs]]
        change = np.maximum(change, 0.03 - level)
    for (image, region, part, _), delta, extent in zip(jobs, change, mask, strict=True):
        density[image] += (1 - density[image] / 1.25) * delta if delta.max() > 0.25 else delta
        yield image, region, part, extent


def render(scenes: Sequence[Scene], size: int) -> tuple[Array, dict[tuple[int, int, int], Array]]:
    """Films float32 [B, H, W] in [0, 1] and masks {(image, region, part): bool [H, W]}."""
    for scene in scenes:  # an enlarged heart is anatomy
        for part in (p for parts in scene.parts for p in parts if p.finding == "Cardiomegaly"):
            scene.params["heart_w"] = part.extent
    body = _Body([s.params for s in scenes], size)
    density, heart, masks = body.density(), body.heart() < 1, {}
    jobs: dict[str, list[tuple[int, int, int, Part]]] = {}
    for i, scene in enumerate(scenes):
        for r, parts in enumerate(scene.parts):
            for c, part in enumerate(parts):
                jobs.setdefault(part.finding, []).append((i, r, c, part))
    for i, r, c, _ in jobs.get("Cardiomegaly", []):
        masks[i, r, c] = heart[i]
    for finding in RENDERERS:
        if finding in jobs:
            for i, r, c, mask in _render_finding(body, density, finding, jobs[finding]):
                masks[i, r, c] = mask
    _add_devices(body, scenes, density)
    return _expose(density, body, scenes), masks


# ---------------------------------------------------------------- records


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
    """The first image of the patient: images 2j and 2j + 1 may share one."""
    first = index - index % 2
    shared = _stream(seed, split, first, 2).random() < world.second_image
    return first if shared else index


def _draw_example(seed: int, split: str, index: int, world: World) -> tuple[Scene, Any]:
    """The scene of an example and, drawn after it from the same stream, its wording."""
    rng = _stream(seed, split, index)
    draw = random.Random(int(rng.integers(2**62)))
    patient = _stream(seed, split, _owner(seed, split, index, world), 1)
    scene = _draw_scene(rng, draw, _uniform(patient, ANATOMY), world)
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
    drawn = [_draw_example(seed, split, i, world) for i in indices]
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
    """``n`` phantoms of a split: image [size, size], impression, and a region per finding.

    ``split`` is "train", "validation" or "test"; ``world`` are fields of :class:`World`. An
    example depends on (seed, split, index) and the world alone: ``generate(9, …)[:5]`` equals
    ``generate(5, …)``. Phrases and subjects of different splits are disjoint.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if n < 0 or seed < 0:
        raise ValueError(f"n and seed must not be negative, got n={n}, seed={seed}")
    settings = world_of(**world)
    starts = range(0, n, BATCH)
    batches = (range(start, min(start + BATCH, n)) for start in starts)
    return [example for batch in batches for example in _batch(batch, seed, split, settings)]
