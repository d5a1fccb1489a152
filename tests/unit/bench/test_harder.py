"""The benchmark's table on phantoms drawn into real films (stand-ins where those are absent)."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from g2g_utils import config
from g2g_utils.bench import harder
from g2g_utils.data import phantoms, record
from g2g_utils.experiment import products
from g2g_utils.methods import registry


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The miniature with its first arm alone; weights are the shipped ones."""
    monkeypatch.setenv("G2G_BUILD", str(tmp_path / "build"))
    arms = {"domain-frozen": {"encoder": "domain"}}
    chosen = {"training.arms": arms, "training.seeds": [0]}
    return config.load(
        "miniature", **chosen, **{"grounding.timesteps": 2, "grounding.keep_last": 2}
    )


def stand_ins(folder: Path) -> Path:
    """Drawn normal films of 30 patients."""
    for i, example in enumerate(phantoms.generate(30, 3, "train", normal=1, zoom=(0.8, 0.8))):
        film = Image.fromarray(np.rint(example.image * 255).astype(np.uint8))
        film.save(folder / f"{i:08d}_000.png")
    return folder


def real_normals(folder: Path) -> Path:
    """Links to the real films that ChestX-ray14 labels as normal, or a skip."""
    shared = Path(os.environ.get("G2G_SHARED", Path(__file__).parents[4] / "shared"))
    source = shared / "realdata" / "nih64"
    if not source.is_dir():
        pytest.skip(f"no real images: {source} is absent (set G2G_SHARED)")
    with open(source / "images.csv", newline="") as table:
        names = [row["image"] for row in csv.DictReader(table) if row["labels"] == "No Finding"]
    for name in names:
        (folder / name).symlink_to(source / "images" / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("films", [stand_ins, real_normals])
def test_every_method_is_scored_on_the_same_pairs(small, tmp_path, films):
    (tmp_path / "films").mkdir()
    folder = films(tmp_path / "films")
    methods = products.methods(small, harder.regions(small, folder))
    pairs = record.pairs(harder.examples(small, folder, "test", 4))
    table = harder.scores(methods, pairs)
    sizes = table.groupby("method").size()
    arms, rows = small.training.arms, registry.rows(small).values()
    plain = [row for row in rows if not row.merged and not (row.arm and arms[row.arm].control)]
    assert {row.label for row in plain} | {registry.OTHER_PHRASE} == set(sizes.index)
    assert {"domain-frozen", "BioViL-like", "DAAM", "mean box"} <= set(sizes.index)
    assert sizes.nunique() == 1 and sizes.iloc[0] > 0
    assert table["cnr"].notna().all()
    drawn = phantoms.generate(4, small.data.seed, "test")
    there = harder.examples(small, folder, "test", 4)
    assert [e.phrase for e in there] == [e.phrase for e in drawn]
    assert not any(np.array_equal(a.image, b.image) for a, b in zip(there, drawn, strict=True))


def test_a_folder_that_is_none_is_named(small, tmp_path):
    with pytest.raises(ValueError, match="not a folder of normal radiographs"):
        harder.regions(small, tmp_path / "absent")
