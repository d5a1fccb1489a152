"""A folder of images with a CSV: every error names file, line, column and the fix."""

import csv
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from g2g_utils.data.folder import FolderError, load
from g2g_utils.data.plain import is_empty


@pytest.fixture
def write(tmp_path):
    """Write a CSV beside an image a.png of 100 × 80 pixels; gives its path."""
    Image.fromarray(np.full((80, 100), 90, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((80, 100), 90, np.uint8)).save(tmp_path / "b.png")

    def write(text, encoding="utf-8"):
        path = tmp_path / "pairs.csv"
        path.write_text(text, encoding=encoding)
        return path

    return write


def test_a_minimal_file(write, tmp_path):
    (row,) = load(write("image,phrase\na.png,left effusion\n"))
    assert row.phrase == "left effusion" and row.finding is None and row.boxes == ()
    assert row.image == tmp_path / "a.png" and row.image_id == row.subject_id == "a.png"
    assert row.load(32).shape == (32, 32)


def test_boxes_classes_subjects_and_merged_rows(write):
    rows = load(
        write(
            "image,phrase,finding,x,y,w,h,subject,note\n"
            'a.png,"edema, bilateral",edema,10,20,30,40,p1,kept\n'
            'a.png,"edema, bilateral",Edema,60,20,30.5,40,p1,\n'
            "\n"
            "b.png,no box,,,,,,p2,\n"
        )
    )
    assert [r.finding for r in rows] == ["Edema", None]
    assert rows[0].boxes == ((10, 20, 30, 40), (60, 20, 30.5, 40))
    assert rows[0].subject_id == "p1" and rows[1].boxes == ()


def test_spreadsheet_byte_order_mark_and_spaces(write):
    (row,) = load(write("image, phrase\na.png,  café au lait  \n", encoding="utf-8-sig"))
    assert row.phrase == "café au lait"


def test_a_phrase_is_one_line(write):
    (row,) = load(write('image,phrase\na.png,"left\n effusion"\n'))
    assert row.phrase == "left effusion"


def test_an_image_has_one_patient(write):
    path = write("image,phrase,subject\na.png,x,p1\nb.png,x,p2\na.png,y,p2\n")
    with pytest.raises(FolderError, match=r"line 4, column 'image': .* patient p2, but p1 in line"):
        load(path)


def test_images_from_another_root(write, tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "films" / "c.png")
    (row,) = load(write("image,phrase\nc.png,x\n"), image_root=tmp_path / "films")
    assert row.load().shape == (80, 100)


def test_ids_that_a_spreadsheet_changed_are_one_patient(write):
    text = "image,phrase,subject\na.png,x,10\n./a.png,y,10.0\nb.png,y,nan\n"
    found = [(pair.image_id, pair.subject_id) for pair in load(write(text))]
    assert found == [("a.png", "10"), ("a.png", "10"), ("b.png", "b.png")]


BOX = "image,phrase,finding,x,y,w,h\na.png,ok,,1,1,5,5\na.png,p,"


@pytest.mark.parametrize(
    ("text", "line", "column", "problem", "fix"),
    [
        ("image,text\na.png,x\n", 1, "phrase", "no column 'phrase' among image, text", "needs"),
        ("image;phrase\na.png;x\n", 1, None, "separated by semicolons", "use commas"),
        ("image\tphrase\na.png\tx\n", 1, None, "separated by tabs", "use commas"),
        ("image,phrase,phrase\na.png,x,y\n", 1, "phrase", "occurs twice", "rename"),
        ("image,phrase,x,y\na.png,x,1,1\n", 1, "w", "incomplete", "go together"),
        ("", 1, None, "empty", "names the columns"),
        ("image,phrase\n", 1, None, "no rows", "add"),
        ("image,phrase\na.png,x,y\n", 2, None, "3 cells where the header has 2", "quotes"),
        ("image,phrase\na.png, \n", 2, "phrase", "the phrase is empty", "write"),
        ("image,phrase\n,x\n", 2, "image", "empty", "name an image"),
        ("image,phrase\na.png,x\nz.png,x\n", 3, "image", "no such file", "relative to"),
        ("image,phrase\npairs.csv,x\n", 2, "image", "not an image", "PNG"),
        ("image,phrase,X,Y,W,H\na.png,x,1,1,5,5\n", 1, "X", "unknown column", "write 'x'"),
        ("image,phrase,Finding\na.png,x,Edema\n", 1, "Finding", "unknown column", "'finding'"),
        (
            "image,phrase,x1,y1,x2,y2\na.png,x,1,1,5,5\n",
            1,
            "x1",
            "boxes in this form",
            "x, y, w, h",
        ),
        ('image,phrase\na.png,"left\na.png,right\n', 2, None, "not a CSV", "each closed"),
        ('image,phrase\na.png,"left" lung\n', 2, None, "not a CSV", "quotes"),
        (f"image,phrase\n{'long ' * 90},x\n", 2, "image", "too long", "name of an image file"),
        (BOX + "Efusion,1,1,5,5\n", 3, "finding", "'Efusion'", "did you mean 'Pleural Effusion'"),
        (BOX + "xyz,1,1,5,5\n", 3, "finding", "unknown class 'xyz'", "Pneumothorax"),
        (BOX + ",nan,1,5,5\n", 3, "x", "'nan' is not a finite number", "empty"),
        (BOX + ",1,one,5,5\n", 3, "y", "'one' is not a number", "pixels"),
        (BOX + ",1,1,,5\n", 3, "w", "incomplete", "all four"),
        (BOX + ",1,1,0,5\n", 3, "w", "box side 0 is not positive", "positive"),
        (BOX + ",1,1,5,-5\n", 3, "h", "box side -5 is not positive", "second corner"),
        (BOX + ",-20,1,5,5\n", 3, "x", "box from -20 to -15 leaves the image (0 to 100)", "pixels"),
        (BOX + ",1,70,5,50\n", 3, "y", "box from 70 to 120 leaves the image (0 to 80)", "pixels"),
    ],
)
def test_errors_name_file_line_column_and_fix(write, text, line, column, problem, fix):
    path = write(text)
    with pytest.raises(FolderError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}") and "\n" not in message
    assert column is None or f"column {column!r}" in message
    assert problem in message and fix in message


def test_files_that_are_no_csv(write, tmp_path):
    with pytest.raises(FolderError, match="no such file"):
        load(tmp_path / "none.csv")
    with pytest.raises(FolderError, match="no such file"):
        load(tmp_path)
    path = write("image,phrase\na.png,caf\u00e9\n", encoding="latin-1")
    with pytest.raises(FolderError, match="not UTF-8"):
        load(path)
    (tmp_path / "a.csv").write_bytes(b"image,phrase\na.png,\x00\n" * 3)
    with pytest.raises(FolderError):
        load(tmp_path / "a.csv")


def test_real_boxes_load(tmp_path):
    root = Path(os.environ.get("G2G_SHARED", str(Path(__file__).parents[4] / "shared")))
    source = root / "realdata" / "nih64"
    if not source.is_dir():
        pytest.skip(f"no real images: {source} is absent (set G2G_SHARED)")
    rows = list(csv.DictReader((source / "boxes.csv").open()))[:20]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image", "phrase", "x", "y", "w", "h"])
        for row in rows:
            out.writerow([row["image"], row["label"], *(row[c] for c in "xywh")])
    loaded = load(tmp_path / "pairs.csv", image_root=source / "images")
    assert 0 < len(loaded) <= 20 and sum(len(r.boxes) for r in loaded) == len(rows)
    assert all(r.framed(32).boxes for r in loaded)


def film(folder, name="a.png", width=1024, height=1024):
    Image.new("L", (width, height), 90).save(folder / name)
    return folder


def test_boxes_as_fractions_are_named_with_their_pixels(tmp_path):
    case = Path(__file__).parent / "cases" / "boxes_as_fractions.csv"
    table = film(tmp_path) / case.name
    shutil.copy(case, table)
    said = []
    for problems in (None, said):
        try:
            load(table, problems=problems)
        except FolderError as error:
            said.append(error)
    assert len(said) == 2
    for line in map(str, said):
        assert "line 2, column 'x'" in line and "fractions of the image" in line
        assert "317, 430, 205, 154" in line and "\n" not in line


@pytest.mark.parametrize(
    ("box", "parts"),
    [
        ("300,400,700,800", ["leaves the image", "x1, y1, x2, y2", "300, 400, 400, 400"]),
        ("3,4,0.5,8", ["column 'w'", "0.5 is less than a pixel"]),
        ("0,0,1,1", ["fractions of the image", "0, 0, 1024, 1024"]),
    ],
)
def test_boxes_that_are_no_pixels(tmp_path, box, parts):
    (film(tmp_path) / "t.csv").write_text(f"image,phrase,x,y,w,h\na.png,effusion,{box}\n")
    with pytest.raises(FolderError) as caught:
        load(tmp_path / "t.csv")
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("names", ["x_min,y_min,x_max,y_max", "left,top,right,bottom"])
def test_columns_of_corners_are_refused(tmp_path, names):
    (film(tmp_path) / "t.csv").write_text(f"image,phrase,{names}\na.png,effusion,1,2,3,4\n")
    with pytest.raises(FolderError, match="boxes in this form"):
        load(tmp_path / "t.csv")


def many(tmp_path, boxes):
    rows = [f"a.png,effusion {k},{','.join(map(str, box))}" for k, box in enumerate(boxes)]
    text = "\n".join(["image,phrase,x,y,w,h", *rows])
    (film(tmp_path) / "t.csv").write_text(text)
    return tmp_path / "t.csv"


CORNER_BOXES = [(20 + k, 30, 400 + k, 900) for k in range(8)]
SMALL_FRAME = [(200 + k, 120, 40, 90) for k in range(8)]
SOUND = [(200 + 70 * k, 120 + 20 * k, 150, 290) for k in range(8)]


@pytest.mark.parametrize(
    ("boxes", "fix"),
    [
        (CORNER_BOXES, "w = x2 - x1"),
        (CORNER_BOXES[:1], "w = x2 - x1"),
        (SMALL_FRAME, "add the columns image_width"),
        (SMALL_FRAME[:2], "add the columns image_width"),
        ([(31, 42, 20, 15)], "(100 and 100 for percent)"),
        (SOUND, ""),
        (SOUND[1:2], ""),
    ],
)
def test_tables_of_another_frame_are_told(tmp_path, caplog, boxes, fix):
    problems = []
    load(many(tmp_path, boxes), problems=problems)
    load(many(tmp_path, boxes))
    assert (fix in caplog.text) and len(caplog.records) == len(problems) == bool(fix)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_names_are_found_in_either_form(tmp_path, form):
    name = unicodedata.normalize(form, "poumon-\u00e9.png")
    film(tmp_path, unicodedata.normalize("NFC" if form == "NFD" else "NFD", name), 32, 32)
    (tmp_path / "t.csv").write_text(f"image,phrase\n{name},effusion\n")
    assert len(load(tmp_path / "t.csv")) == 1


def test_the_frame_of_a_box_may_be_named(tmp_path):
    header = "image,phrase,x,y,w,h,image_width,image_height\n"
    (film(tmp_path) / "t.csv").write_text(header + "a.png,effusion,10,20,30,40,256,256\n")
    (example,) = load(tmp_path / "t.csv")
    assert example.boxes == ((40, 80, 120, 160),)


def test_a_cell_of_many_dashes_is_read_at_once():
    assert not is_empty("-" * 100_000 + "nan" + "-" * 100_000 + "x")  # minutes, if it backtracks
    assert all(map(is_empty, ("-nan", "--", " N/A ", "-1.#IND", "#N/A", "n.a.")))
    assert not any(map(is_empty, ("nan edema", "none of the above", "0")))


@pytest.mark.parametrize(
    "names",
    [
        "bbox_x,bbox_y,bbox_w,bbox_h",
        "X Min,Y Min,X Max,Y Max",
        "xtl,ytl,xbr,ybr",
        "startX,startY,endX,endY",
        "x_center,y_center,width,height",
        "bounding_box,a,b,c",
    ],
)
def test_boxes_under_other_names_are_refused(tmp_path, names):
    (tmp_path / "pairs.csv").write_text(f"image,phrase,{names}\na.png,edema,1,1,5,5\n")
    with pytest.raises(FolderError, match=r"boxes in this form.*x, y, w, h"):
        load(tmp_path / "pairs.csv")


@pytest.mark.parametrize(
    ("name", "meant"), [("label", "finding"), ("Patient ID", "subject"), ("subject_id", "subject")]
)
def test_columns_that_seem_to_be_known_ones_are_named(tmp_path, caplog, name, meant):
    (tmp_path / "pairs.csv").write_text(f"image,phrase,{name}\na.png,edema,1\n")
    load(tmp_path / "pairs.csv", problems=[])
    assert f"column {name!r} is ignored: write {meant!r}" in caplog.text
