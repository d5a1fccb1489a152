"""pyproject.toml and requirements.lock say the same, for both Pythons, and the check can tell."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"g2g_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lock, setup_env = tool("lock"), tool("setup_env")

FILES = ["pyproject.toml", "requirements.lock"]
LOCK = (ROOT / "requirements.lock").read_text()
APART = re.compile(r"(torch|triton|(nvidia|cuda)-.*)$")
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"


def name_of(requirement: Requirement) -> str:
    return requirement.name.lower().replace("_", "-")


def drift(root: Path) -> list[str]:
    """Every way in which the two files of `root` disagree."""
    text = (root / "requirements.lock").read_text()
    pins, torch, wrong = lock.pins(text), lock.torch_pin(root), []
    if f"sha256 {lock.digest(root)}" not in text:
        wrong.append("pyproject.toml changed after the lock: run python tools/lock.py")
    if f"# torch=={torch}\n" not in text:
        wrong.append(f"the lock's header does not name torch=={torch}")
    for requirement in map(Requirement, lock.requirements(root)):
        version = torch if requirement.name == "torch" else pins.get(name_of(requirement), ("",))[0]
        if not version or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement} is locked at {version or 'nothing'}")
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


def test_the_two_files_agree() -> None:
    assert drift(ROOT) == []


@pytest.mark.parametrize(
    ("file", "pattern", "replacement"),
    [
        ("requirements.lock", r"^numpy==1\.26\.4", "numpy==1.26.3"),
        ("requirements.lock", r"^# torch==.*", "# torch==2.0.0"),
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
    blocks = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", LOCK, flags=re.M).strip())
    assert [b.split()[0] for b in blocks if "--hash=sha256:" not in b] == []
    assert not re.search(r"https?://|file:|--(extra-)?index|--find-links", LOCK)


def test_torch_and_what_only_torch_brings_stay_out_of_the_lock() -> None:
    assert [name for name in lock.pins(LOCK) if APART.match(name)] == []


def test_markers_tell_what_each_python_and_system_takes() -> None:
    text = (
        "numpy==1.26.4 \\\n    --hash=sha256:aa\n"
        "colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:bb\n"
        "appnope==0.1.4 ; sys_platform == 'darwin' \\\n    --hash=sha256:cc\n"
        "overrides==7.7.0 ; python_full_version < '3.12' \\\n    --hash=sha256:dd\n"
        "yarl==1.25.1 ; python_full_version == '3.12.*' \\\n    --hash=sha256:ee\n"
    )
    taken = {
        (python, system): [pin.split("==")[0] for pin in lock.pinned(text, python, system)]
        for python in lock.PYTHONS
        for system in ("linux", "darwin")
    }
    assert taken == {
        ("3.11", "linux"): ["numpy", "overrides"],
        ("3.11", "darwin"): ["numpy", "appnope", "overrides"],
        ("3.12", "linux"): ["numpy", "yarl"],
        ("3.12", "darwin"): ["numpy", "appnope", "yarl"],
    }


def test_the_set_up_reads_the_lock_the_same_way() -> None:
    wanted = [*lock.pinned(LOCK, RUNNING), f"torch=={lock.torch_pin()}"]
    assert sorted(f"{name}=={version}" for name, version in setup_env.pins().items()) == sorted(
        wanted
    )


def test_every_file_names_the_same_pythons() -> None:
    project = lock.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert project["requires-python"] == f">={lock.PYTHONS['3.11']},<3.13"
    assert [c.rsplit(" ")[-1] for c in project["classifiers"] if ":: 3." in c] == [*lock.PYTHONS]
    assert conda[0].removeprefix("python=") in lock.PYTHONS
    assert f"torch=={lock.torch_pin()}" in (ROOT / "environment.yml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("python", [p for p in lock.PYTHONS if p != RUNNING])
def test_every_pin_has_a_wheel_for_the_other_python(python: str) -> None:
    probe = [sys.executable, "-m", "pip", "index", "versions", "six", "--timeout=5", "--retries=0"]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no package index within reach")
    assert lock.without_wheel(python) == ""
