"""Each loader on its published format and on real files; what it refuses, and in which words."""

import csv
import gzip
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from g2g_utils.data import chestxray14, files, mimic_cxr, ms_cxr, openi, rsna
from g2g_utils.data.tables import TableError

SHARED = Path(os.environ.get("G2G_SHARED", str(Path(__file__).parents[4] / "shared")))
FORMATS = SHARED / "realdata" / "formats"


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


def real(*parts):
    """A real file of the data pack, or a skipped test."""
    path = FORMATS.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real files: {path} is absent (set G2G_SHARED)")
    return path


# ---------------------------------------------------------------- MS-CXR


@pytest.fixture
def mimic(standins, tmp_path):
    return standins.mimic_cxr(tmp_path / "mimic_cxr")


@pytest.mark.parametrize("version", ["0.1", "1.0.0", "1.1.0"])
def test_ms_cxr_merges_rows_of_a_pair(standins, mimic, tmp_path, version):
    version = "1.0.0" if version == "0.1" else version
    found = ms_cxr.load(standins.ms_cxr(tmp_path / "ms", version=version), mimic)
    assert [(e.phrase, e.finding, len(e.boxes)) for e in found] == [
        ("mild edema", "Edema", 2),
        ("left effusion", "Pleural Effusion", 1),
        ("mild edema", "Edema", 1),
    ]
    assert found[0].boxes == ((2, 3, 10, 12), (20, 3, 10, 12))
    assert found[0].subject_id == "10000003" and found[0].image.is_file()
    splits = ["validation", "validation", "test"] if version == "1.1.0" else ["test"] * 3
    assert [e.split for e in found] == splits
    assert len(ms_cxr.load(tmp_path / "ms", mimic, "test")) == splits.count("test")


def test_coco_and_csv_say_the_same(standins, mimic, tmp_path):
    one = ms_cxr.load(standins.ms_cxr(tmp_path / "csv"), mimic)
    other = ms_cxr.load(standins.ms_cxr_coco(tmp_path / "coco"), mimic)
    assert [vars(e) for e in one] == [vars(e) for e in other]
    assert ms_cxr.subjects(tmp_path / "coco") == ms_cxr.subjects(tmp_path / "csv") == {"10000003"}


def test_the_files_folder_itself_may_be_named(standins, mimic, tmp_path):
    root = standins.ms_cxr(tmp_path / "ms")
    assert len(ms_cxr.load(root, mimic / "files")) == 3
    assert ms_cxr.load(ms_cxr.table(root), mimic)[0].image_id == "aaaa0005"


def test_boxes_follow_resized_copies_but_not_cropped_ones(standins, mimic, tmp_path):
    root = standins.ms_cxr(tmp_path / "ms", [standins.ms_cxr_row()])
    image = mimic / "files/p10/p10000003/s50000004/aaaa0005.jpg"
    standins.film(image, 20, 16)
    assert ms_cxr.load(root, mimic)[0].boxes == ((1, 1.5, 5, 6),)
    standins.film(image, 32, 32)
    with pytest.raises(TableError, match=r"line 2: .*32×32 pixels, but the box was drawn in 40×32"):
        ms_cxr.load(root, mimic)
    image.rename(image.with_suffix(".png"))
    standins.film(image.with_suffix(".png"), 40, 32)
    assert ms_cxr.load(root, mimic)[0].image.suffix == ".png"


BAD_ROWS = [
    (
        {"category_name": "Oedema"},
        "category_name",
        "unknown class 'Oedema'",
        "did you mean 'Edema'",
    ),
    ({"label_text": " "}, "label_text", "the phrase is empty", "published file"),
    ({"x": "nan"}, "x", "'nan' is not a finite number", "write pixels"),
    ({"y": ""}, "y", "the box is incomplete", "leave all four empty"),
    ({"w": 0}, "w", "box side 0 is not positive", "not a second corner"),
    ({"h": -3}, "h", "box side -3 is not positive", "not a second corner"),
    ({"x": 40}, "x", "box from 40 to 50 leaves the image (0 to 40)", "origin top left"),
    ({"x": "", "y": "", "w": "", "h": ""}, "x", "the row has no box", "one box"),
    ({"image_width": "wide"}, "image_width", "'wide' is not a number", "decimal"),
    ({"path": "files/aaaa0005.jpg"}, "path", "no such file", "relative to"),
    ({"split": "dev"}, "split", "unknown class 'dev'", "test"),
]


