"""Against a real Slurm of one node: arrays, failure, cancelling, pre-emption, a group of two."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm
from world import SweepWorld

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"no Slurm here: {slurm.missing()}"),
]

TRAINING = '''
"""One product: a tiny training by the real loop, in as many processes as the job has."""
import os
import time

import torch

from g2g_utils.training import fit
from g2g_utils import runs
from g2g_utils.runs import places


def plan(config):
    return {"ldm/a-s0": []}


def bundles(config):
    return {}


def needs(config, name):
    return []


def key(config, name):
    return "0"


def ensure(config, name):
    folder = places.build(config) / "trained"
    folder.mkdir(parents=True, exist_ok=True)
    state = fit.read_checkpoint(folder)
    if not runs.rank():
        with open(folder / "starts.txt", "a") as starts:
            starts.write(f"{state['step'] if state else 0} {os.environ.get('WORLD_SIZE', 1)}\\n")
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)

    def loss(step, modules, accelerator):
        time.sleep(float(os.environ.get("SLOW", 0)))
        x = torch.randn((4, 3), generator=fit.seeded(5, step))
        share = x[accelerator.process_index :: accelerator.num_processes]
        return (modules["m"](share) - share[:, :2]).square().mean()

    options = fit.Options(60, warmup=2, checkpoint_every=1000, log_every=2, tensorboard=False)
    groups = [{"params": list(model.parameters()), "lr": 1e-2}]
    fit.fit("tiny", {"m": model}, groups, loss, folder, options)
    if not runs.rank():
        runs.write_json(folder / "weights.json", model.weight.detach())
        runs.write_json(folder / "run.json", {"key": "0"})
    return folder
'''


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Slurm that runs while the tests of this module do."""
    with slurm.running(tmp_path_factory.mktemp("slurm") / "slurm") as environment:
        yield {name: environment[name] for name in ("SLURM_CONF", "PATH")}


@pytest.fixture
def world(tmp_path: Path) -> SweepWorld:
    """A world whose Slurm profile asks often."""
    made = SweepWorld(tmp_path / "repo")
    path = made.folder / "workflow" / "profiles" / "slurm" / "config.yaml"
    text = path.read_text().replace("checks: 20", "checks: 2").replace("wait: 60", "wait: 5")
    path.write_text(text)
    config = made.folder / "configs" / "smoke.yaml"
    point, training = "{mem_mb: 500, runtime: 60}", "{mem_mb: 2000, processes: 2}"
    given = f"resources:\n  point: {point}\n  training: {training}\n"
    config.write_text(config.read_text() + given)
    return made


def ask(cluster: dict[str, str], *words: str) -> str:
    """Output of a Slurm command."""
    run = subprocess.run(words, env=os.environ | cluster, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def wait_until(condition, seconds: float = 300) -> None:
    """Until it is true."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.2)


def test_an_array_with_a_failing_point_is_cancelled_and_resumed(
    world: SweepWorld, cluster: dict[str, str]
) -> None:
    world.sweep(grid={"number": [1, 2, 3, 4]}, needs=[])
    command = ("sweep", "numbers", "smoke", "--profile", "slurm")
    status, said = world.run(*command, "--partition", "main", FAIL="3", **cluster)
    assert status != 0 and world.ran() == ["1", "2", "3", "3", "4"], said
    assert "1 of 4 points" in said and "made to fail" in said
    logs = [p.name for p in (world.folder / "build" / "slurm_logs" / "rule_point").rglob("*.log")]
    assert {"1", "2", "3", "4"} <= {m[1] for n in logs if (m := re.match(r"\d+_(\d)\.log", n))}
    listed = sorted(p.name for p in (world.build / "sweeps" / "numbers" / "logs").iterdir())
    assert [name[:8] for name in listed] == [f"number-{n}" for n in range(1, 5)]

    stopped = world.start(*command, SLOW="200", **cluster)
    world.wait_for(world.build / "ran.txt")
    stopped.send_signal(signal.SIGINT)
    stopped.communicate(timeout=300)
    wait_until(lambda: not ask(cluster, "squeue", "-h", "-t", "running,pending"))
    assert world.ran() == ["3"]
    status, said = world.run(*command, **cluster)
    assert status == 0 and world.ran() == ["3"], said
    points = [p.read_text() for p in (world.build / "sweeps").rglob("metrics.json")]
    assert len(points) == 4 and all(json.loads(text)["offline"] == 1 for text in points)
    assert (world.build / "sweeps" / "numbers" / "summary.csv").exists()


def test_jobs_of_a_controller_that_died_are_cancelled_by_the_next(
    world: SweepWorld, cluster: dict[str, str]
) -> None:
    ours, other = (
        ask(cluster, "sbatch", "--parsable", "-J", name, "-o", "/dev/null", "--wrap", "sleep 99")
        for name in ("g2g-77_some-run", "g2g-88_another-folder")
    )
    command = [sys.executable, world.folder / "workflow" / "locked.py", world.build, "true"]
    environment = os.environ | cluster | {"G2G_SLURM_PREFIX": "g2g-77"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "cancelling 1 Slurm job" in run.stderr, run.stderr
    wait_until(lambda: ask(cluster, "squeue", "-h", "-t", "running,pending", "-o", "%A") == other)
    assert ours != other
    ask(cluster, "scancel", other)


def test_a_pre_empted_training_of_two_processes_resumes(
    world: SweepWorld, cluster: dict[str, str]
) -> None:
    world.products(TRAINING)
    world.sweep(grid={"number": [1]})
    log, starts = world.build / "trained" / "log.jsonl", world.build / "trained" / "starts.txt"
    command = ("sweep", "numbers", "smoke", "--profile", "slurm")
    run = world.start(*command, SLOW="0.2", **cluster)
    world.wait_for(log)
    urgent = ("sbatch", "--wait", "-p", "urgent", "-n2", "-o", "/dev/null", "--wrap", "true")
    ask(cluster, *urgent)
    wait_until(lambda: ask(cluster, "squeue", "-h", "-t", "pending", "-o", "%A"))
    queued = ask(cluster, "squeue", "-h", "-t", "pending", "-o", "%A")
    ask(cluster, "scontrol", "update", f"JobId={queued}", "StartTime=now")  # not in two minutes
    wait_until(lambda: len(starts.read_text().splitlines()) == 2)
    run.kill()  # the job no longer needs the one that submitted it
    run.communicate()
    world.wait_for(world.build / "trained" / "weights.json")
    first, second = (line.split() for line in starts.read_text().splitlines())
    assert first == ["0", "2"] and second[1] == "2" and 0 < int(second[0]) < 60
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(2, 61, 2))
