"""Sweeps on the stand-in world: what is checked, what runs, what runs again."""

import json
import re

import pandas as pd
import pytest
from PIL import Image
from world import POINT, SweepWorld


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SweepWorld:
    """A world in which no sweep has run."""
    return SweepWorld(tmp_path_factory.mktemp("sweeps") / "repo with space")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"grid": {"nmber": [1]}}, ["'nmber'", "number", "rate"]),
        ({"grid": {"number": [1, "two"]}}, ["number", "int", "'two'"]),
        ({"grid": {"number": [True]}}, ["number", "int", "True"]),
        ({"grid": {"rate": ["1e-4"]}}, ["rate", "float", "1.0e-4"]),
        ({"grid": {"flag": [1]}}, ["flag", "bool"]),
        ({"grid": {"profile": ["paper"]}}, ["profile", "command line"]),
        ({"grid": {"grounding.timestep": [4]}}, ["grounding.timestep", "timesteps"]),
        ({"grid": {"grounding.timesteps": ["many"]}}, ["grounding.timesteps", "'many'"]),
        ({"grid": {"grounding.keep_last": [99]}}, ["keep_last = 99"]),
        ({"grid": {"number": 3}}, ["grid.number", "list"]),
        ({"grid": {"number": [3]}, "notebook": "04_pint"}, ["'04_pint'", "03_point"]),
        ({"grid": {"number": [3]}, "fixd": {}}, ["'fixd'", "fixed"]),
        ({"grid": {"number": [3]}, "figure": {"x": "rate"}}, ["figure.x", "rate"]),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    script, monkeypatch, world: SweepWorld, content: dict, named: list[str]
) -> None:
    sweeps = script("workflow/sweeps.py")
    monkeypatch.setattr(sweeps, "ROOT", world.folder)
    monkeypatch.setattr(sweeps, "SWEEPS", world.folder / "workflow" / "sweeps")
    world.sweep(**content)
    with pytest.raises(sweeps.SweepError) as raised:
        sweeps.check(sweeps.read("numbers"), "smoke")
    assert all(part in str(raised.value) for part in ["numbers.yaml", *named]), raised.value


def test_the_shipped_sweeps_fit_their_notebooks(script) -> None:
    sweeps = script("workflow/sweeps.py")
    names = sorted(path.stem for path in sweeps.SWEEPS.glob("*.yaml"))
    assert len(names) >= 4
    for name in names:
        for profile in ("smoke", "miniature"):
            sweeps.check(sweeps.read(name), profile)


def test_the_command_says_the_mistake_and_starts_nothing(world: SweepWorld) -> None:
    world.sweep(grid={"number": ["one"]})
    status, said = world.run("sweep", "numbers", "smoke")
    assert status == 2 and "wants int for number, not 'one'" in said
    assert not world.build.exists()
    status, said = world.run("sweep", "no-such", "smoke")
    assert status == 2 and "'no-such'" in said and "numbers" in said


@pytest.mark.slow
def test_points_run_once_and_again_when_they_should(world: SweepWorld) -> None:
    grid = {"number": [1, 2], "grounding.timesteps": [4]}
    world.sweep(grid=grid)
    status, said = world.run("sweep", "numbers", "smoke", "-j", "2", FAIL="2")
    assert status != 0 and world.ran() == ["1", "2", "2"], said  # a failed point is tried once more
    assert "1 of 2 points" in said and "made to fail" in said
    assert not (world.build / "sweeps" / "numbers" / "summary.csv").exists()

    grid["number"].append(3)
    world.sweep(grid=grid)
    status, said = world.run("sweep", "numbers", "smoke", "-j", "2")
    assert status == 0 and world.ran() == ["2", "3"], said  # the failed one and the new one
    check_results(world)

    status, said = world.run("sweep", "numbers", "smoke", "--dry-run")
    assert (status, world.steps(said)) == (0, []), said

    damaged = next((world.build / "sweeps" / "numbers").glob("number-2*")) / "metrics.json"
    damaged.write_text(damaged.read_text()[:10])
    status, said = world.run("sweep", "numbers", "smoke", "--dry-run")
    assert status == 0 and f"warning: {damaged.parent} is damaged" in said, said
    assert re.search(r"^point +1$", said, re.M), said
    world.write("03_point", POINT.replace("2 * number", "3 * number"))  # other code: all again
    status, said = world.run("sweep", "numbers", "smoke", "--dry-run")
    assert status == 0 and re.search(r"^point +3$", said, re.M), said


def check_results(world: SweepWorld) -> None:
    """Every point has its folder with provenance; table and figure hold all of them."""
    folder = world.build / "sweeps" / "numbers"
    rows = pd.read_csv(folder / "summary.csv")
    assert list(rows.columns) == ["point", "number", "grounding.timesteps", "metric", "value"]
    doubles = rows[rows["metric"] == "double"].set_index("number")["value"]
    assert doubles.to_dict() == {1: 2, 2: 4, 3: 6}
    assert set(rows[rows["metric"] == "steps"]["value"]) == {4}
    assert "run smoke-" in Image.open(folder / "summary.png").text["Source"]
    record = json.loads((next(folder.glob("number-3*")) / "run.json").read_text())
    assert record["parameters"] == {"profile": "smoke", "number": 3}
    assert record["settings"] == {"grounding.timesteps": 4}
    assert {"git", "packages", "machine", "wall_s", "peak_memory_mib"} <= record.keys()
    assert {"ldm/a-s0", "03_point.ipynb"} == record["inputs"].keys()
    assert {"metrics.json", "figures/figure.txt"} == record["outputs"].keys()
    assert not (world.build / "figures").exists()
