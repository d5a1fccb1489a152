"""Time the commands of the README as whole processes and write benchmarks/times.json.

    python benchmarks/times.py [smoke] [miniature] [again] [ground] [fast] [test]

Each command runs once in an empty build folder (`again`: in the one just made) with the present
environment; wall time and the largest resident process are what the operating system counts.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from g2g_utils import runs

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).with_name("times.json")
COMMANDS = {
    "smoke": ("`./run_all.sh smoke`, set-up done", ["smoke"]),
    "miniature": ("`./run_all.sh`, set-up done, empty `build/`", ["miniature"]),
    "again": ("`./run_all.sh` again, nothing to do", ["miniature"]),
    "ground": ('`./run_all.sh ground IMAGE "PHRASE"`', ["ground", "", "left lung opacity"]),
    "fast": ("`./run_all.sh test --fast`, set-up done", ["test", "--fast"]),
    "test": ("`./run_all.sh test`, set-up done", ["test"]),
}


def measure(arguments: list[str], build: Path) -> tuple[float, float]:
    """Wall seconds and peak MiB of the largest process of one call; a failure stops everything."""
    environment = os.environ | {"G2G_BUILD": str(build)}
    start = time.perf_counter()
    subprocess.run([ROOT / "run_all.sh", *arguments], check=True, env=environment)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    return time.perf_counter() - start, peak


def readable(seconds: float) -> str:
    """Seconds, or minutes from two minutes on."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def main(*names: str) -> int:
    """Measure the named commands (default: all) and merge them into times.json."""
    rows = {row["name"]: row for row in runs.read_json(RESULT)["rows"]} if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "noise.png"
        noise = np.random.default_rng(0).integers(0, 255, (300, 280), dtype=np.uint8)
        Image.fromarray(noise).save(image)
        for name in names or COMMANDS:
            what, arguments = COMMANDS[name]
            arguments = [str(image) if part == "" else part for part in arguments]
            seconds, peak = measure(arguments, Path(folder) / "build")
            row = {"name": name, "what": what, "time": readable(seconds)}
            rows[name] = row | {"seconds": round(seconds, 1), "memory": f"{peak / 1024:.1f} GiB"}
            machine = {"cpu_count": os.cpu_count(), "system": platform.platform()}
            ordered = [rows[key] for key in COMMANDS if key in rows]
            runs.write_json(RESULT, {"machine": machine, "rows": ordered})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
