"""A served explorer and a Chromium that may talk to this machine alone."""

import os
import random
import re
import shutil
import signal
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
SLOW = 240_000  # ms until something counts as broken; machines that run tests are busy
READY = '.g2g-status[data-answers]:not([data-answers="0"], .busy, .error)'

# The status line ends every action and counts it: until then words and numbers are old.
ANSWERS = "() => Number(document.querySelector('.g2g-status').dataset.answers)"
ANSWERED = """before => {
  const status = document.querySelector('.g2g-status');
  return !status.classList.contains('busy') && Number(status.dataset.answers) > before;
}"""
WORDS = ".g2g-on, .g2g-off"
CHANGED = "window.g2g.to !== undefined"
TURNED = "before => ![...document.querySelectorAll('.g2g button')].some(b => b.title === before)"
# Time from the first user event after arming to the next change of a picture in the open tab.
ARM = """() => {
  const pictures = () => [...document.querySelectorAll('.g2g-main img')].map(i => i.src).join('|');
  window.g2g = {seen: pictures()};
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
    """A port that nothing listens on, below those that systems give to whoever asks for any."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise OSError("no free port between 20000 and 30000")


def stopped(process: subprocess.Popen) -> None:
    """End a server and its kernels: asked first, and made to where it takes too long."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def started(command: list[str], port: int, log: Path) -> subprocess.Popen:
    """A server that answers on its port; its log in the error if it does not."""
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.time() + SLOW / 1000
    while time.time() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.2)
    stopped(process)
    pytest.fail(f"{command[2]} did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def notebook(script) -> Path:
    """Notebook 10 under smoke, with two models to compare."""
    from g2g_utils import config
    from g2g_utils.experiment import products

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
    stopped(process)


@pytest.fixture(scope="session")
def lab(notebook, tmp_path_factory) -> Iterator[str]:
    """Address of JupyterLab as `./run_all.sh lab` serves it; notebook 10 runs under smoke."""
    from g2g_utils import config
    from g2g_utils.runs import places

    port, log = free_port(), tmp_path_factory.mktemp("lab") / "log"
    options = [
        f"--port={port}", "--no-browser", "--allow-root", "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    shutil.rmtree(places.build(config.load("miniature")) / "lab", ignore_errors=True)
    process = started([sys.executable, "workflow/lab.py", *options], port, log)
    shutil.copy(notebook, places.build(config.load("miniature")) / "lab")
    yield f"http://127.0.0.1:{port}/"
    stopped(process)


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """The browser."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=SLOW)
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

    def stays(address: str) -> bool:
        here = address.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))
        if not here:
            outside.append(address)
        return here

    def open_page(address: str):
        page = chromium.new_page(viewport={"width": 1024, "height": 1100})
        page.set_default_timeout(SLOW)
        page.route("**/*", lambda r: r.continue_() if stays(r.request.url) else r.abort())
        page.on("websocket", lambda socket: stays(socket.url))
        page.goto(address, wait_until="commit")
        return page

    return open_page


class Driver:
    """What a user does and sees in the explorer."""

    def __init__(self, page) -> None:
        self.page = page
        page.wait_for_selector(READY, state="attached", timeout=SLOW)

    def answered(self, action) -> None:
        """Do something, and wait until the explorer has answered."""
        before = self.page.evaluate(ANSWERS)
        action()
        self.page.wait_for_function(ANSWERED, arg=before, timeout=SLOW)

    def act(self, action) -> float:
        """Do something that changes the picture; milliseconds from the event to the new picture."""
        self.page.evaluate(ARM)
        self.answered(action)
        self.page.wait_for_function(CHANGED, timeout=SLOW)
        return self.page.evaluate("window.g2g.to - window.g2g.from")

    def refused(self, action) -> str:
        """Do something that is refused; the line that says why."""
        picture = self.picture
        self.answered(action)
        assert self.page.locator(".g2g-status.error").count() == 1, self.status
        assert self.picture == picture, "the last good view went"
        return self.status

    def tab(self, name: str) -> None:
        """Open a tab."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if tab.get_attribute("aria-selected") != "true":
            self.answered(tab.click)

    def check(self, label: str, on: bool = True) -> None:
        """Tick a box that changes no picture."""
        self.answered(lambda: self.page.get_by_label(label).set_checked(on))

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

    def slider(self, label: str) -> str:
        """A slider's label and what it is set to."""
        return self.page.locator(".widget-hslider", has_text=label).inner_text()

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

    def turn(self) -> None:
        """The next page of images; the arrow says which they are when all are there."""
        arrow = self.button("▸")
        before = arrow.get_attribute("title")
        arrow.click()
        self.page.wait_for_function(TURNED, arg=before, timeout=SLOW)

    @property
    def alternative(self) -> str:
        """What the open tab's picture shows, in words."""
        return self.page.locator(".g2g-main img:visible").first.get_attribute("alt")

    @property
    def numbers(self) -> str:
        """The table beside the picture."""
        return self.page.locator(".g2g-side").inner_text()

    @property
    def words(self) -> list[str]:
        """Labels of the word buttons."""
        return self.page.locator(WORDS).all_inner_texts()

    def shows(self, *words: str, status: str = "", numbers: str = "") -> None:
        """Expect these word buttons, and texts in the status line and beside the picture."""
        from playwright.sync_api import expect

        if words:
            expect(self.page.locator(WORDS)).to_have_text(words)
        for place, text in ((".g2g-status", status), (".g2g-side", numbers)):
            expect(self.page.locator(place)).to_contain_text(text)


@pytest.fixture(scope="session")
def explorer(new_page, voila) -> Driver:
    """The explorer in Voilà, open for all tests."""
    return Driver(new_page(voila))
