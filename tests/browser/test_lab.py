"""Notebook 10 runs in JupyterLab and its widget answers."""

from .conftest import READY, SLOW, Driver

RUN = "notebook:run-all-cells"
KERNEL_IS_IDLE = """() => {
  const open = window.jupyterapp?.shell.currentWidget;
  return open?.context?.sessionContext.session?.kernel?.status == 'idle';
}"""


def test_notebook_10_in_jupyterlab(new_page, lab, outside):
    page = new_page(lab)
    page.set_default_timeout(SLOW)
    page.wait_for_function(KERNEL_IS_IDLE)
    page.evaluate(f"() => {{ window.jupyterapp.commands.execute('{RUN}'); }}")
    page.wait_for_selector(READY, state="attached")
    explorer = Driver(page)
    page.locator(".g2g").scroll_into_view_if_needed()
    word = explorer.words[0].removeprefix("✓ ")
    explorer.click(f"✓ {word}")
    assert explorer.words[0] == word
    assert outside == []
