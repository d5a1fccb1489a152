"""Two gloo processes on the CPU against one: the same update, from different samples."""

import os
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
import torch
import yaml

from g2g_utils import config
from g2g_utils.experiment import products
from g2g_utils.training import fit

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SCRIPT = Path(__file__).with_name("distributed.py")

pytestmark = pytest.mark.slow


def two(out: Path, batch: int) -> list[dict]:
    """What each of two processes found; `torchrun` starts them, as `accelerate launch` does."""
    out.mkdir()
    command = [*LAUNCH, str(SCRIPT), str(out), str(batch), "1", "3"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(SCRIPT.parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank-{k}" / "found.pt") for k in range(2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, script):
    """One process with batch 4, two that share it, one that accumulates twice 2."""
    folder, main = (
        tmp_path_factory.mktemp("runs"),
        script("tests/unit/training/distributed.py").main,
    )

    def alone(name: str, batch: int, accumulate: int) -> list[dict]:
        main(folder / name, batch, accumulate, 3)
        return [torch.load(folder / name / "rank-0" / "found.pt")]

    return {
        "one": alone("one", 4, 1),
        "two": two(folder / "two", 4),
        "accumulated": alone("accumulated", 2, 2),
    }


def test_make_fine_tunes_in_two_processes(script, tmp_path):
    """`make` under a launcher: what it needs is asked for first, then both work on one product."""
    standins = script("tests/standins.py")
    tree = yaml.safe_load((config.CONFIGS / "open.yaml").read_text())
    for key, value in standins.real_profile(tmp_path, films=8).items():
        *sections, last = key.split(".")
        reduce(dict.__getitem__, sections, tree)[last] = value
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(SCRIPT.parents[3]), "G2G_BUILD": str(tmp_path / "build")}
    make = ["-m", "g2g_utils", "make", "ldm/domain-frozen-s4200"]
    command = [*LAUNCH, *make, "--profile", str(tmp_path / "tiny.yaml")]
    settings = config.load(str(tmp_path / "tiny.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("G2G_BUILD", str(tmp_path / "build"))
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(config.ConfigError, match=r"pairs is made by one: first run `python"):
            products.ensure(settings, make[-1])
        patch.delenv("WORLD_SIZE")
        products.ensure(settings, "latents")
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        found = products.find(settings, make[-1])
    assert found is not None and len(fit.read_log(found)) == 1


@pytest.fixture
def nodes():
    """Two network namespaces with an address each, joined by a cable: all that two hosts share."""
    names = [f"g2g{os.getpid()}n{k}" for k in range(2)]
    calls = [f"ip netns add {name}" for name in names]
    calls += [f"ip link add {names[0][-14:]} type veth peer name {names[1][-14:]}"]
    for k, name in enumerate(names):
        calls += [
            f"ip link set {name[-14:]} netns {name}",
            f"ip -n {name} addr add 10.213.7.{k + 1}/24 dev {name[-14:]}",
            f"ip -n {name} link set {name[-14:]} up",
            f"ip -n {name} link set lo up",
        ]
    try:
        for call in calls:
            if subprocess.run(call.split(), capture_output=True).returncode:
                pytest.skip(f"no network namespaces here: `{call}` failed")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
@pytest.mark.skipif(
    "G2G_TWO_NODES" not in os.environ, reason="set G2G_TWO_NODES=1: once of three runs it hung"
)
def test_two_nodes_train_as_one_process_does(nodes, runs, tmp_path, root):
    """Slurm's tasks on two nodes, by `workflow/launch.py`: they meet over the network alone."""
    command = [sys.executable, str(root / "workflow/launch.py"), "--in-step", "2", "0"]
    command += [str(SCRIPT), str(tmp_path), "4", "1", "3"]
    group = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "10.213.7.1"}
    group |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    tasks = []
    for k, node in enumerate(nodes):
        own = {"SLURM_PROCID": str(k), "GLOO_SOCKET_IFNAME": node[-14:]}
        inside = ["ip", "netns", "exec", node, *command]
        with open(tmp_path / f"{k}.log", "w") as log:
            tasks.append(subprocess.Popen(inside, env=os.environ | group | own, stderr=log))
    try:
        codes = [task.wait(180) for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert codes == [0, 0], (tmp_path / "0.log").read_text()[-3000:]
    found = [torch.load(tmp_path / f"rank-{k}" / "found.pt") for k in range(2)]
    (whole,) = runs["one"]
    for process in found:
        assert difference(whole["grads"], process["grads"]) < 1e-5
        assert difference(whole["weights"], process["weights"]) < 1e-4
    assert not set(found[0]["seen"][0]) & set(found[1]["seen"][0])


def difference(a: dict, b: dict) -> float:
    """Norm of the difference over the norm, of all tensors together."""
    gap = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return (gap / sum(float(value.double().square().sum()) for value in a.values())) ** 0.5


def test_processes_see_different_samples_which_make_up_the_batch(runs):
    (whole,), both = runs["one"], runs["two"]
    for step, batch in enumerate(whole["seen"]):
        halves = [process["seen"][step] for process in both]
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
