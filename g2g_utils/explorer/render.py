"""Pictures of a view: arrays to RGB images, drawn fast enough to follow a slider.

Maps are shown with a perceptual colour map between fixed limits, bilinearly upsampled as the
metrics do, with a colour bar, the boxes, and a note on the patient's sides.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from g2g_utils import metrics
from g2g_utils.data.geometry import Box
from g2g_utils.explorer import maps, state
from g2g_utils.explorer.session import Panel, View
from g2g_utils.plots import overlays

NOTICE = "For research, not a medical device"
SIDES = "patient right is image left"
MAP_COLOURS, DIFFERENCE_COLOURS = overlays.HEAT, overlays.SIGNED  # those of all figures
BOX, CONTOUR, MASK = (0, 229, 255), (255, 255, 255), (255, 159, 28)
PAPER, INK, FAINT = (255, 255, 255), (33, 37, 41), (95, 102, 110)
GAP, BAR = 16, 66

RGB = NDArray[np.uint8]


# -- parts ----------------------------------------------------------------------------------------


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib ships."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


@lru_cache
def palette(name: str) -> RGB:
    """256 colours [256, 3] of a matplotlib colour map."""
    colours = matplotlib.colormaps[name](np.arange(256), bytes=True)
    return np.ascontiguousarray(colours[:, :3])


def coloured(values: Tensor, low: float, high: float, name: str = MAP_COLOURS) -> RGB:
    """Colours [H, W, 3] of a map between fixed limits. Values outside are clipped."""
    scaled = (values - low) / max(high - low, 1e-12)
    colours: RGB = palette(name)[(scaled.clamp(0, 1) * 255).round().to(torch.uint8).numpy()]
    return colours


def grey(image: NDArray[Any], side: int) -> RGB:
    """A radiograph [S, S] in [0, 1] as RGB [side, side, 3]."""
    small = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    large = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    return np.repeat(large[..., None], 3, 2)


def blend(under: RGB, over: RGB, opacity: float) -> RGB:
    """Two RGB pictures mixed."""
    mixed = under.astype(np.float32) * (1 - opacity) + over.astype(np.float32) * opacity
    return mixed.round().astype(np.uint8)


def large_mask(mask: Tensor, side: int) -> NDArray[np.bool_]:
    """A mask upsampled as the metrics do it: bilinear, rounded."""
    return metrics.resize(mask.float(), side).round().bool().numpy()


def outline(mask: NDArray[np.bool_], width: int = 2) -> NDArray[np.bool_]:
    """Pixels of a mask within `width` of its edge. The picture's border is no edge."""
    inner = np.pad(mask, 1, mode="edge")
    core = mask.copy()
    for _ in range(width):
        core &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        inner = np.pad(core, 1, mode="edge")
    return mask & ~core


def fitted(text: str, width: int, size: int, lines: int = 1, bold: bool = False) -> list[str]:
    """Text in at most `lines` lines of `width` pixels. The rest becomes an ellipsis."""
    face, found, words = font(size, bold), [""], text[: width * lines // 3].split()
    while words:
        longer = f"{found[-1]} {words[0]}".strip()
        if face.getlength(longer) <= width or not found[-1]:
            found[-1] = longer
            words.pop(0)
        elif len(found) < lines:
            found.append("")
        else:
            found[-1] += "…"
            break
    while face.getlength(found[-1]) > width and len(found[-1]) > 2:
        found[-1] = found[-1].rstrip("…")[:-1] + "…"
    return found


def png(picture: Image.Image, facts: dict[str, Any] | None = None) -> bytes:
    """PNG bytes. Facts and the notice go into its text fields."""
    info = PngInfo()
    info.add_text("Notice", NOTICE)
    if facts:
        info.add_itxt("Parameters", json.dumps(facts, default=str))
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1, pnginfo=info)
    return stream.getvalue()


# -- the main view --------------------------------------------------------------------------------


