"""All checks, two at a time: what `./run_all.sh test [--fast | --update]` runs.

One lane runs the notebooks under smoke, compares them with their references and tests the explorer;
the other checks the sources, which takes about as long. `--fast`: sources and quick tests alone.
Every step runs, whatever failed before; logs lie in build/test.
"""

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import psutil

ROOT = Path(__file__).resolve().parents[1]
BUILD = Path(os.environ.get("G2G_BUILD", ROOT / "build"))
LOGS = BUILD / "test"
PY = [sys.executable, "-m"]
PYTEST = [*PY, "pytest", "-q", "-p", "no:cacheprovider"]
REFERENCE = "tests/notebooks/reference"
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600"]
TYPES = [*PY, "mypy"]

SOURCES = {
    "format": [*PY, "ruff", "format", "--check", "."],
    "lint": [*PY, "ruff", "check", "."],
    "imports": [str(Path(sys.executable).with_name("lint-imports"))],
    "unit": [*PYTEST, "tests/unit"],
    "notebook files": [*PYTEST, "tests/notebooks/test_files.py"],
    "real profiles": [*PYTEST, "tests/notebooks/test_real_profile.py"],
    "workflow": [*PYTEST, "tests/workflow"],
    "site": [*PYTEST, "tests/site"],
}
NOTEBOOKS = {
    "smoke": ["./run_all.sh", "smoke"],
    "references": [*PYTEST, *NBVAL, REFERENCE],
    "references bite": [*PYTEST, "tests/notebooks/test_references.py"],
    "types": TYPES,
    "browser": [*PYTEST, "tests/browser"],
}
QUICK = ["-m", "not slow", "tests/unit", "tests/notebooks/test_files.py"]
UPDATE = {"update references": [sys.executable, "tools/notebooks.py", "reference"]}

counts: Counter[str] = Counter()
failed: list[str] = []
printing = Lock()


def tally(report: Path, code: int) -> None:
    """Add a step's results: pytest's own numbers, or one for the step."""
    if not report.exists():
        counts["failed" if code else "passed"] += 1
        return
    for suite in xml.parse(report).getroot().iter("testsuite"):
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        counts["failed"] += bad
        counts["skipped"] += int(suite.get("skipped", 0))
        counts["passed"] += int(suite.get("tests", 0)) - bad - int(suite.get("skipped", 0))


def step(name: str, command: list[str]) -> None:
    """Run one command, keep its log, say how it went; a failure shows the end of the log."""
    log, report = LOGS / f"{name.replace(' ', '-')}.log", LOGS / f"{name.replace(' ', '-')}.xml"
    report.unlink(missing_ok=True)
    if "pytest" in command:
        command = [*command, f"--junitxml={report}"]
    start = time.time()
    with open(log, "w") as stream:
        code = subprocess.run(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT).returncode
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    with printing:
        tally(report, code)
        print(
            f"{'FAILED' if code else 'ok':7}{name:20}{time.time() - start:6.0f} s  {lines[-1][:90]}"
        )
        if code:
            failed.append(name)
            print("\n".join(f"    {line}" for line in lines[-60:]), flush=True)
        else:
            for line in [ln for ln in lines if ln.startswith("SKIPPED")][:10]:
                print(f"    {line}", flush=True)


def lane(steps: dict[str, list[str]]) -> None:
    """Run steps one after another."""
    for name, command in steps.items():
        step(name, command)


def processes(spare: int = 0) -> list[str]:
    """Options that share tests among the cores but `spare`, with 2 GB of free memory each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    number = min(8, (cores or 1) - spare, psutil.virtual_memory().available // 2**31)
    return ["-n", str(number)] if number > 1 else []


def lanes(options: list[str]) -> list[dict[str, list[str]]]:
    """Steps of the two lanes under the command's options."""
    if "--fast" in options:
        plain = {name: SOURCES[name] for name in ("format", "lint", "imports")}
        return [{"quick tests": [*PYTEST, *processes(), *QUICK]}, plain | {"types": TYPES}]
    sources = SOURCES | {"unit": [*SOURCES["unit"], *processes(spare=1)]}
    if "--update" in options:
        return [{"smoke": NOTEBOOKS["smoke"], **UPDATE, **NOTEBOOKS}, sources]
    return [NOTEBOOKS, sources]


def main() -> None:
    """Run both lanes; exit 1 if any step failed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    start = time.time()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lane, lanes(sys.argv[1:])))
    if failed:
        print(f"failed: {', '.join(failed)}; logs in {LOGS}")
    print(f"checks took {time.time() - start:.0f} s")
    shown = [
        f"{counts[k]} {k}" for k in ("passed", "failed", "skipped") if k != "skipped" or counts[k]
    ]
    print(", ".join(shown))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
