"""The check of a data root: every kind of damage is one line of the table, none stops it."""

import gzip

import pytest

from g2g_utils import config as configuration
from g2g_utils.data import check


@pytest.fixture
def standins(script):
    return script("tests/standins.py")


@pytest.fixture
def roots(standins, tmp_path):
    for name in ("mimic_cxr", "ms_cxr", "chestxray14", "openi", "rsna", "folder"):
        getattr(standins, name)(tmp_path / name)
    return tmp_path


def paper(roots, **changes):
    places = {
        "data.root": str(roots / "mimic_cxr"),
        "data.validation_from.root": str(roots / "chestxray14"),
        "data.test_from.root": str(roots / "ms_cxr"),
        "data.test_from.images": str(roots / "mimic_cxr"),
    }
    return configuration.load("paper", **places | changes)


def verdicts(report):
    return {(line.source, line.what): (line.found, line.verdict) for line in report.lines}


def test_a_sound_root_has_notes_but_no_failure(roots):
    report = check.check(paper(roots))
    found = verdicts(report)
    missing = {key for key, (_, verdict) in found.items() if verdict == "FAIL"}
    assert missing == {("mimic_cxr", "missing among 5 reports")}  # the stand-in lacks one
    assert found["ms_cxr", "rows"] == ("4", "note") and found["ms_cxr", "pairs"] == ("3", "note")
    assert found["mimic_cxr", "frontal training images"][0] == "5"
    assert found["mimic_cxr, ms_cxr", "patients in train and test"] == ("0", "ok")
    text = str(report)
    assert text.splitlines()[0].split() == ["source", "what", "found", "expected", "verdict"]
    assert "1448" in text and "377110" in text


def test_damage_is_found_and_named(standins, roots):
    film = roots / "mimic_cxr/files/p10/p10000003/s50000004/aaaa0005.jpg"
    standins.film(film, 400, 320)
    film.write_bytes(film.read_bytes()[:-300])
    rows = [
        standins.ms_cxr_row(),
        standins.ms_cxr_row(x=35),
        standins.ms_cxr_row(x=50),
        standins.ms_cxr_row(category_name="Edemma"),
        standins.ms_cxr_row(category_name="Pneumonia"),
        standins.ms_cxr_row(dicom_id="gone", path="files/p10/p10000009/s50000004/gone.jpg"),
    ]
    standins.ms_cxr(roots / "ms_cxr", rows)
    report = check.check(paper(roots))
    found = verdicts(report)
    kinds = ("bad boxes", "unknown classes", "missing or damaged images")
    for what in (*kinds, "damaged among 1 images read"):
        assert found["ms_cxr", what] == ("1", "FAIL"), what
    for what in ("phrases with two classes", "boxes cut at the image's edge"):
        assert found["ms_cxr", what] == ("1", "note"), what
    assert report.failed and "aaaa0005.jpg: truncated or damaged image" in str(report)


def test_patients_in_two_splits_are_found(standins, roots):
    changes = {"data.validation_from.patients": [0, 1], "data.source": "openi",
               "data.root": str(roots / "openi")}  # fmt: skip
    held = {"source": "chestxray14", "root": str(roots / "chestxray14")}
    report = check.check(paper(roots, **changes | {"data.test_from": held}))
    found = verdicts(report)
    assert found["chestxray14", "patients in validation and test"] == ("3", "FAIL")
    assert "patient 00000001 is in validation and test" in str(report)
    assert found["openi", "left out: no image file"] == ("1", "note")


def test_what_cannot_be_read_does_not_stop_the_rest(roots):
    next((roots / "mimic_cxr").glob("*split*")).unlink()
    report = check.check(paper(roots))
    found = verdicts(report)
    assert found["mimic_cxr", "files"] == ("unusable", "FAIL")
    assert found["chestxray14", "rows"][0] == "4" and found["chestxray14", "entries"][0] == "4"


def test_duplicate_ids_and_damaged_boxes_of_the_other_sources(roots):
    table = roots / "openi" / "indiana_projections.csv"
    table.write_text(table.read_text() + "1,1_IM-0001-4001.dcm.png,Frontal\n")
    labels = roots / "rsna" / "stage_2_train_labels.csv"
    labels.write_text(labels.read_text() + "p-2,1000,1,500,5,1\n" + "p-2,2000,1,5,5,1\n" * 2)
    changes = {"data.source": "openi", "data.root": str(roots / "openi"),
               "data.test_from": {"source": "rsna", "root": str(roots / "rsna")}}  # fmt: skip
    found = verdicts(check.check(paper(roots, **changes)))
    assert found["openi", "duplicate ids"] == ("1", "FAIL")
    assert found["rsna", "bad boxes"] == ("2", "FAIL")
    assert found["rsna", "boxes cut at the image's edge"] == ("1", "note")
    assert found["rsna", "rows given twice"] == ("1", "note")


