"""Response times of the explorer in a browser; writes benchmarks/explorer_times.json.

    python benchmarks/explorer_times.py [--profile miniature] [--rounds 7]

Times run from the user's event to the new image source, in Chromium on this machine, kernel and
browser included: the median and the largest of the rounds. Promised at miniature size on two cores:
200 ms for any control, 600 ms for the grid, 2 s for a new phrase and for the first curve.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from g2g_utils import config, runs
from g2g_utils.experiment import products

ROOT = Path(__file__).resolve().parents[1]
PHRASES = ["left apical pneumothorax", "right pleural effusion", "edema in both lungs",
           "enlarged heart", "band of atelectasis at the left base", "opacity on the right",
           "small nodule near the hilum", "large right consolidation"]  # fmt: skip

BLOCKS = ("down", "mid", "up")
VIEWS = ("difference", "map")
SCALES = ("attention, shared", "0–1, each map min–max")


def load(path: str) -> Any:
    """A module of the tests by its path."""
    spec = importlib.util.spec_from_file_location("g2g_driver", ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alternately(*actions: Callable[[], float]) -> Callable[[int], float]:
    """Do one action after the other, so that every round changes something."""
    return lambda i: actions[i % len(actions)]()


def controls(page: Any) -> dict[str, tuple[int, Callable[[int], float]]]:
    """Measured controls: promised milliseconds and the action of a round.

    Every round needs a map that was not shown in the two rounds before, as those are remembered.
    """
    first, second = (word.removeprefix("✓ ") for word in page.words[:2])
    words = [f"✓ {first}", f"✓ {second}", first, second]
    toggle = alternately(*(lambda w=w: page.click(w) for w in words))
    page.answered(page.button("all layers").click)
    return {
        "word": (200, toggle),
        "layer range": (200, narrowed(page, "Layers")),
        "timestep range": (200, narrowed(page, "Timesteps")),
        "layers of a block": (200, alternately(*(lambda b=b: page.click(b) for b in BLOCKS))),
        "resolution": (200, alternately(*(lambda r=r: resolution(page, r) for r in (0, 1)))),
        "opacity": (200, lambda _: page.press("Opacity", "ArrowRight")),
        "mask / map": (200, alternately(lambda: page.click("mask"), lambda: page.click("map"))),
        "difference": (200, alternately(*(lambda v=v: page.click(v) for v in VIEWS))),
        "colour scale": (200, alternately(*(lambda s=s: page.choose("Colour scale", s)
                                            for s in SCALES))),
        "boxes": (200, lambda _: page.act(page.page.get_by_label("boxes", exact=True).click)),
        "compared, word": (200, lambda i: (compared(page), toggle(i))[1]),
        "tokens, word": (200, lambda i: (page.tab("Tokens"), toggle(i))[1]),
        "grid, word": (600, lambda i: (page.tab("Layers × timesteps"), toggle(i))[1]),
        "information, word": (1000, lambda i: (informed(page), toggle(i))[1]),
        "information, new phrase": (2000, lambda i: informed(page, PHRASES[i])),
        "new phrase": (2000, lambda i: page.phrase(PHRASES[i])),
        "first curve of a phrase": (2000, lambda i: first_curve(page, PHRASES[i])),
        "another curve": (200, alternately(*(lambda c=c: page.choose("Curve", c)
                                             for c in ("linear", "quadratic", "mixture")))),
    }  # fmt: skip


def narrowed(page: Any, label: str) -> Callable[[int], float]:
    """Narrow a range from both ends in turn, and widen it again."""
    moves = [("ArrowRight", 0), ("ArrowLeft", 1)] * 2 + [("ArrowLeft", 0), ("ArrowRight", 1)] * 2
    return alternately(*(lambda k=k, h=h: page.press(label, k, h) for k, h in moves))


def resolution(page: Any, place: int) -> float:
    """Use the layers of one resolution only."""
    field = page.page.get_by_label("Resolutions")
    return page.act(lambda: field.select_option(index=place))


def compared(page: Any) -> None:
    """Put the phrase of the other side beside this one."""
    if page.value("Compare with") == "nothing":
        page.click("Swap left/right")


def informed(page: Any, phrase: str = "") -> float:
    """Choose information, for a phrase whose attention is there and whose gain isn't."""
    if phrase:
        plain(page)
        page.phrase(f"{phrase} again")
    if page.value("Method") != "information":
        return page.choose("Method", "information")
    return 0.0


def plain(page: Any) -> None:
    """Open the view tab with nothing compared and all layers: the start of every measurement."""
    page.tab("View")
    if page.value("Method") != "attention":
        page.choose("Method", "attention")
    if page.value("Compare with") != "nothing":
        page.choose("Compare with", "nothing")
    page.answered(page.button("all layers").click)


def first_curve(page: Any, phrase: str) -> float:
    """Choose a curve for a phrase whose text bias was never sampled."""
    if page.page.get_by_label("Curve", exact=True).input_value() != "none":
        page.choose("Curve", "none")
    page.phrase(f"{phrase} today")
    return page.choose("Curve", "mixture")


def measure(page: Any, rounds: int) -> dict[str, dict[str, float]]:
    """Median and largest of every control."""
    found = {}
    for name, (promised, action) in controls(page).items():
        plain(page)
        times = [action(i) for i in range(-(-rounds // 4) * 4)]  # words: two, on and off
        found[name] = {
            "promised_ms": promised,
            "median_ms": round(statistics.median(times)),
            "largest_ms": round(max(times)),
        }
        print(f"{name:26}{found[name]}")
    return found


def main() -> None:
    """Serve, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="miniature")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    products.model(config.load(options.profile))
    driver, port = load("tests/browser/conftest.py"), load("tests/browser/conftest.py").free_port()
    words = [options.profile, f"--port={port}", "--no-browser"]
    command = [sys.executable, "workflow/explore.py", *words]
    with tempfile.NamedTemporaryFile() as log, sync_playwright() as play:
        server = driver.started(command, port, Path(log.name))
        try:
            browser = play.chromium.launch(executable_path=driver.CHROMIUM, args=driver.FLAGS)
            page = browser.new_page(viewport={"width": 1024, "height": 1100})
            page.goto(f"http://127.0.0.1:{port}/", wait_until="commit", timeout=driver.SLOW)
            found = measure(driver.Driver(page), options.rounds)
            browser.close()
        finally:
            server.terminate()
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    result = {"profile": options.profile, "machine": machine, "controls": found}
    runs.write_json(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
