"""Kill a run again and again, then compare its results with those of an undisturbed one.

    ./run_all.sh survival [--kills N] [--seed S] [--sweep NAME]

Runs the smoke profile and a sweep twice, in two new folders below build/survival: once undisturbed,
once killed with SIGKILL at random moments (in the caching of latents, in training, evaluation, a
notebook and the summary, in turn) and started again. Every second kill spares the jobs and hits the
controller alone. All final metrics must be equal to the last digit, and every planned phase must
have been hit. Exit status 1 if not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from g2g_utils import runs

ROOT = Path(__file__).resolve().parents[1]
PHASES = {  # in the order of the run: name -> words of the process's command line
    "latents": "make_product.py latents",
    "training": "make_product.py ldm/",
    "evaluation": "make_product.py fidelity/",
    "notebook": "run_notebook.py",
    "summary": "summarise_sweep.py",
}
DELAY = 4.0  # seconds into the phase at most
LEFT_OUT = ("run", "wall_s", "date", "peak_memory_mib")  # of findings: they name the run


@dataclass
class Killed:
    """One kill: its phase, seconds after the start, and whether the jobs were spared."""

    phase: str
    after_s: float
    spared: bool
    running: list[str]

    def __str__(self) -> str:
        hit = "controller" if self.spared else "everything"
        return (
            f"{self.phase} after {self.after_s:.1f} s ({hit}; at work: {', '.join(self.running)})"
        )


def plan(kills: int, phases: Mapping[str, str]) -> list[str]:
    """Phase of each kill, in the order of the run, evenly spread."""
    names = list(phases)
    return sorted((names[i % len(names)] for i in range(kills)), key=names.index)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """All processes below a running one; none if it is gone."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def at_work(process: subprocess.Popen) -> list[str]:
    """Command lines below a process."""
    lines = []
    for child in family(process):
        try:
            lines.append(" ".join(child.cmdline()))
        except psutil.Error:
            continue
    return lines


def controller(build: Path) -> int | None:
    """Process that holds a build folder's lock (workflow/locked.py), or None."""
    lock = build / ".lock"
    written = lock.read_text().split() if lock.is_file() else []
    return int(written[0]) if written and psutil.pid_exists(int(written[0])) else None


def kill(process: subprocess.Popen, spared: int | None) -> None:
    """Send SIGKILL to everything, or to the controller alone if its number is given."""
    if spared is not None:
        os.kill(spared, signal.SIGKILL)
    else:
        for victim in family(process):
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                continue
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def attempt(
    command: list[str],
    environment: dict[str, str],
    phase: str,
    words: str,
    delay: float,
    spare: bool,
    log: Any,
) -> Killed | None:
    """Start, wait for the phase, wait `delay` seconds more, kill; None if it ended by itself."""
    start = time.time()
    process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    while not any(words in line for line in at_work(process)):
        if process.poll() is not None:
            return None
        time.sleep(0.05)
    time.sleep(delay)
    if process.poll() is not None:
        return None
    busy = [name for name, w in PHASES.items() if any(w in line for line in at_work(process))]
    alone = controller(Path(environment["G2G_BUILD"])) if spare else None
    made = Killed(phase, time.time() - start, alone is not None, busy or ["the controller"])
    kill(process, alone)
    return made


def disturb(
    command: list[str],
    environment: dict[str, str],
    kills: int,
    rng: random.Random,
    log: Any,
    phases: Mapping[str, str] = PHASES,
    delay: float = DELAY,
) -> list[Killed]:
    """Kill a run `kills` times, then let it finish. A run that fails by itself is an error.

    A phase that is over before its kill gets a kill of a fresh start instead, named "start".
    """
    done: list[Killed] = []
    for number, phase in enumerate(plan(kills, phases)):
        wait = rng.uniform(0, delay)
        made = attempt(
            command, environment, phase, phases[phase], wait, number % 2 == 1, log
        ) or attempt(command, environment, "start", "", wait, False, log)
        if made:
            done.append(made)
            print(f"[g2g] kill {len(done)}: {made}", flush=True)
    subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    return done


def missed(kills: int, done: list[Killed], phases: Mapping[str, str] = PHASES) -> list[str]:
    """Planned phases with fewer kills than planned, each once."""
    planned, hit = plan(kills, phases), [kill.phase for kill in done]
    return [phase for phase in phases if hit.count(phase) < planned.count(phase)]


def metrics(build: Path) -> dict[str, Any]:
    """Final numbers of a build folder: products, tables, notebooks, points, claims."""
    found: dict[str, Any] = {}
    for path in sorted(build.rglob("*")):
        name = str(path.relative_to(build))
        if ".snakemake" in name or path.name.startswith("."):
            continue
        if path.name.endswith("metrics.json"):
            found[name] = runs.read_json(path)
        elif path.name == "run.json":
            found[name] = runs.read_json(path).get("metrics")
        elif path.suffix == ".csv":
            found[name] = path.read_text()
        elif path.name == "log.jsonl":
            found[name] = path.read_text()
        elif path.name == "findings.json":
            rows = runs.read_json(path)
            found[name] = [{k: v for k, v in r.items() if k not in LEFT_OUT} for r in rows]
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Metrics that are missing or unequal."""
    lines = [f"{name}: only in one of the two" for name in sorted(one.keys() ^ other.keys())]
    both = sorted(one.keys() & other.keys())
    return lines + [f"{name}: differs" for name in both if one[name] != other[name]]


def main() -> None:
    """Do both runs, then compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", default="seeds", help="run after the profile")
    options = parser.parse_args()
    place = Path(os.environ["G2G_BUILD"]) / "survival" / time.strftime("%Y%m%dT%H%M%S")
    whole, killed = place / "undisturbed", place / "killed"
    script = f"./run_all.sh smoke && ./run_all.sh sweep {options.sweep} smoke"
    command, log = ["bash", "-c", f"cd {str(ROOT)!r} && {script}"], place / "log.txt"
    place.mkdir(parents=True)
    print(f"[g2g] survival: {options.kills} kills, seed {options.seed}; log: {log}", flush=True)
    with open(log, "a") as stream:
        start = time.time()
        environment = {**os.environ, "G2G_BUILD": str(whole)}
        subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=True)
        undisturbed = round(time.time() - start)
        print(f"[g2g] undisturbed: {undisturbed} s", flush=True)
        environment["G2G_BUILD"] = str(killed)
        done = disturb(command, environment, options.kills, random.Random(options.seed), stream)
    found = metrics(whole)
    wrong = differences(found, metrics(killed))
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "sweep": options.sweep,
        "seed": options.seed,
        "undisturbed_s": undisturbed,
        "kills": [str(k) for k in done],
        "files": len(found),
        "differences": wrong,
    }
    runs.write_json(place / "survival.json", report)
    print(f"[g2g] {len(done)} kills; {len(found)} files of metrics, {len(wrong)} differ")
    wrong += [f"{phase}: no kill hit it" for phase in missed(options.kills, done)]
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
