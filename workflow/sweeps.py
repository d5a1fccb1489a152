"""Sweeps: grids over a notebook's parameters and a profile's settings, checked, then expanded.

    python workflow/sweeps.py SWEEP WORLD     check a sweep under a profile and list its points

SWEEP names a file in workflow/sweeps/ (or is a path). Its keys:

    notebook   name of the notebook that every point runs
    grid       name -> list of values, all combinations; or a list of such grids
    fixed      name -> value, the same for every point
    needs      patterns of products a point waits for ({name}: the point's value);
               without it those of workflow/needs.yaml
    figure     x, y (a metric or a list of them) and optionally colour

Names are parameters of the notebook; those with a dot are settings of the profile
(`grounding.timesteps`, `unet.channels`). Both are checked here, before anything runs.
"""

from __future__ import annotations

import ast
import fnmatch
import itertools
import re
import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = ROOT / "workflow" / "sweeps"
KEYS = ("notebook", "grid", "fixed", "needs", "figure")
FIGURE = ("x", "y", "colour")
TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool}
SLUG = 60  # characters of a point's name that come from its values


class SweepError(ValueError):
    """A sweep that cannot run. The message names the file, the place and the fix."""


@dataclass(frozen=True)
class Point:
    """One run of the notebook."""

    values: dict[str, Any]  # of the axes
    fixed: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the notebook."""
        return {k: v for k, v in (self.fixed | self.values).items() if "." not in k}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings of the profile that differ from its file, dotted."""
        return {k: v for k, v in (self.fixed | self.values).items() if "." in k}

    @cached_property
    def id(self) -> str:
        """Folder name: the axes' values, readable, and a hash of all values."""
        from g2g_utils import runs

        parts = (f"{name.rpartition('.')[2]}-{value}" for name, value in self.values.items())
        slug = re.sub(r"[^A-Za-z0-9.=-]+", "-", "_".join(parts))[:SLUG].strip("-_")
        return f"{slug}-{runs.digest(self.fixed | self.values, 8)}"


@dataclass(frozen=True)
class Sweep:
    """A notebook and the points at which it runs."""

    name: str
    notebook: Path
    points: tuple[Point, ...]
    needs: list[str] | None
    figure: dict[str, Any]

    def patterns(self, point: Point) -> list[str]:
        """Patterns of the products that a point waits for."""
        if self.needs is None:
            waits = yaml.safe_load((ROOT / "workflow" / "needs.yaml").read_text()) or {}
            return waits.get(self.notebook.stem, ["*"])
        return [self.filled(pattern, point) for pattern in self.needs]

    def filled(self, pattern: str, point: Point) -> str:
        """A pattern with the point's values in place of their {name}."""
        try:
            return pattern.format(**point.parameters)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            known = ", ".join(f"{{{name}}}" for name in point.parameters) or "none"
            raise SweepError(
                f"{self.name}.yaml: needs: {pattern!r}: a name in braces needs a value at every "
                f"point, from grid or fixed; known here: {known}"
            ) from None

    def products(self, point: Point, plan: dict[str, list[str]]) -> list[str]:
        """Products that a point waits for, also a training of a seed beyond the plan.

        Models that the profile loads and does not make (a released VAE) are left out.
        """
        trains = any(name.startswith("ldm/") for name in plan)
        names: list[str] = []
        for pattern in self.patterns(point):
            beyond = trains and pattern.startswith("ldm/") and not is_wild(pattern)
            names += fnmatch.filter(plan, pattern) or [pattern] * beyond
        return list(dict.fromkeys(names))


def is_wild(pattern: str) -> bool:
    """True if a pattern stands for any number of names."""
    return any(sign in pattern for sign in "*?[")


def locate(name: str) -> Path:
    """File of a sweep by name or path. The error for an unknown one lists the known ones."""
    for path in (SWEEPS / f"{name}.yaml", Path(name)):
        if path.suffix == ".yaml" and path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in SWEEPS.glob("*.yaml"))) or "none"
    raise SweepError(f"there is no sweep {name!r} in workflow/sweeps: choose one of {known}")


def read(name: str) -> Sweep:
    """Read and expand a sweep, and check all that needs neither notebook nor profile."""
    path = locate(name)
    content = parse(path)
    notebook = ROOT / "notebooks" / f"{content['notebook']}.ipynb"
    if not notebook.is_file():
        known = ", ".join(sorted(p.stem for p in notebook.parent.glob("[0-9]*.ipynb")))
        raise SweepError(f"{path.name}: no notebook {content['notebook']!r}: choose one of {known}")
    points = expand(path, content["grid"], mapping(path, content, "fixed"))
    needs = content.get("needs")
    if needs is not None and not is_texts(needs):
        raise SweepError(f"{path.name}: needs = {needs!r}: write a list [product, …]")
    figure = mapping(path, content, "figure")
    check_figure(path, figure, {name for point in points for name in point.values})
    return Sweep(path.stem, notebook, points, needs, figure)


