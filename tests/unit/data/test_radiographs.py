"""Packs of small real films: phrases, splits, bad rows, and how a user makes one."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from g2g_utils import config
from g2g_utils.__main__ import main
from g2g_utils.config import ConfigError
from g2g_utils.data import check, radiographs, sources
from g2g_utils.data.images import read_image
from g2g_utils.data.prepare import SHIPPED, prepare
from g2g_utils.data.tables import TableError


@pytest.fixture
def pack(script, tmp_path):
    return script("tests/standins.py").radiographs(tmp_path / "pack")


def test_a_pair_is_a_finding_of_a_film_and_names_the_side_of_its_boxes(pack):
    found = {(p.image_id, p.finding): p for p in radiographs.pairs(pack)}
    assert {key: p.phrase for key, p in found.items()} == {
        ("a_0.png", "Pleural Effusion"): "pleural effusion",  # boxes on both sides
        ("a_0.png", "Mass"): "left lung mass",  # the patient's left is right in the film
        ("a_1.png", "Cardiomegaly"): "cardiomegaly",
        ("b_0.png", "Airspace Opacity"): "right lung opacity",
    }
    both = found["b_0.png", "Airspace Opacity"].boxes  # two annotators, two labels, one finding
    assert both == ((2, 4, 8, 8), (3, 6, 8, 8))


def test_captions_name_the_labels_and_no_side(pack):
    captions = {name: film.caption for name, film in radiographs.films(pack).items()}
    assert captions == {
        "a_0.png": "pleural effusion and lung mass.",
        "a_1.png": "cardiomegaly.",
        "b_0.png": "lung opacity.",
        "c_0.png": "no acute cardiopulmonary process.",
    }


def test_splits_share_no_patient_and_follow_from_the_id_alone(pack):
    shipped = radiographs.split_of_patients(SHIPPED)
    assert set(shipped.values()) == set(sources.SPLITS)
    pairs = radiographs.pairs(SHIPPED)
    boxed = [shipped[patient] for patient in {p.subject_id for p in pairs}]
    assert 0.4 < boxed.count("test") / len(boxed) < 0.6
    some = radiographs.splits(list(radiographs.films(SHIPPED).values())[:50], {"nih:00000032"})
    everyone = {p.subject_id for p in pairs}
    assert all(shipped[s] == split for s, split in some.items() if s not in everyone)
    for film in radiographs.captioned(SHIPPED, "train"):
        assert shipped[film.subject_id] == "train" and not film.boxes


def test_the_shipped_pack_is_whole():
    """Counts of its SOURCES.md; every film can be read, every box lies inside."""
    films, pairs = radiographs.films(SHIPPED), radiographs.pairs(SHIPPED)
    assert len(films) == 1282 and len({f.subject_id for f in films.values()}) == 694
    assert len(pairs) == 641
    text = (SHIPPED / "SOURCES.md").read_text()
    assert "1282 frontal" in text and "864 boxes" in text and "NIH Clinical Center" in text
    assert read_image(films["00000072_000.png"].path).shape == (128, 128)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("boxes.csv", "a_0.png,Mass", "x_0.png,Mass", "line 4.*'x_0.png' is no film of the pack"),
        ("boxes.csv", "Mass,22", "Masses,22", "line 4.*'Masses'; did you mean 'Mass'"),
        ("boxes.csv", "Mass,22,4,6,6", "Mass,22,4,60,6", "line 4.*leaves the image"),
        ("boxes.csv", "image,label", "image,finding", "no column 'label'"),
        ("images.csv", "Infiltration", "", "line 4.*no label"),
        ("images.csv", "Effusion|Mass", "Effusion|No Finding", "line 2.*contradicts itself"),
        ("images.csv", "nih:2", "", "line 4.*the patient is empty"),
        ("images.csv", "c_0.png", "d_0.png", "line 5.*d_0.png"),
        ("images.csv", "b_0.png", "a_1.png", "'a_1.png' is already in line 3"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(pack, name, old, new, message):
    table = pack / name
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(TableError, match=message):
        radiographs.pairs(pack)


def test_the_check_reads_a_pack_and_sees_a_truncated_film(pack, tmp_path):
    films = {"data.source": "radiographs", "data.root": str(pack)}
    settings = config.load("miniature", **films)
    assert not check.check(settings).failed
    film = pack / "images" / "a_0.png"
    film.write_bytes(film.read_bytes()[:60])
    report = check.check(settings)
    assert report.failed and "a_0.png" in str(report)


def test_training_mixes_films_implants_and_phantoms(pack):
    settings = config.load(
        "miniature",
        **{
            "data.source": "radiographs",
            "data.root": str(pack),
            "data.repeats": 2,
            "data.implants": 3,
            "data.implant_world": {"natural": True, "normal": 0},
            "data.world": {"normal": 0},
            "data.drawn": 2,
        },
    )
    mixed = sources.examples(settings, "train")
    films = [e for e in mixed if not e.image_id.startswith("phantom")]
    assert sorted(e.image_id for e in films) == sorted(2 * ["a_0.png", "a_1.png", "c_0.png"])
    assert len(mixed) - len(films) == 3 + 2 and all(e.regions for e in mixed if e not in films)
    assert [e.subject_id for e in sources.examples(settings, "validation")] == ["nih:2"]
    (pack / "images.csv").write_text(
        (pack / "images.csv").read_text().replace("No Finding", "Edema")
    )
    with pytest.raises(ConfigError, match="no training film without a finding"):
        sources.examples(settings, "train")


# ---------------------------------------------------------------- made by a user


@pytest.fixture
def downloads(script, tmp_path):
    """ChestX-ray14 with a film of noise, and boxes of the other two sources."""
    standins = script("tests/standins.py")
    nih = standins.chestxray14(tmp_path / "nih")
    standins.film(nih / "images_001/images/00000003_000.png", 64, 64)
    rsna = standins.rsna(tmp_path / "rsna")
    names = "rsna_patientId,nih_image,rsna_class,match_mse\np-2,00000003_000.png,x,1.5\n"
    (rsna / "rsna_nih_match.csv").write_text(names)
    det = tmp_path / "det"
    det.mkdir()
    items = [{"file_name": "7.png", "syms": ["Effusion"], "boxes": [[0, 512, 256, 1024]]}]
    (det / "ChestX_Det_test.json").write_text(json.dumps(items))
    (det / "chestxdet_to_nih_names.csv").write_text(
        "nih_image,chestxdet_file_name\n00000002_003.png,7.png\n"
    )
    return nih, rsna, det


def test_prepare_scales_films_and_boxes_of_three_sources(downloads, tmp_path):
    nih, rsna, det = downloads
    out = prepare(nih, tmp_path / "own", rsna_folder=rsna, chestxdet=det, films="all", size=32)
    rows = (out / "boxes.csv").read_text().splitlines()
    assert "00000001_000.png,Cardiomegaly,8.016,16.0,16.0,8.0,ChestX-ray14" in rows
    assert "00000003_000.png,Lung Opacity,8.0,4.0,8.0,16.0,RSNA 2018" in rows
    assert "00000002_003.png,Effusion,0.0,16.0,8.0,16.0,ChestX-Det" in rows  # from corners
    assert read_image(out / "images" / "00000002_003.png").shape == (32, 32)
    assert len(radiographs.films(out)) == 4 and len(radiographs.pairs(out)) == 6
    assert "RSNA" in (out / "SOURCES.md").read_text()


def test_prepare_goes_on_where_it_stopped_and_reads_no_film_twice(downloads, tmp_path):
    nih, *_ = downloads
    out = prepare(nih, tmp_path / "own", films="all", size=32)
    before = {p.name: p.read_bytes() for p in (out / "images").iterdir()}
    (out / "images" / "00000001_000.png").unlink()
    kept = out / "images" / "00000002_003.png"
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(kept)  # would be overwritten if read again
    prepare(nih, out, films="all", size=32)
    after = {p.name: p.read_bytes() for p in (out / "images").iterdir()}
    assert after.pop(kept.name) != before.pop(kept.name) and after == before


def test_normal_films_balance_the_boxed_patients(downloads, tmp_path):
    nih, *_ = downloads
    out = prepare(nih, tmp_path / "own", size=32)
    patients = {film.subject_id for film in radiographs.films(out).values()}
    assert patients == {"nih:00000001", "nih:00000002", "nih:00000003", "nih:00030805"}


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (lambda n, r, d: shutil.rmtree(n / "images_012"), [], "1 of 4 films are not there"),
        (lambda n, r, d: (n / "BBox_List_2017.csv").unlink(), [], "no file BBox_List_2017"),
        (lambda n, r, d: (d / "ChestX_Det_test.json").unlink(), ["det"], "no file ChestX_Det"),
        (
            lambda n, r, d: (d / "ChestX_Det_test.json").write_text('[{"syms": []}]'),
            ["det"],
            "item 0.*no item with file_name",
        ),
        (lambda n, r, d: None, ["--size", "8"], "choose a side between 32 and 1024"),
        (lambda n, r, d: None, ["--films", "same"], "of the shipped pack.*have no entry"),
    ],
)
def test_a_wrong_download_is_one_line_and_writes_nothing(
    downloads, tmp_path, capsys, spoil, arguments, message
):
    spoil(*downloads)
    nih, _, det = downloads
    out = tmp_path / "own"
    more = ["--chestxdet", str(det)] if arguments == ["det"] else ["--films", "all", *arguments]
    status = main(["prepare", "radiographs", "--nih", str(nih), "--out", str(out), *more])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and not out.exists()
    assert re.search(message, error), error
