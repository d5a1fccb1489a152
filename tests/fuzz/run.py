"""Mutate valid inputs of every kind: each ends right, or with one line that names file and place.

    python tests/fuzz/run.py [--count 20000] [--seed 0] [--keep FOLDER]

Kinds: images (PNG, JPEG, TIFF, DICOM), tables (pairs, MS-CXR as CSV and JSON, ChestX-ray14, RSNA,
OpenI, MIMIC-CXR), reports, phrases and profiles. A fault is an exception of another kind, a message
of several lines or without the file, or more than ten seconds. Beside faults of bytes there are
changes that carry no meaning (bytes behind an image, invisible characters, other line ends and
quotes): what is read then must be the same, or refused.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import standins  # noqa: E402

from g2g_utils import config, text  # noqa: E402
from g2g_utils.data import chestxray14, folder, mimic_cxr, ms_cxr, openi, reports, rsna  # noqa: E402
from g2g_utils.data.images import ImageError, image_size, read_image  # noqa: E402
from g2g_utils.data.plain import normalise  # noqa: E402
from g2g_utils.data.tables import TableError  # noqa: E402

CASES = Path(__file__).parents[1] / "unit" / "data" / "cases"
LIMIT = 10  # seconds
REFUSED = (ImageError, TableError, text.PhraseError, config.ConfigError)
SPICE = [
    b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b",", b"\n", b"\r", b"nan", b"-1", b"1e999",
    b"{", b"}", b"\xc2\xa0", b"\xe2\x80\x8b", b"9" * 40, b"&nbsp;", b"../", b"\\", b"'", b"0x1f",
    b"true", b"null", b"[]", b";", b"\t", b"<b>", b"\xc0\x80", b"e", b"0.5", b"-", b"=", b"inf",
]  # fmt: skip


class Hang(Exception):
    """A case took too long."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise Hang after some seconds."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


