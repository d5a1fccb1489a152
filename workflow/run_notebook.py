"""Execute one notebook under a profile, keep it whatever happens, record the run last.

    python workflow/run_notebook.py NOTEBOOK --profile smoke [-p NAME VALUE …]

Writes build/PROFILE/notebooks/NAME.ipynb (also of a failed run, up to the error) and, only after
success, NAME.run.json with the parameters, the figures it wrote and where it ran.
"""

import argparse
import ast
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from g2g_utils import config as profiles
from g2g_utils import privacy, runs

ROOT = Path(__file__).resolve().parents[1]


def follow_controller(seconds: float = 1.0) -> None:
    """End this process soon after the run that started it is gone, so that no orphan works on."""
    host, _, process = os.environ.get("G2G_CONTROLLER", "").partition(":")
    if host != socket.gethostname():
        return

    def watch() -> None:
        while True:
            try:
                os.kill(int(process), 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(seconds)

    threading.Thread(target=watch, daemon=True).start()


def prepare(notebook: Path, output: Path) -> None:
    """Copy the notebook, without outputs and for this environment's kernel."""
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    content.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    with runs.atomic(output) as temporary:
        nbformat.write(content, temporary)


def checked(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The parameters that differ from the notebook's defaults; an unknown name is an error."""
    import papermill

    known = papermill.inspect_notebook(str(notebook))
    if wrong := sorted(given.keys() - known.keys()):
        raise ValueError(
            f"{notebook.name} has no parameter {', '.join(map(repr, wrong))}: "
            f"its parameters cell knows {', '.join(known) or 'none'}"
        )
    return {name: value for name, value in given.items() if value != _default(known[name])}


def _default(parameter: dict[str, Any]) -> Any:
    """The default that the parameters cell states, as a Python value where it is a literal."""
    try:
        return ast.literal_eval(parameter["default"])
    except (ValueError, SyntaxError):
        return parameter["default"]


def figures(folder: Path) -> dict[Path, int]:
    """Every file below `folder` and when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def mark(path: Path, profile: str) -> None:
    """Write down in the executed notebook which profile it ran under."""
    import nbformat

    if path.exists():
        notebook = nbformat.read(path, as_version=4)
        privacy.mark(notebook, profile)
        with runs.atomic(path) as temporary:
            nbformat.write(notebook, temporary)


def execute(notebook: Path, profile: str, parameters: dict[str, Any]) -> None:
    """Run the notebook in this environment's kernel and record the run."""
    import papermill

    config, started = profiles.load(profile), time.time()
    output = config.build_dir / "notebooks" / notebook.name
    record, error = output.with_suffix(".run.json"), output.with_suffix(".error")
    output.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    error.unlink(missing_ok=True)
    before = figures(config.figures_dir)
    try:
        prepare(notebook, output)
        papermill.execute_notebook(
            str(output),
            str(output),
            parameters=checked(output, parameters),
            kernel_name="python3",
            cwd=str(notebook.parent),
            progress_bar=False,
            start_timeout=120,
        )
    except Exception as problem:
        text = str(problem).strip().splitlines() or [type(problem).__name__]
        line = re.sub(r"\x1b\[[0-9;]*m", "", text[-1])
        error.write_text(f"{notebook.name} failed: {line}\n  executed up to there: {output}\n")
        sys.exit(error.read_text())
    finally:
        mark(output, profile)
    peak = resource.getrusage(
        resource.RUSAGE_CHILDREN
    ).ru_maxrss  # the kernel's, not this process's
    new = [p for p, t in figures(config.figures_dir).items() if before.get(p) != t]
    fields = {
        "notebook": notebook.stem,
        "parameters": {**parameters},
        "figures": sorted(os.path.relpath(p, config.figures_dir) for p in new),
        "executed": runs.file_digest(output),
        **runs.provenance(started),
        "peak_memory_mib": round(peak / (2**20 if sys.platform == "darwin" else 2**10)),
    }
    runs.write_json(record, fields)
    print(f"{notebook.stem}: {fields['wall_s']:.0f} s, {len(new)} files in {config.figures_dir}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    options = parser.parse_args()
    follow_controller()
    given = {name: yaml.safe_load(value) for name, value in options.p}
    execute(options.notebook.resolve(), options.profile, {"profile": options.profile, **given})


if __name__ == "__main__":
    main()
