"""The explorer without a kernel: every map of a dozen films as plain files for a page.

The page (docs/site/static/films.js) averages what was chosen, as `AttentionMaps.mean` does.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from g2g_utils import bbm, information, metrics, runs, text
from g2g_utils.config import Config
from g2g_utils.data.record import FINDINGS, Example
from g2g_utils.experiment import presence, products
from g2g_utils.explorer import maps
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.plots import overlays

FILMS = 12


def choose(pairs: Sequence[Example], count: int = FILMS) -> list[Example]:
    """Films by rule: the first of every finding, then the first others that name a side."""
    first = {p.finding: p for p in reversed(pairs) if p.finding in FINDINGS}
    chosen = [first[finding] for finding in FINDINGS if finding in first]
    films = {p.image_id for p in chosen}
    more = [p for p in pairs if text.side_of(p.phrase) and p.image_id not in films]
    return (chosen + more)[:count]


def packed(model: LatentDiffusion, example: Example, settings: Config) -> dict[str, Any]:
    """A film with every attention map and the information of its phrase, ready for JSON.

    Maps are bytes in base64 with one scale a map: [T, N, h, w] for every layer.
    """
    image, options = example.array(), products.grounding_options(settings)
    steps = options["timesteps"]
    seen = maps.capture_image(model, image, example.phrase, timesteps=steps)
    told = presence.options(settings)
    (whole,) = information.measure(model, image, [example.phrase], **told)
    words = information.word_information(model, image, example.phrase, **told)
    smoothed = {word: information.smooth(gain) for word, gain in words.items()}
    return {
        "name": f"{example.finding}: {example.phrase}",
        "phrase": seen.phrase.text,
        "boxes": [list(map(float, box)) for box in example.boxes],
        "side": int(np.shape(image)[-1]),
        "latent": int(seen.maps.size[0]),
        "image": _png(np.asarray(image)),
        "words": _words(seen),
        "counts": [seen.weight(column) for column in range(seen.columns)],
        "timesteps": list(seen.timesteps),
        "chosen": [name in _used(seen, options["layers"]) for name in seen.layers],
        "layers": [
            {"label": label, "side": int(found.shape[-1]), **quantised(found)}
            for label, found in zip(maps.layer_labels(seen), _native(seen), strict=True)
        ],
        "information": quantised(whole.heatmap()[None, None]),
        "gains": {word: quantised(gain[None, None]) for word, gain in smoothed.items()},
        "cnr": round(_default_cnr(seen, example, options), 4),
    }


def _native(seen: maps.Capture) -> list[Tensor]:
    """Maps [T, N, h, w] of every layer."""
    return [seen.maps[name].float() for name in seen.layers]


def _used(seen: maps.Capture, layers: Sequence[str] | None) -> list[str]:
    """Names of the layers that the profile uses."""
    blocks = maps.blocks(seen)
    if not layers:
        return list(seen.layers)
    spans = [blocks[str(block)] for block in layers if str(block) in blocks]
    return [n for i, n in enumerate(seen.layers) if any(a <= i <= b for a, b in spans)]


def _default_cnr(seen: maps.Capture, example: Example, options: dict[str, Any]) -> float:
    """CNR of what the page shows first: content words, the profile's layers, all timesteps."""
    layers = _used(seen, options["layers"])
    heat = seen.maps.mean(seen.phrase.content(), layers, range(len(seen.timesteps)))
    side = int(np.shape(example.array())[-1])
    return float(metrics.evaluate(bbm.minmax(heat), example.boxes, size=side)["cnr"])


def _words(seen: maps.Capture) -> list[dict[str, Any]]:
    """Buttons of the page: every word, the start, the end and the padding, with their columns."""
    phrase, content = seen.phrase, set(seen.phrase.content())
    found: list[dict[str, Any]] = [
        {"text": w.text, "columns": list(w.tokens), "content": bool(content & set(w.tokens))}
        for w in phrase.words
    ]
    special = {"(start)": phrase.start, "(end)": phrase.end, "(padding)": seen.padding_column}
    return found + [
        {"text": name, "columns": [column], "content": False, "special": True}
        for name, column in special.items()
        if column is not None
    ]


def quantised(values: Tensor) -> dict[str, Any]:
    """Maps [T, N, h, w] as int8 in base64, and the scale of each map."""
    array: NDArray[np.float64] = values.double().numpy()
    scale = np.maximum(np.abs(array).max((-2, -1)), 1e-12) / 127
    levels = np.rint(array / scale[..., None, None]).astype(np.int8)
    return {
        "bytes": base64.b64encode(levels.tobytes()).decode(),
        "scales": [float(f"{v:.5g}") for v in scale.ravel()],
    }


def _png(image: NDArray[Any]) -> str:
    """A film [S, S] in [0, 1] as a data address."""
    grey = np.clip(np.squeeze(image) * 255, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _colours(name: str) -> list[list[int]]:
    """256 colours of a colour map of the figures, 0 to 255."""
    table = plt.get_cmap(name)(np.linspace(0, 1, 256))[:, :3] * 255
    return [[int(v) for v in row] for row in np.rint(table)]


def write(settings: Config, folder: Path, cache: Path, count: int = FILMS) -> None:
    """Write index.js and a script a film into a folder; made once for the model and the settings.

    Args:
        settings: the profile; its first arm grounds.
        folder: of the page's static files.
        cache: folder that keeps what was made.
        count: number of films.
    """
    arm = next(iter(settings.training.arms))
    named = products.key(settings, f"ldm/{arm}-s{settings.training.seeds[0]}")
    kept = cache / runs.digest([named, count, Path(__file__).read_text()], 12)
    if not (kept / "index.js").exists():
        model = products.model(settings, arm)
        pairs = [p.framed(settings.image_size) for p in products.evaluation_pairs(settings)]
        _make(model, choose(pairs, count), settings, kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)


@torch.no_grad()
def _make(model: LatentDiffusion, films: Sequence[Example], settings: Config, folder: Path) -> None:
    """Write the scripts; the index last."""
    folder.mkdir(parents=True, exist_ok=True)
    titles = []
    for number, example in enumerate(films):
        film = packed(model, example, settings)
        titles.append(film["name"])
        script = f"g2gFilm({number}, {json.dumps(film, separators=(',', ':'))});\n"
        _write(folder / f"film-{number}.js", script)
    index = {
        "titles": titles,
        "heat": _colours(overlays.HEAT),
        "signed": _colours(overlays.SIGNED),
    }
    _write(folder / "index.js", f"window.g2gIndex = {json.dumps(index)};\n")


def _write(path: Path, script: str) -> None:
    with runs.atomic(path) as temporary:
        temporary.write_text(script)
