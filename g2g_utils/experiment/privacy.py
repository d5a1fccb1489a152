"""Executed notebooks of credentialed data: a banner, and reasons to refuse them.

MIMIC-CXR and MS-CXR come with a data use agreement: notebooks that show their images or text stay
below build/. The check does not rely on outputs alone: it also looks at parameters and text.
"""

from __future__ import annotations

import os
import re
from typing import Any

from g2g_utils import config as configuration
from g2g_utils.data import sources

TAG = "credentialed"
FILMS = "G2G_BACKGROUNDS"  # the user's own radiographs, shown by notebooks that read this variable
BANNER = (
    "> **Credentialed data.** This run read data under a PhysioNet data use agreement. Do not "
    "commit, publish, mail or upload this notebook, its outputs or its figures."
)
PROFILE = re.compile(r"^profile(?: *: *str)? *= *['\"]([^'\"]+)['\"]", re.MULTILINE)
PATIENT = re.compile(r"\bp1\d/p1\d{7}/s5\d{7}\b")  # as in MIMIC's paths
KINDS = ("text/", "application/json")


def credentialed(profile: str) -> bool:
    """True if a profile reads credentialed data, or cannot be read here."""
    try:
        return sources.credentialed(configuration.load(profile))
    except configuration.ConfigError:
        return True


def mark(notebook: Any, profile: str) -> None:
    """Note the profile in an executed notebook. With credentialed data a banner comes first.

    Also notes radiographs of the user's own, whose terms nobody here knows.
    """
    notebook.metadata["g2g"] = {"profile": profile}
    if os.environ.get(FILMS) and any(FILMS in cell.source for cell in notebook.cells):
        notebook.metadata["g2g"][FILMS] = True
    if not credentialed(profile):
        return
    import nbformat

    notebook.metadata["g2g"][TAG] = True
    if TAG not in notebook.cells[0].metadata.get("tags", []):
        cell = nbformat.v4.new_markdown_cell(BANNER, metadata={"tags": [TAG]})
        notebook.cells.insert(0, cell)


def refused(notebook: Any) -> list[str]:
    """Reasons why a notebook must not leave this machine: marks, profile, patients in outputs."""
    reasons = []
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    if notebook.metadata.get("g2g", {}).get(TAG) or TAG in tags:
        reasons.append("carries the banner of credentialed data")
    if notebook.metadata.get("g2g", {}).get(FILMS):
        reasons.append(f"shows radiographs of {FILMS}: run it again without them")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    named = [name for cell in code for name in PROFILE.findall(cell.source)]
    executed = any(cell.outputs for cell in code)
    if executed and named and credentialed(named[-1]):  # the last: injected by papermill
        reasons.append(f"was executed under {named[-1]!r}, which reads credentialed data")
    texts = [text for cell in code for text in _shown(cell)]
    if any(map(PATIENT.search, [*texts, str(notebook.metadata.get("widgets", ""))])):
        reasons.append("shows the path of a MIMIC-CXR patient")
    return reasons


def _shown(cell: Any) -> list[str]:
    """All text that a code cell shows, errors included."""
    parts = []
    for output in cell.outputs:
        parts += [output.get("text", ""), output.get("evalue", ""), *output.get("traceback", [])]
        data = output.get("data", {})
        parts += [value for kind, value in data.items() if kind.startswith(KINDS)]
    return ["".join(part) if isinstance(part, list) else str(part) for part in parts]