@pytest.mark.parametrize(("changes", "column", "problem", "fix"), BAD_ROWS)
def test_ms_cxr_errors_name_row_column_and_fix(
    standins, mimic, tmp_path, changes, column, problem, fix
):
    rows = [standins.ms_cxr_row(), standins.ms_cxr_row(**changes)]
    root = standins.ms_cxr(tmp_path / "ms", rows)
    with pytest.raises(TableError) as caught:
        ms_cxr.load(root, mimic)
    message = str(caught.value)
    assert message.startswith(f"{ms_cxr.table(root)}, line 3, column {column!r}: ")
    assert problem in message and fix in message and "\n" not in message
    problems: list[TableError] = []
    assert len(ms_cxr.load(root, mimic, problems=problems)) == 1 and len(problems) == 1


def test_a_box_that_sticks_out_is_cut_and_a_missing_column_named(standins, mimic, tmp_path, caplog):
    root = standins.ms_cxr(tmp_path / "ms", [standins.ms_cxr_row(x=v) for v in (35, 36, 2)])
    with caplog.at_level(logging.WARNING, files.__name__):
        assert ms_cxr.load(root, mimic)[0].boxes == ((35, 3, 5, 12), (36, 3, 4, 12), (2, 3, 10, 12))
    (said,) = caplog.messages
    assert said.startswith("2 boxes stick out of their images, first: ") and "line 2" in said
    problems: list[TableError] = []
    assert len(ms_cxr.load(root, mimic, problems=problems)) == 1
    assert [p.kind for p in problems] == ["cut", "cut"]
    table = ms_cxr.table(root)
    table.write_text(table.read_text().replace("label_text", "text"))
    with pytest.raises(TableError, match="line 1, column 'label_text': no column 'label_text'"):
        ms_cxr.load(root, mimic)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"path": "files/p10/p10000001/s50000001/aaaa0001.jpg"}, "has the patient 10000001, but"),
        ({"path": "files/p10/p10000003/s50000005/aaaa0006.jpg"}, "has the file .*aaaa0006.jpg"),
        ({"split": "test"}, "has the split test, but validation in line 2; an image has one"),
    ],
)
def test_an_image_has_one_patient_one_file_and_one_split(
    standins, mimic, tmp_path, changes, problem
):
    rows = [standins.ms_cxr_row(), standins.ms_cxr_row(**changes)]
    with pytest.raises(TableError, match=rf"line 3, column 'dicom_id': 'aaaa0005' {problem}"):
        ms_cxr.load(standins.ms_cxr(tmp_path / "ms", rows), mimic)


def test_one_phrase_with_two_classes_stays_two_pairs_and_is_logged(
    standins, mimic, tmp_path, caplog
):
    rows = [standins.ms_cxr_row(), standins.ms_cxr_row(category_name="Pneumonia")]
    with caplog.at_level(logging.WARNING, files.__name__):
        found = ms_cxr.load(standins.ms_cxr(tmp_path / "ms", rows), mimic)
    assert [e.finding for e in found] == ["Edema", "Pneumonia"]
    assert "'mild edema' has the classes Edema and Pneumonia" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"categories": []}', "[" * 100_000, "9" * 5000])
def test_json_that_is_no_coco(tmp_path, content):
    (tmp_path / "MS_CXR_Local_Alignment_v1.1.0.json").write_text(content)
    with pytest.raises(TableError, match=r"v1\.1\.0\.json: (not JSON|no COCO file)"):
        list(ms_cxr.rows(tmp_path))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("v1.1.0.json.gz", gzip.compress),
        ("v1.1.0.json", gzip.compress),
        ("v1.1.0.json", lambda data: b"\xef\xbb\xbf" + data),
    ],
)
def test_coco_may_be_compressed_or_marked(standins, tmp_path, name, pack):
    path = ms_cxr.table(standins.ms_cxr_coco(tmp_path))
    rows = [row.cells for row in ms_cxr.rows(tmp_path)]
    packed = pack(path.read_bytes())
    path.unlink()
    (tmp_path / f"MS_CXR_Local_Alignment_{name}").write_bytes(packed)
    assert [row.cells for row in ms_cxr.rows(tmp_path)] == rows


