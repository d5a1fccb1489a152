"""Figures that explain a step of the method: curves, mixtures, phantoms, one idea each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from g2g_utils import bbm, masks
from g2g_utils.bench import token_probes
from g2g_utils.bench.statistics import Interval
from g2g_utils.plots import charts, overlays

PIXELS = ((0.8, 0.2), (0.8, 0.8), (0.2, 0.8))  # values of one pixel in A and in M


def _title(fig: Figure, title: str) -> Figure:
    """Write the figure's claim, top left."""
    fig.suptitle(title, x=0.01, ha="left", fontsize=10)
    return fig


# -- bias merging (notebook 06) -------------------------------------------------------------------


def merged_values(pixels: Sequence[tuple[float, float]] = PIXELS, title: str = "") -> Figure:
    """Draw the merged value of one pixel against the confidence c, for every curve.

    Args:
        pixels: values (a, m) of a pixel in the activation and in the interaction map.
    """
    fig, axes = plt.subplots(1, len(pixels), figsize=(2.6 * len(pixels), 2.6), sharey=True)
    c = np.linspace(0, 1, 101)
    for ax, (a, m) in zip(axes, pixels, strict=True):
        for name, weights in charts.CURVES.items():
            of_a, of_both, of_m = weights(c)
            value = of_a * a + of_both * a * m + of_m * m
            ax.plot(c, value, color=charts.colour(name), label=name)
        ax.set(title=f"a = {a:g}, m = {m:g}", xlabel="confidence c", ylim=(0, 1.05))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("merged value")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _title(fig, title)


def merging_effects(
    gaps: Mapping[str, Mapping[tuple[str, str], Interval]], title: str = ""
) -> Figure:
    """Draw what merging adds to each metric: merged less plain, a panel a metric.

    Args:
        gaps: metric -> {(arm, curve): difference with its interval}.
    """
    names = [f"{arm}, {curve}" for arm, curve in next(iter(gaps.values()))]
    fig, axes = plt.subplots(1, len(gaps), figsize=(8, 0.9 + 0.25 * len(names)), sharey=True)
    for ax, (metric, rows) in zip(axes, gaps.items(), strict=True):
        for y, ((_, curve), gap) in enumerate(rows.items()):
            shade = charts.colour(curve)
            ax.plot([gap.low, gap.high], [y, y], color=shade, lw=2)
            ax.plot(gap.value, y, "o", color=shade, ms=5)
        ax.axvline(0, color="0.3", lw=0.8)
        ax.set(title=metric, xlabel="merged − plain")
        ax.grid(axis="x", alpha=0.3)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return _title(fig, title)


def gain_scatter(
    columns: Mapping[str, Sequence[float]], gain: Sequence[float], title: str = ""
) -> Figure:
    """Draw each pair's gain in CNR against one or more of its numbers, a panel each.

    Args:
        columns: label of the horizontal axis -> one number a pair.
        gain: CNR of the merged map less that of the plain one.
    """
    fig, axes = plt.subplots(
        1, len(columns), figsize=(3.4 * len(columns), 2.8), sharey=True, squeeze=False
    )
    for ax, (label, values) in zip(axes[0], columns.items(), strict=True):
        ax.plot(values, gain, "o", ms=4, color=charts.BLUE, alpha=0.5, mew=0)
        ax.axhline(0, color="0.3", lw=0.8)
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("CNR merged − plain")
    return _title(fig, title)


def map_rows(
    rows: Sequence[tuple[str, Any, Sequence[Sequence[float]], Mapping[str, Tensor]]],
    title: str = "",
    size: float = 1.9,
) -> Figure:
    """Draw named maps over their films, one film a row, each map scaled to [0, 1].

    Args:
        rows: text at the left, image [S, S], boxes, and name -> map [h, w].
    """
    width = 1 + max(len(maps) for *_, maps in rows)
    fig, axes = overlays.panels(width, len(rows), size)
    for line, (label, image, boxes, maps) in zip(axes, rows, strict=True):
        for ax in line[1 + len(maps) :]:
            ax.set_visible(False)
        overlays.show_image(line[0], image, boxes=boxes, title="film")
        line[0].set_ylabel(overlays.wrapped(label, round(14 * size)), fontsize=8)
        for ax, (name, heat) in zip(line[1:], maps.items(), strict=False):
            short = overlays.wrapped(name, round(11 * size))
            overlays.overlay(ax, image, bbm.minmax(heat), boxes=boxes, title=short, marker=False)
    overlays.colour_bar(fig, axes, "each map scaled to [0, 1]")
    overlays.legend(fig)
    return _title(fig, title)


