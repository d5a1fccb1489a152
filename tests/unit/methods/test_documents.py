"""The example of CONTRIBUTING.md works; docs/methods.md agrees with the registry."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from g2g_utils import bench, config
from g2g_utils.data import phantoms, record
from g2g_utils.methods import registry
from g2g_utils.methods.base import Query

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def darkness(monkeypatch):
    """The method of the page, built from its row as an experiment builds it."""
    monkeypatch.setattr(registry, "KINDS", dict(registry.KINDS))
    page = (ROOT / "CONTRIBUTING.md").read_text()
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], {"__name__": "example"})
    kind, row = registry.parse("dark", {"kind": "darkness"})
    parts = SimpleNamespace(config=SimpleNamespace(image_size=32))
    return kind.build(parts, "dark", row, None)


def test_the_example_grounds(darkness):
    image = torch.zeros(3, 32, 32)
    image[:, :16] = 1
    found, none = darkness.ground([Query(image, "left effusion"), Query(image, " ")])
    assert found.exists and found.values[20, 4] > found.values[4, 4]
    assert not none.exists and none.note == "empty"


def test_the_example_is_scored_like_every_method(darkness):
    pairs = record.pairs(phantoms.generate(6, 0, "test", size=32))[:4]
    table = bench.score(darkness, pairs, progress=False)
    assert set(table["method"]) == {"dark"} and len(table) == len(pairs)
    assert {"cnr", "specificity", "balanced_iou"} <= set(table)


def test_the_table_of_the_page_is_usable():
    page = (ROOT / "docs" / "methods.md").read_text()
    table = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])["methods"]
    found = registry.rows(config.load("miniature", methods=table))
    assert [row.label for row in found.values()][-2:] == ["BioViL-like", "mean box"]


def test_every_kind_has_its_row():
    rows = []
    for line in (ROOT / "docs" / "methods.md").read_text().splitlines():
        if line.startswith("| `"):
            name, *_, citation, licence, cost = (
                cell.strip() for cell in line.strip("| ").split("|")
            )
            rows.append((name.strip("`"), citation, licence, cost))
    kinds = [(k.name, k.citation, k.licence, k.cost) for k in registry.KINDS.values()]
    assert sorted(rows) == sorted(kinds)  # each once