BAD_COCO = [
    (lambda t: t["annotations"][0].update(label_text=None), "'label_text': the phrase is empty"),
    (
        lambda t: t["annotations"][0].update(label_text=["a"]),
        r"annotation 0: .*\['a'\], not a text",
    ),
    (lambda t: t["annotations"].insert(0, [1]), "annotation 0: TypeError"),
    (lambda t: t["annotations"].insert(0, None), "annotation 0: TypeError"),
    (lambda t: t.update(annotations=[]), "no annotations"),
    (lambda t: t["images"][0].update(path="", file_name=""), "annotation 0, column 'path'"),
    (lambda t: t["annotations"][0].update(bbox=["1_0", 2, 3, 4]), "annotation 0, column 'x'"),
    (lambda t: t["annotations"][0].update(bbox=[None] * 4), "annotation 0, column 'x'"),
    (lambda t: t["images"].append(t["images"][0]), "two images have one id"),
    (lambda t: t["categories"].append({"id": 1, "name": "Mass"}), "two categories have one id"),
]


@pytest.mark.parametrize(("change", "problem"), BAD_COCO)
def test_coco_errors_are_one_line(standins, mimic, tmp_path, change, problem):
    path = ms_cxr.table(standins.ms_cxr_coco(tmp_path))
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))
    with pytest.raises(TableError, match=problem):
        ms_cxr.load(tmp_path, mimic)


def test_a_broken_coco_annotation_is_named(standins, tmp_path):
    path = ms_cxr.table(standins.ms_cxr_coco(tmp_path))
    path.write_text(path.read_text().replace('"bbox"', '"box"', 1))
    with pytest.raises(TableError, match=r"annotation 0: KeyError.*published JSON"):
        list(ms_cxr.rows(tmp_path))


# ---------------------------------------------------------------- MIMIC-CXR


@pytest.mark.parametrize("inner", ["", "mimic-cxr-reports", "files"])
def test_reports_come_from_a_folder_or_the_published_zip(mimic, tmp_path, inner):
    here = mimic_cxr.load(mimic)
    archive = tmp_path / mimic_cxr.REPORTS
    with zipfile.ZipFile(archive, "w") as out:
        for path in mimic.rglob("*.txt"):
            inside = path.relative_to(mimic)
            name = inside.relative_to("files") if inner == "files" else Path(inner) / inside
            out.write(path, name)
            path.unlink()
    for place in (archive, tmp_path):
        assert [vars(e) for e in mimic_cxr.load(mimic, place).examples] == [
            vars(e) for e in here.examples
        ]
    assert not mimic_cxr.load(mimic).examples
    with pytest.raises(TableError, match="no reports there; name the folder"):
        mimic_cxr.load(mimic, tmp_path / "none")
    archive.write_bytes(b"PK")
    with pytest.raises(TableError, match="download it again"):
        mimic_cxr.load(mimic, archive)


def test_a_damaged_report_in_the_zip_is_named(mimic):
    archive = mimic / mimic_cxr.REPORTS
    with zipfile.ZipFile(archive, "w") as out:
        for path in mimic.rglob("*.txt"):
            out.write(path, path.relative_to(mimic))
    archive.write_bytes(archive.read_bytes().replace(b"Edema of study 50000001", b"X" * 23, 1))
    with pytest.raises(TableError, match=r"damaged archive .*s50000001\.txt.*download it again"):
        mimic_cxr.load(mimic)


def test_images_that_are_not_there_are_dropped(mimic):
    before = {e.image_id for e in mimic_cxr.load(mimic).examples}
    next(mimic.rglob("aaaa0001.jpg")).unlink()
    found = mimic_cxr.load(mimic)
    assert {e.image_id for e in found.examples} == before - {"aaaa0001"}
    assert [d.image_id for d in found.dropped if d.reason == "no image file"] == ["aaaa0001"]