# -- the mask (notebook 04) -----------------------------------------------------------------------


def mask_rows(
    rows: Sequence[tuple[str, Any, Sequence[Sequence[float]], Tensor]], title: str = ""
) -> Figure:
    """Draw how the Gaussian mixture cuts heat maps: histogram, two components, cut, mask.

    Args:
        rows: text, image [S, S], boxes, and heat map [h, w] in [0, 1].
    """
    fig, axes = plt.subplots(
        len(rows), 3, figsize=(8, 2.55 * len(rows)), width_ratios=(1.7, 1, 1), squeeze=False
    )
    for line, (label, image, boxes, heat) in zip(axes, rows, strict=True):
        _mixture(line[0], heat, label)
        overlays.overlay(line[1], image, heat, boxes=boxes, title="heat map")
        mask = masks.gmm_mask(heat)
        share = f"mask: {float(mask.float().mean()):.0%} of the film"
        overlays.show_image(line[2], image, boxes=boxes, title=share)
        overlays.draw_mask(line[2], mask, np.asarray(image).shape[-1])
    axes[0, 0].legend(fontsize=8)
    overlays.legend(fig, mask=True)
    return _title(fig, title)


def _mixture(ax: Axes, heat: Tensor, label: str) -> None:
    """Histogram of a map's values with the two fitted Gaussians and the cut between them."""
    means, spreads, weights = masks.components(heat)
    ax.hist(heat.flatten().numpy(), bins=32, range=(0, 1), density=True, color="0.8")
    x = np.linspace(0, 1, 400)
    parts = zip(means, spreads, weights, ("background", "foreground"), strict=True)
    for (mean, spread, weight, name), shade in zip(parts, (charts.SKY, charts.ORANGE), strict=True):
        density = weight * np.exp(-0.5 * ((x - mean) / spread) ** 2)
        ax.plot(x, density / spread / np.sqrt(2 * np.pi), color=shade, label=name)
    ax.axvline(float(np.mean(means)), color="0.15", ls="--", lw=1.2, label="cut")
    top = ax.get_ylim()[1]
    ax.set(xlabel="heat", ylabel="density", ylim=(0, min(top, 12)))
    ax.set_title(overlays.wrapped(label, 46))


# -- attention (notebooks 04 and 05) --------------------------------------------------------------


def two_populations(
    heat: NDArray[Any] | Tensor, inside: NDArray[np.bool_] | Tensor, title: str = ""
) -> Figure:
    """Draw the heat inside and outside a target as two histograms, whose distance is the CNR.

    Args:
        heat: [H, W] in [0, 1].
        inside: target, bool [H, W].
    """
    values, where = np.asarray(heat), np.asarray(inside)
    fig, ax = plt.subplots(figsize=(4.8, 2.5))
    for name, chosen, shade in (
        ("outside the box", ~where, charts.SKY),
        ("inside", where, charts.ORANGE),
    ):
        part = values[chosen]
        ax.hist(part, bins=25, range=(0, 1), density=True, alpha=0.5, color=shade, label=name)
        ax.axvline(float(part.mean()), color=shade, lw=1.6)
    ax.set(xlabel="heat", ylabel="density")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _title(fig, title)


GROUP_COLOURS = (charts.BLUE, charts.SKY, "#E69F00", "#CC79A7", "#d0d0d0")


