"""Exports of a view: a PNG, the maps with their parameters, and the code."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from g2g_utils import config, plots, runs
from g2g_utils.data.geometry import Box
from g2g_utils.experiment import presence, products
from g2g_utils.explorer import render, state
from g2g_utils.explorer.session import Panel, Session, View
from g2g_utils.explorer.state import State, column_label
from g2g_utils.runs import places

# -- parameters -----------------------------------------------------------------------------------


def facts(session: Session, view: View) -> dict[str, Any]:
    """All parameters that made a view, as plain values."""
    profile, options = session.config.profile, session.config.grounding
    return {
        "notice": render.NOTICE,
        "profile": profile,
        "image": {"key": view.picture.key, "code": view.picture.code},
        "boxes": [list(map(float, box)) for box in view.boxes],
        "state": asdict(view.state),
        "timesteps": options.timesteps,
        "text_guidance": options.text_guidance if view.state.curve else None,
        "panels": [_panel_facts(panel) for panel in view.panels],
        "no_skill": view.no_skill,
        "git": runs.git_state(places.ROOT),
    }


def _panel_facts(panel: Panel) -> dict[str, Any]:
    capture, chosen = panel.capture, panel.selection
    return {
        "phrase": panel.phrase,
        "model": panel.model,
        "tokens": capture.positions(chosen.columns),
        "token_labels": [column_label(capture, c) for c in range(capture.columns)],
        "layers": list(chosen.layers),
        "timesteps": [capture.timesteps[i] for i in chosen.over["steps"]],
        "confidence": panel.confidence,
        "presence": panel.presence,
        "metrics": panel.metrics,
    }


def arrays(session: Session, view: View) -> bytes:
    """Maps of every panel as .npz, loadable without pickle. `parameters` is JSON text."""
    import json

    found: dict[str, Any] = {
        "parameters": np.array(json.dumps(facts(session, view), default=str)),
        "notice": np.array(render.NOTICE),
    }
    for letter, panel in zip("AB", view.panels, strict=False):
        maps_of = {
            "heatmap": panel.heatmap,
            "activation": panel.raw,
            "mask": panel.mask,
            "interaction": panel.interaction,
            "gain": panel.gain,
            "token_maps": panel.capture.maps.by_token(**panel.selection.over),
            "token_means": panel.token_means,
        }
        found |= {f"{letter}_{k}": v.numpy() for k, v in maps_of.items() if v is not None}
    stream = io.BytesIO()
    np.savez_compressed(stream, **found)
    return stream.getvalue()


def save(session: Session, view: View, picture: bytes, folder: Path | None = None) -> list[Path]:
    """Write the picture and the maps of a view side by side, by default below build/."""
    folder = folder or places.build(session.config) / "explorer"
    folder.mkdir(parents=True, exist_ok=True)
    words = re.sub(r"[^a-z0-9]+", "-", view.state.phrase.lower()).strip("-")[:40] or "view"
    known = facts(session, view)
    name = f"{words}-{runs.digest(known, 8)}"
    paths = []
    for suffix, content in ((".png", picture), (".npz", arrays(session, view))):
        with runs.atomic(folder / f"{name}{suffix}") as temporary:
            temporary.write_bytes(content)
        paths.append(folder / f"{name}{suffix}")
    return paths


# -- code -----------------------------------------------------------------------------------------


def code(session: Session, view: View, letter: str = "A") -> str:
    """Imports and the lines that compute a panel's heat map again."""
    panel = view.panels["AB".index(letter)]
    arm, seed = products.arm_and_seed(session.config, panel.model)
    image, plain = view.picture.code, view.state.method == "attention"
    used = ["config", "grounding"] if plain else ["bbm", "config", "grounding", "information"]
    modules = "geometry, images" if image.startswith("geometry") else "sources"
    return "\n".join(
        [
            f"from g2g_utils import {', '.join(used)}",
            f"from g2g_utils.data import {modules}",
            "from g2g_utils.experiment import products",
            "",
            f"c = config.load({_load_arguments(session.config)})",
            f'model, image = products.model(c, "{arm}", {seed}), {image}',
            _ground_call(session, view.state, panel, view.boxes),
            *_information_calls(session, view.state, panel),
        ]
    )


