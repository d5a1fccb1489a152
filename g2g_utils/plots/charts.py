"""Charts and tables of results: bars, lines and points with their intervals, one idea each.

Tables have one row per method; their cells are `Interval`. Intervals are 95 %, over patients. Dots
are single seeds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from g2g_utils.bench.claims import Claim, verdict
from g2g_utils.bench.statistics import Interval

Curve = NDArray[np.float64]

# Okabe and Ito's colours: told apart with any colour vision. Everything else is grey.
BLUE, ORANGE, SKY = "#0072B2", "#D55E00", "#56B4E9"
PALETTE = (BLUE, "#E69F00", "#009E73", "#CC79A7", "#F0E442", ORANGE, SKY)
COLOURS = {"linear": ORANGE, "quadratic": SKY, "mixture": BLUE}  # methods: see `use_colours`
GREY = "#9a9a9a"
LABELS = {
    "cnr": "CNR",
    "abs_cnr": "|CNR|",
    "auc_roc": "AUC",
    "pointing": "Top-1",
    "iou": "IoU",
    "balanced_iou": "balanced IoU",
    "threshold_iou": "threshold IoU",
    "specificity": "specificity",
    "mask_fraction": "mask share",
    "frechet": "Fréchet distance",
    "vilouras_cnr": "CNR by box",
    "vilouras_abs_cnr": "|CNR| by box",
    "vilouras_miou": "mIoU, not rescaled",
    "vilouras_auc": "AUC of 5 thresholds",
}


def use_colours(methods: Sequence[str]) -> None:
    """Give the compared methods their colours, in their order; all others are grey."""
    COLOURS.update(zip(methods, PALETTE, strict=False))


def colour(name: object) -> str:
    """Colour of a method, the same in every figure."""
    return COLOURS.get(str(name), GREY)


# -- tables -----------------------------------------------------------------------------------


def readable(table: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """The table as text: '1.24 [1.12, 1.35]'. Unknown numbers are '–'; columns get their names."""
    shown = table.map(lambda cell: _text(cell, digits))
    return shown.rename(columns=LABELS)


def _text(cell: object, digits: int) -> str:
    """One cell as text: an interval, a number, or a text unchanged."""
    if isinstance(cell, Interval):
        if not np.isfinite(cell.value):
            return "–"
        return f"{cell.value:.{digits}f} [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"
    if isinstance(cell, float | np.floating):
        return f"{cell:.{digits}f}" if np.isfinite(cell) else "–"
    return "–" if cell is None else str(cell)


def mean_interval(cells: pd.Series) -> Interval:
    """Mean of intervals, end by end, of one method over its seeds."""
    return Interval(*np.mean([tuple(cell) for cell in cells], axis=0).tolist())


# -- bars and points --------------------------------------------------------------------------


def bars(
    table: pd.DataFrame,
    columns: Sequence[str],
    dots: pd.DataFrame | None = None,
    title: str = "",
    zero: float | Mapping[str, float] = 0.0,
) -> Figure:
    """Draw horizontal bars with intervals, one panel per metric; seeds are dots.

    Args:
        table: rows of methods, columns of `Interval`.
        dots: long table with the index's name and the metrics, one row per seed.
        zero: start of the bars (chance level), for all metrics or by metric.
    """
    height = 0.9 + 0.27 * len(table)
    size = (1.7 + 1.75 * len(columns), height + 0.3 * bool(title))
    fig, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
    for ax, column in zip(axes[0], columns, strict=True):
        start = zero.get(column, 0.0) if isinstance(zero, Mapping) else zero
        _bar_panel(ax, table[column], start)
        if dots is not None and column in dots:
            _dots(ax, table.index, dots, column)
        ax.set_title(LABELS.get(column, column))
    axes[0, 0].set_yticks(range(len(table)), [str(name) for name in table.index])
    axes[0, 0].invert_yaxis()
    _suptitle(fig, title)
    return fig


def _bar_panel(ax: Axes, cells: pd.Series, zero: float) -> None:
    """Draw bars from `zero` to the estimates, with whiskers to the ends of the intervals."""
    known = any(name in COLOURS for name in cells.index)
    for y, (name, cell) in enumerate(cells.items()):
        if not isinstance(cell, Interval) or not np.isfinite(cell.value):
            continue
        shade = colour(name) if known else BLUE
        ax.barh(y, cell.value - zero, left=zero, color=shade, alpha=0.55, height=0.66)
        ax.plot([cell.low, cell.high], [y, y], color="0.15", lw=1.4)
    ax.axvline(zero, color="0.3", lw=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)


def _dots(ax: Axes, names: pd.Index, dots: pd.DataFrame, column: str) -> None:
    """Draw one dot per seed on its method's bar."""
    for y, name in enumerate(names):
        values = dots.loc[dots[names.name] == name, column]
        if len(values) > 1:
            spread = np.linspace(-0.16, 0.16, len(values))
            ax.plot(values, y + spread, "o", ms=3.2, mfc="white", mec="0.15", mew=0.8)


