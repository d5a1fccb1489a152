"""A stand-in world: the real scripts around products and notebooks that take no time."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import yaml

ROOT = Path(__file__).resolve().parents[2]

PRODUCTS = '''
"""Products that take no time, in the place of the real ones."""
import os
import time

from g2g_utils import runs
from g2g_utils.runs import places


def plan(config):
    return {"vae": [], "classifier": [], "latents": ["vae"], "ldm/a-s0": ["latents"]}


def needs(config, name):
    return plan(config)[name]


def bundles(config):
    return {}


def key(config, name):
    chain = [name, *plan(config)[name]]
    return runs.digest([os.environ.get("KEY_" + part.replace("/", "_"), "") for part in chain])


def ensure(config, name):
    folder = places.build(config) / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "made.txt", "a") as made:
        made.write(name + "\\n")
    time.sleep(float(os.environ.get("SLOW", 0)))
    runs.write_json(folder / "run.json", {"key": key(config, name)})
    return folder
'''

COSTS = '''
"""Costs of nothing."""


def sheet(config, step_seconds=None):
    return f"profile {config.profile}"
'''

NOTEBOOK = """
# %% [markdown]
# # Which world is this?
# %% tags=["parameters"]
profile: str = "miniature"
number: int = 1
# %%
import sys
from g2g_utils import config, plots
from g2g_utils.runs import places
settings = config.load(profile)
# %%
# NBVAL_CHECK_OUTPUT
print(profile, number)
# %%
print("python", sys.prefix)
places.figures(settings).mkdir(parents=True, exist_ok=True)
_ = (places.figures(settings) / "01_figure.txt").write_text("a figure")
plots.wrote(places.figures(settings) / "01_figure.txt")
"""


class World:
    """A copy of the repository's scripts around stand-in products and two notebooks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.build = folder, folder / "build" / "smoke"
        for name in ("workflow", "tools", "configs"):
            shutil.copytree(ROOT / name, folder / name)
        for name in ("run_all.sh", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        unwanted = shutil.ignore_patterns("__pycache__", "experiment")
        shutil.copytree(ROOT / "g2g_utils", folder / "g2g_utils", ignore=unwanted)
        (folder / "g2g_utils" / "experiment").mkdir()
        shutil.copy(ROOT / "g2g_utils/experiment/privacy.py", folder / "g2g_utils/experiment")
        (folder / "g2g_utils" / "experiment" / "costs.py").write_text(COSTS)
        self.products(PRODUCTS)
        (folder / "notebooks").mkdir()
        self.write("01_one", NOTEBOOK)
        self.write("02_two", NOTEBOOK.replace("01_figure", "02_figure"))

    def products(self, source: str) -> None:
        """Stand-in products, in the place of the experiment."""
        (self.folder / "g2g_utils" / "experiment" / "products.py").write_text(source)

    def write(self, name: str, text: str) -> None:
        """Write a notebook (the workflow reads only the .ipynb of a pair)."""
        notebook = jupytext.reads(text.lstrip(), fmt="py:percent")
        kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
        notebook.metadata["kernelspec"] = kernel
        jupytext.write(notebook, self.folder / "notebooks" / f"{name}.ipynb")

    def environment(self, **more: str) -> dict[str, str]:
        """This environment as the active one, nothing of an outer run."""
        dropped = ("G2G_BUILD", "G2G_CONTROLLER", "PYTHONPATH", "CONDA_PREFIX")
        kept = {k: v for k, v in os.environ.items() if k not in dropped}
        return {**kept, "VIRTUAL_ENV": sys.prefix, **more}

    def start(self, *arguments: str, **more: str) -> subprocess.Popen:
        """run_all.sh in a process group of its own, as at a terminal: Ctrl-C reaches it.

        Where the tests themselves run in the background (`&` in a script), they ignore SIGINT, and
        what they start would inherit that.
        """
        return subprocess.Popen(
            [self.folder / "run_all.sh", *arguments],
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=self.folder.parent,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, **more: str) -> tuple[int, str]:
        """Exit status and everything it said."""
        process = self.start(*arguments, **more)
        said, _ = process.communicate(timeout=900)
        return process.returncode, said

    def steps(self, said: str) -> list[str]:
        """Names of the jobs that ran, sorted."""
        return sorted(re.findall(r"^Job \d+: (?:notebook )?(\S+)$", said, re.M))

    def wait_for(self, path: Path, seconds: float = 300) -> None:
        """Until a file exists."""
        end = time.time() + seconds
        while not path.exists():
            assert time.time() < end, f"{path} did not appear"
            time.sleep(0.05)


POINT = """
# %% tags=["parameters"]
profile: str = "miniature"
number: int = 1
rate: float = 0.1
flag: bool = False
# %%
import os, time
from matplotlib.figure import Figure
from g2g_utils import config, plots, runs
from g2g_utils.runs import places
settings = config.load(profile)
with open(places.build(settings) / "ran.txt", "a") as ran:
    ran.write(f"{number}\\n")
time.sleep(float(os.environ.get("SLOW", 0)))
assert str(number) != os.environ.get("FAIL"), "this point was made to fail"
# %%
plots.save_figure(settings, Figure(figsize=(1, 1)), "figure")
offline = int(os.environ.get("HF_HUB_OFFLINE", 0))
runs.report({"double": 2 * number, "steps": settings.grounding.timesteps, "none": float("nan")})
runs.report({"offline": offline})
"""


class SweepWorld(World):
    """With a notebook for points."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.write("03_point", POINT)

    def sweep(self, **content: object) -> None:
        """Write workflow/sweeps/numbers.yaml."""
        base = {"notebook": "03_point", "needs": ["ldm/a-s0"]}
        path = self.folder / "workflow" / "sweeps" / "numbers.yaml"
        path.write_text(yaml.safe_dump(base | content, sort_keys=False))

    def ran(self) -> list[str]:
        """Numbers of the points that were executed since the last call, sorted."""
        path = self.build / "ran.txt"
        lines = sorted(path.read_text().split()) if path.exists() else []
        path.unlink(missing_ok=True)
        return lines