def _load_arguments(current: config.Config) -> str:
    """Profile and the overrides that lead from it to this configuration."""
    plain = _flat(config.load(current.profile).model_dump(mode="json"))
    changed = {k: v for k, v in _flat(current.model_dump(mode="json")).items() if plain.get(k) != v}
    return repr(current.profile) + (f", **{changed!r}" if changed else "")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict) and value
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _layers_argument(panel: Panel) -> str:
    """The layers, unless all are used."""
    every = panel.selection.layers == panel.capture.layers
    return "" if every else f"    layers={list(panel.selection.layers)},\n"


def _curve_argument(session: Session, now: State) -> str:
    if now.curve is None:
        return ""
    return f'    curve="{now.curve}", text_guidance={session.config.grounding.text_guidance},\n'


def _ground_call(session: Session, now: State, panel: Panel, boxes: Sequence[Box]) -> str:
    options, chosen = session.config.grounding, panel.selection
    known = f"    boxes={[tuple(map(float, b)) for b in boxes]},\n" if boxes else ""
    return (
        f"heatmap = grounding.ground(\n    model, image, {panel.phrase!r},\n"
        f"    tokens={panel.capture.positions(chosen.columns)},\n{_layers_argument(panel)}"
        f"    timesteps={options.timesteps}, steps={chosen.steps},\n"
        f"{_curve_argument(session, now)}{known}"
        f"    seed={now.seed}, batch_size={options.batch_size},\n).heatmap"
    )


def _information_calls(session: Session, now: State, panel: Panel) -> list[str]:
    """Lines that make the heat map of information, or multiply attention with it."""
    if now.method == "attention":
        return []
    options = presence.options(session.config) | {"seed": now.seed, "filter": "all"}
    rest = state.unchosen(panel.capture.phrase, panel.selection.columns)
    phrases = [panel.phrase, *([rest] if rest else [])]
    values = ", ".join(f"{name}={value!r}" for name, value in options.items())
    heat = "bbm.minmax(information.positive(information.smooth(gain)))"
    return [
        f"told = information.measure(\n    model, image, {phrases!r},\n    {values},\n)",
        f"gain = told[0].gain{' - told[1].gain' if rest else ''}",
        f"heat = {heat}",
        "heatmap = bbm.minmax(heat * heatmap.sqrt())" if now.method == "both" else "heatmap = heat",
    ]


# -- static views ---------------------------------------------------------------------------------


def static_views(session: Session, now: State, folder: Path) -> list[Path]:
    """Pre-rendered views of a state.

    Overlay, tokens, layers x timesteps, attention × information, words, and left/right swapped. For
    pages without a kernel. A phrase without a side has no swapped view.
    """
    from dataclasses import replace

    from g2g_utils.explorer.state import names_side, pick_method, swap

    folder.mkdir(parents=True, exist_ok=True)
    view = session.view(now)
    layers = (0, len(view.panels[0].capture.layers) - 1)
    shared = session.view(replace(now, scale="shared", curve=None))
    every = session.view(replace(now, scale="shared", curve=None, layers=layers))
    pictures = {
        "view": render.main_view(view),
        "tokens": render.token_view(shared),
        "layers_timesteps": render.grid_view(every),
    }
    informed = pick_method(now, "both")
    pictures["information"] = render.main_view(session.view(informed))
    pictures["words"] = render.word_view(session.view(informed), session.word_information(informed))
    if names_side(now.phrase):
        pictures["swapped"] = render.main_view(session.view(swap(now)))
    paths = []
    for name, picture in pictures.items():
        paths.append(folder / f"explorer_{name}.png")
        with runs.atomic(paths[-1]) as temporary:
            temporary.write_bytes(render.png(picture))
        plots.wrote(paths[-1])
    return paths
