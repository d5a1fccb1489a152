"""Renew requirements.lock from pyproject.toml (needs `uv` on the PATH).

    python tools/lock.py             keep the locked versions where pyproject.toml allows them
    python tools/lock.py --upgrade   take the newest versions it allows
    python tools/lock.py --check     ask the index: has every pin a wheel for Python 3.11 and 3.12?

One lock serves Linux and macOS with Python 3.11 and 3.12: markers tell what each of them takes. It
holds the full closure with the hashes of every file, except torch and what only torch brings (see
`tool.uv` in pyproject.toml). The check needs pip alone.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: *; *([^\\\n]+?))?(?= *\\?$)", re.M)
SDISTS = "connection-pool"  # plain Python of Snakemake's, on the index as source alone
PYTHONS = {"3.11": "3.11.5", "3.12": "3.12.0"}  # the oldest of each that pyproject.toml allows
HEADER = """\
# Exact versions of everything but torch, with hashes. Written by `python tools/lock.py`.
# Install: pip install --no-deps --require-hashes -r requirements.lock
#          pip install torch=={torch}   (the CPU, CUDA or macOS build)
#          pip install --no-deps --no-build-isolation -e .
# torch=={torch}
# dependencies of pyproject.toml: sha256 {digest}
"""


def requirements(root: Path = ROOT) -> list[str]:
    """Requirements that pyproject.toml states, `dev` included, sorted."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return sorted(project["dependencies"] + project["optional-dependencies"]["dev"])


def digest(root: Path = ROOT) -> str:
    """Fingerprint of the requirements of pyproject.toml; the lock quotes it."""
    return hashlib.sha256(json.dumps(requirements(root)).encode()).hexdigest()[:16]


def torch_pin(root: Path = ROOT) -> str:
    """The version of torch that pyproject.toml asks for."""
    pins = [r.removeprefix("torch==") for r in requirements(root) if r.startswith("torch==")]
    if len(pins) != 1:
        raise SystemExit(f"pyproject.toml: expected one exact `torch==…`, found {pins}")
    return pins[0]


def pins(lock: str) -> dict[str, tuple[str, str]]:
    """name -> (version, marker) of a lock's text. The marker may be ""."""
    found = PIN.finditer("\n".join(ln for ln in lock.splitlines() if not ln.startswith("#")))
    return {m[1].lower().replace("_", "-"): (m[2], m[3] or "") for m in found}


def pinned(lock: str, python: str, system: str = sys.platform) -> list[str]:
    """`name==version` of every package that one Python ("3.12") takes on one system."""
    from packaging.markers import Marker

    target = {"python_version": python, "python_full_version": PYTHONS[python]}
    target["sys_platform"] = system
    listed = pins(lock).items()
    return [
        f"{n}=={v}" for n, (v, marker) in listed if not marker or Marker(marker).evaluate(target)
    ]


def without_wheel(python: str) -> str:
    """What pip says of pins that this machine could not install as wheels; "" if there is none.

    Downloads no package: the index serves names and metadata apart.
    """
    listed = [*pinned((ROOT / "requirements.lock").read_text(), python), f"torch=={torch_pin()}"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--no-deps", "--only-binary=:all:", f"--no-binary={SDISTS}"]
    command += [f"--python-version={PYTHONS[python]}", "--timeout=15", "--retries=1"]
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [*command, f"--target={folder}", *listed], capture_output=True, text=True
        )
    errors = re.findall(r"ERROR: (No matching.*|.*not install.*)", run.stderr)
    return ("; ".join(errors) or "pip failed") if run.returncode else ""


def renew(options: list[str]) -> None:
    """Resolve and write the lock; the resolver prefers the versions that it finds there."""
    lock, output = ROOT / "requirements.lock", Path(tempfile.mkdtemp()) / "lock.txt"
    if lock.exists():
        output.write_text(lock.read_text())
    command = ["uv", "pip", "compile", "pyproject.toml", "--extra=dev", "--universal"]
    command += [f"--python-version={PYTHONS['3.11']}", "--no-emit-package=torch"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "-q", "-o", str(output)]
    subprocess.run([*command, *options], cwd=ROOT, check=True)
    text = HEADER.format(torch=torch_pin(), digest=digest()) + output.read_text()
    lock.write_text(text)
    print(f"{len(pins(text))} packages and torch {torch_pin()} -> requirements.lock")


def main() -> None:
    """Renew the lock or check it."""
    if sys.argv[1:] != ["--check"]:
        return renew(sys.argv[1:])
    missing = {python: without_wheel(python) for python in PYTHONS}
    print("\n".join(f"Python {p}: {why or 'every pin has a wheel'}" for p, why in missing.items()))
    sys.exit(any(missing.values()))


if __name__ == "__main__":
    main()
