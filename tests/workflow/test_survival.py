"""Three seeded kills on the stand-in world, and files that a crash or a full disk leaves behind."""

import errno
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import NOTEBOOK, World

PRODUCTS = '''
"""Products that are sums of seeded numbers; every step is checkpointed, so a kill loses little."""
import random
import time

from g2g_utils import runs
from g2g_utils.runs import places


def plan(config):
    return {"latents": [], "ldm/a-s0": ["latents"]}


def bundles(config):
    return {}


def needs(config, name):
    return plan(config)[name]


def key(config, name):
    return "0"


def ensure(config, name):
    folder = places.build(config) / name
    state = folder / "state.json"
    step, total = runs.read_json(state) if state.exists() else (0, 0.0)
    for step in range(step, 15):
        total += random.Random(step).random()
        time.sleep(0.1)
        runs.write_json(state, (step + 1, total))
    runs.write_json(folder / "run.json", {"key": "0", "metrics": {"total": total}})
    return folder
'''
REPORT = (
    "\n# %%\nfrom g2g_utils import runs\nimport time\ntime.sleep(2)\nruns.report({'n': number})\n"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with one notebook."""
    made = World(tmp_path_factory.mktemp("survival") / "repo")
    made.products(PRODUCTS)
    (made.folder / "notebooks" / "02_two.ipynb").unlink()
    made.write("01_one", NOTEBOOK + REPORT)
    return made


@pytest.mark.slow
def test_three_kills_leave_the_same_metrics(script, world: World, tmp_path: Path) -> None:
    survival = script("workflow/survival.py")
    names = ("latents", "training", "notebook")
    phases = {name: survival.PHASES[name] for name in names}
    run = f"{str(world.folder / 'run_all.sh')!r} smoke"
    command = ["bash", "-c", f"{run} && {run}"]  # as the real one: a profile, then more
    whole = world.environment(G2G_BUILD=str(tmp_path / "whole"))
    subprocess.run(command, env=whole, check=True, capture_output=True)
    killed = world.environment(G2G_BUILD=str(tmp_path / "killed"))
    with open(tmp_path / "log.txt", "w") as log:
        done = survival.disturb(command, killed, 3, random.Random(7), log, phases, delay=1)
    assert [kill.phase for kill in done] == list(names)
    assert [kill.spared for kill in done] == [False, True, False]
    found = survival.metrics(tmp_path / "whole")
    assert {"smoke/latents/run.json", "smoke/notebooks/01_one.metrics.json"} <= found.keys()
    assert found["smoke/notebooks/01_one.metrics.json"] == {"n": 1}
    assert survival.differences(found, survival.metrics(tmp_path / "killed")) == []


def test_differences_are_seen(script) -> None:
    survival = script("workflow/survival.py")
    one = {"a": {"cnr": 0.5}, "b": 1}
    assert survival.differences(one, {"a": {"cnr": 0.5}, "b": 1}) == []
    assert survival.differences(one, {"a": {"cnr": 0.6}}) == [
        "b: only in one of the two",
        "a: differs",
    ]


def test_kills_go_through_the_phases_in_order(script) -> None:
    survival = script("workflow/survival.py")
    spread = survival.plan(10, survival.PHASES)
    assert spread[::2] == spread[1::2] == list(survival.PHASES)


def test_a_phase_without_its_kill_is_reported(script) -> None:
    survival = script("workflow/survival.py")
    kills = [survival.Killed(phase, 1.0, False, []) for phase in ("latents", "start", "training")]
    names = ("latents", "training", "notebook")
    phases = {name: survival.PHASES[name] for name in names}
    assert survival.missed(3, kills, phases) == ["notebook"]
    assert survival.missed(6, [*kills, *kills], phases) == ["notebook"]
    assert survival.missed(2, kills, phases) == []


def test_a_kill_that_misses_its_phase_is_named_start(script, monkeypatch) -> None:
    survival = script("workflow/survival.py")
    answers = iter([False, True])  # the phase is over; then a fresh start is hit
    monkeypatch.setattr(survival, "attempt", lambda *given: next(answers) and given[2:4])
    environment = {**os.environ}
    kills = survival.disturb(["true"], environment, 1, random.Random(0), None, {"summary": "words"})
    assert kills == [("start", "")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> None:
    """Write files until a new one finds no room for a byte, however the kernel hands out blocks."""
    for number in range(4096):
        with open(place / f"filler{number}", "wb", buffering=0) as filler:
            try:
                while filler.write(b"0" * 4096):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                if not filler.tell():
                    return
    raise AssertionError(f"{place} never became full")


def test_a_run_on_a_full_disk_says_so(world: World, small_disk: Path) -> None:
    fill(small_disk)
    status, said = world.run("smoke", G2G_BUILD=str(small_disk))
    assert status != 0 and "Traceback" not in said, said
    assert f"the disk of {small_disk} is full" in said.splitlines()[-1], said

    (small_disk / "filler0").unlink()
    (small_disk / ".lock").write_text("a page for the lock")
    fill(small_disk)
    status, said = world.run("smoke", G2G_BUILD=str(small_disk))
    assert status != 0 and f"the disk of {small_disk} is full" in said.splitlines()[-1], said


def test_a_full_disk_is_one_clear_line(world: World, small_disk: Path) -> None:
    fill(small_disk)
    script = world.folder / "workflow" / "make_product.py"
    environment = world.environment(G2G_BUILD=str(small_disk), PYTHONPATH=str(world.folder))
    command = [
        sys.executable,
        str(script),
        "latents",
        str(small_disk / "record.json"),
        "--profile",
        "smoke",
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout + run.stderr
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert "the disk of" in run.stderr and "is full" in run.stderr
