"""Notebook 10 runs in JupyterLab and its widget answers."""

from .conftest import READY, SLOW, Driver


def test_notebook_10_in_jupyterlab(new_page, lab, outside):
    page = new_page(lab)
    page.set_default_timeout(SLOW)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells").click()
    page.wait_for_selector(READY, state="attached")
    explorer = Driver(page)
    page.locator(".g2g").scroll_into_view_if_needed()
    word = explorer.words[0].removeprefix("✓ ")
    explorer.click(f"✓ {word}")
    assert explorer.words[0] == word
    assert outside == []
