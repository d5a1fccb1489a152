"""Open the notebooks in JupyterLab: `./run_all.sh lab [JUPYTERLAB OPTIONS]`.

It listens on this machine only and asks nothing of any other. It opens copies below the build
folder, so that running and changing them leaves the repository as it is: a copy that the user has
changed stays, any other follows the repository.
"""

import os
import sys
from pathlib import Path

import nbformat

from g2g_utils import config as profiles
from g2g_utils import runs
from g2g_utils.runs import places

ROOT = Path(__file__).resolve().parents[1]
FIRST = "00_quickstart.ipynb"
NOTES = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"


def sources(notebook: Path) -> str:
    """Digest of a notebook's cells without their outputs."""
    return runs.digest([c.source for c in nbformat.read(notebook, as_version=4).cells])


def copies(folder: Path, notebooks: Path = ROOT / "notebooks") -> list[Path]:
    """Copies of all notebooks, unpaired, each with the digest of what was copied.

    Returns:
        Those that differ from the repository's because the user changed them.
    """
    known, changed = folder / ".copied.json", []
    before = runs.read_json(known) if known.is_file() else {}
    now = {}
    for notebook in sorted(notebooks.glob("*.ipynb")):
        target, digest = folder / notebook.name, sources(notebook)
        now[notebook.name] = before.get(notebook.name, digest)
        own = target.is_file() and sources(target) != before.get(notebook.name)
        if own and sources(target) != digest:
            changed.append(target)
        elif not target.is_file() or before.get(notebook.name) != digest:
            content = nbformat.read(notebook, as_version=4)
            content.metadata.pop("jupytext", None)
            target.parent.mkdir(parents=True, exist_ok=True)
            with runs.atomic(target) as temporary:
                nbformat.write(content, temporary)
            now[notebook.name] = digest
    runs.write_json(known, now)
    return changed


def command(folder: Path, options: list[str]) -> list[str]:
    """Command of JupyterLab at the first notebook. Options of the user come last and win."""
    fixed = [
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={folder}",
        f"--LabApp.default_url=/lab/tree/{FIRST}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    return [sys.executable, "-m", "jupyterlab", *fixed, *options]


def settle(folder: Path) -> None:
    """Settings of this JupyterLab: no news from elsewhere. The user's own stay untouched."""
    runs.write_json(folder / NOTES, {"fetchNews": "false", "checkForUpdates": False})
    os.environ["JUPYTERLAB_SETTINGS_DIR"] = str(folder)


def main() -> None:
    """Replace this process by JupyterLab."""
    build = places.build(profiles.load("miniature"))
    folder = build / "lab"
    for notebook in copies(folder):
        print(f"[g2g] kept with your changes: {notebook} (delete it for the repository's)")
    settle(build / "lab-settings")
    os.environ["HF_HUB_OFFLINE"] = "1"
    words = command(folder, sys.argv[1:])
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