def forest(claims: Sequence[Claim], title: str = "") -> Figure:
    """Draw estimates of claims with intervals: filled above zero, orange below, else grey."""
    height = 0.8 + 0.34 * len(claims) + 0.3 * bool(title)
    fig, ax = plt.subplots(figsize=(7.2, height))
    for y, made in enumerate(claims):
        shade = BLUE if made.holds else GREY
        shade = ORANGE if made.high < 0 else shade
        ax.plot([made.low, made.high], [y, y], color=shade, lw=2)
        fill = shade if made.holds else "white"
        ax.plot(made.estimate, y, "o", mfc=fill, mec=shade, mew=1.5, ms=6)
    ax.axvline(0, color="0.3", lw=0.8)
    names = [textwrap.fill(f"{c.id.split('-')[0]}: {c.claim}", 56) for c in claims]
    ax.set_yticks(range(len(claims)), names, fontsize=7.5)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.set_xlabel("difference, 95 % interval over patients (blue: above zero, orange: below)")
    _suptitle(fig, title)
    return fig


def verdicts(claims: Sequence[Claim], names: Mapping[str, str], title: str = "") -> Figure:
    """Draw claims of one unit as dots on one axis, each with its verdict.

    Args:
        claims: in the order of the rows.
        names: id of a claim -> what it says, in a few words.
    """
    fig, ax = plt.subplots(figsize=(7.4, 0.9 + 0.27 * len(claims) + 0.3 * bool(title)))
    for y, made in enumerate(claims):
        shade = {"holds": BLUE, "reversed": ORANGE}.get(verdict(made), GREY)
        ax.plot([made.low, made.high], [y, y], color=shade, lw=2)
        ax.plot(made.estimate, y, "o", color=shade, ms=5)
        said = f"{verdict(made)}  {made.estimate:+.2f}"
        beside = ax.get_yaxis_transform()
        ax.text(1.02, y, said, color=shade, transform=beside, va="center", fontsize=8)
    ax.axvline(0, color="0.3", lw=0.8)
    ax.set_yticks(range(len(claims)), [names.get(made.id, made.claim) for made in claims])
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.set_xlabel("difference in CNR or specificity, 95 % interval over patients")
    _suptitle(fig, title)
    return fig


