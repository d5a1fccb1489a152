"""The run at work: the link between a notebook and the program that executes it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from g2g_utils.runs.files import read_json, write_json

VARIABLE = "G2G_RUN"  # environment variable that names the file of the run at work


@dataclass(frozen=True)
class Run:
    """One execution of a notebook; its file tells the notebook's process all of it.

    A notebook that was opened by hand belongs to no run: `Run.current()` is None there.
    """

    file: Path  # JSON with the fields below; removed when the run ends
    id: str  # goes into figures and into the record
    metrics: Path  # JSON file of the reported numbers
    figures: Path | None = None  # folder of the run's own figures; None: the profile's folder

    @classmethod
    def current(cls) -> Run | None:
        """The run that this process belongs to, or None."""
        named = os.environ.get(VARIABLE)
        if not named:
            return None
        fields = read_json(Path(named))
        figures = fields["figures"]
        return cls(Path(named), fields["id"], Path(fields["metrics"]), figures and Path(figures))

    def start(self) -> None:
        """Write the file and make this the run of this process and of those that it starts."""
        self.drawn.unlink(missing_ok=True)
        fields = {"id": self.id, "metrics": self.metrics, "figures": self.figures}
        write_json(self.file, fields)
        os.environ[VARIABLE] = str(self.file)

    def end(self) -> list[Path]:
        """Remove the run's files; returns the figures that it drew, each once, sorted."""
        lines = self.drawn.read_text().splitlines() if self.drawn.exists() else []
        self.drawn.unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)
        os.environ.pop(VARIABLE, None)
        return [path for path in sorted(set(map(Path, lines))) if path.exists()]

    @property
    def drawn(self) -> Path:
        """List of the figures that the run drew so far, one a line."""
        return self.file.with_suffix(".drawn")

    def drew(self, figure: Path) -> None:
        """Note a figure as one of this run's."""
        with open(self.drawn, "a") as lines:
            lines.write(f"{figure.resolve()}\n")

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Add numbers to the run's metrics."""
        known = read_json(self.metrics) if self.metrics.exists() else {}
        new = {name: _number(name, value) for name, value in metrics.items()}
        write_json(self.metrics, {**known, **new})


def report(metrics: Mapping[str, Any]) -> None:
    """Hand numbers of a notebook over to its run; does nothing in a notebook opened by hand.

    Args:
        metrics: numbers by name. Later calls add to earlier ones; NaN and infinities become null.

    Raises:
        TypeError: a value is no number.
    """
    if run := Run.current():
        run.report(metrics)


def _number(name: str, value: Any) -> float | int | None:
    """A finite number; None for NaN and infinities."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float):
        raise TypeError(f"metric {name!r} = {value!r} is no number: report numbers only")
    return value if math.isfinite(value) else None
