"""run_all.sh and the workflow on a stand-in world: real scripts, products that take no time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from world import NOTEBOOK, World


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose smoke run is finished."""
    world = World(tmp_path_factory.mktemp("done") / "repo with space")
    status, said = world.run("smoke", "-j", "2")
    assert status == 0, said
    assert len(world.steps(said)) == 6, said
    return world


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[World]:
    """A world in which nothing has run."""
    yield World(tmp_path / "repo")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world for commands that must not begin anything."""
    return World(tmp_path_factory.mktemp("bare") / "repo")


ALL = ["01_one", "02_two", "classifier", "latents", "ldm/a-s0", "vae"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["minature"], ["'minature'", "miniature", "ground"]),
        (["smoke", "-j", "two"], ["'two'"]),
        (["smoke", "--retrian"], ["'--retrian'", "--retrain"]),
        (["test", "--updat"], ["'--updat'", "--update"]),
        (["ground", "no-such.png", "a phrase"], ["'no-such.png'"]),
        (["ground", "run_all.sh", "  "], ["phrase is empty"]),
        (["ground", "only.png"], ["IMAGE"]),
    ],
)
def test_bad_input_is_one_line_before_any_set_up(
    bare: World, arguments: list[str], named: list[str]
) -> None:
    start = spent()
    arguments = [str(bare.folder / a) if a == "run_all.sh" else a for a in arguments]
    status, said = bare.run(*arguments)
    assert status == 2
    assert len(said.strip().splitlines()) == 1
    assert all(part in said for part in named), said
    assert spent() - start < 1
    assert not (bare.folder / ".venv").exists()
    assert not (bare.folder / "build").exists()


def test_help_names_every_command(bare: World) -> None:
    status, said = bare.run("--help")
    assert status == 0
    for word in ("smoke", "miniature", "open", "paper", "test", "ground", "--retrain", "-j N"):
        assert word in said


def test_a_missing_python_is_one_clear_line(bare: World, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "cmp", "env"):
        (tools / name).symlink_to(shutil.which(name))
    environment = {"PATH": str(tools)}
    run = subprocess.run(
        [bare.folder / "run_all.sh", "setup"], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "needs Python 3.11" in run.stderr and len(run.stderr.splitlines()) == 1


def spent() -> float:
    """Processor seconds of the commands run so far: a busy machine doesn't change them."""
    times = os.times()
    return times.children_user + times.children_system


def test_everything_ran_and_a_second_call_does_nothing(done: World) -> None:
    record = json.loads((done.build / "notebooks" / "01_one.run.json").read_text())
    assert record["parameters"] == {"profile": "smoke"}
    assert record["settings"]["data"]["source"] == "phantoms"
    for number in ("01_one", "02_two"):  # which ran at the same time
        other = json.loads((done.build / "notebooks" / f"{number}.run.json").read_text())
        assert other["figures"] == [f"{number[:2]}_figure.txt"]
        assert len(other["outputs"]) == 3 and f".{number}." in other["id"]
    assert not list((done.build / "notebooks").glob("*.drawn"))
    start = spent()
    status, said = done.run("smoke")
    assert (status, done.steps(said)) == (0, []), said
    assert spent() - start < 10


def test_notebooks_run_in_this_very_environment(done: World) -> None:
    executed = json.loads((done.build / "notebooks" / "01_one.ipynb").read_text())
    assert f"python {sys.prefix}" in json.dumps(executed)
    assert executed["metadata"]["g2g"] == {"profile": "smoke"}


def test_only_what_changed_runs_again(done: World) -> None:
    done.write("02_two", NOTEBOOK.replace("01_figure", "02_figure").replace("number)", "number+1)"))
    assert done.steps(done.run("smoke", "--dry-run")[1]) == ["02_two"]
    status, said = done.run("smoke")
    assert (status, done.steps(said)) == (0, ["02_two"]), said

    os.utime(done.folder / "notebooks" / "01_one.ipynb")  # a checkout touches files
    assert done.steps(done.run("smoke")[1]) == []

    (done.build / "figures" / "02_figure.txt").unlink()
    assert "02_two" in done.steps(done.run("smoke")[1])
    assert (done.build / "figures" / "02_figure.txt").exists()

    (done.build / "notebooks" / "01_one.ipynb").write_text('{"cells')
    assert done.steps(done.run("smoke", "--dry-run")[1]) == ["01_one"]
    assert done.steps(done.run("smoke")[1]) == ["01_one"]

    status, said = done.run("smoke", KEY_latents="changed")
    assert done.steps(said) == ["01_one", "02_two", "latents", "ldm/a-s0"], said


