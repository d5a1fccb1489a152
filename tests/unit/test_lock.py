"""pyproject.toml, requirements.lock and environment.yml say the same, and the check can tell."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("g2g_lock", ROOT / "tools" / "lock.py")
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)

FILES = ["pyproject.toml", "requirements.lock", "environment.yml"]


def name_of(requirement: Requirement) -> str:
    return requirement.name.lower().replace("_", "-")


def drift(root: Path) -> list[str]:
    """Every way in which the three files of `root` disagree."""
    text = (root / "requirements.lock").read_text()
    pins, torch, wrong = lock.pins(text), lock.torch_pin(root), []
    if f"sha256 {lock.digest(root)}" not in text:
        wrong.append("pyproject.toml changed after the lock: run python tools/lock.py")
    for requirement in map(Requirement, lock.requirements(root)):
        version = torch if requirement.name == "torch" else pins.get(name_of(requirement), ("",))[0]
        if not version or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} is locked at {version or 'nothing'}")
    conda = yaml.safe_load((root / "environment.yml").read_text())["dependencies"]
    listed = [Requirement(line) for line in conda[-1]["pip"]]
    there = {name_of(r): str(r.specifier).removeprefix("==") for r in listed}
    wanted = {name: version for name, (version, _) in pins.items()} | {"torch": torch}
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            wrong.append(f"{name}: environment.yml {there.get(name)}, lock {wanted.get(name)}")
    return wrong


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    for file in FILES:
        (tmp_path / file).write_text((ROOT / file).read_text())
    return tmp_path


def perturb(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.M)
    assert count == 1, f"{pattern} is not in {path.name}"
    path.write_text(text)


def test_the_three_files_agree() -> None:
    assert drift(ROOT) == []


@pytest.mark.parametrize(
    ("file", "pattern", "replacement"),
    [
        ("requirements.lock", r"^numpy==1\.26\.4", "numpy==1.26.3"),
        ("environment.yml", r"numpy==1\.26\.4", "numpy==1.26.3"),
        ("environment.yml", r'^ +- "tqdm==.*\n', ""),
        ("pyproject.toml", r'"torch==[^"]+"', '"torch==2.0.0"'),
        ("pyproject.toml", r'"tqdm>=', '"einops>=0.8", "tqdm>='),
        ("pyproject.toml", r'^ +"pydicom.*\n', ""),
    ],
)
def test_one_changed_line_is_noticed(
    copies: Path, file: str, pattern: str, replacement: str
) -> None:
    assert drift(copies) == []
    perturb(copies / file, pattern, replacement)
    assert drift(copies) != []


def test_every_locked_file_has_a_hash_and_no_index_is_named() -> None:
    text = (ROOT / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.M).strip())
    assert [b.split()[0] for b in blocks if "--hash=sha256:" not in b] == []
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links", text)


def test_torch_and_what_only_torch_brings_stay_out_of_the_lock() -> None:
    assert [
        n for n in lock.pins((ROOT / "requirements.lock").read_text()) if lock.APART.match(n)
    ] == []


def test_markers_of_other_platforms_are_dropped() -> None:
    compiled = (
        "numpy==1.26.4 \\\n    --hash=sha256:aa\n"
        "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:bb\n"
        "appnope==0.1.4 ; sys_platform == 'darwin' \\\n    --hash=sha256:cc\n"
        "overrides==7.7.0 ; python_full_version < '3.12' \\\n    --hash=sha256:dd\n"
        "nvidia-nccl-cu13==2.29.7 ; sys_platform == 'linux' \\\n    --hash=sha256:ee\n"
        "torchmetrics==1.9.0 \\\n    --hash=sha256:ff\n"
    )
    assert lock.pins(lock.narrowed(compiled)) == {
        "numpy": ("1.26.4", ""),
        "appnope": ("0.1.4", "sys_platform == 'darwin'"),
        "overrides": ("7.7.0", ""),
        "torchmetrics": ("1.9.0", ""),
    }
