"""Radiographs with the output of a model: heat maps, masks, boxes, and grids of maps.

Images are [S, S] in [0, 1], maps any [H, W]. Both fill the same frame of S x S pixels, in which
boxes [x, y, w, h] are given. The patient's right is image left, as on a radiograph, and marked "R".
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from g2g_utils.metrics import resize
from g2g_utils.plots import save_figure as save_figure

Array = NDArray[Any] | Tensor  # of numbers, with the shape that a function asks for
Boxes = Sequence[Sequence[float]] | NDArray[Any]
Limits = tuple[float, float]

HEAT = "inferno"  # perceptually uniform, dark to bright
SIGNED = "PuOr_r"  # differences, zero is white
BOX_COLOUR, MASK_COLOUR = "#35d0ff", "#ffffff"
PANEL = 2.3  # inches a panel


def _grey(image: Array) -> NDArray[np.float32]:
    """An image [S, S], [1, S, S] or [3, S, S] as grey [S, S]."""
    array = torch.as_tensor(np.asarray(image)).float()
    return (array.mean(0) if array.ndim == 3 else array).numpy()


def _map(heatmap: Array) -> Tensor:
    return torch.as_tensor(heatmap).detach().float().cpu()


def heat_colours(strongest: float = 0.75) -> ListedColormap:
    """The heat colour map, more opaque where hotter: cold parts leave the image visible."""
    colours = plt.get_cmap(HEAT)(np.linspace(0.12, 1, 256))
    colours[:, 3] = strongest * np.linspace(0, 1, 256) ** 0.7
    return ListedColormap(colours)


def _over_grey(colours: Colormap, grey: float = 0.35) -> ListedColormap:
    """A translucent colour map over mid-grey, for colour bars."""
    table = colours(np.linspace(0, 1, 256))
    solid = table[:, :3] * table[:, 3:] + grey * (1 - table[:, 3:])
    return ListedColormap(solid)


def show_image(
    ax: Axes, image: Array, *, boxes: Boxes = (), title: str = "", marker: bool = True
) -> None:
    """Draw a radiograph in grey with boxes; "R" marks the patient's right."""
    grey = _grey(image)
    height, width = grey.shape
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    draw_boxes(ax, boxes)
    if marker:
        outline = [withStroke(linewidth=2, foreground="black")]
        ax.text(
            0.03, 0.97, "R", transform=ax.transAxes, color="white", ha="left", va="top",
            weight="bold", path_effects=outline,
        )  # fmt: skip
    _bare(ax, title)


def wrapped(text: str, width: int) -> str:
    """A text on several lines of at most `width` letters. Its own line breaks stay."""
    lines = [textwrap.wrap(line, width) for line in text.split("\n")]
    return literal("\n".join(line for part in lines for line in part))


def literal(text: str) -> str:
    """A text whose dollar signs are drawn and not read as mathematics."""
    return re.sub(r"(?<!\\)\$", r"\\$", text)


def _bare(ax: Axes, title: str = "") -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(literal(title))


def draw_boxes(ax: Axes, boxes: Boxes, colour: str = BOX_COLOUR) -> None:
    """Draw boxes [x, y, w, h] in pixels of the shown frame."""
    for x, y, w, h in np.asarray(boxes, dtype=float).reshape(-1, 4):
        outline = [withStroke(linewidth=2.6, foreground="black", alpha=0.6)]
        ax.add_patch(
            Rectangle((x, y), w, h, fill=False, edgecolor=colour, lw=1.4, path_effects=outline)
        )


def draw_move(
    ax: Axes, anchor: Sequence[float], corners: Sequence[float], colour: str, label: str = ""
) -> None:
    """Draw a patch that moved: its box x1 y1 x2 y2, and an arrow from its anchor to the centre."""
    x1, y1, x2, y2 = corners
    outline = [withStroke(linewidth=2.6, foreground="black", alpha=0.6)]
    ax.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, lw=1.4, label=label,
            path_effects=outline,
        )
    )  # fmt: skip
    ax.annotate(
        "", ((x1 + x2) / 2, (y1 + y2) / 2), (anchor[0], anchor[1]),
        arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.2},
    )  # fmt: skip


