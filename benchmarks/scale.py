"""Costs of the paper's run and of large sweeps, and growth of the workflow with a sweep's points.

    python benchmarks/scale.py [--points 10 100 1000]    measure, write scale.json, render the page
    python benchmarks/scale.py --render                  only render docs/scale.md

Measured: dry runs of sweeps by number of points (wall and processor seconds, peak memory), and the
files of one finished point (an executed notebook, its records). Counted: parameters and floating
point operations of Stable Diffusion 1.5's U-Net, on PyTorch's meta device. Estimated from these and
the assumptions below, and labelled so: GPU-hours and disk of the paper's run.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "scale.json", ROOT / "docs" / "scale.md"
PAIRS = 162_651  # training pairs of the paper
PEAK = 312.0  # TFLOP/s of an A100 in half precision, by its data sheet
SHARE = 0.3  # of that peak which training is assumed to reach
POINT = "12_one_setting"


def dry_run(points: int) -> dict[str, Any]:
    """Build the DAG of a sweep of `points` points in a copy of the repository; nothing runs."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repo"
        for name in ("workflow", "configs", "g2g_utils", "notebooks"):
            shutil.copytree(ROOT / name, copy / name)
        grid = {"seed": [0, 1], "pairs_used": list(range(1, points // 2 + 1))}
        needs = ["vae", "encoders/*", "ldm/domain-frozen-s{seed}"]
        sweep = {"notebook": POINT, "grid": grid, "needs": needs}
        (copy / "workflow" / "sweeps" / "large.yaml").write_text(yaml.safe_dump(sweep))
        whole = _timed(copy, [])
        id = _first_point(copy)
        target = copy / "build" / "smoke" / "sweeps" / "large" / id / "metrics.json"
        one = _timed(copy, [str(target)])  # what each job on a node does before its work
    return {"points": points, **whole, "one_job_s": one["cpu_s"]}


def _timed(copy: Path, more: list[str]) -> dict[str, float]:
    """Wall and processor seconds and peak memory (MiB) of one dry run."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/sweep.smk", "--dry-run"]
    command += ["--quiet", "all", "--directory", "build", "--cores", "1", *more]
    command += ["--config", "profile=smoke", "sweep=large"]
    environment = {**os.environ, "G2G_BUILD": str(copy / "build"), "PYTHONPATH": str(copy)}
    (copy / "build").mkdir(exist_ok=True)
    start = time.time()
    process = subprocess.Popen(command, cwd=copy, env=environment, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the dry run failed: {' '.join(command)}")
    seconds = used.ru_utime + used.ru_stime
    memory = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        "wall_s": round(time.time() - start, 1),
        "cpu_s": round(seconds, 1),
        "peak_mib": round(memory),
    }


def _first_point(copy: Path) -> str:
    """Id of the first point of the copied sweep."""
    code = "import sweeps; print(sweeps.read('large').points[0].id)"
    path = os.pathsep.join([str(copy), str(copy / "workflow")])
    environment = {**os.environ, "PYTHONPATH": path}
    told = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    return told.strip()


def unet() -> dict[str, float]:
    """Parameters of Stable Diffusion 1.5's U-Net, operations of a forward at 64×64 latents."""
    import torch
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        inputs = (torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, 77, 768))
        with FlopCounterMode(display=False) as counter:
            model(*inputs)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "tflop_forward": counter.get_total_flops() / 1e12}


def modules() -> int:
    """Python files that the kernel of a point opens before its first line of work."""
    code = "import sys, g2g_utils.grounding, g2g_utils.experiment.products; "
    code += "print(sum(bool(getattr(m, '__file__', None)) for m in list(sys.modules.values())))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return int(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))


def paper(network: dict[str, float]) -> dict[str, Any]:
    """Estimates for the paper's run: GPU-hours, disk (GB), jobs and files."""
    sys.path.insert(0, str(ROOT))
    from g2g_utils import config
    from g2g_utils.experiment import plan

    settings = config.load("paper")
    training, evaluation = settings.training, settings.evaluation
    samples = training.steps * training.batch_size * training.accumulate
    forward, weights = network["tflop_forward"], network["parameters"] * 4 / 1e9
    hours = 3600 * PEAK * SHARE
    side = settings.image_size
    trainings = sum(name.startswith("ldm/") for name in plan.plan(settings))
    steps = settings.grounding.timesteps
    return {
        "trainings": trainings,
        "gpu_h_training": 3 * forward * samples / hours,  # a backward costs two forwards
        "gpu_h_point": 48 * 2 * steps * forward / hours,  # own and another phrase, no merging
        "gpu_h_evaluation": evaluation.pairs * 2 * steps * forward / hours,
        "gb_images": PAIRS * side**2 / 1e9,
        "gb_latents": PAIRS * 2 * 4 * (side // 8) ** 2 * 2 / 1e9,  # mean and deviation, fp16
        "gb_weights": weights,
        "gb_checkpoint": 4 * weights,  # weights, two moments, average
        "jobs": jobs("paper"),
    }


def jobs(profile: str) -> int:
    """Jobs that Snakemake counts for a profile without any finished product."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--dry-run"]
    with tempfile.TemporaryDirectory() as build:
        command += ["--directory", build, "--cores", "1", "--config", f"profile={profile}"]
        environment = {**os.environ, "G2G_BUILD": build, "PYTHONPATH": str(ROOT)}
        told = subprocess.run(
            command, cwd=ROOT, env=environment, check=True, text=True, capture_output=True
        )
    (total,) = set(re.findall(r"^total\s+(\d+)$", told.stdout + told.stderr, re.MULTILINE))
    return int(total) - 1  # without the target itself


def run_files(build: Path) -> int:
    """Files of the paper's run: as many a product, notebook and note as in a finished smoke run."""
    from g2g_utils import config
    from g2g_utils.experiment import plan

    smoke, settings = build / "smoke", config.load("paper")
    if not any(smoke.glob("notebooks/*.run.json")):
        raise SystemExit(f"no finished smoke run in {build}: ./run_all.sh smoke")
    count = 0
    for name in plan.plan(settings):
        kind, _, item = name.partition("/")
        made = sorted(smoke.glob(f"{kind}/*-*" if item else f"{kind}-*"))
        count += max((sum(p.is_file() for p in place.rglob("*")) for place in made), default=0)
    shared = [p for name in ("notebooks", "logs", "figures") for p in (smoke / name).rglob("*")]
    return count + sum(p.is_file() for p in shared) + jobs("paper")  # a note of Snakemake's each


def point_files(build: Path) -> dict[str, float]:
    """Files and bytes of a finished point, its logs and Snakemake's notes on it included."""
    records = sorted(build.glob("*/sweeps/*/*/run.json"))
    if not records:
        raise SystemExit(f"no finished point in {build}: ./run_all.sh sweep timesteps smoke")
    files = [p for record in records for p in record.parent.rglob("*") if p.is_file()]
    count = len(files) / len(records) + 1 + 2 + 1  # its log, Snakemake's note on each of two
    # outputs, Slurm's log
    return {
        "files": round(count, 1),
        "kb": round(sum(p.stat().st_size for p in files) / len(records) / 1e3),
    }


def render(found: dict[str, Any]) -> None:
    """Put the tables between the markers of the page."""
    text = PAGE.read_text()
    for name, rows in {"dag": dag_table(found), "paper": paper_table(found)}.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n{rows}\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text)


def dag_table(found: dict[str, Any]) -> str:
    """Growth of dry runs with the points."""
    lines = [
        "| points | graph, wall s | processor s | memory, MiB | start of one job, processor s |",
        "|---|---|---|---|---|",
    ]
    for row in found["dag"]:
        lines.append(
            f"| {row['points']} | {row['wall_s']} | {row['cpu_s']} | {row['peak_mib']} "
            f"| {row['one_job_s']} |"
        )
    machine = found["machine"]
    load = f"load average {machine['load']:.1f} on {machine['cpu_count']} cores"
    text = "\n".join(lines) + f"\n\n{machine['system']}, {load}, {machine['date']}. "
    return text + f"The kernel of a point opens {found['modules']:,} Python files when it starts."


def paper_table(found: dict[str, Any]) -> str:
    """Estimates: the paper's run, a sweep that trains, one that only grounds."""
    cost, point = found["paper"], found["point"]
    arms, train = cost["trainings"], cost["gpu_h_training"]
    evaluate = arms * cost["gpu_h_evaluation"]
    disk = arms * cost["gb_weights"] + cost["gb_images"] + cost["gb_latents"]
    hundred = f"{100 * point['files']:.0f}"
    rows = [
        ("GPU-hours", arms * train + evaluate, 100 * train, 100 * cost["gpu_h_point"]),
        ("disk kept, GB", disk, 100 * cost["gb_weights"], 100 * point["kb"] / 1e6),
        ("disk while training, GB a training", *[2 * cost["gb_checkpoint"]] * 2, 0.0),
    ]
    lines = [
        f"| | the paper's run ({arms} trainings) | 100 points, each a training "
        "| 100 points, grounding only |",
        "|---|---|---|---|",
        *(f"| {name} | {a:,.0f} | {b:,.0f} | {c:,.2f} |" for name, a, b, c in rows),
        f"| Slurm jobs | {cost['jobs']} | 100 + 1 array of 100 | 1 array of 100 |",
        f"| files | {cost['files']} | {hundred} | {hundred} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and render."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--points", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--build", type=Path, default=Path(os.environ.get("G2G_BUILD", "build")))
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args()
    if not options.render:
        # Dry runs first: a child's peak memory is never below that of this process.
        dag = [dry_run(points) for points in options.points]
        network = unet()
        machine = {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_count": os.cpu_count(),
            "load": os.getloadavg()[0],
            "date": time.strftime("%Y-%m-%d"),
        }
        found = {
            "machine": machine,
            "assumptions": {"peak_tflops": PEAK, "share": SHARE, "pairs": PAIRS},
            "dag": dag,
            "modules": modules(),
            "point": point_files(options.build),
            "unet": network,
            "paper": paper(network) | {"files": run_files(options.build)},
        }
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    render(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