def test_excluded_subjects_are_left_out_of_every_split(mimic):
    subjects = frozenset({"10000001", "10000002"})
    for split in ("train", "validation", "test"):
        found = mimic_cxr.load(mimic, split=split, excluded=subjects)
        assert not subjects & {e.subject_id for e in found.examples}
    with pytest.raises(ValueError, match="unknown split 'validate': choose one of train"):
        mimic_cxr.load(mimic, split="validate")


def test_mimic_tables_name_what_is_wrong(standins, mimic):
    split = mimic / "mimic-cxr-2.0.0-split.csv.gz"
    header = ["dicom_id", "study_id", "subject_id", "split"]
    rows = [["d1", "50000001", "10000001", "train"], ["d1", "50000001", "10000001", "val"]]
    standins.table(split, header, rows, compress=True)
    with pytest.raises(TableError, match="line 3, column 'dicom_id': 'd1' is already in line 2"):
        mimic_cxr.load(mimic)
    standins.table(split, header, rows[1:], compress=True)
    with pytest.raises(TableError, match="column 'split': unknown class 'val'; did you mean"):
        mimic_cxr.load(mimic)
    standins.table(mimic / "mimic-cxr-2.0.0-metadata.csv.gz", ["dicom_id", "subject_id"], rows)
    standins.table(split, header, rows[:1])
    with pytest.raises(TableError, match="no column 'study_id' among dicom_id, subject_id"):
        mimic_cxr.load(mimic)
    split.unlink()
    with pytest.raises(TableError, match=r"no file mimic-cxr-2\.\*-split\.csv; data/README"):
        mimic_cxr.load(mimic)


# ---------------------------------------------------------------- ChestX-ray14, RSNA


def test_chestxray14_maps_classes_and_scales_boxes(standins, tmp_path):
    found = chestxray14.load(standins.chestxray14(tmp_path, side=64), template="a film with {}")
    assert [(e.finding, e.phrase.removeprefix("a film with ")) for e in found] == [
        ("Cardiomegaly", "cardiomegaly"),
        ("Pleural Effusion", "pleural effusion"),
        ("Infiltration", "infiltration"),
        ("Mass", "mass"),
    ]
    assert found[1].boxes == ((4, 640.25 / 16, 8, 16),)
    assert found[3].subject_id == "00030805" and "images_012" in str(found[3].image)
    entries = {e.image_id: e for e in chestxray14.entries(tmp_path)}
    assert entries["00000001_000.png"].findings == ("Cardiomegaly", "Pleural Effusion")
    assert entries["00000001_000.png"].subject_id == "00000001"
    assert entries["00000003_000.png"].findings == () and len(entries) == 4
    assert entries["00030805_001.png"].findings == ("Mass", "Pleural Thickening")


def test_chestxray14_errors(standins, tmp_path):
    root = standins.chestxray14(tmp_path)
    boxes = root / "BBox_List_2017.csv"
    good = boxes.read_text()
    boxes.write_text(good.replace("Infiltrate", "Infiltrates!"))
    with pytest.raises(TableError, match="line 4, column 'Finding Label': unknown class"):
        chestxray14.load(root)
    boxes.write_text(good.replace("00000002_003", "00000002_004"))
    with pytest.raises(TableError, match=r"line 4, column 'Image Index': .*no such file"):
        chestxray14.load(root)
    boxes.write_text(good.replace("Bbox [x,y,w,h]", "x0,y0,x1,y1"))
    with pytest.raises(TableError, match=r"no column 'Bbox \[x'"):
        chestxray14.load(root)
    entries = root / "Data_Entry_2017.csv"
    entries.write_text(entries.read_text().replace("|Effusion", "|Efusion"))
    with pytest.raises(TableError, match=r"line 2.*unknown class 'Efusion'; did you mean"):
        list(chestxray14.entries(root))


