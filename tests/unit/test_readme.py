"""Numbers of the pages are those of the committed result files; links lead somewhere."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def readme():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_equal_the_committed_results(readme):
    for name, blocks in readme.pages().items():
        text = (ROOT / name).read_text()
        assert readme.render(text, blocks) == text, f"{name}: run python tools/readme.py --render"


def test_a_changed_number_is_noticed(readme):
    text = (ROOT / "docs" / "results.md").read_text()
    found = json.loads((ROOT / "figures" / "results.json").read_text())
    found["rows"][0]["cnr"][0] += 0.1
    changed = readme.render(text, {"results": readme.results_table(found)})
    assert changed != text


def test_the_summary_shows_differences_verdicts_and_gaps(readme):
    keys = {"claim": "", "seeds": [0], "split": "test", "run": "r"}
    claim = {"id": "F1-a", "holds": True, "estimate": 0.5, "low": 0.4, "high": 0.6} | keys
    paper = [
        {"claim": "F1-a", "measure": "cnr", "better": "1.21", "worse": "0.72"},
        {"claim": "F2-a", "measure": "fid", "better": "83.8", "worse": "109.4"},
        {"claim": "F6-a", "measure": "timesteps", "better": "5", "worse": ""},
    ]
    rows = {line[2:4]: line for line in readme.summary_table([claim], paper).splitlines()}
    assert "| +0.49 | +0.50 [+0.40, +0.60] | holds |" in rows["F1"]
    assert "| +25.6 | - | - |" in rows["F2"]  # a distance: smaller is better
    assert "| 5 |" in rows["F6"]


def test_the_papers_numbers_name_claims_of_the_run(readme):
    claims = {row["id"] for row in json.loads((ROOT / "figures" / "findings.json").read_text())}
    assert {row["claim"] for row in readme.paper_rows()} <= claims


def test_missing_markers_are_an_error(readme):
    with pytest.raises(ValueError, match="markers"):
        readme.render("no markers here", {"results": "x"})


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_exist(page):
    targets = re.findall(r"\]\((?!http)([^)#\s]+)\)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []
