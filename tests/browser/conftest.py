"""A served explorer and a Chromium that may talk to this machine alone."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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
SLOW = 240_000  # ms; machines that run tests are busy
READY = '.g2g-status[data-drawn]:not([data-drawn="0"])'

# The status line comes last in a drawing and counts it: until then words and numbers are old.
DRAWN = """() => {
  const status = document.querySelector('.g2g-status');
  return window.g2g.to !== undefined && !status.classList.contains('busy')
    && Number(status.dataset.drawn) > Number(window.g2g.drawn);
}"""
# Time from the first user event after arming to the next change of a picture in the open tab.
ARM = """() => {
  const pictures = () => [...document.querySelectorAll('.g2g-main img')].map(i => i.src).join('|');
  window.g2g = {seen: pictures(), drawn: document.querySelector('.g2g-status').dataset.drawn};
  if (window.g2gArmed) return;
  window.g2gArmed = true;
  for (const kind of ['click', 'change', 'keydown', 'input'])
    document.addEventListener(kind, () => { window.g2g.from ??= performance.now(); }, true);
  new MutationObserver(() => {
    if (window.g2g.from === undefined || window.g2g.to !== undefined) return;
    if (pictures() !== window.g2g.seen) window.g2g.to = performance.now();
  }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here are browser tests; without Chromium they are skipped."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")
            if not CHROMIUM:
                item.add_marker(pytest.mark.skip(reason="no Chromium: apt-get install chromium"))


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def started(command: list[str], port: int, log: Path) -> subprocess.Popen:
    """A server that answers on its port; its log in the error if it does not."""
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.2)
    process.terminate()
    pytest.fail(f"{command[2]} did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def notebook(script) -> Path:
    """Notebook 10 under smoke, with two models to compare."""
    from g2g_utils import config, products

    settings = config.load("smoke")
    for arm in list(settings.training.arms)[:2]:
        products.model(settings, arm)
    os.environ["HF_HUB_OFFLINE"] = "1"
    return script("workflow/explore.py").application("smoke")


@pytest.fixture(scope="session")
def voila(notebook, tmp_path_factory) -> Iterator[str]:
    """Address of the explorer as `./run_all.sh explore smoke` serves it."""
    port, log = free_port(), tmp_path_factory.mktemp("voila") / "log"
    options = ["smoke", f"--port={port}", "--no-browser"]
    process = started([sys.executable, "workflow/explore.py", *options], port, log)
    yield f"http://127.0.0.1:{port}/"
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="session")
def lab(notebook, tmp_path_factory) -> Iterator[str]:
    """Address of notebook 10 in JupyterLab."""
    port, folder = free_port(), tmp_path_factory.mktemp("lab")
    shutil.copy(notebook, folder)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    process = started(command, port, folder / "log")
    yield f"http://127.0.0.1:{port}/lab/tree/{notebook.name}"
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def outside() -> list[str]:
    """Addresses beyond this machine that a page asked for (and did not get)."""
    return []


@pytest.fixture(scope="session")
def new_page(chromium, outside):
    """Open a page whose requests stay on this machine."""

    def guard(route) -> None:
        address = route.request.url
        if address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            outside.append(address)
            route.abort()

    def open_page(address: str):
        page = chromium.new_page(viewport={"width": 1024, "height": 1100})
        page.set_default_timeout(60_000)
        page.route("**/*", guard)
        page.goto(address, wait_until="commit", timeout=SLOW)
        return page

    return open_page


class Driver:
    """What a user does and sees in the explorer."""

    def __init__(self, page) -> None:
        self.page = page
        page.wait_for_selector(READY, timeout=SLOW)

    def act(self, action) -> float:
        """Do something that changes the picture; milliseconds from the event to the new picture."""
        self.page.evaluate(ARM)
        action()
        self.page.wait_for_function(DRAWN, timeout=60_000)
        return self.page.evaluate("window.g2g.to - window.g2g.from")

    def refused(self, action) -> str:
        """Do something that is refused; the line that says why."""
        picture = self.picture
        action()
        self.page.wait_for_selector(".g2g-status.error")
        assert self.picture == picture, "the last good view went"
        return self.status

    def click(self, name: str) -> float:
        """Press the button of that name."""
        return self.act(lambda: self.button(name).click())

    def button(self, name: str):
        """The button of exactly that name (icons don't count)."""
        text = re.compile(rf"^\s*{re.escape(name)}\s*$")
        return self.page.locator(".g2g button", has_text=text)

    def choose(self, label: str, value: str) -> float:
        """Choose in a drop-down by its label."""
        return self.act(lambda: self.page.get_by_label(label, exact=True).select_option(value))

    def value(self, label: str) -> str:
        """What a drop-down or field holds."""
        return self.page.get_by_label(label, exact=True).evaluate(
            "e => e.selectedOptions ? e.selectedOptions[0].text : e.value"
        )

    def press(self, label: str, key: str, handle: int = 0) -> float:
        """Move a slider's handle with a key."""
        slider = self.page.locator(".widget-hslider", has_text=label)
        slider.locator(".noUi-handle").nth(handle).focus()
        return self.act(lambda: self.page.keyboard.press(key))

    def type(self, label: str, text: str):
        """Type into a field; the Enter key is left to the caller."""
        field = self.page.get_by_label(label, exact=True)
        field.fill(text)
        return field

    def phrase(self, text: str) -> float:
        """Ground another phrase."""
        field = self.type("Phrase", text)
        return self.act(lambda: field.press("Enter"))

    def upload(self, path: Path) -> None:
        """Choose a file in the upload dialogue."""
        with self.page.expect_file_chooser() as chooser:
            self.page.get_by_role("button", name="Upload image").click()
        chooser.value.set_files(path)

    @property
    def status(self) -> str:
        """The status line."""
        return self.page.locator(".g2g-status").inner_text()

    @property
    def picture(self) -> str:
        """The source of the open tab's picture."""
        return self.page.locator(".g2g-main img:visible").first.get_attribute("src")

    @property
    def thumbnails(self) -> str:
        """What the visible thumbnails show."""
        images = self.page.locator(".g2g-gallery img")
        return ",".join(images.evaluate_all("all => all.map(i => i.alt)"))

    @property
    def numbers(self) -> str:
        """The table beside the picture."""
        return self.page.locator(".g2g-side").inner_text()

    @property
    def words(self) -> list[str]:
        """Labels of the word buttons."""
        return self.page.locator(".g2g-on, .g2g-off").all_inner_texts()


@pytest.fixture(scope="session")
def explorer(new_page, voila) -> Driver:
    """The explorer in Voilà, open for all tests."""
    return Driver(new_page(voila))