def test_rsna_boxes_on_dicom(standins, tmp_path):
    root = standins.rsna(tmp_path)
    (found,) = rsna.load(root)
    assert found.boxes == ((8, 4, 8, 16), (20, 4, 6, 10)) and found.finding == "Lung Opacity"
    both = rsna.load(root, negatives=True)
    assert [len(e.boxes) for e in both] == [0, 2]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("p-2,1,1,5,5,2", "column 'Target': '2' is no target"),
        ("p-2,1,1,5,5,0", "column 'Target': Target is 0 with a box"),
        ("p-2,,,,,1", "column 'Target': Target is 1 without a box"),
        ("p-2,1,1,,5,1", "column 'width': the box is incomplete"),
        ("p-9,1,1,5,5,1", "column 'patientId': .*no such file"),
    ],
)
def test_rsna_errors(standins, tmp_path, row, problem):
    root = standins.rsna(tmp_path)
    (root / "stage_2_train_labels.csv").write_text(f"patientId,x,y,width,height,Target\n{row}\n")
    with pytest.raises(TableError, match=f"line 2, {problem}"):
        rsna.load(root)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"PixelData": None}, "DICOM file without pixel data"),
        ({"Rows": None}, "DICOM file without pixel data"),
    ],
)
def test_dicom_without_an_image(standins, tmp_path, header, problem):
    root = standins.rsna(tmp_path)
    standins.dicom(root / "stage_2_train_images" / "p-2.dcm", **header)
    with pytest.raises(ValueError, match=problem):
        rsna.load(root)[0].load(16)


# ---------------------------------------------------------------- OpenI


def test_openi_pairs_and_what_is_left_out(standins, tmp_path):
    found = openi.load(standins.openi(tmp_path))
    assert [(e.subject_id, e.phrase) for e in found.examples] == [
        ("1", "Normal chest x-ray."),
        ("2", "Left effusion. Heart normal."),
    ]
    assert {d.image_id[0]: d.reason for d in found.dropped} == {
        "1": "not frontal",
        "3": "unusable report",
        "4": "no image file",
        "5": "no report",
    }


def test_openi_xml_and_the_names_of_the_nlm(standins, tmp_path):
    root = standins.openi(tmp_path)
    (root / "indiana_reports.csv").unlink()
    folder = root / "ecgen-radiology"
    folder.mkdir()
    abstract = (
        '<Abstract><AbstractText Label="FINDINGS">Clear.</AbstractText>'
        '<AbstractText Label="IMPRESSION">{1}</AbstractText></Abstract>'
    )
    xml = '<eCitation><uId id="CXR{0}"/>' + abstract + "</eCitation>"
    (folder / "1.xml").write_text(xml.format(1, "Normal chest x-XXXX."))
    (folder / "2.xml").write_text(xml.format(2, ""))
    images = root / "images" / "images_normalized"
    (images / "1_IM-0001-4001.dcm.png").rename(images / "CXR1_IM-0001-4001.png")
    texts = [e.phrase for e in openi.load(root).examples]
    assert texts == ["Normal chest x-ray.", "Clear."]
    (folder / "2.xml").write_text("<eCitation>")
    with pytest.raises(TableError, match=r"2\.xml: not XML .*download it again"):
        openi.load(root)
    (folder / "2.xml").write_text("<eCitation/>")
    with pytest.raises(TableError, match="no <uId> or no <AbstractText>"):
        openi.load(root)


def test_openi_without_its_views_says_where_they_come_from(standins, tmp_path):
    root = standins.openi(tmp_path)
    (root / "indiana_projections.csv").unlink()
    with pytest.raises(TableError, match="which images are frontal; take it from the Kaggle"):
        openi.load(root)


def test_openi_duplicates_and_unknown_views(standins, tmp_path):
    root = standins.openi(tmp_path)
    reports = root / "indiana_reports.csv"
    reports.write_text(reports.read_text() + "2,,,,,,,Again.\n")
    with pytest.raises(TableError, match="column 'uid': '2' is already in line 3"):
        openi.load(root)
    standins.openi(tmp_path)
    table = root / "indiana_projections.csv"
    table.write_text(table.read_text().replace("Lateral", "Sideways"))
    with pytest.raises(TableError, match="column 'projection': unknown class 'Sideways'"):
        openi.load(root)


# ---------------------------------------------------------------- real files