def dots(
    tables: Mapping[str, pd.DataFrame], columns: Sequence[str], title: str = "", legend: str = ""
) -> Figure:
    """Draw the same rows for several methods as dots with intervals, one panel a metric.

    Args:
        tables: method -> rows (classes, groups of layers, ...), columns of `Interval`.
        legend: title of the legend.
    """
    rows = next(iter(tables.values())).index
    size = (2.6 + 2.3 * len(columns), 0.9 + 0.36 * len(rows) + 0.3 * bool(title))
    fig, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=False)
    spread = np.linspace(-0.24, 0.24, len(tables)) if len(tables) > 1 else np.zeros(1)
    for ax, column in zip(axes[0], columns, strict=True):
        for (name, table), shift in zip(tables.items(), spread, strict=True):
            cells = np.array([tuple(table.loc[row, column]) for row in rows], float)
            y, shade = np.arange(len(rows)) + shift, COLOURS.get(str(name), "0.45")
            ax.hlines(y, cells[:, 1], cells[:, 2], color=shade, lw=1.6)
            ax.plot(cells[:, 0], y, "o", color=shade, ms=4.5, label=str(name))
        ax.axvline(0, color="0.3", lw=0.8)
        ax.set(title=LABELS.get(column, column))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x", alpha=0.3)
    axes[0, 0].set_yticks(range(len(rows)), [str(row) for row in rows])
    axes[0, 0].invert_yaxis()
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=legend or None)
    _suptitle(fig, title)
    return fig


def _cells(ax: Axes, artist: AxesImage, values: NDArray[np.float64]) -> None:
    """Write the numbers of a coloured field, black on bright cells, and frame the largest."""
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = artist.to_rgba(np.array([value]))[0]
            bright = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
            shade = "black" if bright else "white"
            ax.text(x, y, f"{value:z.2f}", ha="center", va="center", color=shade, fontsize=7)
    if np.isfinite(values).any():
        row, column = divmod(int(np.nanargmax(values)), values.shape[1])
        corner = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec=SKY, lw=2))


def _no_frame(ax: Axes) -> None:
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)


def shares(weights: pd.DataFrame, title: str = "") -> Figure:
    """Draw the share of every class (rows) under several averages (columns), one panel each."""
    size = (1.8 + 2.0 * weights.shape[1], 1.0 + 0.27 * len(weights))
    fig, axes = plt.subplots(
        1, weights.shape[1], figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for ax, name in zip(axes[0], weights.columns, strict=True):
        ax.barh(range(len(weights)), weights[name] * 100, color=BLUE, alpha=0.6)
        ax.set(title=name, xlabel="share in %")
        ax.grid(axis="x", alpha=0.3)
        ax.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(weights)), weights.index)
    axes[0, 0].invert_yaxis()
    _suptitle(fig, title)
    return fig


