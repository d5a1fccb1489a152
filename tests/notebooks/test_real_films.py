"""The notebook of real films under its own profile, on the first test pairs."""

from pathlib import Path

import jupytext
import matplotlib
import pytest
from IPython.core.interactiveshell import InteractiveShell

from g2g_utils import config, runs

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "18_real_films.py"
FEW = {"evaluation.pairs": 24, "evaluation.bootstrap": 50, "grounding.timesteps": 2,
       "grounding.keep_last": 2, "data.implants": 12, "data.drawn": 4}  # fmt: skip
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def test_it_runs_on_a_few_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path / "build"))
    matplotlib.use("Agg")
    profile = tmp_path / "radiographs.yaml"
    shipped = {f"training.arms.{arm}.untuned": True for arm in ("domain-frozen",)}
    runs.write_json(profile, config.tree("radiographs", FEW | shipped))
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    for cell in jupytext.read(NOTEBOOK).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, silent=True).raise_error()
            if "parameters" in cell.metadata.get("tags", []):
                shell.run_cell(f"profile = {str(profile)!r}", silent=True).raise_error()
    InteractiveShell.clear_instance()
    matplotlib.pyplot.close("all")
    assert list((tmp_path / "build" / "radiographs" / "figures").glob("18_*.png"))
