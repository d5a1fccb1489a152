"""Check, pairs and dry run at MIMIC-CXR's size, on made-up tables, reports and one film.

    nice python benchmarks/mimic_scale.py [--share 0.02] [--place FOLDER]
    python benchmarks/mimic_scale.py --render            only render docs/scale.md

At share 1: tables of 377,110 rows, 227,835 reports in folders, 1,162 pairs of MS-CXR. Images
are hard links to a few films. Prints minutes and peak memory of each step; at share 1 they are
kept in mimic_scale.json and shown in docs/scale.md.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import standins  # noqa: E402

RESULTS, PAGE = ROOT / "benchmarks" / "mimic_scale.json", ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- mimic -->", "<!-- /mimic -->"
IMAGES, STUDIES, PAIRS = 377_110, 227_835, 1_162
CHECK = "from g2g_utils.data import check; check.main(['{profile}'])"
LOAD = (
    "from g2g_utils import config; from g2g_utils.data import sources;"
    "c = config.load('{profile}');"
    "print(*(len(sources.examples(c, split)) for split in ('train', 'test')))"
)
COSTS = "from g2g_utils.__main__ import main; main(['costs', '--profile', '{profile}'])"
LINKS = 60_000  # to one file; file systems allow 65,000
STEPS = {"check": CHECK, "pairs": LOAD, "pairs again": LOAD, "dry run": COSTS}


def rows(share: float) -> list[tuple[str, str, str, str, str]]:
    """(subject, study, dicom, view, split) of every image."""
    studies, images = int(STUDIES * share), int(IMAGES * share)
    found = []
    for k in range(images):
        study = k % studies
        subject = 10_000_000 + study * 2 // 7 * 31
        part = "test" if subject % 70 == 0 else "validate" if subject % 70 == 1 else "train"
        view = ("PA", "AP", "LATERAL")[(k + study) % 3]
        found.append((str(subject), str(50_000_000 + study), f"d{k:08}", view, part))
    return found


def build(root: Path, share: float) -> None:
    """Write tables, reports and links to one film."""
    images = rows(share)
    names = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    tables = {
        "metadata": [names, *((d, p, s, v) for p, s, d, v, _ in images)],
        "split": [
            ("dicom_id", "study_id", "subject_id", "split"),
            *((d, s, p, t) for p, s, d, _, t in images),
        ],
    }
    for name, content in tables.items():
        with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt", 1, newline="") as file:
            csv.writer(file).writerows(content)
    report = standins.REPORT.format(findings="Low volumes. " * 20, impression="Mild edema. " * 8)
    for number, (subject, study, dicom, _, _) in enumerate(images):
        if number % LINKS == 0:
            film = standins.film(root / f"film{number}.jpg")
        folder = root / "files" / f"p{subject[:2]}" / f"p{subject}"
        (folder / f"s{study}").mkdir(parents=True, exist_ok=True)
        os.link(film, folder / f"s{study}" / f"{dicom}.jpg")
        text = folder / f"s{study}.txt"
        if not text.exists():
            text.write_text(report)
    chosen = [row for row in images if row[4] == "test"][: max(int(PAIRS * share), 20)]
    boxes = [
        standins.ms_cxr_row(
            dicom_id=d, path=f"files/p{p[:2]}/p{p}/s{s}/{d}.jpg", label_text=f"edema {k}"
        )
        for k, (p, s, d, _, _) in enumerate(chosen)
    ]
    standins.ms_cxr(root, boxes)


def measured(code: str, environment: dict[str, str]) -> tuple[float, float, str]:
    """Minutes, peak MiB and the last line of a step in a process of its own."""
    start = time.time()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        lines = out.read().strip().splitlines() or [""]
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return (time.time() - start) / 60, used.ru_maxrss / scale, lines[-1][:90]


def main() -> None:
    """Build, measure, print one line a step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--place", type=Path, help="folder for the stand-ins (default: temporary)")
    parser.add_argument("--render", action="store_true")
    options = parser.parse_args()
    if not options.render:
        steps = measure(options.share, options.place)
        if options.share == 1:
            beside = f"load average {os.getloadavg()[2]:.0f}"
            found = {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "beside": beside}
            found["steps"] = steps
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if options.render or options.share == 1:
        render(json.loads(RESULTS.read_text()))


def measure(share: float, place: Path | None) -> dict[str, dict[str, float]]:
    """Minutes and peak MiB of every step, on stand-ins made for it."""
    found = {}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        root = Path(folder) / "mimic"
        root.mkdir()
        start = time.time()
        build(root, share)
        print(f"stand-ins of share {share}: {(time.time() - start) / 60:.1f} min", flush=True)
        environment = {**os.environ, "G2G_BUILD": str(Path(folder) / "build")}
        environment["PYTHONPATH"] = str(ROOT)
        setup = (
            "from g2g_utils import config as _c; _load = _c.load;"
            f"_c.load = lambda p, **k: _load('paper', **{{'data.root': {str(root)!r},"
            f"'data.test_from.root': {str(root)!r}, 'data.test_from.images': {str(root)!r}}});"
        )
        for name, code in STEPS.items():
            minutes, peak, last = measured(setup + code.format(profile="paper"), environment)
            print(f"{name:12} {minutes:6.2f} min {peak:7.0f} MiB  {last}", flush=True)
            found[name] = {"minutes": round(minutes, 2), "mib": round(peak)}
    return found


def render(found: dict[str, Any]) -> None:
    """Put the table between the markers of the page."""
    lines = ["| step | minutes | peak memory, MiB |", "|---|---|---|"]
    lines += [f"| {name} | {s['minutes']} | {s['mib']} |" for name, s in found["steps"].items()]
    lines += [
        "",
        f"One process on {found['cores']} cores, beside: {found['beside']}; {found['date']}.",
    ]
    head, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text("\n".join([head + BEGIN, *lines, END + rest.partition(END)[2]]))


if __name__ == "__main__":
    main()
