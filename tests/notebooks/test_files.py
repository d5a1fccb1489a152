"""Notebooks as files: paired, readable, executed under miniature; and these checks can fail."""

import importlib.util
import shutil
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("g2g_notebooks", ROOT / "tools" / "notebooks.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

NOTEBOOKS = tool.notebooks()
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def test_there_are_notebooks_and_none_is_unpaired() -> None:
    assert NOTEBOOKS
    sources = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
    assert [p.stem for p in sources] == [p.stem for p in NOTEBOOKS]


@each
def test_pair_is_in_sync(path: Path) -> None:
    assert tool.unpaired(path) == []


@each
def test_cells_are_short_and_the_skeleton_is_there(path: Path) -> None:
    assert tool.bad_style(path) == []


@each
def test_executed_without_errors(path: Path) -> None:
    assert tool.not_executed(path) == []


@each
def test_comes_from_miniature_and_from_no_machine(path: Path) -> None:
    assert tool.not_committable(path) == []


@each
def test_reference_proves_something(path: Path) -> None:
    if tool.belongs.home(path) != "miniature":
        pytest.skip("smoke does not run it: test_real_films.py does")
    reference = tool.REFERENCE / path.name
    assert reference.exists(), f"{path.name} has no reference: ./run_all.sh test --update"
    assert tool.unguarded(reference) == []
    assert tool.not_executed(reference) == []


def test_no_reference_is_left_over() -> None:
    assert {p.name for p in tool.notebooks(tool.REFERENCE)} <= {p.name for p in NOTEBOOKS}


# --- the checks themselves ------------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A small notebook without a fault, paired."""
    headings = "\n".join(f"## {heading}" for heading in tool.HEADINGS)
    parameters = nbformat.v4.new_code_cell('profile: str = "miniature"', execution_count=1)
    parameters.metadata["tags"] = ["parameters"]
    shown = nbformat.v4.new_output("stream", text="CNR 1.25\n")
    checked = nbformat.v4.new_code_cell(
        f"{tool.MARK}\nprint('CNR 1.25')", execution_count=2, outputs=[shown]
    )
    cells = [nbformat.v4.new_markdown_cell(f"# Title\n{headings}"), parameters, checked]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"g2g": {"profile": "miniature"}})
    path = tmp_path / "97_sound.ipynb"
    nbformat.write(notebook, path)
    tool.jupytext.write(notebook, path.with_suffix(".py"), fmt="py:percent")
    return path


def changed(path: Path, change) -> Path:
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)
    return path


def source(cell: int, text: str):
    return lambda nb: nb.cells[cell].update(source=text)


def test_a_sound_notebook_passes(sound: Path) -> None:
    for check in (tool.unpaired, tool.bad_style, tool.not_executed, tool.not_committable):
        assert check(sound) == []


def test_an_edit_of_one_side_is_noticed(sound: Path) -> None:
    text = sound.with_suffix(".py").read_text()
    sound.with_suffix(".py").write_text(text.replace("1.25", "1.26"))
    assert "differ in cell 2" in tool.unpaired(sound)[0]


def test_pairing_keeps_outputs_and_repairs_an_edit(sound: Path, monkeypatch) -> None:
    monkeypatch.setattr(tool, "ROOT", sound.parent)
    text = sound.with_suffix(".py").read_text()
    sound.with_suffix(".py").write_text(text.replace("# Title", "# New title"))
    tool.pair([sound.with_suffix(".py")])
    assert tool.unpaired(sound) == []
    assert tool.read(sound).cells[2].outputs[0].text == "CNR 1.25\n"


