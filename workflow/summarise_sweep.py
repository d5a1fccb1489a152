"""Table, figure and record of a finished sweep: python summarise_sweep.py SWEEP WORLD FOLDER.

summary.csv has one row per point and metric: point, the axes, metric, value. summary.png shows the
metrics that the sweep's `figure:` names against its x axis, one line per value of its colour axis.
summary.run.json, written last, holds the summary's id, which the figure carries, and both hashes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import sweeps

from g2g_utils import config as profiles
from g2g_utils import plots, runs


def table(sweep: sweeps.Sweep, folder: Path) -> pd.DataFrame:
    """Long format: point, axes, metric, value. A null metric is an empty value."""
    rows: list[dict[str, Any]] = []
    for point in sweep.points:
        found = runs.read_json(folder / point.id / "metrics.json")
        axes = {name: _scalar(value) for name, value in point.values.items()}
        rows += [{"point": point.id, **axes, "metric": m, "value": v} for m, v in found.items()]
    if not rows:
        raise SystemExit(f"{sweep.notebook.name} reports no metric: call g2g_utils.runs.report")
    return pd.DataFrame(rows)


def _scalar(value: Any) -> Any:
    """Lists and mappings as text, so that they can be grouped."""
    return value if isinstance(value, str | int | float) else json.dumps(value)


def draw(sweep: sweeps.Sweep, world: str, rows: pd.DataFrame, folder: Path, run: str) -> None:
    """Draw summary.png, with the summary's id in its metadata."""
    from g2g_utils.plots import charts

    plots.use_style()
    names = list(rows["metric"].unique())
    wanted = sweep.figure.get("y", names[:3])
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if lost := [name for name in wanted if name not in names]:
        raise SystemExit(
            f"{sweep.name}.yaml: figure.y = {lost[0]!r} was not reported: {', '.join(names)}"
        )
    axes = list(rows.columns[1:-2])
    x, colour = sweep.figure.get("x", axes[0]), sweep.figure.get("colour")
    fig = charts.sweep(rows, wanted, x, colour, f"{sweep.name}: {len(sweep.points)} points")
    plots.save_figure(profiles.load(world), fig, "summary", folder, run)


def identity(sweep: sweeps.Sweep, world: str, folder: Path) -> str:
    """Id of the summary: profile, hash of its settings, sweep, hash of its points' ids."""
    records = [runs.read_json(folder / point.id / "run.json") for point in sweep.points]
    points = [record.get("id") for record in records]
    return f"{runs.settings_id(profiles.load(world))}.{sweep.name}.{runs.digest(points, 8)}"


def main() -> None:
    """Write the table, then the figure, which may fail, then the record."""
    name, world, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    sweep = sweeps.read(name)
    rows = table(sweep, folder)
    with runs.atomic(folder / "summary.csv") as temporary:
        rows.to_csv(temporary, index=False)
    id = identity(sweep, world, folder)
    draw(sweep, world, rows, folder, id)
    made = {file: runs.file_digest(folder / file) for file in ("summary.csv", "summary.png")}
    record = {"id": id, "sweep": sweep.name, "outputs": made}
    runs.write_json(folder / "summary.run.json", record)


if __name__ == "__main__":
    main()
