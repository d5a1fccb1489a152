"""The comparison with reference outputs notices one changed digit.

Runs after `./run_all.sh smoke`, which leaves the products that the notebooks use.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import nbformat
import pytest

from g2g_utils import config, runs
from g2g_utils.bench import claims

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("g2g_notebooks", ROOT / "tools" / "notebooks.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def seconds(reference: Path) -> float:
    """How long the notebook took under smoke."""
    record = tool.BUILD / "smoke" / "notebooks" / f"{reference.stem}.run.json"
    return json.loads(record.read_text())["wall_s"] if record.exists() else float("inf")


def test_findings_of_the_smoke_run_follow_the_schema():
    """The run that has just ended wrote every finding anew, and soundly."""
    written = claims.path(config.load("smoke"))
    if not written.is_file():
        pytest.skip("no smoke run yet: ./run_all.sh smoke")
    rows = json.loads(written.read_text())
    jsonschema.validate(rows, claims.SCHEMA)
    assert {row["id"].split("-")[0] for row in rows} >= {"F1", "F2", "F3", "F4", "F5", "F6"}
    assert all(row["holds"] == (row["low"] > 0) for row in rows)
    assert {row["run"] for row in rows} == {runs.settings_id(config.load("smoke"))}


def digits(cell) -> re.Match | None:
    """The first number in the text of a checked cell's only output."""
    if not tool.is_checked(cell) or len(cell.outputs) != 1:
        return None
    return re.search(r"\d", cell.outputs[0].get("text", ""))


def beginning(reference: Path) -> nbformat.NotebookNode | None:
    """The notebook up to its first checked cell that prints a number."""
    notebook = tool.read(reference)
    for number, cell in tool.code_cells(notebook):
        if digits(cell):
            notebook.cells = notebook.cells[: number + 1]
            return notebook
    return None


def compare(path: Path) -> subprocess.CompletedProcess:
    """nbval's verdict on one notebook."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax"]
    command += ["--nbval-current-env", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_one_changed_digit_fails(tmp_path: Path) -> None:
    quick = sorted(tool.notebooks(tool.REFERENCE), key=seconds)
    notebook = next((nb for nb in map(beginning, quick) if nb), None)
    if notebook is None:
        pytest.fail("no reference checks a printed number")
    nbformat.write(notebook, tmp_path / "same.ipynb")
    same = compare(tmp_path / "same.ipynb")
    assert same.returncode == 0, same.stdout[-3000:]

    output, digit = notebook.cells[-1].outputs[0], digits(notebook.cells[-1])
    other = str((int(digit[0]) + 1) % 10)
    output.text = output.text[: digit.start()] + other + output.text[digit.end() :]
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    changed = compare(tmp_path / "changed.ipynb")
    assert changed.returncode == 1, changed.stdout[-3000:]
    assert "1 failed" in changed.stdout
