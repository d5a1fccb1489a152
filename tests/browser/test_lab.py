"""Notebook 10 runs in JupyterLab and its widget answers."""

import os

from .conftest import SLOW, WORDS, Driver

RUN = "notebook:run-all-cells"
KERNEL_IS_IDLE = """() => {
  const open = window.jupyterapp?.shell.currentWidget;
  return open?.context?.sessionContext.session?.kernel?.status == 'idle';
}"""


def test_notebook_10_in_jupyterlab(new_page, lab, outside):
    page = new_page(lab)
    page.wait_for_function(KERNEL_IS_IDLE, timeout=SLOW)
    page.evaluate(f"() => {{ window.jupyterapp.commands.execute('{RUN}'); }}")
    explorer = Driver(page)
    page.locator(".g2g").scroll_into_view_if_needed()
    page.locator(WORDS).first.wait_for()
    first, *others = explorer.words
    explorer.click(first)
    explorer.shows(first.removeprefix("✓ "), *others)
    if folder := os.environ.get("G2G_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/lab.png")
    assert outside == []
