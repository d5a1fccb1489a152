"""Figures, drawn from arrays and tables alone: images with maps, and charts of results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from g2g_utils import config as configuration
from g2g_utils import runs

STYLE: Any = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "y",
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "image.cmap": "gray",
}
SAVED_DPI = 150  # dots per inch of figures on disk


def use_style() -> None:
    """Draw all later figures of this process in the same plain style."""
    plt.rcParams.update(STYLE)


def run_id(config: configuration.Config) -> str:
    """Id of the run at work, as in its run.json; by hand only profile and hash of all its settings.

    The id of a run (workflow/run_notebook.py) begins with that, and so names what a claim in
    findings.json was computed under.
    """
    return os.environ.get("G2G_RUN") or runs.settings_id(config)


def provenance(config: configuration.Config, title: str) -> dict[str, str]:
    """Text that goes into a figure's PNG file: title, run, git commit, purpose."""
    state = runs.git_state(configuration.ROOT)
    commit = state["commit"] or "unknown"
    return {
        "Title": title,
        "Software": "g2g_utils",
        "Source": f"run {run_id(config)}",
        "Comment": f"git {commit}{' with changes' if state['dirty'] else ''}",
        "Disclaimer": "for research, not a medical device",
    }


def wrote(path: Path) -> None:
    """Note a figure as one of this run's, in the file named by G2G_WRITTEN; nothing without it."""
    if listed := os.environ.get("G2G_WRITTEN"):
        with open(listed, "a") as lines:
            lines.write(f"{path.resolve()}\n")


def save_figure(
    config: configuration.Config, fig: Figure, name: str, folder: Path | None = None
) -> None:
    """Write <figures folder>/<name>.png atomically, with the run and the commit in its metadata.

    folder: elsewhere, where a figure must not lie among those that are committed.
    """
    path = (folder or config.figures_dir) / f"{name}.png"
    with runs.atomic(path) as temporary:
        fig.savefig(
            temporary,
            format="png",
            dpi=SAVED_DPI,
            bbox_inches="tight",
            metadata=provenance(config, name),
        )
    wrote(path)
