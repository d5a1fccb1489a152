"""Response times of the explorer in a browser; writes benchmarks/explorer_times.json.

    python benchmarks/explorer_times.py [--profile miniature] [--rounds 7]

From the user's event to the new image source, in Chromium on this machine, kernel and browser
included; the median and the largest of the rounds. Promised at miniature size on two cores: 200 ms
for any control, 600 ms for the grid, 2 s for a new phrase and for the first curve.
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

from g2g_utils import config, products, runs

ROOT = Path(__file__).resolve().parents[1]
PHRASES = ["left apical pneumothorax", "right pleural effusion", "edema in both lungs",
           "enlarged heart", "band of atelectasis at the left base", "opacity on the right",
           "small nodule near the hilum", "large right consolidation"]  # fmt: skip


def load(path: str) -> Any:
    """A module of the tests by its path."""
    spec = importlib.util.spec_from_file_location("g2g_driver", ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alternately(*actions: Callable[[], float]) -> Callable[[int], float]:
    """One action after the other, so that every round changes something."""
    return lambda i: actions[i % len(actions)]()


def controls(page: Any) -> dict[str, tuple[int, Callable[[int], float]]]:
    """What is measured: promised milliseconds and the action of a round.

    Every round asks for a map that was not shown in the two rounds before, as those are remembered.
    """
    tab = page.page.get_by_role("tab", name="Layers × timesteps")
    first, second = (word.removeprefix("✓ ") for word in page.words[:2])
    words = [f"✓ {first}", f"✓ {second}", first, second]
    toggle = alternately(*(lambda w=w: page.click(w) for w in words))
    page.click("all layers")
    return {
        "word": (200, toggle),
        "layer range": (200, lambda _: page.press("Layers", "ArrowRight")),
        "timestep range": (200, lambda _: page.press("Timesteps", "ArrowRight")),
        "opacity": (200, lambda _: page.press("Opacity", "ArrowRight")),
        "mask / map": (200, alternately(lambda: page.click("mask"), lambda: page.click("map"))),
        "grid, word": (600, lambda i: (tab.click(), toggle(i))[1]),
        "new phrase": (2000, lambda i: page.phrase(PHRASES[i])),
        "first curve of a phrase": (2000, lambda i: first_curve(page, PHRASES[i])),
        "another curve": (200, alternately(*(lambda c=c: page.choose("Curve", c)
                                             for c in ("linear", "quadratic", "mixture")))),
    }  # fmt: skip


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
        if "grid" not in name:
            page.page.get_by_role("tab", name="View", exact=True).click()
        times = [action(i) for i in range(rounds + rounds % 2)]
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
