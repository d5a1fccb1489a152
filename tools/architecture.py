"""Draw docs/architecture.svg, the floors of g2g_utils, from the import contract in pyproject.toml.

    python tools/architecture.py

Floors and rooms are those of the contract `layers` of import-linter; words beside them stand here.
"""

from __future__ import annotations

import sys
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

SAYS = {  # what a room does, and its steps in the flow of an image (i) and of a training pair (p)
    "__main__": ("make | plan | costs | ground", "i1"),
    "explorer": ("widgets: words, layers, timesteps", ""),
    "experiment": ("plan and products of a profile; one's own file", "i2 p3"),
    "plots": ("overlays and charts", "i8"),
    "bench": ("one score for all methods; statistics, claims", ""),
    "methods": ("one file a method, behind one protocol", ""),
    "grounding": ("image + phrase to heat map and mask", "i5"),
    "sampling": ("what the U-Net sees", "i5"),
    "metrics": ("scores of one map", ""),
    "metrics_vilouras": ("the same, as Vilouras et al. count", ""),
    "attention": ("capture of the maps", "i6"),
    "bbm": ("bias merging", "i7"),
    "masks": ("map to mask", "i7"),
    "information": ("gain of a phrase", ""),
    "novelty": ("is it a film?", ""),
    "training": ("loop, fine-tuning, pre-training", "p5"),
    "models": ("U-Net, VAE, encoders; weights", "i4 p4"),
    "text": ("words and tokens", "i5"),
    "tagger": ("parts of speech", ""),
    "data": ("files and phantoms to examples", "i3 p2"),
    "config": ("profile: schema, loader", "p1"),
    "cache": ("remembered values, within a bound", ""),
    "runs": ("atomic files, locks, records", ""),
}
WIDTH, HIGH, GAP, LEFT = 960, 52, 8, 64
FLOWS = {"i": ("#2b6cb0", "an image, file to heat map"), "p": ("#c05621", "a pair, CSV to loss")}


def floors(pyproject: Path = ROOT / "pyproject.toml") -> list[list[str]]:
    """Rooms of each floor, top floor first, as the layers contract names them.

    Raises:
        ValueError: the file has no contract of type `layers`.
    """
    linter = tomllib.loads(pyproject.read_text())["tool"].get("importlinter", {})
    for contract in linter.get("contracts", []):
        if contract["type"] == "layers":
            return [_rooms(layer) for layer in contract["layers"]]
    raise ValueError(f"{pyproject} has no import-linter contract of type layers")


def _rooms(layer: str) -> list[str]:
    """Names of one layer: siblings stand apart by `|` or `:`, optional ones in brackets."""
    names = layer.replace(":", "|").split("|")
    return [name.strip(" ()").removeprefix("g2g_utils.") for name in names]


def draw(layers: list[list[str]]) -> str:
    """SVG of the floors, highest on top."""
    height = len(layers) * (HIGH + GAP) + 76
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        *_arrow(height - 76),
    ]
    for k, rooms in enumerate(layers):
        parts += _floor(len(layers) - 1 - k, rooms, GAP + k * (HIGH + GAP))
    return "\n".join([*parts, *_legend(height - 46), "</svg>", ""])


def _arrow(bottom: int) -> list[str]:
    """The direction of imports, along the left edge."""
    middle = bottom / 2
    return [
        f'<path d="M21 {GAP} V{bottom - 12}" stroke="#4a5568" stroke-width="2"/>',
        f'<path d="M14 {bottom - 14} L21 {bottom} L28 {bottom - 14} Z" fill="#4a5568"/>',
        f'<text x="13" y="{middle:g}" font-size="13" fill="#4a5568" text-anchor="middle" '
        f'transform="rotate(-90 13 {middle:g})">imports point down only</text>',
    ]


def _floor(number: int, rooms: list[str], top: int) -> list[str]:
    """One floor: its number and its rooms side by side."""
    wide = (WIDTH - LEFT - GAP * len(rooms)) / len(rooms)
    parts = [
        f'<text x="36" y="{top + HIGH / 2 + 6:g}" font-size="16" fill="#718096">{number}</text>'
    ]
    for k, room in enumerate(rooms):
        says, steps = SAYS.get(room, ("", ""))
        x = LEFT + k * (wide + GAP)
        parts += [
            f'<rect x="{x:g}" y="{top}" width="{wide:g}" height="{HIGH}" rx="6" fill="#f7fafc" '
            'stroke="#a0aec0"/>',
            f'<text x="{x + 12:g}" y="{top + 21}" font-size="16" font-weight="bold" '
            f'fill="#1a202c">{escape(room)}</text>',
            f'<text x="{x + 12:g}" y="{top + 41}" font-size="12.5" fill="#4a5568">'
            f"{escape(says)}</text>",
        ]
        right = x + wide - 16
        for n, step in enumerate(reversed(steps.split())):
            parts += _step(step, right - 24 * n, top + 17)
    return parts


def _step(step: str, x: float, y: float) -> list[str]:
    """A numbered disc in the colour of its flow."""
    return [
        f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="{FLOWS[step[0]][0]}"/>',
        f'<text x="{x:g}" y="{y + 4.5:g}" font-size="13" fill="#ffffff" text-anchor="middle">'
        f"{step[1:]}</text>",
    ]


def _legend(top: int) -> list[str]:
    """The two flows by colour; the page lists their steps."""
    parts = []
    for k, (flow, (colour, says)) in enumerate(FLOWS.items()):
        x = LEFT + k * 330
        parts += _step(f"{flow}1", x + 10, top + 14)
        parts.append(
            f'<text x="{x + 28}" y="{top + 19}" font-size="14" fill="{colour}">{says}</text>'
        )
    return parts


def main() -> int:
    """Write the picture."""
    PICTURE.write_text(draw(floors()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
