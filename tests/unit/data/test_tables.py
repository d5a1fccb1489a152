"""Tables: gzip or not, what downloads leave in their place, rows that know where they stand."""

import gzip

import pytest

from g2g_utils.data.tables import (
    Row,
    TableError,
    clipped,
    locate,
    matching,
    opened,
    read,
    tolerate,
    unique,
)

TEXT = "a,b\n1,2\n3,4\n"


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("compressed", [True, False])
def test_content_not_name_says_whether_a_table_is_compressed(tmp_path, name, compressed):
    path = tmp_path / name
    path.write_bytes(gzip.compress(TEXT.encode(), mtime=0) if compressed else TEXT.encode())
    rows = list(read(path, ["a"]))
    assert [(r["a"], r["b"], r.place) for r in rows] == [("1", "2", "line 2"), ("3", "4", "line 3")]


@pytest.mark.parametrize(
    "before",
    [
        "sep=,\n",
        "SEP=,\r\n",
        '"sep=,"\n',
        "\n\n",
        ",,,\n",
        "\ufeff",
        "\ufeff\ufeff",
        "\ufeffsep=,\n",
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_spreadsheets_put_before_a_header_is_passed_over(tmp_path, before, end):
    path = tmp_path / "t.csv"
    path.write_text(before + TEXT.replace("\n", end), newline="")
    assert [row["a"] for row in read(path, ["a", "b"])] == ["1", "3"]


def test_names_of_columns_are_plain(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a\u200b,\u00a0b \n1,2\n")
    assert [row["b"] for row in read(path, ["a", "b"])] == ["2"]


IMPOSTERS = [
    (b"PK\x03\x04rest", "zip archive", "unpack"),
    (b"<!DOCTYPE html><html>", "a web page", "log in"),
    (b"\n<html lang='en'>", "a web page", "log in"),
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", "git lfs pull"),
    (gzip.compress(TEXT.encode() * 500, mtime=0)[:-20], "truncated", "download it again"),
    (b"a;b\n1;2\n", "separated by semicolons", "use commas"),
    (b"a\tb\n1\t2\n", "separated by tabs", "use commas"),
    (b"b,c\n1,2\n", "no column 'a' among b, c", "the header needs a"),
    (b"a,a\n1,2\n", "occurs twice", "rename"),
    (b"a,b\n1,2,3\n", "3 cells where the header has 2", "quotes"),
    (b"a,b\n1\n", "1 cells where the header has 2", "quotes"),
    (b"a,b\n", "no rows", "add"),
    (b"", "the file is empty", "names the columns"),
    (b"a,b\n\xe9,2\n", "not UTF-8", "save it as UTF-8"),
    (TEXT.encode("utf-16"), "UTF-16", "save it as UTF-8"),
    (TEXT.encode("utf-16-le"), "UTF-16", "save it as UTF-8"),
    (gzip.compress(TEXT.encode("utf-16-be"), mtime=0), "UTF-16", "save it as UTF-8"),
    (b"sep=;\na;b\n1;2\n", "separated by semicolons", "use commas"),
    (b"\xef\xbb\xbf<!doctype html>", "a web page", "log in"),
]


@pytest.mark.parametrize(("content", "problem", "fix"), IMPOSTERS)
def test_what_is_no_table_is_named_in_one_line(tmp_path, content, problem, fix):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(content)
    with pytest.raises(TableError) as caught:
        list(read(path, ["a"]))
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert problem in message and fix in message


def test_trailing_commas_blank_lines_and_renamed_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Image,Bbox [x,h],,\nfilm,1,2,,\n\n , \nfilm2,3,4\n")
    rows = list(read(path, ["Image", "x", "h"], {"Bbox [x": "x", "h]": "h"}))
    assert [dict(r.cells) for r in rows] == [
        {"Image": "film", "x": "1", "h": "2"},
        {"Image": "film2", "x": "3", "h": "4"},
    ]
    with pytest.raises(TableError, match=r"no column 'Bbox \[z' among .* needs Bbox \[x, Bbox \[z"):
        list(read(path, ["x", "z"], {"Bbox [x": "x", "Bbox [z": "z"}))


def test_locate_takes_the_newest_version_compressed_or_not(tmp_path):
    (tmp_path / "t-1.0.csv").write_text(TEXT)
    (tmp_path / "t-1.1.csv.gz").write_text(TEXT)
    assert locate(tmp_path, "t-*.csv").name == "t-1.1.csv.gz"
    with pytest.raises(TableError, match=r"no file u\.csv or v\.csv; data/README"):
        locate(tmp_path, "u.csv", "v.csv")
    with pytest.raises(TableError, match="no such folder"):
        locate(tmp_path / "none", "t.csv")


def test_a_pattern_matches_plain_and_compressed_tables(tmp_path):
    for name in ("a.csv", "b.csv.gz", "c.txt"):
        (tmp_path / name).write_text(TEXT)
    assert [p.name for p in matching(tmp_path, "*.csv")] == ["a.csv", "b.csv.gz"]


def test_opened_text_has_no_byte_order_mark(tmp_path):
    (tmp_path / "a.json").write_bytes(gzip.compress(b"\xef\xbb\xbf{}", mtime=0))
    with opened(tmp_path / "a.json") as file:
        assert file.read() == "{}"


def test_duplicate_ids_name_both_rows(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("id\na\nb\na\n")
    with pytest.raises(TableError, match=r"line 4, column 'id': 'a' is already in line 2"):
        list(unique(read(path, ["id"]), "id"))
    problems: list[TableError] = []
    assert [r["id"] for r in unique(read(path, ["id"]), "id", problems)] == ["a", "b"]
    assert [p.kind for p in problems] == ["duplicate"]


def box_row(tmp_path, *numbers):
    return Row(tmp_path, "line 2", dict(zip("xywh", map(str, numbers), strict=True)))


def test_boxes_that_stick_out_are_errors_or_cut(tmp_path):
    row = box_row(tmp_path, -4, 90, 20, 30)
    with pytest.raises(TableError, match=r"column 'x': box from -4 to 16 leaves the image"):
        row.box(100, 100)
    cut: list[TableError] = []
    assert row.box(100, 100, cut=cut) == (0, 90, 16, 10)
    assert {c.kind for c in cut} == {"cut"} and "box from -4 to 16" in str(cut[0])
    with pytest.raises(TableError, match=r"column 'y': box from 100 to 110 leaves the image"):
        box_row(tmp_path, 1, 100, 5, 10).box(100, 100, cut=[])
    assert box_row(tmp_path, -1, 0, 102, 100).box(100, 100, cut=cut[:0]) == (0, 0, 100, 100)
    assert box_row(tmp_path, -1, 0, 102, 100).box(100, 100) == (-1, 0, 102, 100)
    assert box_row(tmp_path, -9, -9, 99, 99).box(50, 50, cut=cut) and len(cut) == 2
    for x in (-0.9, 100.1):  # within the slack, but nothing is left
        with pytest.raises(TableError, match="leaves the image"):
            box_row(tmp_path, x, 1, 0.5, 10).box(100, 100, cut=[])
    assert clipped((1, 2, 3, 4), 10, 10) == (1, 2, 3, 4)
    assert box_row(tmp_path, "", "", "", "").box(9, 9) is None


def test_problems_are_collected_where_there_is_a_list(tmp_path):
    problems: list[TableError] = []
    for width in (0, 5, "nan"):
        with tolerate(problems):
            box_row(tmp_path, 0, 0, width, 5).box(9, 9)
    assert len(problems) == 2 and {p.kind for p in problems} == {"box"}


NUMBERS = ["1_0", "0x10", "1e", "1 0", "1.2.3", "31%", "1'000", "1.000,5", "10px", "1/2", "1e400"]


@pytest.mark.parametrize("text", [*NUMBERS, "\u221e", "nan", "NA"])
def test_a_side_that_is_no_number_is_named(tmp_path, text):
    with pytest.raises(TableError, match="line 2, column 'x'"):
        box_row(tmp_path, text, 1, 5, 5).box(99, 99)


@pytest.mark.parametrize("text", ["+10", "1e1", "10.", "1.0E+01", "010", "\uff11\uff10"])
def test_numbers_however_they_are_written(tmp_path, text):
    assert box_row(tmp_path, text, 1, 5, 5).box(99, 99) == (10, 1, 5, 5)


@pytest.mark.parametrize("text", ["NA", "None", "nan", "NULL", "-", "#N/A", "#NV", "\\N", "N / A"])
def test_four_cells_that_say_nothing_are_no_box(tmp_path, text):
    assert box_row(tmp_path, text, text, "", text).box(9, 9) is None
