"""Figures of the pages that derive the formulas, computed by our functions from made-up maps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture

from g2g_utils import bbm, metrics
from g2g_utils.config import Config, World
from g2g_utils.data import phantoms
from g2g_utils.data.phantoms.render import render
from g2g_utils.masks import gmm_mask
from g2g_utils.plots import charts, overlays

Array = NDArray[np.float64]
PAIRS = ((0.8, 0.2), (0.8, 0.8), (0.2, 0.8))  # (a, m): activation and interaction of one pixel
CURVES: tuple[bbm.Curve, ...] = ("linear", "quadratic", "mixture")
SIDE = 16


def bezier() -> Figure:
    """Merged value of a pixel against the confidence c, for three pairs (a, m)."""
    confidence = np.linspace(0, 1, 101)
    fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.6), sharey=True)
    for ax, (a, m) in zip(axes, PAIRS, strict=True):
        both = torch.tensor([[0.0, a, 1.0]]), torch.tensor([[0.0, m, 1.0]])  # scaled maps
        for curve in CURVES:
            values = [float(bbm.merge(*both, float(c), curve)[0, 1]) for c in confidence]
            ax.plot(confidence, values, color=charts.COLOURS[curve], label=curve)
        ax.set(title=f"a = {a}, m = {m}", xlabel="confidence c", ylim=(0, 1.1))
    axes[0].set_ylabel("merged value")
    axes[2].legend(loc="lower right")
    return fig


def schedule(kept: Array) -> Figure:
    """α_t and σ_t of a noise schedule, from its ᾱ_t = α_t² of every timestep [T]."""
    fig, ax = plt.subplots(figsize=(4.6, 2.6))
    ax.plot(np.sqrt(kept), color=charts.BLUE, label=r"$\alpha_t$, the latent")
    ax.plot(np.sqrt(1 - kept), color=charts.ORANGE, label=r"$\sigma_t$, the noise")
    ax.set(xlabel="timestep t", ylim=(0, 1.02))
    ax.legend()
    return fig


def guided_steps(scales: tuple[float, ...] = (1, 4, 16), steps: int = 16) -> Figure:
    """DDIM under guidance on a line: where samples land when the two predictions are known exactly.

    Without text z ~ N(0, 1), with text z ~ N(1, 0.5²): for both the best prediction of the noise is
    known, so the steps are exact but for their length.
    """
    fig, axes = plt.subplots(1, len(scales), figsize=(8.4, 2.5), sharey=True)
    alphas = np.cos(np.linspace(0.98, 0, steps + 1) * np.pi / 2)
    start = np.linspace(-2, 2, 9)
    for ax, scale in zip(axes, scales, strict=True):
        paths = ddim(start, alphas, scale)
        ax.plot(paths, color=charts.BLUE, lw=0.8)
        ax.axhspan(0.5, 1.5, color=charts.ORANGE, alpha=0.15)
        ax.set(title=f"guidance {scale:g}", xlabel="step", ylim=(-4, 8))
    axes[0].set_ylabel("latent")
    return fig


def ddim(start: Array, alphas: Array, scale: float) -> Array:
    """Paths [steps + 1, n] of DDIM (η = 0) from noise along rising α, see `guided_steps`."""
    latent, path = start.copy(), [start.copy()]
    for alpha, following in pairwise(alphas):
        sigma = np.sqrt(1 - alpha**2)
        free, asked = (best_noise(latent, alpha, *world) for world in ((0, 1), (1, 0.5)))
        noise = free + scale * (asked - free)
        clean = (latent - sigma * noise) / alpha
        latent = following * clean + np.sqrt(1 - following**2) * noise
        path.append(latent.copy())
    return np.array(path)


def best_noise(latent: Array, alpha: float, mean: float, spread: float) -> Array:
    """E[ε | z_t] for z ~ N(mean, spread²) and z_t = α z + σ ε."""
    sigma2 = 1 - alpha**2
    total = alpha**2 * spread**2 + sigma2
    return np.asarray(np.sqrt(sigma2) * (latent - alpha * mean) / total)


def blob(centre: tuple[float, float], width: float, tail: float = 0.0, seed: int = 0) -> Array:
    """A made-up heat map [16, 16]: one blob on weak noise, with a long tail to the bottom."""
    y, x = np.mgrid[:SIDE, :SIDE]
    heat = np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))
    down = np.clip((y - centre[0]) / (SIDE - centre[0]), 0, 1)
    heat = np.maximum(
        heat, tail * (1 - 0.3 * down) * np.exp(-((x - centre[1]) ** 2) / 8) * (y > centre[0])
    )
    noise = np.random.default_rng(seed).normal(0, 0.03, heat.shape)
    made = heat + noise
    return np.asarray((made - made.min()) / np.ptp(made))


def mixture(heat: Array, box: tuple[float, float, float, float]) -> Figure:
    """Histogram of a map with the two components and the cut, and the mask over the map."""
    values = heat.reshape(-1, 1)
    fitted = GaussianMixture(2, random_state=0).fit(values)
    means = fitted.means_.ravel()
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), width_ratios=(2, 1))
    left.hist(values.ravel(), bins=40, density=True, color=charts.GREY, alpha=0.6)
    at = np.linspace(0, 1, 400)
    for weight, mean, var in zip(fitted.weights_, means, fitted.covariances_.ravel(), strict=True):
        curve = weight * np.exp(-((at - mean) ** 2) / (2 * var)) / np.sqrt(2 * np.pi * var)
        left.plot(at, np.minimum(curve, 12), lw=1.6)
    left.axvline(means.mean(), color="black", ls="--", label="cut: mean of the two means")
    left.set(xlabel="heat", ylabel="density", ylim=(0, 12))
    left.legend()
    _masked(right, heat, box)
    return fig


def _masked(ax: Axes, heat: Array, box: tuple[float, float, float, float]) -> None:
    """The map with its mask's outline and the box."""
    mask = gmm_mask(torch.as_tensor(heat).float()).numpy()
    ax.imshow(heat, cmap=overlays.HEAT, vmin=0, vmax=1)
    ax.contour(mask, levels=[0.5], colors="white", linewidths=1.5)
    x, y, w, h = box
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, ec=charts.SKY, lw=2))
    ax.set(xticks=[], yticks=[], title=f"mask {mask.mean():.0%}, box {w * h / SIDE**2:.0%}")