def fidelity_scatter(points: pd.DataFrame, title: str = "") -> Figure:
    """Draw grounding against fidelity, one point per seed with its interval.

    Args:
        table: columns arm, cnr, frechet, low, high.
    """
    fig, ax = plt.subplots(figsize=(5.4, 3.4))
    for arm, part in points.groupby("arm", sort=False):
        spread = np.abs(part[["low", "high"]].T.to_numpy() - part["frechet"].to_numpy())
        ax.errorbar(
            part["cnr"], part["frechet"], yerr=spread, fmt="o", color=colour(arm), label=arm, ms=6,
            elinewidth=1, capsize=2,
        )  # fmt: skip
    ax.set_xlabel("CNR of the activation map (better →)")
    ax.set_ylabel("Fréchet distance (better ↓)")
    ax.grid(alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _suptitle(fig, title)
    return fig


# -- lines and fields -------------------------------------------------------------------------


def lines(
    tables: Mapping[str, pd.DataFrame],
    columns: Sequence[str],
    xlabel: str,
    title: str = "",
    log: bool = False,
) -> Figure:
    """Draw metrics against a setting: a panel per metric, a line per method, intervals as bands.

    Args:
        tables: method -> rows of settings (numbers in the index), columns of `Interval`.
    """
    across = 2 if len(columns) == 4 else len(columns)
    down = -(-len(columns) // across)
    fig, axes = plt.subplots(down, across, figsize=(3.3 * across, 2.5 * down + 0.3), squeeze=False)
    for ax, column in zip(axes.flat, columns, strict=True):
        for name, table in tables.items():
            _band(ax, table[column], str(name))
        if log:
            ticks = next(iter(tables.values())).index.to_numpy(float)
            ax.set_xscale("log")
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        ax.set(title=LABELS.get(column, column), xlabel=xlabel)
        ax.grid(alpha=0.3)
    if len(tables) > 1:
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _suptitle(fig, title)
    return fig


def _band(ax: Axes, cells: pd.Series, name: str) -> None:
    """Draw one line with markers and its interval."""
    x, rows = cells.index.to_numpy(float), np.array([tuple(cell) for cell in cells], float)
    shade = COLOURS.get(name, BLUE)
    ax.plot(x, rows[:, 0], "o-", color=shade, ms=4, label=name)
    ax.fill_between(x, rows[:, 1], rows[:, 2], color=shade, alpha=0.18, lw=0)


def sweep(
    rows: pd.DataFrame,
    columns: Sequence[str],
    x: str,
    colour_by: str | None = None,
    title: str = "",
) -> Figure:
    """Draw metrics of a sweep against one axis. Dots are points, lines their means.

    Args:
        rows: long format with columns `x`, perhaps `colour_by`, `metric` and `value`.
    """
    fig, axes = plt.subplots(1, len(columns), figsize=(3.1 * len(columns), 2.9), squeeze=False)
    groups = list(rows.groupby(colour_by, sort=False)) if colour_by else [("", rows)]
    for ax, column in zip(axes[0], columns, strict=True):
        for number, (name, part) in enumerate(groups):
            values = part[part["metric"] == column]
            means = values.groupby(x, sort=False)["value"].mean()
            (line,) = ax.plot(means.index, means, "-", color=f"C{number}", label=str(name))
            ax.plot(values[x], values["value"], "o", ms=4, alpha=0.7, color=line.get_color())
        ax.set(title=LABELS.get(column, column), xlabel=x)
        if not pd.api.types.is_numeric_dtype(rows[x]):
            ax.tick_params(axis="x", rotation=30)
        elif len(ticks := sorted(rows[x].unique())) <= 10:
            ax.set_xticks(ticks)
    if colour_by:
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=colour_by)
    _suptitle(fig, title)
    return fig


def field(
    table: pd.DataFrame,
    label: str,
    title: str = "",
    xlabel: str = "timestep (noise falls to the right)",
) -> Figure:
    """Draw a number for every layer (rows) and timestep (columns) as a coloured field.

    The largest is framed.
    """
    size = (2.4 + 0.5 * table.shape[1], 1.2 + 0.3 * len(table) + 0.3 * bool(title))
    fig, ax = plt.subplots(figsize=size)
    values = table.to_numpy(float)
    artist = ax.imshow(values, cmap="inferno", aspect="auto")
    _cells(ax, artist, values)
    ax.set_yticks(range(len(table)), [str(name) for name in table.index])
    ax.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    ax.set_xlabel(xlabel)
    _no_frame(ax)
    fig.colorbar(artist, ax=ax, label=label, fraction=0.04, pad=0.02)
    _suptitle(fig, title)
    return fig


CURVES: dict[str, Callable[[Curve], tuple[Curve, Curve, Curve]]] = {
    "linear": lambda c: (1 - c, 0 * c, c),
    "quadratic": lambda c: ((1 - c) ** 2, 2 * c * (1 - c), c**2),
    "mixture": lambda c: (1 - c, c * (1 - c), c),
}
"""Curve -> weights of A, A∘M and M at confidence c (terms of `bbm.merge` collected)."""


def curve_weights(confidences: Sequence[float] = (), title: str = "") -> Figure:
    """Draw the weights of A, M and their product in each merging curve, against the confidence c.

    Args:
        confidences: values in the data, drawn as ticks along the bottom.
    """
    fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.7), sharey=True)
    c = np.linspace(0, 1, 101)
    for ax, (name, weights) in zip(axes, CURVES.items(), strict=True):
        for label, weight, style in zip(
            ("A", "A∘M", "M"), weights(c), ("-", "--", ":"), strict=True
        ):
            ax.plot(c, weight, style, color="0.15", lw=1.6, label=label)
        ax.plot(confidences, np.full(len(confidences), -0.03), "|", color=ORANGE, ms=6)
        ax.set(title=name, xlabel="confidence c", ylim=(-0.07, 1.05))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("weight")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _suptitle(fig, title)
    return fig