def main_view(view: View, side: int | None = None) -> Image.Image:
    """The radiograph under map, mask and boxes; if compared, two panels and their difference.

    Args:
        side: pixels of a panel (default: 480 alone, 320 compared).
    """
    if len(view.panels) == 2:
        return compared_view(view, side or 320)
    side, panel = side or 480, view.panels[0]
    heading = _heading(view, panel, "")
    if view.state.show == "difference":
        parts = [
            titled(difference_picture(view, side), [heading[0], view.difference_label], side, 2),
            _difference_bar(side, view.difference_label),
        ]
    else:
        parts = [titled(panel_picture(view, panel, side), heading, side, 2), _bar_of(view, side)]
    return framed(beside(parts), _legend(view))


def compared_view(view: View, side: int) -> Image.Image:
    """Panels A and B on one scale; below them B − A and their distance."""
    tiles = [
        titled(panel_picture(view, p, side), _heading(view, p, letter), side, 2)
        for letter, p in zip("AB", view.panels, strict=True)
    ]
    below = titled(difference_picture(view, side), [view.difference_label], side)
    notes = Image.new("RGB", (side - 60, side), PAPER)
    for i, text in enumerate(_change(view)):
        ImageDraw.Draw(notes).text((0, 8 + 22 * i), text, INK, font(13))
    rows = [
        beside([*tiles, _bar_of(view, side)]),
        beside([below, _difference_bar(side, view.difference_label), notes]),
    ]
    image = Image.new("RGB", (rows[0].width, sum(r.height for r in rows) + GAP), PAPER)
    image.paste(rows[0], (0, 0))
    image.paste(rows[1], (0, rows[0].height + GAP))
    return framed(image, _legend(view))


def panel_picture(view: View, panel: Panel, side: int) -> RGB:
    """One panel [side, side, 3]: map or mask over the radiograph, contour, boxes, side letters."""
    picture, now = grey(view.picture.image, side), view.state
    mask = large_mask(panel.mask, side)
    if now.show == "mask":
        over = np.where(mask[..., None], np.array(MASK, np.uint8), picture)
        picture = blend(picture, over, now.opacity)
    else:
        low, high, _ = view.limits
        large = metrics.resize(view.shown(panel), side)
        picture = blend(picture, coloured(large, low, high), now.opacity)
    if now.contour:
        picture[outline(mask)] = CONTOUR
    return marked(picture, view)


def difference_picture(view: View, side: int) -> RGB:
    """The difference map [side, side, 3] over the radiograph."""
    assert view.difference is not None
    large = metrics.resize(view.difference, side)
    colours = coloured(large, -1, 1, DIFFERENCE_COLOURS)
    return marked(blend(grey(view.picture.image, side), colours, view.state.opacity), view)


