"""Open the explorer alone in the browser: `./run_all.sh explore [PROFILE] [VOILA OPTIONS]`.

Voilà serves a copy of notebook 10 with the profile filled in. It listens on this machine only and
asks nothing of any other.
"""

import os
import sys
from pathlib import Path

import nbformat

from g2g_utils import config as profiles
from g2g_utils.runs import places

ROOT = Path(__file__).resolve().parents[1]
LARGEST_UPLOAD = 256 * 2**20  # bytes; the default of 10 MiB is less than many DICOM files


def application(profile: str, notebook: Path = ROOT / "notebooks" / "10_explorer.ipynb") -> Path:
    """Write the explorer's cells of the notebook under a profile, below the build folder."""
    config = profiles.load(profile)
    content = nbformat.read(notebook, as_version=4)
    content.cells = [c for c in content.cells if "notebook-only" not in c.metadata.get("tags", [])]
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += f"\nprofile = {profile!r}"
    target = places.build(config) / "explorer" / notebook.name
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, target)
    return target


def command(target: Path, options: list[str]) -> list[str]:
    """Command of Voilà with our template. Options of the user come last and win."""
    settings = {"websocket_max_message_size": LARGEST_UPLOAD}
    fixed = ["--Voila.ip=127.0.0.1", "--template=g2g", f"--Voila.tornado_settings={settings}"]
    return [sys.executable, "-m", "voila", str(target), *fixed, *options]


def main() -> None:
    """Replace this process by Voilà."""
    given = sys.argv[1:]
    profile = given.pop(0) if given and not given[0].startswith("-") else "radiographs"
    try:
        target = application(profile)
    except profiles.ConfigError as error:
        sys.exit(f"explore: {error}")
    paths = [str(ROOT / "workflow" / "jupyter"), os.environ.get("JUPYTER_PATH", "")]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, paths))
    if profile in ("smoke", "miniature", "radiographs"):
        os.environ["HF_HUB_OFFLINE"] = "1"
    words = command(target, given)
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