def test_an_image_of_two_splits_or_patients_fails(standins, roots):
    rows = [standins.ms_cxr_row(), standins.ms_cxr_row(x=20, split="test")]
    standins.ms_cxr(roots / "ms_cxr", rows)
    report = check.check(paper(roots))
    assert verdicts(report)["ms_cxr", "duplicate ids"] == ("1", "FAIL")
    assert "line 3, column 'dicom_id': 'aaaa0005' has the split test, but validation" in str(report)


def test_two_subsets_of_one_table_are_told_apart(standins, roots):
    """Every subset has its own patients; the table itself is checked once."""
    other = "files/p10/p10000004/s50000006/aaaa0007.jpg"
    rows = [standins.ms_cxr_row(), standins.ms_cxr_row(dicom_id="b", path=other, split="test")]
    root = standins.ms_cxr(roots / "ms_cxr", rows)

    def held(subset):
        places = {"root": str(root), "images": str(roots / "mimic_cxr")}
        return {"source": "ms_cxr", "subset": subset, **places}

    def checked(one, two):
        changes = {"data.validation_from": held(one), "data.test_from": held(two)}
        return check.check(paper(roots, **changes))

    report = checked("validation", "test")
    found = verdicts(report)
    assert found["ms_cxr", "patients in validation and test"] == ("0", "ok")
    assert found["mimic_cxr, ms_cxr", "patients in train and test"] == ("0", "ok")
    assert sum(line.what == "rows" for line in report.lines) == 1
    found = verdicts(checked("test", "test"))
    assert found["ms_cxr", "patients in validation and test"] == ("1", "FAIL")


def test_all_training_images_are_looked_for(roots):
    """One of many is a note, as a run leaves it out; none at all is a failure."""
    films = sorted((roots / "mimic_cxr").rglob("aaaa*.jpg"))
    films[0].unlink()
    found = verdicts(check.check(paper(roots), sample=1))
    assert found["mimic_cxr", "left out: no image file"] == ("1", "note")
    assert found["mimic_cxr", "damaged among 1 images read"] == ("0", "ok")
    for film in films[1:]:
        film.unlink()
    found = verdicts(check.check(paper(roots), sample=1))
    assert found["mimic_cxr", "left out: no image file"][1] == "FAIL"


def test_compressed_entries_of_chestxray14_are_checked(roots):
    plain = roots / "chestxray14" / "Data_Entry_2017.csv"
    plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert verdicts(check.check(paper(roots)))["chestxray14", "entries"][0] == "4"


def test_a_folder_is_checked_too(roots):
    held = {"source": "folder", "root": str(roots / "folder")}
    report = check.check(paper(roots, **{"data.test_from": held, "data.source": "folder",
                                         "data.root": str(roots / "folder")}))  # fmt: skip
    found = verdicts(report)
    assert found["folder", "pairs"] == ("2", "ok")
    assert found["folder", "patients in train and test"][1] == "FAIL"


def test_command_line(capsys, roots, tmp_path):
    assert check.main(["miniature"]) == 0
    assert "phantoms" in capsys.readouterr().out
    assert check.main(["nothing"]) == 2
    assert "unknown profile 'nothing'" in capsys.readouterr().err
    text = (configuration.CONFIGS / "open.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    for name in ("openi", "chestxray14"):
        text = text.replace(f"data/{name}", str(roots / name))
    mine.write_text(text)
    assert check.main([str(mine), "--all"]) == 0
    assert "left out: not frontal" in capsys.readouterr().out
    (roots / "openi" / "indiana_reports.csv").unlink()
    assert check.main([str(mine)]) == 1


def test_films_with_something_to_look_at_are_a_note(tmp_path, caplog):
    from PIL import Image

    Image.new("L", (32, 32), 90).save(tmp_path / "a.png", dpi=(200, 100))
    report = check.Report()
    check.check_images(report, "folder", [tmp_path / "a.png"], None)
    assert not report.failed and not caplog.text
    assert [line.verdict for line in report.lines] == ["ok", "note"]
    assert "its pixels are" in report.details[0]
