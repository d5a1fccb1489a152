"""README's numbers are those of the committed result files."""

import importlib.util
import json
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
    text = (ROOT / "README.md").read_text()
    assert readme.render(text, readme.blocks()) == text, "run python tools/readme.py --render"


def test_a_changed_number_is_noticed(readme):
    text = (ROOT / "README.md").read_text()
    found = json.loads((ROOT / "figures" / "results.json").read_text())
    found["rows"][0]["cnr"][0] += 0.1
    changed = readme.render(text, {"results": readme.results_table(found)})
    assert changed != text


def test_missing_markers_are_an_error(readme):
    with pytest.raises(ValueError, match="markers"):
        readme.render("no markers here", {"results": "x"})


def test_links_and_images_of_the_readme_exist():
    import re

    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
