"""Places of a profile: where its runs write, its shipped weights and its figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from g2g_utils.runs.run import Run

ROOT = Path(__file__).resolve().parents[2]  # the repository


class Profile(Protocol):
    """The settings on which a place depends (`config.Config` has them)."""

    @property
    def profile(self) -> str:
        """Name of the profile."""

    @property
    def publishable(self) -> bool:
        """True if its figures may be committed."""


def build(config: Profile) -> Path:
    """Folder of everything that a run makes, ignored by git.

    It lies in the folder that the environment variable G2G_BUILD names, else in build/.

    Raises:
        ValueError: its path has braces, in which Snakemake would look for wildcards.
    """
    folder = Path(os.environ.get("G2G_BUILD", ROOT / "build")) / config.profile
    if "{" in str(folder) or "}" in str(folder):
        raise ValueError(
            f"{folder}: braces in the path of the build folder; set G2G_BUILD to another"
        )
    return folder


def weights(config: Profile) -> Path:
    """Folder of the shipped, committed weights; it may not exist."""
    return ROOT / "weights" / config.profile


def figures(config: Profile) -> Path:
    """Folder of figures and results.

    A point of a sweep has its own. A run of the workflow writes where its profile keeps figures; a
    notebook that was opened by hand writes into the build folder, whatever its profile.
    """
    run = Run.current()
    if run is None:
        return build(config) / "figures"
    return run.figures or kept_figures(config)


def kept_figures(config: Profile) -> Path:
    """Folder of the workflow's figures: figures/, which is committed, of a publishable profile."""
    return ROOT / "figures" if config.publishable else build(config) / "figures"