def marked(picture: RGB, view: View) -> RGB:
    """Draw boxes (if chosen) and the letters of the patient's sides on a picture."""
    image = Image.fromarray(picture)
    draw, side = ImageDraw.Draw(image), image.width
    if view.state.boxes:
        draw_boxes(draw, view.boxes, side / view.picture.size, 2)
    size = max(10, side // 26)
    for letter, x, anchor in (("R", 6, "la"), ("L", side - 6, "ra")):
        place = (x, 5)
        draw.text(place, letter, "white", font(size, True), anchor, stroke_width=2, stroke_fill=0)
    return np.asarray(image)


def draw_boxes(draw: ImageDraw.ImageDraw, boxes: Sequence[Box], scale: float, width: int) -> None:
    """Draw boxes [x, y, w, h] with a dark halo, so that they show on any colour."""
    for x, y, w, h in boxes:
        ends = [x * scale, y * scale, (x + w) * scale - 1, (y + h) * scale - 1]
        draw.rectangle([ends[0] - 1, ends[1] - 1, ends[2] + 1, ends[3] + 1], outline=0, width=1)
        draw.rectangle(ends, outline=BOX, width=width)


def _heading(view: View, panel: Panel, letter: str) -> list[str]:
    """Two lines over a panel: phrase, then model and confidence."""
    first = f"{letter}  “{panel.phrase}”" if letter else f"“{panel.phrase}”"
    sure = (
        f" · {view.state.curve}, c = {panel.confidence:.2f}" if panel.confidence is not None else ""
    )
    method = view.state.method
    shown = "" if method == "attention" else f" · {state.METHODS[method]}"
    return [first, f"{panel.model}{sure}{shown}"]


def _change(view: View) -> list[str]:
    """Distance of the second map from the first, in numbers."""
    assert view.difference is not None
    a, b = (p.heatmap.flatten() for p in view.panels)
    together = float(torch.nan_to_num(torch.corrcoef(torch.stack([a, b])))[0, 1])
    left, right = (float(half.mean()) for half in view.difference.chunk(2, dim=1))
    return [
        f"mean |B − A|   {float(view.difference.abs().mean()):.2f}",
        f"correlation   {together:.2f}".replace("-", "−"),
        f"image left half   {left:+.2f}".replace("-", "−"),
        f"image right half   {right:+.2f}".replace("-", "−"),
    ]


def _legend(view: View) -> list[tuple[str, tuple[int, int, int] | None]]:
    """Entries below the picture: the meaning of lines, then the orientation and the notice."""
    entries: list[tuple[str, tuple[int, int, int] | None]] = []
    if view.boxes and view.state.boxes:
        entries.append(("boxes", BOX))
    if view.state.show == "mask":
        entries.append(("mask", MASK))
    elif view.state.contour and view.state.show == "map":
        entries.append(("mask outline", CONTOUR))
    return [*entries, (SIDES, None), (NOTICE, None)]


# -- frames ---------------------------------------------------------------------------------------


def titled(
    picture: RGB, lines: list[str], width: int, first: int = 1, size: int = 14
) -> Image.Image:
    """A picture below its heading: first line bold, over at most `first` lines, the rest faint."""
    heads = fitted(lines[0], width, size, first, True)
    rest = [fitted(text, width, size - 2)[0] for text in lines[1:]]
    step = size + 5
    top = step * (len(heads) + len(rest)) + 3
    image = Image.new("RGB", (width, top + picture.shape[0]), PAPER)
    draw = ImageDraw.Draw(image)
    for i, text in enumerate(heads + rest):
        bold = i < len(heads)
        face = font(size if bold else size - 2, bold)
        draw.text((0, i * step), text, INK if bold else FAINT, face)
    image.paste(Image.fromarray(picture), (0, top))
    return image


def colour_bar(name: str, low: float, high: float, label: str, height: int) -> Image.Image:
    """A vertical colour bar with its limits and meaning."""
    ramp = palette(name)[np.linspace(255, 0, height).astype(int)]
    image = Image.new("RGB", (BAR, height), PAPER)
    image.paste(Image.fromarray(np.repeat(ramp[:, None], 14, 1)))
    draw = ImageDraw.Draw(image)
    draw.rectangle([0, 0, 13, height - 1], outline=FAINT)
    for value, y in ((high, 7), ((low + high) / 2, height // 2), (low, height - 8)):
        draw.text((19, y), _number(value), INK, font(12), "lm")
    size = font(12).getbbox(label)
    text = Image.new("RGB", (int(size[2]) + 2, 18), PAPER)
    ImageDraw.Draw(text).text((0, 1), label, FAINT, font(12))
    turned = text.rotate(90, expand=True)
    image.paste(turned, (BAR - 20, max(0, (height - turned.height) // 2)))
    return image


def _number(value: float) -> str:
    """A number with two digits, in as few places as it needs."""
    text = f"{value:.2g}" if 0 < abs(value) < 1 else f"{value:.1f}"
    return text.replace("-", "−")


def _bar_of(view: View, side: int) -> Image.Image:
    """Colour bar of the panels; for masks its room alone."""
    if view.state.show == "mask":
        return Image.new("RGB", (BAR, side), PAPER)
    return colour_bar(MAP_COLOURS, *view.limits, side)


def _difference_bar(side: int, label: str) -> Image.Image:
    return colour_bar(DIFFERENCE_COLOURS, -1, 1, label, side)


def beside(parts: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Pictures in a row, aligned at their feet."""
    height = max(p.height for p in parts)
    image = Image.new("RGB", (sum(p.width + gap for p in parts) - gap, height), PAPER)
    x = 0
    for part in parts:
        image.paste(part, (x, height - part.height))
        x += part.width + gap
    return image


def framed(
    picture: Image.Image,
    legend: Sequence[tuple[str, tuple[int, int, int] | None]],
    margin: int = 12,
) -> Image.Image:
    """A picture with a margin and a legend below it, over as many lines as the legend needs."""
    width, face = picture.width + 2 * margin, font(12)
    places, x, y = [], margin, picture.height + margin + 8
    for text, colour in legend:
        wide = int(face.getlength(text)) + (20 if colour else 0)
        if x > margin and x + wide > width - margin:
            x, y = margin, y + 18
        places.append((x, y))
        x += wide + 18
    image = Image.new("RGB", (width, y + 18 + 6), PAPER)
    image.paste(picture, (margin, margin))
    draw = ImageDraw.Draw(image)
    for (left, top), (text, colour) in zip(places, legend, strict=True):
        if colour:
            draw.rectangle([left, top + 2, left + 13, top + 13], fill=colour, outline=FAINT)
        draw.text((left + (20 if colour else 0), top), text, FAINT, face)
    return image


# -- small multiples ------------------------------------------------------------------------------


def token_view(view: View, side: int = 140, columns: int = 4) -> Image.Image:
    """Small maps of all tokens on one colour scale. Chosen tokens are marked."""
    panel = view.panels[0]
    capture = panel.capture
    found = capture.maps.by_token(**panel.selection.over)
    shared = view.state.scale == "shared"
    words = [c for c in range(1, capture.phrase.end)]
    high = float(found[words].max()) if words else float(found.max())
    under, tiles = grey(view.picture.image, side), []
    for column in range(capture.columns):
        one = found[column]
        low, top = (0.0, high) if shared else (float(one.min()), float(one.max()))
        colours = coloured(metrics.resize(one, side), low, top)
        picture = marked(blend(under, colours, view.state.opacity), view)
        chosen = "● " if column in panel.selection.columns else ""
        mean = f"mean {panel.token_means[column]:.3f}"
        tiles.append(titled(picture, [chosen + state.column_label(capture, column), mean], side))
    limits = (0.0, high, "attention probability") if shared else (0.0, 1.0, "each map, min–max")
    sheet = _sheet(tiles, columns)
    bar = colour_bar(MAP_COLOURS, *limits, min(sheet.height, 300))
    return framed(beside([sheet, bar]), [("● chosen", None), (SIDES, None), (NOTICE, None)])


def word_view(
    view: View, gains: Mapping[str, Tensor], side: int = 140, columns: int = 4
) -> Image.Image:
    """Signed information of every word given the rest of the phrase, on one scale around zero."""
    panel = view.panels[0]
    words = {
        w.text for w in panel.capture.phrase.words if set(w.tokens) & set(panel.selection.columns)
    }
    high = max(float(gain.abs().max()) for gain in gains.values())
    under, tiles = grey(view.picture.image, side), []
    for word, gain in gains.items():
        colours = coloured(metrics.resize(gain, side), -high, high, DIFFERENCE_COLOURS)
        picture = marked(blend(under, colours, view.state.opacity), view)
        heading = [("● " if word in words else "") + word, f"sum {_signed(float(gain.sum()))}"]
        tiles.append(titled(picture, heading, side))
    sheet = _sheet(tiles, columns)
    label = "gain given the rest"
    bar = colour_bar(DIFFERENCE_COLOURS, -high, high, label, min(sheet.height, 300))
    legend = [("● chosen", None), ("orange: the word explains the film here", None)]
    return framed(beside([sheet, bar]), [*legend, (SIDES, None), (NOTICE, None)])


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _sheet(tiles: Sequence[Image.Image], columns: int, gap: int = 8) -> Image.Image:
    """Equal tiles in rows."""
    wide, high = tiles[0].size
    rows = -(-len(tiles) // columns)
    columns = min(columns, len(tiles))
    size = (columns * (wide + gap) - gap, rows * (high + gap) - gap)
    sheet = Image.new("RGB", size, PAPER)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * (wide + gap), i // columns * (high + gap)))
    return sheet


def grid_view(view: View, side: int = 56, most: int = 10) -> Image.Image:
    """Layers x timesteps of the chosen words; many timesteps are thinned evenly.

    The colour scale is shared by all tiles, or each tile's own ("0-1").
    """
    panel = view.panels[0]
    capture, chosen = panel.capture, panel.selection
    found = capture.maps.by_step(chosen.columns, **chosen.over)  # layer -> t h w
    times = [capture.timesteps[i] for i in chosen.over["steps"]]
    picked = np.unique(np.linspace(0, len(times) - 1, min(most, len(times))).round().astype(int))
    high = max(float(m.max()) for m in found.values())
    shared = view.state.scale == "shared"
    names = dict(zip(capture.layers, maps.layer_labels(capture), strict=True))
    left, top, step = 118, 22, side + 3
    image = Image.new("RGB", (left + len(picked) * step, top + len(found) * step), PAPER)
    draw = ImageDraw.Draw(image)
    for i, t in enumerate(picked):
        draw.text((left + i * step + side // 2, 3), f"t {times[t]}", FAINT, font(12), "ma")
    for row, (layer, native) in enumerate(found.items()):
        y = top + row * step
        draw.text((left - 8, y + side // 2), names[layer], INK, font(12), "rm")
        for i, t in enumerate(picked):
            limits = (0.0, high) if shared else (float(native[t].min()), float(native[t].max()))
            tile = Image.fromarray(coloured(native[t], *limits))
            tile = tile.resize((side, side), Image.Resampling.NEAREST)
            image.paste(tile, (left + i * step, y))
    bar = (0.0, high, "attention probability") if shared else (0.0, 1.0, "each tile, min–max")
    strip = colour_bar(MAP_COLOURS, *bar, min(image.height - top, 300))
    first = "attention, noisy → clean from left to right"
    legend = [(first, None), (SIDES, None), (NOTICE, None)]
    return framed(beside([image, strip]), legend)


def thumbnail(image: NDArray[Any], side: int = 72) -> bytes:
    """A small radiograph, PNG."""
    return png(Image.fromarray(grey(image, side)))


def jpeg(picture: Image.Image) -> bytes:
    """JPEG bytes of high quality, for passing pictures: ten times quicker than PNG."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=93, subsampling=0)
    return stream.getvalue()


def chip_colours(view: View) -> list[tuple[int, int, int]]:
    """Colour of every word button: its mean attention, from 0 to the largest among the words.

    Special tokens take much more; theirs is clipped.
    """
    means = view.panels[0].token_means
    values = [float(means[list(chip.columns)].mean()) for chip in view.chips]
    words = [v for v, chip in zip(values, view.chips, strict=True) if chip.kind == "word"]
    colours = coloured(torch.tensor(values), 0.0, max(words or values))
    return [(int(r), int(g), int(b)) for r, g, b in colours]


def ink(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever is easier to read on a colour (contrast of at least 4.5)."""
    return "#000000" if luminance(colour) > 0.18 else "#ffffff"


def luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance in [0, 1] of an sRGB colour, as WCAG 2 defines it."""
    parts = (c / 255 for c in colour)
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