@pytest.mark.parametrize(
    ("cell", "text", "message"),
    [
        (2, "\n".join(f"x{i} = {i}" for i in range(16)), "has 16 lines"),
        (2, "class A:\n    pass", "defines class A"),
        (2, "def f():\n" + "\n".join(f"    x{i} = {i}" for i in range(10)), "def f is longer"),
        (2, "!ls", "a shell command"),
        (2, "%pip install x", "an installation"),
        (2, "import sys\nsys.path.append('..')", "sys.path"),
        (2, "import warnings\nwarnings.filterwarnings('ignore')", "silenced warnings"),
        (1, 'profile: str = "paper"', "does not set profile"),
        (0, "# Title", "has no part 'Question'"),
    ],
)
def test_a_breach_of_style_is_noticed(sound: Path, cell: int, text: str, message: str) -> None:
    assert message in "\n".join(tool.bad_style(changed(sound, source(cell, text))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nb: nb.metadata.update(g2g={"profile": "paper"}), "executed under paper"),
        (lambda nb: nb.metadata.pop("g2g"), "an unknown profile"),
        (
            lambda nb: nb.cells[2].outputs[0].update(text="in /home/someone/x"),
            "a path of a machine",
        ),
        (
            lambda nb: nb.cells[2].outputs[0].update(text="profile: paper"),
            "the profile paper or open",
        ),
        (
            lambda nb: nb.cells[1].metadata.update(tags=["injected-parameters"]),
            "injected parameters",
        ),
    ],
)
def test_what_must_not_be_committed_is_noticed(sound: Path, change, message: str) -> None:
    assert message in "\n".join(tool.not_committable(changed(sound, change)))


def test_errors_and_unexecuted_cells_are_noticed(sound: Path) -> None:
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    changed(sound, lambda nb: nb.cells[2].update(execution_count=None, outputs=[error]))
    assert ["not executed" in w or "failed: ValueError" in w for w in tool.not_executed(sound)] == [
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (source(2, "print('CNR 1.25')"), "checks nothing"),
        (lambda nb: nb.cells[2].update(outputs=[]), "no count or no text"),
        (lambda nb: nb.cells[2].update(execution_count=None), "no count or no text"),
        (source(0, "# Another"), "is not of the current notebook"),
        (lambda nb: nb.metadata.update(g2g={"profile": "miniature"}), "not executed under smoke"),
    ],
)
def test_a_vacuous_reference_is_noticed(
    sound: Path, tmp_path: Path, monkeypatch, change, message: str
) -> None:
    monkeypatch.setattr(tool, "NOTEBOOKS", sound.parent)
    reference = tmp_path / "reference" / sound.name
    reference.parent.mkdir()
    shutil.copy(sound, reference)
    changed(reference, lambda nb: nb.metadata.update(g2g={"profile": "smoke"}))
    assert tool.unguarded(reference) == []
    assert message in "\n".join(tool.unguarded(changed(reference, change)))


def test_cleaning_drops_times_paths_and_overwritten_bars(sound: Path) -> None:
    notebook = tool.read(sound)
    notebook.metadata["papermill"] = {"output_path": "x"}
    notebook.cells[2].outputs[0].text = f"10%|#\r100%|##########\n{tool.ROOT}/figures/a.png\n"
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    bar = nbformat.v4.new_output(
        "display_data", {"text/plain": "x:   0%|   | 0/9 [00:00<?, ?it/s]"}
    )
    slider = nbformat.v4.new_output("display_data", {"text/plain": "IntSlider(value=0)"})
    bar.data.update(view)
    slider.data.update(view)
    notebook.cells[2].outputs += [bar, slider]
    notebook.metadata["widgets"] = {"state": {}}
    cleaned = tool.cleaned(notebook)
    assert cleaned.cells[2].outputs[1:] == [slider] and "widgets" in cleaned.metadata
    assert cleaned.cells[2].outputs[0].text == "100%|##########\nfigures/a.png\n"
    assert "papermill" not in cleaned.metadata
    cleaned.cells[2].outputs.pop()
    assert "widgets" not in tool.cleaned(cleaned).metadata


def test_a_profile_runs_its_own_notebooks_else_those_of_the_miniature(tmp_path: Path) -> None:
    for name, profile in (("01_a", "miniature"), ("02_b", "radiographs")):
        cells = [nbformat.v4.new_code_cell(f'profile: str = "{profile}"\nshown: int = 1')]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")

    def run(profile: str) -> list[str]:
        return [path.stem for path in tool.belongs.run_by(profile, tmp_path)]

    assert run("radiographs") == ["02_b"]
    assert run("miniature") == run("smoke") == run("paper") == ["01_a"]
