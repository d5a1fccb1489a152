"""Execute one notebook under a profile, keep it whatever happens, record the run last.

    python workflow/run_notebook.py NOTEBOOK --profile smoke [-p NAME VALUE …] [--set KEY VALUE …]

Writes build/PROFILE/notebooks/NAME.ipynb (also of a failed run, up to the error) and, only after
success, NAME.metrics.json and NAME.run.json with the parameters, the figures it wrote, hashes of
what went in and came out, and where it ran. With --folder all of that goes into that folder.
-p gives parameters of the notebook, --set other settings of the profile (grounding.timesteps).
"""

import argparse
import ast
import contextlib
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

# Papermill's checker of notebooks would build a grammar of web addresses: 1.5 s in every job.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

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


def settings_file(folder: Path, profile: str, overrides: dict[str, Any]) -> str:
    """The profile with other settings as a file of the run's folder; the name where none differ."""
    if not overrides:
        return profile
    path = folder / f"{profile}.yaml"
    runs.write_json(path, profiles.tree(profile, overrides))  # JSON is YAML
    return str(path)


def execute(
    notebook: Path,
    profile: str,
    parameters: dict[str, Any],
    overrides: dict[str, Any] | None = None,
    folder: Path | None = None,
    inputs: list[Path] | None = None,
) -> None:
    """Run the notebook in this environment's kernel and record the run.

    folder: the run's own, with its figures, metrics.json and run.json (a point of a sweep); without
    it the run is one of the profile's notebooks. inputs: records of products, for the provenance.
    """
    started, config = time.time(), profiles.load(profile, **(overrides or {}))
    output = (folder or config.build_dir / "notebooks") / notebook.name
    record = folder / "run.json" if folder else output.with_suffix(".run.json")
    metrics = folder / "metrics.json" if folder else output.with_suffix(".metrics.json")
    drawn = folder / "figures" if folder else config.figures_dir
    error = output.with_suffix(".error")
    output.parent.mkdir(parents=True, exist_ok=True)
    for old in (record, metrics, error):
        old.unlink(missing_ok=True)
    os.environ["G2G_METRICS"] = str(metrics)
    if folder:
        os.environ["G2G_FIGURES"] = str(drawn)
    world = settings_file(output.parent, profile, overrides or {})
    before = figures(drawn)
    run_cells(notebook, output, {"profile": world, **parameters}, error, profile)
    if not metrics.exists():
        runs.write_json(metrics, {})
    new = sorted(p for p, t in figures(drawn).items() if before.get(p) != t)
    fields = {
        "notebook": notebook.stem,
        "parameters": {"profile": profile, **parameters},
        **({"settings": overrides} if overrides else {}),
        "figures": [os.path.relpath(p, drawn) for p in new],
        "metrics": runs.read_json(metrics),
        "executed": runs.file_digest(output),
        "inputs": {notebook.name: runs.file_digest(notebook), **dict(map(product, inputs or []))},
        "outputs": {
            os.path.relpath(p, output.parent): runs.file_digest(p) for p in [metrics, *new]
        },
        **runs.provenance(started),
        "peak_memory_mib": peak_memory(),
    }
    runs.write_json(record, fields)
    print(f"{notebook.stem}: {fields['wall_s']:.0f} s, {len(new)} files in {drawn}")


def product(record: Path) -> tuple[str, str]:
    """Name of a product and the hash over its files, from the record that the workflow keeps."""
    found = runs.read_json(record)
    content = runs.read_json(Path(found["folder"]) / "run.json")
    return found["product"], runs.digest(content.get("outputs", content["key"]))


def run_cells(
    notebook: Path, output: Path, parameters: dict[str, Any], error: Path, profile: str
) -> None:
    """Execute with papermill; what fails leaves one line in `error` and ends this process."""
    import papermill

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
        line = runs.disk_is_full(problem, output.parent) or line
        message = f"{notebook.name} failed: {line}\n  executed up to there: {output}\n"
        with contextlib.suppress(OSError):
            error.write_text(message)
        sys.exit(message)
    finally:
        with contextlib.suppress(OSError):
            mark(output, profile)


def peak_memory() -> int:
    """Largest memory of a child process (the kernel's, not this process's), in MiB."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--profile", required=True)
    parser.add_argument("--folder", type=Path, help="the run's own folder (a point of a sweep)")
    parser.add_argument("--inputs", nargs="*", type=Path, default=[], help="records of products")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    options = parser.parse_args()
    follow_controller()
    given, overrides = (
        {name: yaml.safe_load(value) for name, value in pairs} for pairs in (options.p, options.set)
    )
    folder = options.folder.resolve() if options.folder else None
    notebook = options.notebook.resolve()
    execute(notebook, options.profile, given, overrides, folder, options.inputs)


if __name__ == "__main__":
    main()