def parse(path: Path) -> dict[str, Any]:
    """Content of a sweep's file, with the keys it must and may have."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SweepError(f"{path.name}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or {"notebook", "grid"} - content.keys():
        raise SweepError(f"{path.name}: needs `notebook:` and `grid:`")
    if unknown := [key for key in content if key not in KEYS]:
        raise SweepError(f"{path.name}: unknown key {unknown[0]!r}; known: {', '.join(KEYS)}")
    return content


def mapping(path: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    """An optional part of a sweep that maps names to values."""
    part = content.get(key) or {}
    if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
        raise SweepError(f"{path.name}: {key} = {part!r}: write {key}: {{name: value, …}}")
    return part


def is_texts(value: Any) -> bool:
    """True for a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def check_figure(path: Path, figure: dict[str, Any], axes: set[str]) -> None:
    """Check the keys and axes of a sweep's figure. Its metrics are known only after a run."""
    if unknown := [key for key in figure if key not in FIGURE]:
        raise SweepError(
            f"{path.name}: unknown key figure.{unknown[0]}; known: {', '.join(FIGURE)}"
        )
    for role in ("x", "colour"):
        if role in figure and figure[role] not in axes:
            known = ", ".join(sorted(axes))
            raise SweepError(f"{path.name}: figure.{role} = {figure[role]!r} is none of {known}")
    wanted = figure.get("y", "")
    if not isinstance(wanted, str) and not (wanted and is_texts(wanted)):
        raise SweepError(
            f"{path.name}: figure.y = {wanted!r}: write a metric or a list [metric, …]"
        )


def expand(path: Path, grid: Any, fixed: dict[str, Any]) -> tuple[Point, ...]:
    """All points of one grid or of a list of grids, in the order written, each once."""
    points: dict[str, Point] = {}
    for part in grid if isinstance(grid, list) else [grid]:
        if not isinstance(part, dict) or not part:
            raise SweepError(f"{path.name}: grid: write name: [value, …], not {part!r}")
        for name, values in part.items():
            if not isinstance(name, str):
                raise SweepError(f"{path.name}: grid: the name {name!r} is no text: quote it")
            if not isinstance(values, list) or not values:
                raise SweepError(f"{path.name}: grid.{name} = {values!r}: write a list [value, …]")
            if name in fixed:
                raise SweepError(f"{path.name}: {name!r} is in grid and in fixed: drop one")
        for values in itertools.product(*part.values()):
            point = Point(dict(zip(part, values, strict=True)), fixed)
            points.setdefault(point.id, point)
    if not points:
        raise SweepError(f"{path.name}: grid is empty: write name: [value, …]")
    return tuple(points.values())


def check(sweep: Sweep, world: str) -> None:
    """Check names and types of all values against the notebook's parameters cell and the profile.

    Raises:
        SweepError: every mistake, one per line.
    """
    known = parameters(sweep.notebook)
    wrong: dict[str, None] = {}  # ordered, each once
    for point in sweep.points:
        for name, value in point.parameters.items():
            if problem := mismatch(name, value, known):
                wrong[f"{sweep.name}.yaml: {sweep.notebook.name} {problem}"] = None
        if problem := unusable(sweep, point, world):
            wrong[f"{sweep.name}.yaml: {problem}"] = None
    if wrong:
        raise SweepError("\n".join(wrong))


def parameters(notebook: Path) -> dict[str, tuple[str, Any]]:
    """Type and default of every parameter in the notebook's parameters cell."""
    import papermill

    found = papermill.inspect_notebook(str(notebook))
    kinds: dict[str, tuple[str, Any]] = {}
    for name, said in found.items():
        try:
            default = ast.literal_eval(said["default"])
        except (ValueError, SyntaxError):
            default = None
        kind = said["inferred_type_name"]
        kinds[name] = (kind if kind in TYPES else type(default).__name__, default)
    return kinds


def mismatch(name: str, value: Any, known: dict[str, tuple[str, Any]]) -> str:
    """Fault of a parameter; empty if there is none."""
    if name == "profile":
        return "takes its profile from the command line: ./run_all.sh sweep NAME PROFILE"
    if name not in known:
        return f"has no parameter {name!r}: its parameters cell knows {', '.join(known)}"
    kind = known[name][0]
    allowed = TYPES.get(kind, object)
    if isinstance(value, allowed) and (kind == "bool" or not isinstance(value, bool)):
        return ""
    hint = ""
    if kind == "float" and isinstance(value, str):
        hint = f" (YAML reads {value} as text: write {value.replace('e', '.0e')})"
    return f"wants {kind} for {name}, not {value!r}{hint}"


def unusable(sweep: Sweep, point: Point, world: str) -> str:
    """Reason why the profile cannot take a point's settings, arm or products; empty if it can."""
    from g2g_utils import config
    from g2g_utils.experiment import products

    try:
        settings = config.load(world, **point.settings)
    except config.ConfigError as error:
        return f"{point.values}: {error}"
    arm, arms = point.parameters.get("arm"), settings.training.arms
    if isinstance(arm, str) and arm and arm not in arms:
        return f"arm = {arm!r}: choose one of {', '.join(arms)}"
    plan = products.plan(settings)
    for name in sweep.patterns(point):
        try:
            if name not in plan and not is_wild(name):
                products.key(settings, name)
        except config.ConfigError as error:
            return f"needs: {error}"
    return ""


def main() -> None:
    """Check and list, or print the faults and stop with status 2."""
    sys.path.insert(0, str(ROOT))
    name, world = sys.argv[1:]
    try:
        sweep = read(name)
        check(sweep, world)
    except SweepError as error:
        print("\n".join(f"sweep: {line}" for line in str(error).splitlines()), file=sys.stderr)
        sys.exit(2)
    print(f"[g2g] sweep {sweep.name}: {len(sweep.points)} points of {sweep.notebook.stem}")


if __name__ == "__main__":
    main()