def populations(gaps: tuple[float, ...] = (0.0, 1.0, 2.5)) -> Figure:
    """CNR of heat inside and outside a box, drawn from two normal populations."""
    draw = np.random.default_rng(0)
    fig, axes = plt.subplots(1, len(gaps), figsize=(8.4, 2.3), sharey=True)
    target = torch.zeros(64, 64, dtype=torch.bool)
    target[20:44, 8:40] = True
    for ax, gap in zip(axes, gaps, strict=True):
        heat = torch.as_tensor(draw.normal(0, 1, (64, 64))) + gap * target
        cnr = metrics.contrast_to_noise(heat, target)
        for inside, colour in ((False, charts.GREY), (True, charts.BLUE)):
            ax.hist(
                heat[target == inside].numpy(), bins=40, density=True, alpha=0.6, color=colour,
                label="inside" if inside else "outside",
            )  # fmt: skip
        ax.set(title=f"means {gap:g} σ apart: CNR {cnr:.2f}", xlabel="heat")
    axes[-1].legend()
    return fig


# -- diagrams -------------------------------------------------------------------------------------


def _box(
    ax: Axes, x: float, y: float, text: str, colour: str = "#dbe9f6", wide: float = 1.7
) -> None:
    """A rounded box around a centre, with a text."""
    patch = FancyBboxPatch(
        (x - wide / 2, y - 0.36), wide, 0.72, boxstyle="round,pad=0.05", fc=colour
    )
    ax.add_patch(patch)
    ax.text(x, y, text, ha="center", va="center", fontsize=8)


