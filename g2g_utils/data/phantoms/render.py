"""Rendering of phantoms: scenes to images and masks, vectorised over a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from g2g_utils.data.phantoms.scene import DEVICE_KINDS, LEFT, RIGHT, SIGN, Part, Scene

Array = NDArray[Any]
Masks = dict[tuple[int, int, int], Array]
"""{(image, region, part): bool [H, W]}"""


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
        """Density of the normal image: 0 is black, 1 is white."""
        return self.layers()["and ribs"]

    def layers(self) -> dict[str, Array]:
        """Densities of the normal image as it grows, by the name of what was added last."""
        u, v, p = self.u, self.v, self.p
        both = np.minimum(self.lung.sum(1), 1)
        width = 0.34 + 0.82 * _sigmoid((v + 1.02) * 14)
        trunk = _sigmoid((width - np.abs(u)) * 16)
        density = p["tissue"] * trunk + 0.04
        steps = {"body": density + 0.12 * _sigmoid((v - 0.55) * 8) * trunk}  # abdomen
        density = _mix(steps["body"], p["air"], both)
        density = steps["and lungs"] = density + both * self._markings()
        middle = p["mediastinum"] * (1 + 0.25 * np.tanh(2 * (v + 0.1)))
        density = _mix(density, 0.74, _sigmoid((middle - np.abs(u)) * 30) * trunk)
        heart = _sigmoid((1 - self.heart()) * 12)
        density = _mix(density, 0.78, heart * 0.95)
        steps["and heart"] = density + 0.1 * _bump(u / p["spine"]) * trunk
        return steps | {"and ribs": steps["and heart"] + self._bones(trunk)}

    def _markings(self) -> Array:
        """Hila, and the vessels that fan out from them. They vanish where air fills the pleura."""
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
        self.extent = self.column([p.extent for p in parts])
        self.noise = np.array([p.noise for p in parts], np.float32)[:, :, None, None]
        self.kinds = [p.kind for p in parts]
        lateral = self.column([p.place[0] for p in parts])
        height = self.column([p.place[1] for p in parts])
        top, dome = self.p["top"], self.p["dome_right"]
        dome = dome + self.p["dome_drop"] * (self.sign > 0)
        self.du = self.u - self.sign * (self.p["lung_u"] + lateral * self.p["lung_a"])
        self.du = self.du - self.p["lean"]
        self.dv = self.v - top - height * (dome - top)

    @staticmethod
    def column(values: list[float]) -> Array:
        return np.array(values, np.float32)[:, None, None]

    def wobble(self, amount: float) -> Array:
        """A factor about 1 that varies with the angle and makes an outline irregular."""
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
        k.column(
            [
                {"apical": (0.0, 0.7), "lateral": (0.85, 0.0)}.get(kind, (0, 0))[i]
                for kind in k.kinds
            ]
        )
        for i in (0, 1)
    )
    basal = k.column([float(kind == "basal") for kind in k.kinds])
    rise = (k.v - (p["top"] + 0.68) / 2) / ((0.68 - p["top"]) / 2)
    lung = (np.abs(k.lateral + out * k.extent), np.abs(rise - down * k.extent))
    edge = (lung[0] ** p["power"] + lung[1] ** p["power"]) ** (1 / p["power"]) - 1
    low = k.height + 0.15 * k.lateral - (1.02 - 0.42 * k.extent)
    edge = np.where(basal > 0, low, edge)  # the collapsed lung lies where edge < 0
    air = _sigmoid(edge * 30) * k.lung
    line = _bump(edge / 0.08) * k.lung
    return 0.2 * line - (p["air"] - 0.02) * air, (edge > 0.05) & (k.lung > 0.5)


def _patches(k: _Lesions) -> Rendered:
    """Pneumonia as it looks on films: confluent patches of haze, no separate foci."""
    r = np.hypot(k.du, k.dv * (0.7 + 0.5 * k.noise[:, 6])) / k.extent * k.wobble(0.2)
    haze = np.exp(-0.9 * r**2) * k.lung
    return haze * (0.22 + 0.34 * k.texture()), (r < 1.05) & (k.lung > 0.5)


def _soften(change: Array, parts: Sequence[Part]) -> Array:
    """Blur and mottle changes [K, H, W], so that they have the texture of a film's findings."""
    size = change.shape[-1]
    out = []
    for delta, part in zip(change, parts, strict=True):
        rng = np.random.default_rng(np.frombuffer(np.ascontiguousarray(part.noise).tobytes(), "u4"))
        mottle = gaussian_filter(rng.standard_normal((size, size), np.float32), size / 32)
        strength = 0.65 + 0.35 * rng.random()
        soft = gaussian_filter(delta, size * (0.008 + 0.014 * rng.random()))
        out.append(soft * strength * np.clip(1 + 0.25 * mottle / mottle.std(), 0.3, 1.7))
    return np.stack(out).astype(np.float32)


RENDERERS: dict[str, Callable[[_Lesions], Rendered]] = {
    "Pneumothorax": _pneumothorax,  # first: it removes the markings that other findings cover
    "Edema": _edema,
    "Lung Opacity": _opacity,
    "Pneumonia": _pneumonia,
    "Atelectasis": _atelectasis,
    "Consolidation": _consolidation,
    "Pleural Effusion": _effusion,
}


