"""SIIM's run lengths against MGCA's decoder; its films, and the published split of RSNA's."""

from pathlib import Path

import numpy as np
import pytest

from g2g_utils.data import rsna, siim
from g2g_utils.data.tables import TableError

VECTORS = Path(__file__).parents[2] / "vectors" / "g2d.npz"


@pytest.fixture
def root(script, tmp_path):
    return script("tests/standins.py").siim(tmp_path)


@pytest.mark.parametrize("width, height", [(16, 12), (12, 12)])
def test_run_lengths(width, height):
    stored = np.load(VECTORS)
    mask = siim.decode(str(stored["mgca/rle"]), height, width)
    assert np.array_equal(mask, stored[f"mgca/rle_mask_{width}x{height}"] > 0)


def test_rows_of_one_film_are_one_record(root):
    (film,) = siim.load(root, masks=True)
    assert film.image_id == "s-2" and film.mask.sum() == 3 + 2 + 4
    assert film.mask[10:13, 1].all() and film.mask[10:12, 2].all() and film.mask[5:9, 0].all()
    assert film.boxes == ((1, 10, 2, 3), (0, 5, 1, 4))
    (region,) = film.regions
    assert region.finding == "Pneumothorax" and region.mask is film.mask
    assert siim.load(root)[0].mask is None and siim.load(root)[0].boxes == film.boxes
    assert [f.image_id for f in siim.load(root, negatives=True)] == ["s-1", "s-2", "s-3"]


@pytest.mark.parametrize(
    "row, problem",
    [
        ("s-2,1048570 9", "column 'EncodedPixels': the runs end at pixel 1048579 of 1048576"),
        ("s-2,5", "column 'EncodedPixels': '5' is no list of pairs"),
        ("s-2,5 -1", "column 'EncodedPixels': '5 -1' is no list"),
        ("s-2,", "column 'EncodedPixels': '' is no list"),
        ("s-2,5 0", "column 'EncodedPixels': the mask is empty"),
        ("s-9,5 3", "column 'ImageId': .*no such file"),
    ],
)
def test_errors(root, row, problem):
    (root / "train-rle.csv").write_text(f"ImageId, EncodedPixels\n{row}\n")
    with pytest.raises(TableError, match=f"line 2, {problem}"):
        siim.load(root)


def test_films_of_another_size_are_one_line(script, root):
    path = root / "dicom-images-train" / "s-2" / "series" / "s-2.dcm"
    script("tests/standins.py").dicom(path, side=64)
    with pytest.raises(TableError, match="the film is 64×64 pixels, its mask 1024×1024"):
        siim.load(root)


def test_the_published_split_of_rsna():
    names = [f"{k:05}" for k in range(26684)]
    found = rsna.published_split(reversed(names))
    assert [len(found[s]) for s in ("train", "validation", "test")] == [16010, 5337, 5337]
    assert sorted(name for part in found.values() for name in part) == names
    assert found == rsna.published_split(names + names[:5])  # rows of a film count once
    with pytest.raises(ValueError, match="20 films"):
        rsna.published_split(names[:20])
