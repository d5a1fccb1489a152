"""Renew requirements.lock and environment.yml from pyproject.toml (needs `uv` on the PATH).

    python tools/lock.py             keep the locked versions where pyproject.toml allows them
    python tools/lock.py --upgrade   take the newest versions it allows

The lock holds the full closure for Linux and macOS with the hashes of every file, except torch and
what only torch brings (CUDA, triton): which build of those is right depends on the machine.
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
APART = re.compile(r"(torch|triton|(nvidia|cuda)-.*)$")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: *; *([^\\\n]+?))?(?= *\\?$)", re.M)
PLATFORMS = [
    {
        "sys_platform": system,
        "platform_system": name,
        "platform_machine": machine,
        "os_name": "posix",
    }
    for system, name, machine in [
        ("linux", "Linux", "x86_64"),
        ("linux", "Linux", "aarch64"),
        ("darwin", "Darwin", "arm64"),
        ("darwin", "Darwin", "x86_64"),
    ]
]
PYTHON = {
    "python_version": "3.11",
    "python_full_version": "3.11.9",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
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
    """name -> (version, marker) of a lock's text; the marker is "" where there is none."""
    found = PIN.finditer("\n".join(ln for ln in lock.splitlines() if not ln.startswith("#")))
    return {m[1].lower().replace("_", "-"): (m[2], m[3] or "") for m in found}


def environment(lock: str, torch: str) -> str:
    """environment.yml with the very versions of the lock."""
    lines = [f"torch=={torch}"]
    for name, (version, marker) in pins(lock).items():
        lines.append(f"{name}=={version}" + (f" ; {marker}" if marker else ""))
    listed = "\n".join(f'      - "{line}"' for line in lines)
    return f"""\
# For conda users; written by `python tools/lock.py` from requirements.lock: the same versions.
# conda env create -f environment.yml && conda activate g2g && pip install --no-deps -e .
name: g2g
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
{listed}
"""


def narrowed(compiled: str) -> str:
    """The resolver's output for our platforms only: other markers go, torch's own packages go."""
    from packaging.markers import Marker

    kept = []
    for block in re.split(r"\n(?=\S)", compiled.strip()):
        name, _, marker = re.match(r"([A-Za-z0-9._-]+)==(\S+)(?: *; *([^\\\n]+))?", block).groups()
        if APART.match(name.lower()):
            continue
        if marker:
            holds = [Marker(marker).evaluate({**PYTHON, **platform}) for platform in PLATFORMS]
            if not any(holds):
                continue
            if all(holds):
                block = block.replace(f" ; {marker.strip()}", "", 1)
        kept.append(block)
    return "\n".join(kept) + "\n"


def main() -> None:
    """Resolve, narrow and write both files."""
    lock, output = ROOT / "requirements.lock", Path(tempfile.mkdtemp()) / "lock.txt"
    if lock.exists():
        output.write_text(lock.read_text())  # the resolver prefers the versions it finds here
    command = ["uv", "pip", "compile", "pyproject.toml", "--extra", "dev", "--universal"]
    command += ["--python-version", "3.11.9", "--generate-hashes", "--no-header", "--no-annotate"]
    command += ["-q", "-o", str(output), *sys.argv[1:]]
    subprocess.run(command, cwd=ROOT, check=True)
    text = HEADER.format(torch=torch_pin(), digest=digest()) + narrowed(output.read_text())
    lock.write_text(text)
    (ROOT / "environment.yml").write_text(environment(text, torch_pin()))
    print(
        f"{len(pins(text))} packages and torch {torch_pin()} -> requirements.lock, environment.yml"
    )


if __name__ == "__main__":
    main()
