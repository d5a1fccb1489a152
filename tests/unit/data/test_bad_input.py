"""Every kind of bad input a user will have: one clear line, or it simply works; nothing is lost."""

import gzip
import logging

import numpy as np
import pydicom
import pytest
from PIL import Image

from g2g_utils.data import files, folder, mimic_cxr, reports
from g2g_utils.data.films import Films
from g2g_utils.data.images import read_image
from g2g_utils.runs import arrays

HEADER = "image,phrase,finding,x,y,w,h\n"
GOOD = "a.png,left effusion,Pleural Effusion,1,1,5,5\n"


@pytest.fixture(scope="module")
def standins(script):
    return script("tests/standins.py")


@pytest.fixture
def root(tmp_path):
    """A folder with one good image."""
    Image.fromarray(np.full((32, 40), 90, np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def row(cells, header=HEADER):
    """A table whose third line is bad, loaded."""

    def act(root, standins):
        path = root / "pairs.csv"
        path.write_text(header + GOOD + cells)
        return folder.load(path)

    return act


def image(name, make):
    """A file that is read as training reads it, a batch at a time."""

    def act(root, standins):
        make(root / name, standins)
        return Films([root / "a.png", root / name], 16)[:]

    return act


def truncated(path, standins):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:900])


def without_decoder(path, standins):
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder
    from pydicom.uid import JPEGLSLossless

    if JPEGLSLosslessDecoder.is_available:
        pytest.skip("a JPEG-LS decoder is installed here")
    data = pydicom.dcmread(standins.dicom(path))
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)


def duplicates(root, standins):
    header = ["dicom_id", "study_id", "subject_id", "split"]
    rows = [["d1", "50000001", "10000001", "train"]] * 2
    standins.table(root / "mimic-cxr-2.0.0-split.csv.gz", header, rows, compress=True)
    return mimic_cxr.splits(root)


def full_disk(root, standins):
    """/dev/full refuses every byte."""
    (root / "x.npy").symlink_to("/dev/full")
    make = {"x": np.zeros(1)}
    arrays.write(root, ["a"], lambda rows: make, key="k", name="latents", batch=1)


REFUSED = {
    "missing column": (
        row("", "image,text\n"),
        ["pairs.csv, line 1, column 'phrase'", "no column 'phrase'", "the header needs"],
    ),
    "wrong delimiter": (row("", "image;phrase\n"), ["pairs.csv, line 1", "semicolons", "commas"]),
    "NaN box": (
        row("a.png,p,Edema,nan,1,5,5\n"),
        ["pairs.csv, line 3, column 'x'", "'nan' is not a finite number", "leave"],
    ),
    "negative box": (
        row("a.png,p,Edema,1,1,-5,5\n"),
        ["line 3, column 'w'", "-5 is not positive", "second corner"],
    ),
    "zero box": (row("a.png,p,Edema,1,1,5,0\n"), ["line 3, column 'h'", "0 is not positive"]),
    "box outside the image": (
        row("a.png,p,Edema,30,1,50,5\n"),
        ["line 3, column 'x'", "box from 30 to 80 leaves the image (0 to 40)", "origin top left"],
    ),
    "a phrase that is a spreadsheet's empty cell": (
        row("a.png,nan,Edema,1,1,5,5\n"),
        ["line 3, column 'phrase'", "the phrase is empty ('nan')", "write what to look for"],
    ),
    "unknown class": (
        row("a.png,p,Oedema,1,1,5,5\n"),
        ["line 3, column 'finding'", "unknown class 'Oedema'", "did you mean 'Edema'"],
    ),
    "missing image": (
        row("b.png,p,Edema,1,1,5,5\n"),
        ["line 3, column 'image'", "b.png: no such file", "relative to"],
    ),
    "truncated JPEG": (image("b.jpg", truncated), ["b.jpg", "truncated", "download or export"]),
    "1×1 image": (
        image("b.png", lambda p, s: Image.new("L", (1, 1)).save(p)),
        ["b.png", "only 1×1 pixels", "use one of at least"],
    ),
    "DICOM without pixel data": (
        image("b.dcm", lambda p, s: s.dicom(p, PixelData=None)),
        ["b.dcm", "without pixel data", "give the file of the image"],
    ),
    "compressed DICOM without its decoder": (
        image("b.dcm", without_decoder),
        ["b.dcm", "no decoder for DICOM pixels compressed as JPEG-LS", "pip install", "pylibjpeg"],
    ),
    "duplicate ids": (
        duplicates,
        ["split.csv.gz, line 3, column 'dicom_id'", "already in line 2", "remove one"],
    ),
    "a full disk while caching": (
        full_disk,
        ["the disk of", "is full", "make room", "finished blocks are kept"],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_input_is_refused_in_one_clear_line(kind, root, standins):
    act, parts = REFUSED[kind]
    with pytest.raises(ValueError) as caught:
        act(root, standins)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for part in parts:
        assert part in message, message


def gz_or_plain(root, standins):
    for name, content in (("a.csv.gz", HEADER + GOOD), ("b.csv", HEADER + GOOD)):
        data = content.encode()  # the name says the opposite of what the file is
        (root / name).write_bytes(data if name.endswith("gz") else gzip.compress(data))
    return [len(folder.load(root / name)) for name in ("a.csv.gz", "b.csv")] == [1, 1]


def two_classes(root, standins):
    path = root / "pairs.csv"
    path.write_text(HEADER + GOOD + GOOD.replace("Pleural Effusion", "Edema"))
    return [e.finding for e in folder.load(path)] == ["Pleural Effusion", "Edema"]


def sixteen_bits(root, standins):
    ramp = np.linspace(0, 65535, 1024).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(root / "b.png")
    return np.allclose(read_image(root / "b.png"), ramp / 65535, atol=1e-4)


def cmyk(root, standins):
    Image.new("L", (32, 32), 200).convert("RGB").convert("CMYK").save(root / "b.jpg")
    return abs(float(read_image(root / "b.jpg").mean()) - 200 / 255) < 0.02


def no_sections(root, standins):
    return reports.phrase("FINAL REPORT\n\n Moderate left effusion.\n").text.startswith("Moderate")


def empty_report(root, standins):
    found = mimic_cxr.load(standins.mimic_cxr(root))
    reasons = {item.detail: item.reason for item in found.dropped}
    return reasons[f"s{standins.EMPTY_REPORT}"] == "empty report" and len(found.examples) > 1


WORKS = [gz_or_plain, two_classes, sixteen_bits, cmyk, no_sections, empty_report]


@pytest.mark.parametrize("act", WORKS, ids=lambda act: act.__name__)
def test_odd_but_usable_input_works(act, root, standins, caplog):
    with caplog.at_level(logging.WARNING, files.__name__):
        assert act(root, standins)
    said = "has the classes Pleural Effusion and Edema" in caplog.text
    assert said == (act is two_classes)


@pytest.mark.parametrize("name", ["a\0.png", "a" * 300 + ".png", "a\nb.png", "a\x0cb.png"])
def test_odd_names_of_images_are_one_line(root, name):
    (root / "pairs.csv").write_text(f'image,phrase\n"{name}",left effusion\n')
    with pytest.raises(ValueError, match="line 2") as caught:
        folder.load(root / "pairs.csv")
    assert len(str(caught.value).splitlines()) == 1