# ---------------------------------------------------------------- mutations


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A valid file with one to four faults: flipped, lost, repeated or foreign bytes."""
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(content) + 1)
        if rng.random() < 0.4:  # headers are where the meaning is
            at = rng.randrange(min(400, len(content)) + 1)
        span = rng.choice([1, 1, 2, 4, 16, 100])
        kind = rng.randrange(6)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at : at + span]
        elif kind == 2:
            content[at:at] = rng.choice(SPICE)
        elif kind == 3:
            content[at : at + span] = rng.randbytes(span)
        elif kind == 4:
            content[at:at] = content[at : at + span]
        else:
            del content[at:]
    return bytes(content)


# ---------------------------------------------------------------- kinds


def encoded(kind: str, **options: Any) -> bytes:
    """A small film in a format of Pillow's."""
    values = np.random.default_rng(1).integers(0, 256, (24, 20), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


def image_seeds() -> list[tuple[str, bytes]]:
    """Names and contents of valid images."""
    cases = (p for p in sorted(CASES.iterdir()) if p.suffix != ".csv" and "fuzz" not in p.name)
    found = [(p.name, p.read_bytes()) for p in cases]
    found += [("a.png", encoded("PNG")), ("a.jpg", encoded("JPEG")), ("a.tif", encoded("TIFF"))]
    found += [("a.gif", encoded("GIF")), ("a.bmp", encoded("BMP")), ("a.webp", encoded("WEBP"))]
    found += [("lzw.tif", encoded("TIFF", compression="tiff_lzw")), ("a.jp2", encoded("JPEG2000"))]
    return [item for item in found if len(item[1]) < 30_000]


def check_image(path: Path) -> None:
    """Read an image; what is read is a film, and its header says its size."""
    image = read_image(path)
    assert image.dtype == np.float32 and image.ndim == 2, (image.dtype, image.shape)
    assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1, "range"
    assert image_size(path) == image.shape, (image_size(path), image.shape)


Loader = Callable[[Path], Any]
TABLES: dict[str, tuple[str, Loader]] = {
    "folder": ("*.csv", lambda root: folder.load(next(root.glob("*.csv")))),
    "ms_cxr": ("*.csv", lambda root: ms_cxr.load(root, root)),
    "ms_cxr_coco": ("*.json", lambda root: ms_cxr.load(root, root)),
    "chestxray14": ("BBox*.csv", chestxray14.load),
    "chestxray14 entries": ("Data_Entry*.csv", lambda root: list(chestxray14.entries(root))),
    "rsna": ("*.csv", rsna.load),
    "openi": ("indiana_reports*.csv", openi.load),
    "openi views": ("indiana_projections*.csv", openi.load),
    "mimic_cxr": ("*-metadata.csv*", lambda root: mimic_cxr.load(root)),
    "mimic_cxr splits": ("*-split.csv*", lambda root: mimic_cxr.load(root)),
}


def check_report(content: bytes) -> None:
    """What is found in a report is one line of its plain text, without a heading of its own."""
    report = content.decode("utf-8", "replace")
    found = reports.phrase(report)
    if found is None:
        return
    assert "\n" not in found.text and found.text == found.text.strip()
    plain = " ".join(reports.clean(reports.read(report)).split())
    assert found.text in plain, (found.text, plain)
    for name in ("IMPRESSION:", "FINDINGS:", "INDICATION:"):
        assert not found.text.startswith(name), found.text


def check_phrase(content: bytes) -> None:
    """A phrase's words lie where they were typed."""
    phrase = content.decode("utf-8", "replace")
    found = normalise(phrase)
    assert len(found.text) == len(found.spans)
    text.check_phrase(phrase)
    text.swap_sides(phrase)
    text.side_of(phrase)


def check_profile(path: Path) -> None:
    """A profile is loaded."""
    config.load(str(path))


# ---------------------------------------------------------------- one case


class Fuzzer:
    """Makes and runs cases in a folder of its own; `faults` holds what went wrong."""

    def __init__(self, place: Path, seed: int, keep: Path | None = None) -> None:
        self.rng, self.place, self.keep = random.Random(seed), place, keep
        self.faults: list[str] = []
        self.ended: Counter[str] = Counter()
        self.images = image_seeds()
        self.roots: dict[str, Path] = {}
        for name in TABLES:
            source = name.split()[0]
            if source not in self.roots:
                self.roots[source] = place / source
                getattr(standins, source)(self.roots[source])
                if source.startswith("ms_cxr"):
                    standins.mimic_cxr(self.roots[source])
        self.profile = (Path(__file__).parents[2] / "configs" / "smoke.yaml").read_bytes()

    def run(self, count: int) -> None:
        """So many cases, the kinds in turn."""
        kinds = (
            self.image, self.table, self.table, self.report, self.phrase, self.image, self.yaml,
            self.same,
        )  # fmt: skip
        for number in range(count):
            kinds[number % len(kinds)]()

    def image(self) -> None:
        """An image of a valid one's bytes."""
        name, content = self.rng.choice(self.images)
        path = self.place / f"case-{name}"
        path.write_bytes(mutated(content, self.rng))
        self.judge(f"image {path.suffix}", path, lambda: check_image(path), path.name)

    def table(self) -> None:
        """A table of a data root; the other files are as they should be."""
        name = self.rng.choice(list(TABLES))
        pattern, load = TABLES[name]
        root = self.roots[name.split()[0]]
        path = next(p for p in sorted(root.glob(pattern)))
        valid = path.read_bytes()
        packed = valid[:2] == b"\x1f\x8b"
        inside = packed and self.rng.random() < 0.8
        content = mutated(gzip.decompress(valid) if inside else valid, self.rng)
        path.write_bytes(gzip.compress(content) if inside else content)
        try:
            self.judge(f"table {name}", path, lambda: load(root), str(root))
        finally:
            path.write_bytes(valid)

    def report(self) -> None:
        """A report."""
        valid = standins.REPORT.format(findings="Low volumes.", impression="Mild edema.")
        path = self.place / "case.txt"
        path.write_bytes(mutated(valid.encode(), self.rng))
        self.judge("report", path, lambda: check_report(path.read_bytes()), "")

    def phrase(self) -> None:
        """A phrase."""
        valid = "small left-sided pleural effusion, 2.5 cm; right lower lobe"
        path = self.place / "case-phrase.txt"
        path.write_bytes(mutated(valid.encode(), self.rng))
        self.judge("phrase", path, lambda: check_phrase(path.read_bytes()), "")

    def yaml(self) -> None:
        """A profile."""
        path = self.place / "case.yaml"
        path.write_bytes(mutated(self.profile, self.rng))
        self.judge("profile", path, lambda: check_profile(path), path.name)

    def same(self) -> None:
        """A change without meaning: what is read is the same, or refused."""
        self.rng.choice([self.same_image, self.same_text, self.same_table])()

    def same_image(self) -> None:
        """Bytes behind an image that is whole."""
        name, content = self.rng.choice(self.images)
        path, valid = self.place / f"more-{name}", self.place / f"valid-{name}"
        path.write_bytes(content + self.rng.choice([b"\0" * 8, b"\n", b"\xff\xfe", content]))
        valid.write_bytes(content)

        def act() -> None:
            try:
                expected = read_image(valid)
            except ImageError:  # a decoder that is not installed
                return
            assert np.array_equal(read_image(path), expected), "other pixels"

        self.judge("same pixels", path, act, path.name)

    def same_text(self) -> None:
        """Characters that show nothing in a report and a phrase, other line ends."""
        valid = standins.REPORT.format(findings="Low volumes.", impression="Mild left edema.")
        report = valid.replace("\n", self.rng.choice(["\n", "\r\n", "\r", "\x0b", "\u2028"]))
        for _ in range(4):
            at = self.rng.randrange(len(report))
            report = report[:at] + self.rng.choice("\u00ad\u200b\ufeff\u2060\u200e") + report[at:]
        path = self.place / "same.txt"
        path.write_text(report, newline="")

        def act() -> None:
            assert reports.phrase(report) == reports.phrase(valid), reports.phrase(report)
            assert normalise(report).text.split() == valid.split(), "other words"

        self.judge("same text", path, act, "")

    def same_table(self) -> None:
        """Other line ends, quotes and a byte-order mark of a folder's CSV."""
        path = next(self.roots["folder"].glob("*.csv"))
        valid = path.read_bytes()
        lines = valid.decode().strip().splitlines()
        cells = [[f'"{c}"' if self.rng.random() < 0.3 else c for c in x.split(",")] for x in lines]
        quoted = any('"' in line for line in lines)
        lines = lines if quoted else [",".join(row) + "," * self.rng.randrange(3) for row in cells]
        start = self.rng.choice(["", "\ufeff"])
        end = self.rng.choice(["\n", "\r\n", "\n\n"])
        expected = [(e.image_id, e.phrase, e.boxes) for e in folder.load(path)]

        def act() -> None:
            found = [(e.image_id, e.phrase, e.boxes) for e in folder.load(path)]
            assert found == expected, "other pairs"

        path.write_bytes((start + end.join(lines)).encode())
        try:
            self.judge("same table", path, act, str(path.parent))
        finally:
            path.write_bytes(valid)

    def judge(self, kind: str, path: Path, act: Callable[[], object], name: str) -> None:
        """Run one case; everything but an end or one line that names the place is a fault."""
        try:
            with limited(LIMIT), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                act()
            self.ended[f"{kind}: read"] += 1
        except REFUSED as error:
            said = str(error)
            self.ended[f"{kind}: refused"] += 1
            if len(said.splitlines()) != 1 or name not in said:
                self.fault(kind, path, error)
        except Exception as error:
            self.fault(kind, path, error)

    def fault(self, kind: str, path: Path, error: Exception) -> None:
        """Note a fault and keep its file."""
        self.faults.append(f"{kind}: {type(error).__name__}: {str(error)[:300]!r}")
        if self.keep:
            self.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, self.keep / f"{len(self.faults):03}-{path.name}")


def fuzz(count: int, seed: int, keep: Path | None = None) -> Fuzzer:
    """Run so many cases; the logs of the readers are not shown."""
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as place:
            fuzzer = Fuzzer(Path(place), seed, keep)
            fuzzer.run(count)
    finally:
        logging.disable(logging.NOTSET)
    return fuzzer


def main() -> int:
    """Print how the cases ended, and every fault; exit status 1 if there is one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that show a fault")
    options = parser.parse_args()
    fuzzer = fuzz(options.count, options.seed, options.keep)
    print(json.dumps(dict(sorted(fuzzer.ended.items())), indent=1))
    print(f"{options.count} cases, {len(fuzzer.faults)} faults")
    print("\n".join(f"{number}  {what}" for what, number in Counter(fuzzer.faults).most_common(40)))
    return int(bool(fuzzer.faults))


if __name__ == "__main__":
    sys.exit(main())