def test_a_dry_run_removes_no_record_and_cancels_no_job(done: World, tmp_path: Path) -> None:
    shutil.copytree(done.build / "vae", tmp_path / "shipped")
    record = done.build / "products" / "vae.json"
    before = record.read_text()
    record.write_text(json.dumps(json.loads(before) | {"folder": str(tmp_path / "shipped")}))
    status, said = done.run("smoke", "--retrain", "--dry-run")
    assert status == 0 and "to be retrained" in said and "vae" in done.steps(said), said
    assert record.exists()
    record.write_text(before)

    tools = slurm_commands(tmp_path / "bin")
    asked = ("--partition", "P7", "--account", "A7")
    path = f"{tools}:{os.environ['PATH']}"
    status, said = done.run("smoke", "--slurm", *asked, "--dry-run", PATH=path)
    assert status == 0 and not (tools / "cancelled.txt").exists(), said
    assert (tools / "asked.txt").read_text() == "P7 A7\n"  # what workflow/launch.py reads


def slurm_commands(folder: Path) -> Path:
    """A Slurm without daemons: its commands, which write down what they are asked."""
    folder.mkdir()
    noted = f'echo "$G2G_SLURM_PARTITION $G2G_SLURM_ACCOUNT" > {folder}/asked.txt'
    said = {
        "sbatch": "",
        "squeue": 'echo "17 $G2G_SLURM_PREFIX-x"',
        "scancel": f'echo "$@" > {folder}/cancelled.txt',
        "scontrol": f"{noted}; echo 'AccountingStorageType = accounting_storage/none'",
    }
    for name, line in said.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder


def test_a_relative_build_folder_is_the_callers(fresh: World) -> None:
    fresh.write("01_one", NOTEBOOK)
    (fresh.folder / "notebooks" / "02_two.ipynb").unlink()
    status, said = fresh.run("smoke", G2G_BUILD="./elsewhere")
    assert status == 0, said
    build = fresh.folder.parent / "elsewhere"
    assert (build / "smoke" / "notebooks" / "01_one.run.json").exists()
    assert not (build / "elsewhere").exists() and not (build / "build").exists()


def test_a_failing_notebook_is_kept_and_the_rest_goes_on(fresh: World) -> None:
    fresh.write("01_one", NOTEBOOK.replace('print("python"', 'print(1 / 0, "python"'))
    status, said = fresh.run("smoke", "-j", "2")
    kept = fresh.build / "notebooks" / "01_one.ipynb"
    assert status != 0
    assert f"executed up to there: {kept}" in said and "ZeroDivisionError" in said
    assert "smoke 1" in kept.read_text()  # outputs up to the error
    assert (fresh.build / "notebooks" / "02_two.run.json").exists()

    fresh.write("01_one", NOTEBOOK)
    status, said = fresh.run("smoke")
    assert (status, fresh.steps(said)) == (0, ["01_one"]), said


def test_an_unknown_parameter_is_an_error(done: World) -> None:
    command = [sys.executable, done.folder / "workflow" / "run_notebook.py"]
    command += [
        done.folder / "notebooks" / "01_one.ipynb",
        "--profile",
        "smoke",
        "-p",
        "nmber",
        "2",
    ]
    environment = done.environment(
        PYTHONPATH=str(done.folder), G2G_BUILD=str(done.folder / "build2")
    )
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "no parameter 'nmber'" in run.stderr and "number" in run.stderr


def test_the_banner_follows_the_settings_in_force(script, tmp_path: Path) -> None:
    import nbformat

    run_notebook = script("workflow/run_notebook.py")
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]), path)
    given = {"data.source": "mimic_cxr", "data.root": "/nowhere"}
    world = run_notebook.settings_file(tmp_path, "open", given)
    run_notebook.mark(path, "open", world)
    marked = nbformat.read(path, as_version=4)
    assert "Credentialed data" in marked.cells[0].source
    assert marked.metadata["g2g"] == {"profile": "open", "credentialed": True}


@pytest.mark.parametrize("whole_group", [True, False])
def test_a_killed_run_goes_on_and_a_second_one_waits_its_turn(
    fresh: World, whole_group: bool
) -> None:
    first = fresh.start("smoke", SLOW="60")
    fresh.wait_for(fresh.build / "made.txt")
    status, said = fresh.run("smoke")
    assert status != 0 and "another run" in said and str(first.pid) in said, said

    if whole_group:
        os.killpg(first.pid, signal.SIGKILL)
    else:
        os.kill(first.pid, signal.SIGKILL)
    first.stdout.close()
    first.wait()
    status, said = fresh.run("smoke", "-j", "2")
    assert (status, fresh.steps(said)) == (0, ALL), said
    time.sleep(1.5)  # by now an orphan of the killed run would have been ended by its watch
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert not [line for line in listed.splitlines() if str(fresh.folder) in line]