def test_real_boxes_of_chestxray14():
    rows = list(chestxray14.rows(real("nih", "BBox_List_2017.csv")))
    assert len(rows) == 984 and len({r["Image Index"] for r in rows}) == 880
    classes = {r.one_of("Finding Label", chestxray14.CLASSES) for r in rows}
    assert len(classes) == 8 and {"Infiltration", "Pleural Effusion"} <= classes
    assert all(r.box(1024, 1024) for r in rows)
    variant = list(chestxray14.rows(real("nih", "BBox_List_2017.rounded_variant.head50.csv")))
    for one, other in zip(rows, variant, strict=False):
        assert one["Image Index"] == other["Image Index"]
        assert one.box(1024, 1024) == pytest.approx(other.box(1024, 1024), abs=1e-6)
    assert len(variant) == 50


@pytest.mark.parametrize("name", ["rows1-200", "shipped"])
def test_real_entries_of_chestxray14(name):
    path = real("nih", f"Data_Entry_2017_v2020.{name}.csv")
    entries = list(chestxray14.entries(path))
    assert len(entries) == len(path.read_text().splitlines()) - 1
    assert entries[0].findings == ("Cardiomegaly",) and entries[0].subject_id == "00000001"


def test_real_boxes_on_real_small_films(tmp_path):
    films = real("nih").parents[1] / "nih64" / "images"
    source = real("nih", "BBox_List_2017.csv")
    lines = source.read_text().splitlines()
    here = {path.name for path in films.iterdir()}
    kept = [line for line in lines[1:] if line.split(",")[0] in here]
    (tmp_path / source.name).write_text("\n".join([lines[0], *kept]) + "\n")
    found = chestxray14.load(tmp_path, films)
    shipped = {}
    with (films.parent / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            if row["annotation_source"].startswith("NIH"):
                shipped[row["image"], tuple(float(row[c]) for c in "xywh")] = row["label"]
    assert len(kept) == len(shipped) > 0
    for example in found:
        for box in example.boxes:
            near = [k for k in shipped if k[0] == example.image_id]
            assert any(box == pytest.approx(k[1], abs=0.02) for k in near)
        assert example.framed(64).boxes


def test_real_rsna_labels(standins, tmp_path):
    source = real("rsna", "stage_2_train_labels.rows1-200.csv")
    shutil.copy(source, tmp_path / source.name)
    rows = list(rsna.rows(tmp_path))
    assert len(rows) == 200
    for row in rows:
        if row["Target"] == "1":
            assert row.box(1024, 1024, rsna.BOX_COLUMNS)
            standins.film(tmp_path / "images" / f"{row['patientId']}.png", 64, 64)
    found = rsna.load(tmp_path)
    assert sum(len(e.boxes) for e in found) == sum(r["Target"] == "1" for r in rows)


def test_real_openi_tables_and_xml_say_the_same(standins, tmp_path):
    for name in ("indiana_reports.rows1-100.csv", "indiana_projections.rows1-200.csv"):
        shutil.copy(real("openi", name), tmp_path / name)
    for row in openi.projections(tmp_path):
        if int(row["uid"]) <= 20:
            standins.film(tmp_path / "images" / row["filename"])
    found = openi.load(tmp_path)
    phrases = {e.subject_id: e.phrase for e in found.examples}
    assert len(phrases) > 15 and not any("XXXX" in text for text in phrases.values())
    assert phrases["1"] == "Normal chest x-ray."
    (tmp_path / "indiana_reports.rows1-100.csv").unlink()
    shutil.copytree(real("openi", "ecgen-radiology"), tmp_path / "ecgen-radiology")
    from_xml = {e.subject_id: e.phrase for e in openi.load(tmp_path).examples}
    assert from_xml == phrases


def test_real_coco_file_of_another_set_is_refused_in_one_line(tmp_path):
    shutil.copy(
        real("gb", "lung_boxes.coco.shipped.json"),
        tmp_path / "MS_CXR_Local_Alignment_v1.1.0.json",
    )
    with pytest.raises(TableError, match=r"annotation .*'label_text'.*use the published JSON"):
        list(ms_cxr.rows(tmp_path))