def attention_shares(shares: pd.DataFrame, title: str = "") -> Figure:
    """Draw how attention is spent: a stacked bar per arm, a tick where padding would begin if even.

    Args:
        shares: rows of arms, columns of the token groups and UNIFORM of `bench.token_probes`.
    """
    fig, ax = plt.subplots(figsize=(7.5, 1.3 + 0.45 * len(shares)))
    left = np.zeros(len(shares))
    for group, shade in zip(token_probes.GROUPS, GROUP_COLOURS, strict=True):
        ax.barh(shares.index, shares[group], left=left, color=shade, label=group)
        left += shares[group].to_numpy()
    for y, even in enumerate(shares[token_probes.UNIFORM]):
        ax.vlines(1 - even, y - 0.4, y + 0.4, color="k")
    ax.set(xlim=(0, 1), xlabel="share of attention")
    ax.grid(axis="y", visible=False)
    ax.invert_yaxis()
    fig.legend(loc="outside lower center", ncols=len(token_probes.GROUPS), fontsize=8)
    return _title(fig, title)


def grouped_intervals(
    cells: Mapping[str, Mapping[str, Interval]], label: str, title: str = ""
) -> Figure:
    """Draw points with 95 % intervals: one place per outer key, one colour per inner key."""
    fig, ax = plt.subplots(figsize=(7.4, 2.8))
    kinds = list(next(iter(cells.values())))
    for k, (kind, shade) in enumerate(zip(kinds, charts.PALETTE, strict=False)):
        places = np.arange(len(cells)) + 0.18 * (k - (len(kinds) - 1) / 2)
        found = [row[kind] for row in cells.values()]
        values = np.array([one.value for one in found])
        reach = np.abs(np.array([[one.low, one.high] for one in found]).T - values)
        ax.errorbar(places, values, yerr=reach, fmt="o", color=shade, label=kind, capsize=2)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set_xticks(range(len(cells)), list(cells))
    ax.set_ylabel(label)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _title(fig, title)


def similarity_bars(rows: pd.DataFrame, label: str, title: str = "") -> Figure:
    """Draw one number for words (index) and methods (columns) as grouped points."""
    fig, ax = plt.subplots(figsize=(5.4, 0.9 + 0.32 * len(rows)))
    apart = np.linspace(-0.2, 0.2, rows.shape[1])
    for name, shade, shift in zip(rows.columns, charts.PALETTE, apart, strict=False):
        ax.plot(rows[name], np.arange(len(rows)) + shift, "o", color=shade, label=str(name), ms=5)
    ax.set_yticks(range(len(rows)), [str(name) for name in rows.index])
    ax.invert_yaxis()
    ax.set_xlabel(label)
    ax.grid(axis="x", alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _title(fig, title)


# -- training (notebook 03) -----------------------------------------------------------------------


def arm_losses(logs: Mapping[str, pd.DataFrame], smooth: int = 60, title: str = "") -> Figure:
    """Draw training losses, and each arm's loss less the mean of all, where the arms differ.

    Args:
        logs: ARM-sSEED -> log of the training with step and loss.
    """
    fig, axes = plt.subplots(1, 2, figsize=(8.2, 2.8))
    losses = pd.concat(
        {
            name: log.drop_duplicates("step").set_index("step")["loss"].rolling(smooth, 1).mean()
            for name, log in logs.items()
        },
        axis=1,
    )
    arms = [str(name).rpartition("-s")[0] for name in losses.columns]
    means = losses.T.groupby(arms, sort=False).mean().T
    for name, shade in zip(means.columns, (*charts.PALETTE, charts.GREY), strict=False):
        axes[0].plot(means.index, means[name], color=shade, lw=1)
        axes[1].plot(means.index, means[name] - means.mean(axis=1), color=shade, lw=1.2, label=name)
    axes[0].set(title="loss", xlabel="step")
    axes[1].set(title="loss less the mean of all arms", xlabel="step")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return _title(fig, title)


def film_strips(
    rows: Mapping[str, Tensor], timesteps: Sequence[int], title: str = "", size: float = 1.2
) -> Figure:
    """Draw decoded latents along a sampling: a row a setting, noise at the left.

    Args:
        rows: text at the left -> images [n, S, S] in [0, 1].
        timesteps: of the n columns.
    """
    fig, axes = overlays.panels(len(timesteps), len(rows), size)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            overlays.show_image(ax, torch.as_tensor(image), marker=False)
        line[0].set_ylabel(label, fontsize=8)
    for ax, t in zip(axes[0], timesteps, strict=True):
        ax.set_title(f"t = {t}" if ax is axes[0, 0] else str(t), loc="center", fontsize=8)
    return _title(fig, title)
