"""The site builds without a warning, asks no other machine, and its films average as we do."""

import json
import re

import pytest

TALLEST = 6000  # pixels of a notebook's page, folds closed
HEIGHT = "document.querySelector('.bd-article').scrollHeight"


def test_it_builds_without_a_warning(built, root):
    folder, done = built
    assert done.returncode == 0, done.stderr[-4000:]
    assert "WARNING" not in done.stderr
    notebooks = {p.stem for p in (root / "notebooks").glob("[0-9]*.ipynb")}
    assert notebooks <= {p.stem for p in (folder / "notebooks").glob("*.html")}
    assert len(list(folder.rglob("*.html"))) >= len(notebooks) + 15


def test_links_and_images_exist(html):
    lost = []
    for page in html.rglob("*.html"):
        if "_static" in page.parts:
            continue
        for kind, to in re.findall(
            r'<(?:a|img|script|link)[^>]*?(href|src)="([^"]+)"', page.read_text()
        ):
            path, _, _ = to.partition("#")
            path = path.partition("?")[0]
            if not path or re.match(r"(https?|mailto|data|javascript):", path):
                continue
            if not (page.parent / path).exists():
                lost.append(f"{page.relative_to(html)}: {kind} {to}")
    assert lost == []


def test_no_warning_of_a_run_is_shown(html):
    for page in (html / "notebooks").glob("*.html"):
        assert "UserWarning" not in page.read_text(), page.name


def test_figures_are_numbered_and_described(html):
    page = (html / "notebooks" / "06_bimodal_bias_merging.html").read_text()
    assert "Figure 2" in page or "Figure 3" in page
    pictures = re.findall(r"<img[^>]*_images[^>]*>", page)
    assert pictures and all(re.search(r'alt="[^"]{8,}"', p) for p in pictures)


def test_every_target_of_the_paper_map_exists(script, root):
    import yaml

    site = script("tools/site.py")
    entries = yaml.safe_load((root / "docs" / "paper_map.yaml").read_text())
    text = site.paper_map(entries)
    for item in ("Figure 1", "Table 1", "Figure 3", *(f"Appendix {a}" for a in "ABCDE")):
        assert f"| {item} |" in text
    with pytest.raises(ValueError, match="no section 'nowhere'"):
        site.target("token_maps#nowhere")
    with pytest.raises(ValueError, match="0 notebooks"):
        site.target("no_such_notebook")


def test_notebooks_are_short_pages_that_ask_no_other_machine(html, page, outside):
    tall = {}
    for file in sorted((html / "notebooks").glob("*.html")):
        page.goto(file.as_uri())
        tall[file.stem] = page.evaluate(HEIGHT)
    assert {k: v for k, v in tall.items() if v > TALLEST} == {}
    assert outside == []


def test_formulas_are_set_without_a_network(html, page, outside):
    page.goto((html / "notebooks" / "06_bimodal_bias_merging.html").as_uri())
    page.wait_for_selector("mjx-container svg")
    assert outside == []


def test_films_average_as_the_package_does(html, page):
    page.goto((html / "films.html").as_uri())
    shown = page.locator("#g2g-numbers[data-cnr]")
    shown.wait_for()
    for number in (0, 1):
        page.select_option("#g2g-film", str(number))
        script = (html / "_static" / "films" / f"film-{number}.js").read_text()
        film = json.loads(script.partition(", ")[2].rpartition(")")[0])
        page.wait_for_function(
            "phrase => document.querySelector('#g2g-films canvas').ariaLabel.includes(phrase)",
            arg=film["phrase"],
        )
        assert float(shown.get_attribute("data-cnr")) == pytest.approx(film["cnr"], abs=0.02)


def test_words_layers_and_timesteps_change_the_film(html, page):
    page.goto((html / "films.html").as_uri())
    page.locator("#g2g-numbers[data-cnr]").wait_for()
    picture = "document.querySelector('#g2g-films canvas').toDataURL()"
    seen = {page.evaluate(picture)}

    def act(action):
        action()
        now = page.evaluate(picture)
        assert now not in seen
        seen.add(now)

    act(page.locator("button.word[aria-pressed=true]").first.click)
    act(lambda: page.select_option("#g2g-layers", "2"))
    act(lambda: page.locator("#g2g-last-timestep").fill("3"))
    act(lambda: page.select_option("#g2g-method", "1"))
    act(lambda: page.select_option("#g2g-method", "2"))
    act(lambda: page.select_option("#g2g-method", "3"))
    assert page.locator("button.word").first.is_disabled()
