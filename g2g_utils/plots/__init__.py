"""Figures, drawn from arrays and tables alone: images with maps, and charts of results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from g2g_utils import config as configuration
from g2g_utils import runs
from g2g_utils.runs import places

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
    """Id of the run at work; in a notebook opened by hand only its beginning.

    The id of a run (workflow/run_notebook.py) begins with the profile and the hash of its settings,
    as `run` of a claim in findings.json does.
    """
    run = runs.Run.current()
    return run.id if run else runs.settings_id(config)


def provenance(run: str, title: str) -> dict[str, str]:
    """Text that goes into a figure's PNG file: title, id of the run, git commit, purpose."""
    state = runs.git_state(places.ROOT)
    commit = state["commit"] or "unknown"
    return {
        "Title": title,
        "Software": "g2g_utils",
        "Source": f"run {run}",
        "Comment": f"git {commit}{' with changes' if state['dirty'] else ''}",
        "Disclaimer": "for research, not a medical device",
    }


def wrote(path: Path) -> None:
    """Note a figure as one of the run at work; does nothing without a run."""
    if run := runs.Run.current():
        run.drew(path)


def save_figure(
    config: configuration.Config,
    fig: Figure,
    name: str,
    folder: Path | None = None,
    run: str | None = None,
    alt: str = "",
) -> None:
    """Write <folder>/<name>.png atomically, with the run and the commit in its metadata.

    In a notebook the figure is shown as well, with its alternative text.

    Args:
        config: settings that the figure was computed under.
        fig: the figure.
        name: file name without suffix; also the title in the metadata.
        folder: None for the profile's figures, some of which are committed.
        run: id of the run; None for the run at work.
        alt: alternative text, for readers who do not see the figure: what is drawn. The figure's
            own title, its claim, goes before it.
    """
    path = (folder or places.figures(config)) / f"{name}.png"
    with runs.atomic(path) as temporary:
        fig.savefig(
            temporary,
            format="png",
            dpi=SAVED_DPI,
            bbox_inches="tight",
            metadata=provenance(run or run_id(config), name),
        )
    wrote(path)
    _show(fig, alternative(fig, alt) or name)


def alternative(fig: Figure, alt: str = "") -> str:
    """Alternative text of a figure: its title, then `alt`, else the titles of its panels."""
    panels = [ax.get_title(place) for ax in fig.axes for place in ("left", "center")]
    drawn = alt or "; ".join(dict.fromkeys(title for title in panels if title))
    parts = (fig.get_suptitle(), drawn)
    return ". ".join(" ".join(part.split()).removesuffix(".") for part in parts if part)


def _show(fig: Figure, alt: str) -> None:
    """Show a figure of pyplot in the notebook at work; do nothing elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    number = getattr(fig, "number", -1)  # others than pyplot's have none
    if shell is None or not hasattr(shell, "kernel") or not plt.fignum_exists(number):
        return
    from IPython.display import display

    display(fig, metadata={"image/png": {"alt": alt}})  # type: ignore[no-untyped-call]
    plt.close(fig)
