"""Execute one notebook under a profile, keep it whatever happens, record the run last.

    python workflow/run_notebook.py NOTEBOOK --profile smoke [-p NAME VALUE …] [--set KEY VALUE …]

Writes build/PROFILE/notebooks/NAME.ipynb (also of a failed run, up to the error) and, only after
success, NAME.metrics.json and NAME.run.json with the run's id, parameters and settings, the figures
it wrote, hashes of what went in and came out, and where it ran. With --folder all of that goes into
that folder. -p gives parameters of the notebook, --set settings (grounding.timesteps).
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from g2g_utils import config as profiles
from g2g_utils import runs
from g2g_utils.experiment import privacy
from g2g_utils.runs import places

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


def mark(path: Path, profile: str, world: str) -> None:
    """Write down in the executed notebook which profile it ran under.

    world: the profile with the run's settings, which decide whether it read credentialed data.
    """
    import nbformat

    if path.exists():
        notebook = nbformat.read(path, as_version=4)
        privacy.mark(notebook, world)
        notebook.metadata["g2g"]["profile"] = profile
        with runs.atomic(path) as temporary:
            nbformat.write(notebook, temporary)


def settings_file(folder: Path, profile: str, overrides: dict[str, Any]) -> str:
    """The profile with other settings as a file of the run's folder; the name where none differ."""
    if not overrides:
        return profile
    path = folder / f"{profile}.yaml"
    runs.write_json(path, profiles.tree(profile, overrides))  # JSON is YAML
    return str(path)


@dataclass(frozen=True)
class Files:
    """Files and folders that one run writes."""

    notebook: Path  # executed
    record: Path
    metrics: Path
    figures: Path  # folder
    own_figures: bool  # other notebooks do not share that folder

    @property
    def error(self) -> Path:
        """One line about a failed run."""
        return self.notebook.with_suffix(".error")

    def forget(self) -> None:
        """Remove what an earlier run left."""
        self.notebook.parent.mkdir(parents=True, exist_ok=True)
        for old in (self.record, self.metrics, self.error):
            old.unlink(missing_ok=True)

    def run(self, id: str) -> runs.Run:
        """The run that writes these files, not yet started."""
        figures = self.figures if self.own_figures else None
        return runs.Run(self.notebook.with_suffix(".current"), id, self.metrics, figures)


def files(config: profiles.Config, notebook: Path, folder: Path | None) -> Files:
    """Files of a run: in its own folder, or among those of the profile's notebooks."""
    if folder:
        own = (folder / name for name in ("run.json", "metrics.json", "figures"))
        return Files(folder / notebook.name, *own, own_figures=True)
    executed = places.build(config) / "notebooks" / notebook.name
    beside = (executed.with_suffix(end) for end in (".run.json", ".metrics.json"))
    return Files(executed, *beside, places.kept_figures(config), own_figures=False)


def what_ran(
    config: profiles.Config, notebook: Path, parameters: dict[str, Any], inputs: list[Path]
) -> dict[str, Any]:
    """All that determines a run, and the id made of it, which its figures carry.

    The id begins with the profile and the hash of its settings, as `run` in findings.json does.
    """
    found = {notebook.name: runs.file_digest(notebook), **dict(map(product, inputs))}
    return {
        "id": f"{runs.settings_id(config)}.{notebook.stem}.{runs.digest([parameters, found], 8)}",
        "notebook": notebook.stem,
        "parameters": parameters,
        "settings": config.model_dump(mode="json"),
        "inputs": found,
    }


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
    place = files(config, notebook, folder)
    place.forget()
    origin = what_ran(config, notebook, {"profile": profile, **parameters}, inputs or [])
    world = settings_file(place.notebook.parent, profile, overrides or {})
    run = place.run(origin["id"])
    run.start()
    try:
        run_cells(notebook, place, profile, world, parameters)
    finally:
        drawn = run.end()
    if not place.metrics.exists():
        runs.write_json(place.metrics, {})
    here = place.notebook.parent
    made = [place.metrics, place.notebook, *drawn]
    fields = {
        **origin,
        "figures": [os.path.relpath(path, place.figures) for path in drawn],
        "metrics": runs.read_json(place.metrics),
        "outputs": {os.path.relpath(path, here): runs.file_digest(path) for path in made},
        **runs.provenance(started),
        "peak_memory_mib": peak_memory(),
    }
    runs.write_json(place.record, fields)
    print(f"{notebook.stem}: {fields['wall_s']:.0f} s, {len(drawn)} figures in {place.figures}")


def product(record: Path) -> tuple[str, str]:
    """Name of a product and the hash over its files, from the record that the workflow keeps."""
    found = runs.read_json(record)
    content = runs.read_json(Path(found["folder"]) / "run.json")
    return found["product"], runs.digest(content.get("outputs", content["key"]))


def run_cells(
    notebook: Path, place: Files, profile: str, world: str, parameters: dict[str, Any]
) -> None:
    """Execute with papermill; what fails leaves one line in `error` and ends this process."""
    import papermill

    output = place.notebook
    try:
        prepare(notebook, output)
        papermill.execute_notebook(
            str(output),
            str(output),
            parameters=checked(output, {"profile": world, **parameters}),
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
            place.error.write_text(message)
        sys.exit(message)
    finally:
        with contextlib.suppress(OSError):
            mark(output, profile, world)


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
