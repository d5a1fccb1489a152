"""Notebooks are stepped through in JupyterLab: 00 from its start, 10 with its widget."""

import os
import subprocess

from .conftest import SLOW, WORDS, Driver

FIRST = "00_quickstart.ipynb"
RUN = "notebook:run-all-cells"
KERNEL_IS_IDLE = """name => {
  const open = window.jupyterapp?.shell.currentWidget?.context;
  return open?.path == name && open.sessionContext.session?.kernel?.status == 'idle';
}"""


FAILED = """() => {
  const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells;
  return [...cells].flatMap(c => c.outputs ?? []).filter(o => o.output_type == 'error').length;
}"""
SHOWN = """() => {
  const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells;
  return [...cells].flatMap(c => c.outputs ?? []).filter(o => o.output_type != 'stream').length;
}"""
SET = """([name, value]) => {
  const cells = [...window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells];
  const cell = cells.find(c => (c.getMetadata('tags') ?? []).includes('parameters'));
  cell.setSource(cell.getSource() + `\\n${name} = ${value}`);
}"""


def run_all(page) -> None:
    """Run every cell and wait for the last."""
    page.evaluate(f"() => window.jupyterapp.commands.execute('{RUN}').then(() => true)")


def test_notebook_00_step_by_step_with_a_changed_parameter(new_page, lab, outside, root):
    """Opens at 00; runs; a parameter changes and it runs again; the repository stays clean."""
    before = subprocess.check_output(["git", "status", "--porcelain"], cwd=root, text=True)
    page = new_page(lab)
    page.wait_for_function(KERNEL_IS_IDLE, arg=FIRST, timeout=SLOW)
    page.evaluate(SET, ["profile", "'smoke'"])
    run_all(page)
    assert page.evaluate(FAILED) == 0 and page.evaluate(SHOWN) > 3
    page.evaluate(SET, ["pair", "1"])
    run_all(page)
    assert page.evaluate(FAILED) == 0 and outside == []
    after = subprocess.check_output(["git", "status", "--porcelain"], cwd=root, text=True)
    assert after == before


def test_notebook_10_in_jupyterlab(new_page, lab, outside):
    page = new_page(f"{lab}lab/tree/10_explorer.ipynb?reset")
    page.wait_for_function(KERNEL_IS_IDLE, arg="10_explorer.ipynb", timeout=SLOW)
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