def draw_mask(ax: Axes, mask: Array, size: int, colour: str = MASK_COLOUR) -> None:
    """Draw the contour of a boolean mask [h, w] in a frame of `size` pixels, along pixel edges."""
    factor = max(1, size // np.asarray(mask).shape[-1])
    fine = np.kron(np.asarray(mask, dtype=float), np.ones((factor, factor)))
    fine = np.pad(fine, 1)
    if fine.any():
        step = size / (fine.shape[0] - 2)
        grid = (np.arange(fine.shape[0]) - 0.5) * step
        ax.contour(grid, grid, fine, levels=[0.5], colors=colour, linewidths=1.1)
        ax.set(xlim=(0, size), ylim=(size, 0))


def overlay(
    ax: Axes,
    image: Array,
    heatmap: Array,
    *,
    boxes: Boxes = (),
    mask: Array | None = None,
    title: str = "",
    limits: Limits = (0.0, 1.0),
    marker: bool = True,
    smooth: bool = True,
) -> AxesImage:
    """Draw a heat map over a radiograph, with boxes and the contour of the mask.

    Args:
        smooth: show the map as the metrics see it, bilinearly enlarged; False shows its own pixels.
        limits: range of the colours, never that of the map.

    Returns:
        The mappable for a colour bar.
    """
    show_image(ax, image, boxes=boxes, title=title, marker=marker)
    size = _grey(image).shape[-1]
    enlarged = max(size, 256)
    shown = resize(_map(heatmap), enlarged).clamp(*limits) if smooth else _map(heatmap)
    artist = ax.imshow(
        shown.numpy(), cmap=heat_colours(), vmin=limits[0], vmax=limits[1],
        extent=(0, size, size, 0), interpolation="nearest",
    )  # fmt: skip
    if mask is not None:
        draw_mask(ax, mask, size)
    draw_boxes(ax, boxes)
    return artist


def show_map(
    ax: Axes, values: Array, *, title: str = "", limits: Limits = (0.0, 1.0), signed: bool = False
) -> AxesImage:
    """Draw a map alone, pixel by pixel. signed: a diverging colour map with zero in the middle."""
    colours = SIGNED if signed else HEAT
    shown = _map(values).numpy()
    artist = ax.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    _bare(ax, title)
    return artist


def colour_bar(
    fig: Figure,
    axes: Axes | Iterable[Axes],
    label: str,
    limits: Limits = (0.0, 1.0),
    *,
    over_image: bool = True,
) -> None:
    """Draw one colour bar for axes that share `limits`.

    Args:
        over_image: colours of `overlay`; False: those of `show_map`.
    """
    colours = _over_grey(heat_colours()) if over_image else plt.get_cmap(HEAT)
    mappable = ScalarMappable(Normalize(*limits), colours)
    fig.colorbar(mappable, ax=axes, label=label, fraction=0.05, pad=0.02, aspect=25)


def legend(fig: Figure, *, boxes: bool = True, mask: bool = False) -> None:
    """Explain the marks below the panels."""
    handles = []
    if boxes:
        handles.append(Line2D([], [], color=BOX_COLOUR, lw=1.5, label="ground-truth box"))
    if mask:
        handles.append(Line2D([], [], color="0.75", lw=1.5, label="mask (white contour)"))
    handles.append(Line2D([], [], lw=0, marker="$R$", color="0.2", label="patient's right"))
    fig.legend(handles=handles, loc="outside lower left", ncols=len(handles), fontsize=8)


def panels(columns: int, rows: int = 1, size: float = PANEL) -> tuple[Figure, NDArray[Any]]:
    """A figure of square panels and its axes [rows, columns]."""
    fig, axes = plt.subplots(
        rows, columns, figsize=(size * columns, (size + 0.25) * rows), squeeze=False
    )
    return fig, axes


def grounding_panels(
    image: Array,
    heatmap: Array,
    mask: Array,
    *,
    phrase: str,
    boxes: Boxes = (),
    film: Array | None = None,
    fig: Figure | None = None,
) -> Figure:
    """Draw the three views of a grounding: the image, the heat map and the mask over it.

    Args:
        film: the same crop with more pixels, over which map and mask are shown.
    """
    fig = fig or plt.figure(figsize=(3 * PANEL + 0.7, PANEL + 0.7))
    axes = fig.subplots(1, 3)
    side = _grey(image).shape[-1]
    fine = image if film is None else film
    size = _grey(fine).shape[-1]
    scaled = np.asarray(boxes, dtype=float).reshape(-1, 4) * size / side
    first = "radiograph" if film is None else f"as the model sees it ({side}×{side})"
    show_image(axes[0], image, boxes=boxes, title=first)
    overlay(axes[1], fine, heatmap, boxes=scaled, title="heat map")
    show_image(axes[2], fine, boxes=scaled, title=f"mask: {_map(mask).mean():.0%} of the image")
    draw_mask(axes[2], mask, size)
    colour_bar(fig, list(axes), "heat, scaled to [0, 1]")
    legend(fig, boxes=len(scaled) > 0, mask=True)
    short = literal(textwrap.shorten(phrase, 90, placeholder=" …"))
    fig.suptitle(f"“{short}”", x=0.01, ha="left")
    return fig


def image_grid(
    images: Sequence[Array],
    titles: Sequence[str],
    boxes: Sequence[Boxes] | None = None,
    *,
    columns: int = 4,
    size: float = 1.9,
) -> Figure:
    """Draw radiographs in rows of `columns`, each with its title and boxes."""
    rows = -(-len(images) // columns)
    fig, axes = panels(columns, rows, size)
    for ax in axes.flat[len(images) :]:
        ax.set_visible(False)
    drawn = boxes if boxes is not None else [()] * len(images)
    for ax, image, title, own in zip(axes.flat, images, titles, drawn, strict=False):
        show_image(ax, image, boxes=own, title=wrapped(title, round(13 * size)))
    return fig


def token_strip(
    image: Array,
    maps: Array,
    labels: Sequence[str],
    *,
    limits: Limits | None = None,
    boxes: Boxes = (),
    columns: int = 8,
    label: str = "attention",
    size: float = 1.5,
) -> Figure:
    """Draw one overlay per token. Maps [n, h, w] share limits (default: 0 to the largest value)."""
    shown = _map(maps)
    span = limits or (0.0, float(shown.max()))
    columns = min(columns, len(labels))
    rows = -(-len(labels) // columns)
    fig, axes = panels(columns, rows, size)
    for ax in axes.flat[len(labels) :]:
        ax.set_visible(False)
    for ax, one, text in zip(axes.flat, shown, labels, strict=False):
        overlay(ax, image, one, boxes=boxes, title=text, limits=span)
    colour_bar(fig, axes, label, span)
    return fig


def layer_step_grid(
    maps: Sequence[Array],
    layers: Sequence[str],
    timesteps: Sequence[int],
    *,
    boxes: Boxes = (),
    frame: int | None = None,
    image: Array | None = None,
    size: float = 0.8,
) -> Figure:
    """Draw maps of every layer (rows, each [T, h, w] in its own resolution) and timestep (columns).

    Each map is scaled to [0, 1] by itself: the grid shows places, not amounts.

    Args:
        boxes: in pixels of a `frame` x `frame` image.
        image: that image, drawn at the left of the first row.
    """
    columns = len(timesteps) + (image is not None)
    fig, axes = plt.subplots(
        len(layers), columns, squeeze=False,
        figsize=(size * columns + 1.6, size * len(layers) + 0.4),
    )  # fmt: skip
    if image is not None:
        show_image(axes[0, 0], image, boxes=boxes, title="film", marker=False)
        for ax in axes[1:, 0]:
            ax.set_visible(False)
        axes = axes[:, 1:]
    for row, name, stack in zip(axes, layers, maps, strict=True):
        for ax, one in zip(row, _map(stack), strict=True):
            low, high = float(one.min()), float(one.max())
            show_map(ax, one, limits=(low, high if high > low else low + 1))
            if frame:
                draw_boxes(ax, np.asarray(boxes) * one.shape[-1] / frame - [0.5, 0.5, 0, 0])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, t in zip(axes[0], timesteps, strict=True):
        ax.set_title(f"t = {t}" if ax is axes[0][0] else str(t), loc="center")
    return fig


def layer_labels(sizes: dict[str, tuple[int, int]]) -> list[str]:
    """Short names of attention layers with their map size: 'up 1.0 (8×8)', 'mid (4×4)'."""
    labels = []
    for name, (height, width) in sizes.items():
        numbers = [part for part in name.split(".") if part.isdigit()]
        block = name.split("_", 1)[0]
        place = block if block == "mid" else f"{block} {numbers[0]}.{numbers[1]}"
        labels.append(f"{place} ({height}×{width})")
    return labels