def _arrow(ax: Axes, a: tuple[float, float], b: tuple[float, float], text: str = "") -> None:
    """An arrow between two points, with a text beside its middle."""
    ax.add_patch(FancyArrowPatch(a, b, arrowstyle="-|>", mutation_scale=10, lw=1, color="#444"))
    if text:
        ax.text((a[0] + b[0]) / 2, (a[1] + b[1]) / 2 + 0.12, text, ha="center", fontsize=7)


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty sheet in units of a box."""
    fig, ax = plt.subplots(figsize=(width * 0.85, height * 0.85))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return fig, ax


def method_diagram() -> Figure:
    """The method: film and phrase to U-Net, attention to map, biases to merged map and mask."""
    fig, ax = _canvas(11, 4.6)
    grey, warm = "#eeeeee", "#fde3c8"
    _box(ax, 1, 3.8, "film", grey)
    _box(ax, 3.3, 3.8, "VAE: latent $z$")
    _box(ax, 1, 2.3, "phrase", grey)
    _box(ax, 3.3, 2.3, "text encoder\n(frozen)")
    _box(ax, 5.7, 3.05, "U-Net at every\ntimestep $t$")
    _box(ax, 3.3, 0.8, "pure noise", grey)
    _box(ax, 5.7, 0.8, "U-Net, DDIM\nunder guidance")
    _box(ax, 8.1, 3.8, "activation map $A$", warm)
    _box(ax, 8.1, 2.3, "image bias $B_I$", warm)
    _box(ax, 8.1, 0.8, "text bias $B_T$", warm)
    _box(ax, 10.1, 2.3, "merge: $A$, $M$, $c$", warm, 1.5)
    _box(ax, 10.1, 3.8, "mask", grey, 1.2)
    for a, b, text in (
        ((1.9, 3.8), (2.4, 3.8), ""), ((1.9, 2.3), (2.4, 2.3), ""),
        ((4.2, 3.7), (4.85, 3.3), "+ noise"), ((4.2, 2.4), (4.85, 2.8), ""),
        ((4.2, 0.8), (4.8, 0.8), ""), ((3.9, 1.9), (5.1, 1.2), ""),
        ((6.6, 3.2), (7.2, 3.7), "words"), ((6.6, 2.9), (7.2, 2.4), "start"),
        ((6.6, 0.8), (7.2, 0.8), "words"), ((9, 2.3), (9.3, 2.3), ""),
        ((9, 1.0), (9.7, 1.9), ""), ((8.9, 3.4), (9.5, 2.75), ""), ((10.1, 2.7), (10.1, 3.35), ""),
    ):  # fmt: skip
        _arrow(ax, a, b, text)
    return fig


def unet_diagram(sides: dict[str, tuple[int, int]]) -> Figure:
    """The layers with cross-attention, in forward order: name -> size of its maps (h, w)."""
    fig, ax = plt.subplots(figsize=(1.1 * len(sides) + 1, 2.6))
    coarsest = min(side for side, _ in sides.values())
    for place, (name, (side, _)) in enumerate(sides.items()):
        block = name.split("_")[0]
        colour = {"down": charts.SKY, "mid": charts.GREY, "up": charts.ORANGE}.get(
            block, charts.GREY
        )
        high = 1 + np.log2(side / coarsest)
        ax.bar(place, high, bottom=-high / 2, width=0.6, color=colour, ec="white")
        ax.text(place, 0, f"{side}×{side}", ha="center", va="center", fontsize=8)
        ax.text(place, -1.5, f"{place + 1}\n{block}", ha="center", va="top", fontsize=8)
    ax.annotate("", (len(sides) - 0.4, 1.35), (-0.6, 1.35), arrowprops={"arrowstyle": "->"})
    ax.text((len(sides) - 1) / 2, 1.42, "forward", ha="center", fontsize=8)
    ax.set(xlim=(-0.7, len(sides) - 0.3), ylim=(-2.3, 1.7))
    ax.axis("off")
    return fig


def attention_sides(config: Config) -> dict[str, tuple[int, int]]:
    """Layers of the profile's own U-Net with cross-attention, in forward order -> size of maps."""
    side = config.image_size // (config.vae.unshuffle * 2 ** (len(config.vae.channels) - 1))
    levels = [side >> i for i, on in enumerate(config.unet.attention_levels or ()) if on]
    down = [s for s in levels for _ in range(config.unet.layers_per_block)]
    up = [s for s in reversed(levels) for _ in range(config.unet.layers_per_block + 1)]
    named = [("down", s) for s in down] + [("up", s) for s in up]
    return {f"{block}_{i}": (s, s) for i, (block, s) in enumerate(named)}


def phantom(size: int, index: int = 0) -> tuple[dict[str, Any], tuple[float, ...]]:
    """A test phantom without its findings, with them, and their difference; the box of that."""
    scene, _ = phantoms.draw_example(0, "test", index, World(size=size))
    normal = replace(scene, parts=[[] for _ in scene.parts], params=dict(scene.params))
    (with_it,), _ = render([scene], size)
    (without,), _ = render([normal], size)
    change = np.squeeze(with_it - without)
    box = phantoms.tight_box(np.abs(change) > 0.04)
    return {"normal": without, "with its findings": with_it, "what they change": change}, box


def phantom_layers(films: dict[str, Any], box: tuple[float, ...]) -> Figure:
    """A phantom without and with its finding, and their difference: name -> image [S, S]."""
    fig, axes = plt.subplots(1, len(films), figsize=(2.5 * len(films), 2.7))
    for ax, (name, image) in zip(axes, films.items(), strict=True):
        signed = name == list(films)[-1]
        span = {"cmap": "PuOr_r", "vmin": -0.3, "vmax": 0.3} if signed else {"vmin": 0, "vmax": 1}
        ax.imshow(np.squeeze(image), **{"cmap": "gray"} | span)
        ax.set(xticks=[], yticks=[], title=name)
    x, y, w, h = box
    axes[-1].add_patch(Rectangle((x, y), w, h, fill=False, ec=charts.SKY, lw=2))
    return fig
