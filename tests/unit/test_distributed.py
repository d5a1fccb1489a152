"""Two gloo processes on the CPU against one: the same update, from different samples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("distributed.py")


def launch(out: Path, processes: int, batch: int, accumulate: int = 1) -> list[dict]:
    """What each process found; `torchrun` starts several, as `accelerate launch` does."""
    out.mkdir()
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*start, str(SCRIPT), str(out), str(batch), str(accumulate), "3"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank-{k}" / "found.pt") for k in range(processes)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process with batch 4, two with 2 each, one that accumulates twice 2."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        "one": launch(folder / "one", 1, 4),
        "two": launch(folder / "two", 2, 2),
        "accumulated": launch(folder / "accumulated", 1, 2, accumulate=2),
    }


def difference(a: dict, b: dict) -> float:
    """Norm of the difference over the norm, of all tensors together."""
    gap = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return (gap / sum(float(value.double().square().sum()) for value in a.values())) ** 0.5


def test_processes_see_different_samples_which_make_up_the_batch(runs):
    (whole,), two = runs["one"], runs["two"]
    for step, batch in enumerate(whole["seen"]):
        halves = [process["seen"][step] for process in two]
        assert not set(halves[0]) & set(halves[1]) and halves[0] + halves[1] == batch
    assert sorted(id for batch in whole["seen"] for id in batch) == list(range(12))  # an epoch


@pytest.mark.parametrize("way", ["two", "accumulated"])
def test_gradients_equal_those_of_the_whole_batch(runs, way):
    (whole,) = runs["one"]
    for process in runs[way]:
        assert difference(whole["grads"], process["grads"]) < 1e-5
        assert difference(whole["weights"], process["weights"]) < 1e-4  # three updates later
    other = {name: value * 1.001 for name, value in whole["grads"].items()}
    assert difference(whole["grads"], other) > 1e-4  # the measure can tell


def test_processes_end_with_the_same_weights_and_one_log(runs, tmp_path_factory):
    one, other = runs["two"]
    assert all(torch.equal(one["weights"][n], other["weights"][n]) for n in one["weights"])
