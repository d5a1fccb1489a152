"""Find or make an environment that holds requirements.lock; print the path of its Python.

Standard library only: it runs before anything is installed. The active conda or virtual
environment is taken when it satisfies the lock; else `.venv` is used, made or completed.
Progress goes to stderr.
"""

import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK, VENV = ROOT / "requirements.lock", ROOT / ".venv"
STAMP = VENV / "installed.lock"  # a copy of the lock, written when everything is in


def say(text: str) -> None:
    """Tell the user; stdout is for the answer."""
    print(f"[g2g] {text}", file=sys.stderr, flush=True)


def pins() -> dict[str, str]:
    """name -> version of what this Python takes of the lock, torch included."""
    from pip._vendor.packaging.markers import Marker

    pin = re.compile(r"^(?:# )?([\w.-]+)==([^\s;\\]+)(?: *; *([^\\\n]+))?", re.M)
    found = pin.finditer(LOCK.read_text())
    return {normal(m[1]): m[2] for m in found if not m[3] or Marker(m[3].strip()).evaluate()}


def normal(name: str) -> str:
    """A distribution's name as indexes write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def missing() -> list[str]:
    """Requirements of the lock that the running Python lacks, one text each."""
    have = {normal(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
    return [
        f"{name} {version} (has {have.get(name, 'none')})"
        for name, version in pins().items()
        if have.get(name, "").split("+")[0] != version  # torch's 2.x.y+cpu is 2.x.y
    ]


def lacks(python: Path) -> list[str] | None:
    """`missing` as another Python sees it; None if that is no Python 3.11 or 3.12 with pip."""
    try:
        answer = subprocess.run(
            [python, __file__, "--missing"], capture_output=True, text=True, check=True
        )
        return json.loads(answer.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def active() -> Path | None:
    """Python of the active environment, if that satisfies the lock; says why not."""
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        prefix = Path(os.environ.get(variable) or VENV)
        if prefix.resolve() == VENV.resolve():
            continue
        absent = lacks(prefix / "bin" / "python")
        if absent == []:
            return prefix / "bin" / "python"
        why = (
            "no Python 3.11 or 3.12"
            if absent is None
            else f"{len(absent)} packages differ: {absent[0]}, …"
        )
        say(f"the active environment {prefix} does not satisfy the lock ({why}); using .venv")
    return None


def pip(*arguments: str) -> None:
    """Run pip in .venv; stop with one line if it fails."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
    run = subprocess.run([*command, "--quiet", *arguments], stdout=sys.stderr, cwd=ROOT)
    if run.returncode:
        tried = " ".join(arguments)
        sys.exit(
            f"[g2g] pip install {tried} failed (see above); run the same command again to go on"
        )


def make() -> None:
    """Create or complete .venv from the lock; the stamp is written last."""
    start = time.time()
    torch = LOCK.read_text().partition("# torch==")[2].split()[0]
    if lacks(VENV / "bin" / "python") is None:
        say(f"making .venv with Python {sys.version.split()[0]}")
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", VENV], check=True, stdout=sys.stderr
        )
    if absent := lacks(VENV / "bin" / "python"):
        say(f"installing {len(absent)} locked packages (2-5 minutes, once)")
        pip("--no-deps", "--require-hashes", "-r", str(LOCK))
        index = os.environ.get("G2G_TORCH_INDEX")
        say(f"installing torch {torch} from {index or 'the default index'}")
        if not index and sys.platform == "linux" and not shutil.which("nvidia-smi"):
            say("no NVIDIA driver: for a smaller torch see G2G_TORCH_INDEX in run_all.sh --help")
        pip(f"torch=={torch}", *(["--index-url", index] if index else []))
    pip("--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if absent := lacks(VENV / "bin" / "python"):
        sys.exit(f"[g2g] .venv still lacks {', '.join(absent)}; remove .venv and run again")
    shutil.copy(LOCK, STAMP)
    say(f"the environment is ready after {time.time() - start:.0f} s")


def main() -> None:
    """Print the Python to use."""
    if python := active():
        print(python)
        return
    with open(ROOT / ".venv.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another run is making .venv; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not STAMP.exists() or STAMP.read_bytes() != LOCK.read_bytes():
            make()
    print(VENV / "bin" / "python")


if __name__ == "__main__":
    if sys.argv[1:] == ["--missing"]:
        if not (3, 11, 5) <= sys.version_info < (3, 13):
            sys.exit(1)
        print(json.dumps(missing()))
    else:
        main()
