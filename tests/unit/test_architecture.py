"""docs/architecture.md and its picture agree with the import contract and with the files."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("arch", ROOT / "tools" / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_of_the_contract(tool):
    assert tool.PICTURE.read_text() == tool.draw(tool.floors()), "run python tools/architecture.py"


def test_every_room_is_explained_and_placed(tool):
    rooms = {room for floor in tool.floors() for room in floor}
    places = {p.name.removesuffix(".py") for p in (ROOT / "g2g_utils").iterdir()}
    assert places - {"__init__", "__pycache__"} <= rooms
    assert rooms <= set(tool.SAYS)
    page = PAGE.read_text()
    assert [room for room in sorted(rooms) if f"`{room}" not in page] == []


def test_layers_are_read_as_import_linter_writes_them(tool, tmp_path):
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[[tool.importlinter.contracts]]\ntype = "layers"\nlayers = ["top", "a : b | (c)"]\n'
    )
    assert tool.floors(file) == [["top"], ["a", "b", "c"]]
    file.write_text("[tool.other]\n")
    with pytest.raises(ValueError, match="no import-linter contract"):
        tool.floors(file)


def test_files_that_the_page_names_exist():
    named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", PAGE.read_text())
    assert named
    assert [
        n for n in named if not (ROOT / n).exists() and not (ROOT / "g2g_utils" / n).exists()
    ] == []
