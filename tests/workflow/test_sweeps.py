"""Sweeps on the stand-in world: what is checked, what runs, what runs again."""

import json
import re
import shutil
from pathlib import Path

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
        ({"grid": {"number": [3]}, "figure": "cnr"}, ["figure", "'cnr'", "{name: value"]),
        ({"grid": {"number": [3]}, "figure": {"z": "rate"}}, ["figure.z", "colour"]),
        ({"grid": {"number": [3]}, "figure": {"y": {"a": 1}}}, ["figure.y", "[metric"]),
        ({"grid": []}, ["grid is empty"]),
        ({"grid": {3: [3]}}, ["grid", "3", "quote"]),
        ({"grid": {"number": [3]}, "fixed": [1]}, ["fixed", "[1]"]),
        ({"grid": {"number": [3]}, "needs": "vae"}, ["needs", "'vae'", "list"]),
        (
            {"grid": {"number": [3]}, "needs": ["ldm/{arm}-s0"]},
            ["needs", "'ldm/{arm}-s0'", "number"],
        ),
        (
            {"grid": {"number": [3]}, "needs": ["ldm/none-s0"]},
            ["needs", "'none-s0'", "domain-frozen"],
        ),
        ({"grid": {"number": [3]}, "needs": ["vea"]}, ["needs", "'vea'", "vae"]),
        ({"grid": {"arm": ["no-such-arm"]}}, ["arm = 'no-such-arm'", "domain-frozen"]),
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


def test_a_mistake_in_yaml_is_one_line(script, tmp_path: Path) -> None:
    sweeps = script("workflow/sweeps.py")
    path = tmp_path / "broken.yaml"
    path.write_text("notebook: [12_one_setting\ngrid: {\n")
    with pytest.raises(sweeps.SweepError, match=r"broken.yaml: no YAML: .*line 2") as raised:
        sweeps.read(str(path))
    assert len(str(raised.value).splitlines()) == 1


def test_what_a_profile_loads_is_no_product_to_wait_for(script) -> None:
    from g2g_utils import config
    from g2g_utils.experiment import products

    sweeps = script("workflow/sweeps.py")
    sweep = sweeps.read("seeds")
    plan = products.plan(config.load("paper"))
    assert "vae" not in plan and sweep.products(sweep.points[0], plan) == ["ldm/domain-frozen-s0"]
    beyond = sweeps.Point({"arm": "domain-frozen", "seed": 77})
    assert sweep.products(beyond, plan) == ["ldm/domain-frozen-s77"]


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
    path = world.folder.parent / "beside.yaml"  # the folder that the command is called in
    path.write_text("notebook: 03_point\ngrid: {number: [1]}\nneeds: []\n")
    assert world.run("sweep", "beside.yaml", "smoke", "--dry-run")[0] == 0
    path.unlink()
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

    check_damage(world)
    world.write("03_point", POINT.replace("2 * number", "3 * number"))  # other code: all again
    status, said = world.run("sweep", "numbers", "smoke", "--dry-run")
    assert status == 0 and re.search(r"^point +3$", said, re.M), said


def check_damage(world: SweepWorld) -> None:
    """What is lost or damaged is made again, and a dry run says so without touching a record."""
    folder = world.build / "sweeps" / "numbers"
    one, two, three = (next(folder.glob(f"number-{n}*")) for n in (1, 2, 3))
    shutil.rmtree(one / "figures")
    (two / "metrics.json").write_text("{")
    (three / "03_point.ipynb").write_text("{")
    (folder / "summary.csv").write_text("point")
    for _ in range(2):
        status, said = world.run("sweep", "numbers", "smoke", "--dry-run")
        assert status == 0 and f"{one.name}/run.json: figure.png is gone" in said, said
        assert f"{two.name}/run.json: metrics.json is no longer what" in said, said
        assert re.search(r"^point +3$", said, re.M) and re.search(r"^summary +1$", said, re.M), said
    assert world.run("sweep", "numbers", "smoke", "-j", "2")[0] == 0
    assert world.ran() == ["1", "2", "3"]
    check_results(world)

    (folder / "summary.png").unlink()
    status, said = world.run("sweep", "numbers", "smoke")
    assert (status, world.ran()) == (0, []) and (folder / "summary.png").exists(), said


def test_a_figure_that_fails_leaves_the_table(script, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(script("workflow/sweeps.py").ROOT / "workflow"))
    summarise = script("workflow/summarise_sweep.py")
    path = tmp_path / "mine.yaml"
    path.write_text("notebook: 12_one_setting\ngrid: {seed: [0]}\nfigure: {y: crn}\n")
    sweep = summarise.sweeps.read(str(path))
    place = tmp_path / sweep.points[0].id
    place.mkdir()
    (place / "metrics.json").write_text('{"cnr": 1.5}')
    (place / "run.json").write_text('{"id": "smoke-0.12_one_setting.1"}')
    monkeypatch.setattr(summarise.sys, "argv", ["", str(path), "smoke", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"mine.yaml: figure.y = 'crn' .* cnr"):
        summarise.main()
    assert pd.read_csv(tmp_path / "summary.csv")["value"].tolist() == [1.5]


def recorded(point: Path) -> dict:
    """The record of a point."""
    return json.loads((point / "run.json").read_text())


def source(figure: Path) -> str:
    """The run that a PNG file names."""
    with Image.open(figure) as picture:
        return picture.text["Source"]


def check_results(world: SweepWorld) -> None:
    """Every point has its folder with provenance; table and figure hold all of them."""
    folder = world.build / "sweeps" / "numbers"
    rows = pd.read_csv(folder / "summary.csv")
    assert list(rows.columns) == ["point", "number", "grounding.timesteps", "metric", "value"]
    doubles = rows[rows["metric"] == "double"].set_index("number")["value"]
    assert doubles.to_dict() == {1: 2, 2: 4, 3: 6}
    assert set(rows[rows["metric"] == "steps"]["value"]) == {4}
    summary = json.loads((folder / "summary.run.json").read_text())
    ids = {source(folder / "summary.png"): summary["id"]}
    for point in folder.glob("number-*"):
        ids[source(point / "figures" / "figure.png")] = recorded(point)["id"]
    assert len(ids) == 4 and all(told == f"run {known}" for told, known in ids.items())
    record = recorded(next(folder.glob("number-3*")))
    assert record["parameters"] == {"profile": "smoke", "number": 3}
    assert record["settings"]["grounding"]["timesteps"] == 4
    assert {"data", "training", "evaluation"} <= record["settings"].keys()
    assert {"git", "packages", "machine", "wall_s", "peak_memory_mib"} <= record.keys()
    assert {"ldm/a-s0", "03_point.ipynb"} == record["inputs"].keys()
    assert {"metrics.json", "03_point.ipynb", "figures/figure.png"} == record["outputs"].keys()
    assert not (world.build / "figures").exists()