def _add_devices(body: _Body, scenes: Sequence[Scene], density: Array) -> None:
    """Draw pacemakers, lines and leads over the image (in place)."""
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
    """Apply exposure, blur, noise and 8-bit rounding: float32 [B, H, W] in [0, 1]."""
    p, size = body.p, body.size
    across = np.linspace(-1, 1, size, dtype=np.float32)[None, None, :]
    film = (density - 0.45) * p["gain"] + 0.45 + p["offset"] + p["tilt"] * across
    film = np.clip(film, 0, 1) ** p["gamma"]
    film = _blur(film, p["blur"].ravel() * size / 64)
    film = film + np.stack([s.pixels for s in scenes])
    return (np.rint(np.clip(film, 0, 1) * 255) / 255).astype(np.float32)


def _blur(film: Array, sigma: Array) -> Array:
    """Blur each image with a small Gaussian of its own sigma (pixels)."""
    for image, width in zip(film, sigma, strict=True):
        rows = gaussian_filter1d(image, width, axis=0, truncate=3)
        gaussian_filter1d(rows, width, axis=1, truncate=3, output=image)
    return film


def _normal_films(body: _Body, scenes: Sequence[Scene]) -> Array:
    """Images before lesions, [B, H, W]: drawn anatomy, or real backgrounds in each pose."""
    backgrounds = [scene.background for scene in scenes if scene.background is not None]
    if len(backgrounds) < len(scenes):
        return body.density()
    films = np.stack([b.sample(body.u[i], body.v[i]) for i, b in enumerate(backgrounds)])
    inside = body.lung.sum(1)
    air = (films * inside).sum((1, 2)) / inside.sum((1, 2))
    body.p["air"] = np.clip(air, 0.1, 0.5).astype(np.float32)[:, None, None]
    heart = _sigmoid((1 - body.heart()) * 12)
    for i, scene in enumerate(scenes):
        if any(p.finding == "Cardiomegaly" for parts in scene.parts for p in parts):
            films[i] = np.maximum(films[i], _mix(films[i], 0.75, 0.9 * heart[i]))
    return films


def _render_finding(
    body: _Body,
    density: Array,
    finding: str,
    jobs: list[tuple[int, int, int, Part]],
    scenes: Sequence[Scene],
) -> Iterator[tuple[int, int, int, Array]]:
    """Add all parts of one finding to the images; yields (image, region, part, mask [H, W])."""
    lesions = _Lesions(body, [job[0] for job in jobs], [job[3] for job in jobs])
    natural = [scenes[job[0]].natural for job in jobs]
    change, mask = RENDERERS[finding](lesions)
    if any(natural):
        if finding == "Pneumonia":
            change, mask = _patches(lesions)
        change = _soften(change, [job[3] for job in jobs])
    if finding == "Pneumothorax":
        level = density[[job[0] for job in jobs]]
        change = np.maximum(change, 0.03 - level)
    for (image, region, part, _), delta, extent in zip(jobs, change, mask, strict=True):
        density[image] += (1 - density[image] / 1.25) * delta if delta.max() > 0.25 else delta
        yield image, region, part, extent


def render(scenes: Sequence[Scene], size: int) -> tuple[Array, Masks]:
    """Images float32 [B, H, W] in [0, 1] and masks {(image, region, part): bool [H, W]}."""
    body, density, masks = _with_findings(scenes, size)
    return _expose(density, body, scenes), masks


def steps(scene: Scene, size: int) -> dict[str, Array]:
    """How one image [H, W] is drawn: densities by what was added last, then the exposed film."""
    body, density, _ = _with_findings([scene], size)
    grown = {name: layer[0] for name, layer in body.layers().items()}
    film = _expose(density.copy(), body, [scene])[0]
    return grown | {"and findings": density[0], "exposed, with noise": film}


def _with_findings(scenes: Sequence[Scene], size: int) -> tuple[_Body, Array, Masks]:
    """Bodies of the scenes, their densities with all findings and devices, and the masks."""
    for scene in scenes:  # an enlarged heart is anatomy
        for part in (p for parts in scene.parts for p in parts if p.finding == "Cardiomegaly"):
            scene.params["heart_w"] = part.extent
    body = _Body([s.params for s in scenes], size)
    density, heart, masks = _normal_films(body, scenes), body.heart() < 1, {}
    jobs: dict[str, list[tuple[int, int, int, Part]]] = {}
    for i, scene in enumerate(scenes):
        for r, parts in enumerate(scene.parts):
            for c, part in enumerate(parts):
                jobs.setdefault(part.finding, []).append((i, r, c, part))
    for i, r, c, _ in jobs.get("Cardiomegaly", []):
        masks[i, r, c] = heart[i]
    for finding in RENDERERS:
        if finding in jobs:
            for i, r, c, mask in _render_finding(body, density, finding, jobs[finding], scenes):
                masks[i, r, c] = mask
    for i, scene in enumerate(scenes):
        if scene.natural and scene.background is not None:
            u, v = body.u[i], body.v[i]
            change = density[i] - scene.background.sample(u, v)
            density[i] = scene.background.with_change(change, u, v)
    _add_devices(body, scenes, density)
    return body, density, masks
