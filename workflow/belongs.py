"""Which notebooks a profile runs: its own, or, where it has none, all those of the miniature."""

import re
from pathlib import Path

PROFILE = re.compile(r'^\s*"?profile(?: *: *str)? *= *\\?["\']([\w]+)', re.MULTILINE)


def home(notebook: Path) -> str:
    """The profile that a notebook's parameters cell names, in its .py or .ipynb."""
    named = PROFILE.search(notebook.read_text("utf-8"))
    return named[1] if named else "miniature"


def run_by(profile: str, folder: Path) -> list[Path]:
    """The notebooks that a run of a profile executes, in order."""
    homes = {path: home(path) for path in sorted(folder.glob("[0-9]*.ipynb"))}
    own = [path for path, name in homes.items() if name == profile]
    return own or [path for path, name in homes.items() if name == "miniature"]
