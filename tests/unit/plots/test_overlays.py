"""Overlays: what is where in a figure, and what its file says about itself."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from g2g_utils import plots, runs
from g2g_utils.config import load
from g2g_utils.plots import overlays
from g2g_utils.runs import places

matplotlib.use("Agg")
IMAGE = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
HEAT = torch.zeros(16, 16).index_put((torch.tensor(3), torch.tensor(12)), torch.tensor(1.0))


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(autouse=True)
def closed():
    """No figure outlives its test."""
    yield
    overlays.plt.close("all")


def test_map_and_boxes_share_the_frame_of_the_image(ax):
    overlays.overlay(ax, IMAGE, HEAT, boxes=[(40, 8, 16, 12)], mask=HEAT > 0.5)
    film, heat = ax.images
    assert film.get_extent() == heat.get_extent() == [0, 64, 64, 0]
    box = ax.patches[-1]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (40, 8, 16, 12)
    assert ax.get_xlim() == (0, 64) and ax.get_ylim() == (64, 0)
    shown = heat.get_array()
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert abs((column + 0.5) / shown.shape[1] - 12.5 / 16) < 0.04
    assert abs((row + 0.5) / shown.shape[0] - 3.5 / 16) < 0.04


def test_mask_contour_runs_along_its_pixels(ax):
    overlays.draw_mask(ax, HEAT > 0.5, 64)
    (contour,) = ax.collections
    corners = contour.get_paths()[0].vertices
    assert np.allclose(corners.min(0), (48, 12), atol=0.6)
    assert np.allclose(corners.max(0), (52, 16), atol=0.6)
    overlays.draw_mask(ax, HEAT > 2, 64)  # an empty mask draws nothing
    assert len(ax.collections) == 1


def test_right_is_marked_at_image_left(ax):
    overlays.show_image(ax, IMAGE)
    (marker,) = ax.texts
    assert marker.get_text() == "R" and marker.get_position()[0] < 0.1


def test_limits_are_fixed_and_colour_maps_perceptual(ax):
    artist = overlays.overlay(ax, IMAGE, HEAT * 0.2, limits=(0, 0.5))
    assert artist.get_clim() == (0, 0.5)
    signed = overlays.show_map(Figure().subplots(), HEAT - 0.5, limits=(-1, 1), signed=True)
    assert signed.cmap(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.05)
    lightness = np.array(overlays.heat_colours().colors)[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) >= 0).all()


@pytest.mark.parametrize("image", [IMAGE, IMAGE[None], torch.from_numpy(IMAGE).expand(3, -1, -1)])
def test_grey_and_colour_images(ax, image):
    overlays.show_image(ax, image)
    assert ax.images[0].get_array().shape == (64, 64)


def test_grids_have_a_panel_for_each():
    strip = overlays.token_strip(IMAGE, HEAT.expand(9, -1, -1), [f"w{i}" for i in range(9)])
    assert sum(ax.get_visible() and bool(ax.images) for ax in strip.axes) == 9
    grid = overlays.layer_step_grid(
        [torch.rand(3, 4, 4), torch.zeros(3, 8, 8)], ["mid", "up"], [801, 401, 1],
        boxes=[(0, 0, 32, 32)], frame=64,
    )  # fmt: skip
    assert len(grid.axes) == 6
    assert grid.axes[0].patches[0].get_width() == 2 and grid.axes[3].patches[0].get_width() == 4
    films = overlays.image_grid([IMAGE] * 5, list("abcde"), columns=4)
    assert sum(ax.get_visible() for ax in films.axes) == 5


def test_finer_film_keeps_boxes_in_place():
    fig = overlays.grounding_panels(
        IMAGE, HEAT, HEAT > 0.5, phrase="x " * 100, boxes=[(8, 8, 16, 16)],
        film=np.kron(IMAGE, np.ones((4, 4))),
    )  # fmt: skip
    first, second = (ax.patches[0] for ax in fig.axes[:2])
    assert (first.get_width(), second.get_width()) == (16, 64)
    assert "64×64" in fig.axes[0].get_title(loc="left") + fig.axes[0].get_title()


def test_layer_labels():
    sizes = {
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2": (16, 16),
        "mid_block.attentions.0.transformer_blocks.0.attn2": (4, 4),
    }
    assert overlays.layer_labels(sizes) == ["down 0.1 (16×16)", "mid (4×4)"]


def test_saved_figure_tells_the_run_that_made_it_and_the_run_its_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    monkeypatch.setenv("G2G_RUN", "")  # restored after the test
    run = runs.Run(tmp_path / "run", "smoke-0.01_data.1", tmp_path / "metrics.json")
    run.start()
    plots.save_figure(load("smoke"), Figure(), "film")
    path = places.figures(load("smoke")) / "film.png"
    with Image.open(path) as picture:
        assert picture.text["Source"] == "run smoke-0.01_data.1"
    assert run.end() == [path]


def test_alternative_text_is_the_claim_and_what_is_drawn():
    fig = Figure()
    ax = fig.subplots()
    ax.set_title("one\npanel", loc="left")
    assert plots.alternative(fig) == "one panel"
    fig.suptitle("A claim.")
    assert plots.alternative(fig) == "A claim. one panel"
    assert plots.alternative(fig, "Bars of two arms.") == "A claim. Bars of two arms"


def test_saved_figure_tells_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    monkeypatch.delenv("G2G_RUN", raising=False)
    config = load("smoke")
    fig = Figure()
    overlays.show_image(fig.subplots(), IMAGE)
    plots.save_figure(config, fig, "film")
    path = places.figures(config) / "film.png"
    with Image.open(path) as picture:
        assert picture.text["Source"] == f"run {plots.run_id(config)}"
        assert picture.text["Comment"].startswith("git ")
    assert [p.name for p in path.parent.iterdir()] == ["film.png"]  # nothing half-written
