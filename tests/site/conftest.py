"""The site, built once for all tests of this folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
]


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Folder of pages, with two of the films, and what the build said."""
    folder = tmp_path_factory.mktemp("site")
    options = {"G2G_SITE": str(folder), "G2G_SITE_FILMS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "tools/site.py"],
        cwd=ROOT,
        env=os.environ | options,
        capture_output=True,
        text=True,
    )
    return folder / "html", done


@pytest.fixture(scope="session")
def html(built) -> Path:
    """Folder of pages that were built without an error."""
    folder, done = built
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="session")
def outside() -> list[str]:
    """Addresses beyond these files that a page asked for."""
    return []


@pytest.fixture(scope="session")
def page(outside):
    """A browser's page without a network."""
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        here = ("file:", "data:", "blob:")
        opened.on("request", lambda r: None if r.url.startswith(here) else outside.append(r.url))
        yield opened
        browser.close()