def empty_overlap(mask: NDArray[np.bool_], box: NDArray[np.bool_], score: float) -> Figure:
    """Draw a mask [H, W] that misses its box, and the balanced IoU of all such misses."""
    fig, (picture, ax) = plt.subplots(1, 2, figsize=(6.6, 2.8), width_ratios=(1, 1.3))
    inside = {"mask": np.asarray(mask), "box": np.asarray(box)}
    shades = {"mask": ORANGE, "box": SKY}
    picture.set(xlim=(0, len(box)), ylim=(len(box), 0), aspect="equal", xticks=[], yticks=[])
    picture.spines[:].set_visible(True)
    for name, where in inside.items():
        (top, left), (bottom, right) = np.argwhere(where).min(0), np.argwhere(where).max(0) + 1
        corners = ((left, right, right, left), (top, top, bottom, bottom))
        picture.fill(*corners, color=shades[name], alpha=0.7)
        picture.text((left + right) / 2, (top + bottom) / 2, name, ha="center", va="center")
    g = np.linspace(0, 0.5, 51)
    for s, style in ((0.0, "-"), (0.05, "--"), (0.15, ":")):
        ax.plot(g, (1 - s - g) / 2, style, color="0.15", label=f"mask {s:.0%}")
    ax.plot(inside["box"].mean(), score, "o", color=ORANGE)
    ax.set(xlabel="share of the box in the image", ylabel="balanced IoU", ylim=(0, 0.55))
    ax.grid(alpha=0.3)
    ax.legend()
    _suptitle(fig, f"No overlap, yet balanced IoU {score:.2f}")
    return fig


def histogram(values: Sequence[float], xlabel: str, title: str = "", bins: int = 20) -> Figure:
    """Draw the distribution of a number over pairs, with its median."""
    fig, ax = plt.subplots(figsize=(4.6, 2.4))
    ax.hist(values, bins=bins, color=BLUE, alpha=0.55)
    middle = float(np.median(values))
    ax.axvline(middle, color="0.15", lw=1.2)
    ax.text(middle, ax.get_ylim()[1], f" median {middle:.2f}", va="top", fontsize=8)
    ax.set(xlabel=xlabel, ylabel="pairs")
    _suptitle(fig, title)
    return fig


def paired_points(
    before: Sequence[float], after: Sequence[float], labels: tuple[str, str], title: str = ""
) -> Figure:
    """Draw one point per pair: a metric under two settings, and the diagonal of no change."""
    fig, ax = plt.subplots(figsize=(3.4, 3.4))
    ax.plot(before, after, "o", ms=3.5, color=BLUE, alpha=0.5, mew=0)
    ends = [float(np.nanmin([*before, *after])), float(np.nanmax([*before, *after]))]
    ax.plot(ends, ends, color="0.3", lw=0.8)
    ax.set(xlabel=labels[0], ylabel=labels[1], aspect="equal")
    ax.grid(alpha=0.3)
    _suptitle(fig, title)
    return fig


def _suptitle(fig: Figure, title: str) -> None:
    """Write the figure's claim, top left."""
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=10)


def training_curves(ax: Axes, logs: Mapping[str, pd.DataFrame], smooth: int = 15) -> None:
    """Smoothed training losses: one colour per arm, one line per seed; keys are ARM-sSEED."""
    arms = [name.rpartition("-s")[0] for name in logs]
    colours = dict(zip(dict.fromkeys(arms), plt.colormaps["tab10"](range(10)), strict=False))
    for k, (arm, log) in enumerate(zip(arms, logs.values(), strict=True)):
        mean = log["loss"].rolling(smooth, min_periods=1).mean()
        label = arm if arm not in arms[:k] else None
        ax.plot(log["step"], mean, color=colours[arm], lw=1, alpha=0.8, label=label)
    ax.legend(ncols=2)
