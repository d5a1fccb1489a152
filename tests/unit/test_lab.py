"""`./run_all.sh lab` works on copies: those a user changed stay, others follow the repository."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook


@pytest.fixture
def lab(script):
    return script("workflow/lab.py")


def write(path, source, outputs=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    cell = new_code_cell(source, outputs=list(outputs))
    nbformat.write(new_notebook(cells=[cell], metadata={"jupytext": {"formats": "ipynb"}}), path)


def source(path):
    return nbformat.read(path, as_version=4).cells[0].source


def test_copies_are_unpaired_and_follow_the_repository(lab, tmp_path):
    own, notebooks = tmp_path / "lab", tmp_path / "notebooks"
    write(notebooks / "00_a.ipynb", "x = 1")
    assert lab.copies(own, notebooks) == []
    assert "jupytext" not in nbformat.read(own / "00_a.ipynb", as_version=4).metadata
    printed = {"output_type": "stream", "name": "stdout", "text": "1"}
    write(own / "00_a.ipynb", "x = 1", [nbformat.from_dict(printed)])  # it was only run
    write(notebooks / "00_a.ipynb", "x = 2")
    assert lab.copies(own, notebooks) == [] and source(own / "00_a.ipynb") == "x = 2"
    assert source(notebooks / "00_a.ipynb") == "x = 2"


def test_a_changed_copy_stays_and_is_named(lab, tmp_path):
    own, notebooks = tmp_path / "lab", tmp_path / "notebooks"
    write(notebooks / "00_a.ipynb", "x = 1")
    lab.copies(own, notebooks)
    write(own / "00_a.ipynb", "x = 7")
    write(notebooks / "00_a.ipynb", "x = 2")
    for _ in range(2):
        assert lab.copies(own, notebooks) == [own / "00_a.ipynb"]
        assert source(own / "00_a.ipynb") == "x = 7"
    (own / "00_a.ipynb").unlink()
    assert lab.copies(own, notebooks) == [] and source(own / "00_a.ipynb") == "x = 2"


def test_jupyterlab_listens_here_only_and_opens_at_the_first_notebook(lab, tmp_path, root):
    words = lab.command(tmp_path, ["--port=9999"])
    assert "--ServerApp.ip=127.0.0.1" in words and words[-1] == "--port=9999"
    assert f"--LabApp.default_url=/lab/tree/{lab.FIRST}" in words
    assert (root / "notebooks" / lab.FIRST).is_file()
