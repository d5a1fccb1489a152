# ruff: noqa: F401, F811 (fixtures of the neighbour)
"""Grounding a table: what is written, what a second call does, and bad rows."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from g2g_utils.data import siim
from g2g_utils.experiment import coco, ground_file, ground_table
from g2g_utils.experiment.ground_table import Wanted
from tests.unit.experiment.test_ground_file import config, film, quick, untrained

PHRASES = ("left lung opacity", "right lung opacity in the lower zone")


@pytest.fixture
def table(tmp_path):
    """A table of two films with two phrases each, and bad rows between them."""
    film(tmp_path / "a.png")
    film(tmp_path / "b.png", (80, 64))
    Image.new("L", (64, 64), 9).save(tmp_path / "flat.png")
    lines = [
        "image,phrase,remark",
        f"a.png,{PHRASES[0]},good",
        "gone.png,left lung opacity,no such file",
        f"b.png,{PHRASES[1]},good",
        "a.png,of the,function words",
        f"flat.png,{PHRASES[0]},one grey",
        f"a.png,{PHRASES[1]},good",
        f"b.png,{PHRASES[0]},good",
        "a.png,,no phrase",
        f"a.png,{PHRASES[0]},the first again",
    ]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_good_rows_are_done_and_bad_ones_listed(config, quick, table, capsys):
    (results, boxes, bad), count = ground_table.ground_table(config, table)
    rows = rows_of(results)
    assert [row["line"] for row in rows] == ["2", "4", "7", "8"] and count == 4
    told = " ".join(row["problem"] for row in rows_of(bad))
    for line, fix in (
        ("3", "names are relative"),
        ("5", "function words"),
        ("6", "same"),
        ("9", ""),
    ):
        assert f"line {line}" in told and fix in told
    assert capsys.readouterr().err.count("problem: ") == 4
    found = json.loads(boxes.read_text())
    assert [image["file_name"] for image in found["images"]] == ["a.png", "b.png"]
    assert [one["name"] for one in found["categories"]] == list(PHRASES)
    for row in rows:
        folder = results.parent / row["folder"]
        assert (folder / "overlay.png").is_file()
        alone = ground_file.ground_file(
            config, table.parent / row["image"], row["phrase"], out=folder.parents[1] / "alone"
        )
        assert alone[0].parent.name == folder.name  # the same request has the same name
        for name in ("heatmap", "mask"):
            one, other = (np.load(f / "maps.npz")[name] for f in (folder, alone[0].parent))
            assert np.allclose(one, other, atol=1e-5)


def test_a_second_call_does_only_what_is_missing(config, quick, table, monkeypatch):
    (results, *_), _ = ground_table.ground_table(config, table, wanted=Wanted(overlays=False))
    before, rows = results.read_bytes(), rows_of(results)
    (results.parent / rows[2]["folder"] / "grounding.json").unlink()
    asked, whole = [], ground_file.answers
    monkeypatch.setattr(
        ground_file, "answers", lambda a, m, e: asked.append(len(e)) or whole(a, m, e)
    )
    ground_table.ground_table(config, table, wanted=Wanted(overlays=False))
    assert asked == [1] and results.read_bytes() == before
    table.write_text("image,phrase\n" + "\n".join(f"a.png,{p}" for p in PHRASES) + "\n")
    monkeypatch.setattr(ground_file, "load_model", lambda asked: pytest.fail("nothing is missing"))
    written, bad = ground_table.ground_table(config, table, wanted=Wanted(overlays=False))
    assert bad == 0 and len(rows_of(results)) == 2 and len(written) == 2
    assert not results.with_name("problems.csv").exists()


@pytest.mark.parametrize("method", ["both", "zero-shot-ldm"])
def test_other_methods(config, quick, table, method):
    table.write_text("image,phrase\n" + "\n".join(f"a.png,{p}" for p in PHRASES) + "\n")
    wanted = Wanted(overlays=False, threshold=0.5)
    (results, *_), bad = ground_table.ground_table(config, table, method=method, wanted=wanted)
    first = rows_of(results)[0]
    alone = ground_file.ground_file(config, table.parent / "a.png", PHRASES[0], method=method)
    heat = np.load(results.parent / first["folder"] / "maps.npz")["heatmap"]
    assert not bad and np.allclose(heat, np.load(alone[1])["heatmap"], atol=1e-4)


def test_an_answer_that_fails_for_one_pair_leaves_the_others(
    config,
    quick,
    table,
    monkeypatch,
):
    whole = ground_file.answers

    def refuse(asked, model, examples):
        if any("lower" in example.phrase for example in examples):
            raise ValueError("no such word")
        return whole(asked, model, examples)

    monkeypatch.setattr(ground_file, "answers", refuse)
    (results, _, bad), count = ground_table.ground_table(
        config, table, wanted=Wanted(overlays=False)
    )
    assert [row["line"] for row in rows_of(results)] == ["2", "8"] and count == 6
    assert "no such word" in bad.read_text()


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_read_back(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((9, 7), bool)
    mask[2:6, 1:5] = rng.random((4, 4)) > 0.4 if seed else True
    counts = coco.run_lengths(mask[2:6, 1:5], (2, 1), mask.shape)
    assert counts == coco.run_lengths(mask) and sum(counts) == mask.size
    pairs = " ".join(map(str, counts[: len(counts) // 2 * 2]))
    assert np.array_equal(siim.decode(pairs, *mask.shape), mask)


def test_run_lengths_at_the_ends():
    assert coco.run_lengths(np.zeros((2, 3), bool)) == [6]
    assert coco.run_lengths(np.ones((2, 3), bool)) == [0, 6]
    assert coco.run_lengths(np.array([[True, False], [False, True]])) == [0, 1, 2, 1]


def test_regions_in_pixels_of_the_film():
    """A 4 x 4 map lies over the centred square of a 40 x 60 film."""
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0], heat[2:, 3] = 1, 0.8
    mask = coco.film_mask(heat, heat > 0, 0.4, (40, 60))
    found = coco.regions(mask, coco.in_film(heat, 40, 60))
    assert [one["score"] for one in found] == [1, 0.8]
    x, y, w, h = found[0]["bbox"]
    assert (x, y) == (10, 0) and 9 <= w <= 12 and 9 <= h <= 12
    assert found[1]["bbox"][0] + found[1]["bbox"][2] == 50  # the square's right edge
    assert all(one["area"] == sum(one["segmentation"]["counts"][1::2]) for one in found)


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_impossible_thresholds(threshold):
    with pytest.raises(ValueError, match="choose from 0 to below 1"):
        Wanted(threshold=threshold)


def test_segmentation_of_a_dicom_film(tmp_path):
    highdicom = pytest.importorskip("highdicom", reason="optional: pip install highdicom")
    import pydicom
    from pydicom.data import get_testdata_file

    from g2g_utils.experiment import dicom_seg

    path = tmp_path / "film.dcm"
    source = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    source.save_as(path)
    mask = np.zeros((source.Rows, source.Columns), bool)
    mask[20:40, 30:70] = True
    dicom_seg.write(tmp_path / "s.dcm", path, mask, "left effusion")
    made = highdicom.seg.segread(tmp_path / "s.dcm")
    assert np.array_equal(made.pixel_array.reshape(mask.shape).astype(bool), mask)
    assert made.SegmentSequence[0].SegmentLabel == "left effusion"
    assert made.StudyInstanceUID == source.StudyInstanceUID
    with pytest.raises(ValueError, match="empty"):
        dicom_seg.write(tmp_path / "t.dcm", path, mask & False, "left effusion")
    film(tmp_path / "f.png")
    with pytest.raises(ValueError, match="no DICOM file"):
        dicom_seg.write(tmp_path / "t.dcm", tmp_path / "f.png", mask, "left effusion")
