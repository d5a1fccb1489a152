"""Executed notebooks of credentialed runs: banner, refusal, and that none is committed."""

import subprocess
import sys

import nbformat
import pytest
import yaml

from g2g_utils import config
from g2g_utils.experiment import privacy
from g2g_utils.runs import places


def notebook(profile="miniature", text="fine"):
    """An executed notebook with a parameters cell."""
    v4 = nbformat.v4
    cell = v4.new_code_cell(f'profile: str = "{profile}"', metadata={"tags": ["parameters"]})
    shown = v4.new_code_cell("show", outputs=[v4.new_output("stream", text=text)])
    return v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), cell, shown])


def test_a_credentialed_run_gets_a_banner_once_and_is_refused():
    made = notebook()
    privacy.mark(made, "paper")
    privacy.mark(made, "paper")
    assert [c.source for c in made.cells].count(privacy.BANNER) == 1
    assert made.cells[0].source == privacy.BANNER and made.metadata["g2g"]["profile"] == "paper"
    assert privacy.refused(made) == ["carries the banner of credentialed data"]
    made.metadata.pop("g2g")
    assert privacy.refused(made)  # the cell alone is enough


@pytest.mark.parametrize("profile", ["miniature", "smoke", "open"])
def test_other_runs_get_none(profile):
    made = notebook(profile)
    privacy.mark(made, profile)
    assert len(made.cells) == 3 and privacy.refused(made) == []


def test_radiographs_of_the_users_own_are_refused(monkeypatch):
    """Only where the notebook reads the variable that names them, and only if it was set."""
    reads = notebook()
    reads.cells.append(nbformat.v4.new_code_cell(f'os.environ.get("{privacy.FILMS}")'))
    privacy.mark(reads, "miniature")
    assert privacy.refused(reads) == []
    monkeypatch.setenv(privacy.FILMS, "/films")
    privacy.mark(reads, "miniature")
    assert privacy.refused(reads)[0].startswith("shows radiographs")
    other = notebook()
    privacy.mark(other, "miniature")
    assert privacy.refused(other) == []


def test_paths_of_patients_in_errors_and_widgets_are_refused():
    path = "files/p10/p10000032/s50414267/02aa804e.jpg"
    failed = notebook()
    error = nbformat.v4.new_output("error", ename="OSError", evalue="no file", traceback=[path])
    failed.cells[-1].outputs = [error]
    assert privacy.refused(failed) == ["shows the path of a MIMIC-CXR patient"]
    widget = notebook()
    widget.metadata["widgets"] = {"state": {"value": path}}
    assert privacy.refused(widget) == ["shows the path of a MIMIC-CXR patient"]


def test_a_run_past_the_workflow_is_refused_too(tmp_path):
    """papermill by hand leaves no mark: the injected parameter and patients' paths tell."""
    made = notebook()
    made.cells.insert(2, nbformat.v4.new_code_cell('profile = "paper"'))
    assert "executed under 'paper'" in privacy.refused(made)[0]
    shown = notebook(text="p10000032/s50414267 and files/p10/p10000032/s50414267/a.jpg")
    assert privacy.refused(shown) == ["shows the path of a MIMIC-CXR patient"]
    own = tmp_path / "own.yaml"
    tree = yaml.safe_load((config.CONFIGS / "paper.yaml").read_text())
    own.write_text(yaml.safe_dump(tree))
    assert privacy.refused(notebook(str(own))) and privacy.refused(notebook("no such profile"))


@pytest.mark.slow
def test_the_hook_refuses_such_a_file_wherever_it_lies(root, tmp_path):
    """What pre-commit calls; exit status 1 and the file's name."""
    for name, profile in (("good.ipynb", "open"), ("bad.ipynb", "paper")):
        made = notebook(profile)
        privacy.mark(made, profile)
        nbformat.write(made, tmp_path / name)
    command = [sys.executable, "tools/notebooks.py", "refuse"]
    files = [str(tmp_path / name) for name in ("good.ipynb", "bad.ipynb")]
    done = subprocess.run([*command, *files], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "bad.ipynb carries the banner" in done.stderr
    assert "good.ipynb" not in done.stderr
    hooks = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {h["files"] for h in hooks if h["entry"].endswith("notebooks.py refuse")} == {
        r"\.ipynb$"
    }


def test_no_notebook_of_this_repository_is_refused(root):
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "*.ipynb"], capture_output=True, text=True
    )
    paths = [root / name for name in listed.stdout.splitlines()]
    if not paths:
        pytest.skip("not a git checkout")
    found = {p.name: privacy.refused(nbformat.read(p, as_version=4)) for p in paths}
    assert not any(found.values()), found


def test_runs_on_files_write_below_the_build_folder_whatever_the_profile_is_called(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("G2G_RUN", raising=False)
    monkeypatch.delenv("G2G_BUILD", raising=False)
    named = tmp_path / "miniature.yaml"  # a user's own file
    named.write_text((config.CONFIGS / "paper.yaml").read_text())
    for profile in ("open", "paper", str(named)):
        settings = config.load(profile)
        assert places.build(settings).is_relative_to(places.ROOT / "build")
        assert places.kept_figures(settings).is_relative_to(places.build(settings))
    own = {"source": "folder", "root": str(tmp_path)}
    for films in ({"data.test_from": own}, {"data.validation_from": own}):
        settings = config.load("miniature", **films)
        assert places.kept_figures(settings).is_relative_to(places.build(settings))
    settings = config.load("radiographs", **{"data.root": "data/radiographs-own"})
    assert places.kept_figures(settings).is_relative_to(places.build(settings))
    for shipped in ("miniature", "radiographs"):
        assert places.kept_figures(config.load(shipped)) == places.ROOT / "figures"
