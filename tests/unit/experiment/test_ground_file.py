"""Grounding files: what is written, and one clear line for what cannot be used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from g2g_utils import models, novelty
from g2g_utils.config import ConfigError, load
from g2g_utils.data.images import ImageError
from g2g_utils.experiment import ground_file, products
from g2g_utils.runs import places
from g2g_utils.training import pretrain

TEXTS = ["small left pleural effusion", "right lung opacity in the lower zone", "no edema ."]
PHRASE = "left lung opacity"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The smoke profile with a build folder of its own."""
    monkeypatch.setenv("G2G_BUILD", str(tmp_path / "build"))
    return load("smoke")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A model of the smoke profile's sizes that has learned nothing."""
    config = load("smoke")
    length = config.text.max_length
    with models.initialised(0):
        tokenizer = pretrain.word_tokenizer(TEXTS, tmp_path_factory.mktemp("text"), length)
        encoder = pretrain.build_text_encoder(config.encoders["domain"], tokenizer, length)
        vae = models.build_vae(config.vae)
        unet = models.build_unet(config.unet, config.vae.latent_channels, 16, 32)
    return models.GroundingModel(
        tokenizer=tokenizer,
        text_encoder=encoder.eval(),
        vae=vae.eval(),
        unet=unet.eval(),
        scheduler=models.build_scheduler(config.unet),
        image_size=config.image_size,
        max_length=length,
        zero_padding=True,
        name="smoke/ldm/domain-frozen-s0",
    )


@pytest.fixture
def quick(untrained, monkeypatch):
    """No training: the untrained model stands in for every arm."""
    monkeypatch.setattr(products, "model", lambda *args, **more: untrained)


@pytest.fixture
def nothing_heavy(monkeypatch):
    """Loading or making anything is a failure."""

    def refuse(*args, **more):
        raise AssertionError("something heavy was loaded before the inputs were checked")

    monkeypatch.setattr(products, "model", refuse)
    monkeypatch.setattr(products, "ensure", refuse)


def film(path: Path, shape=(70, 90)) -> Path:
    """An image file with a bright blob."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    blob = np.exp(-((y - 20) ** 2 + (x - 30) ** 2) / 200)
    Image.fromarray((60 + 150 * blob).astype(np.uint8)).save(path)
    return path


def test_files_and_what_they_say(config, quick, tmp_path):
    written = ground_file.ground_file(config, film(tmp_path / "a film.png"), PHRASE)
    assert [path.name for path in written] == ["overlay.png", "maps.npz", "grounding.json"]
    folder = written[0].parent
    assert folder.parent == places.build(config) / "grounded" and folder.name.startswith("a film-")
    with Image.open(written[0]) as picture:
        assert picture.text["Source"].startswith("run smoke-")
        assert picture.text["Disclaimer"] == ground_file.DISCLAIMER
    maps = np.load(written[1])
    assert maps["heatmap"].shape == maps["activation"].shape == maps["mask"].shape == (16, 16)
    assert maps["interaction"].shape == (16, 16)  # the profile merges biases
    assert len(maps["token_maps"]) == len(maps["pieces"]) == 5  # start, three words, end
    said = json.loads(written[2].read_text())
    assert said["words"] == ["left", "lung", "opacity"] and said["phrase"] == PHRASE
    assert said["disclaimer"] == ground_file.DISCLAIMER and "phantoms" in said["caution"]
    assert said["image"]["file"] == "a film.png" and len(said["image"]["sha256"]) == 64
    assert said["parameters"]["timesteps"] == config.grounding.timesteps
    x, y = said["peak"]
    assert 10 <= x <= 80 and 0 <= y <= 70  # inside the centre square, in pixels of the file
    assert str(tmp_path) not in written[2].read_text()


def test_same_request_same_folder_other_request_other_folder(config, quick, tmp_path):
    image = film(tmp_path / "film.png")
    first = ground_file.ground_file(config, image, PHRASE)
    before = np.load(first[1])["heatmap"]
    again = ground_file.ground_file(config, image, PHRASE)
    assert again == first and np.array_equal(np.load(again[1])["heatmap"], before)
    folders = {
        ground_file.ground_file(config, image, "right lung opacity")[0].parent,
        ground_file.ground_file(config, image, PHRASE, seed=1)[0].parent,
        ground_file.ground_file(config, film(tmp_path / "film.png", (80, 80)), PHRASE)[0].parent,
    }
    assert len(folders | {first[0].parent}) == 4


def test_other_output_folder(config, quick, tmp_path):
    written = ground_file.ground_file(
        config, film(tmp_path / "f.png"), PHRASE, out=tmp_path / "mine"
    )
    assert all(path.parent.parent == tmp_path / "mine" and path.is_file() for path in written)


def test_too_long_phrase_says_what_was_cut_off(config, quick, tmp_path, capsys):
    phrase = "opacity " * 75 + "left pleural effusion"
    _, _, numbers = ground_file.ground_file(config, film(tmp_path / "f.png"), phrase)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "77 tokens" in line and "left pleural effusion" in line and "shorten" in line
    assert json.loads(numbers.read_text())["cut_off"] == ["left", "pleural", "effusion"]


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("", "empty phrase ''"),
        (" .,; ", "empty phrase ' .,; '"),
        ("of the and", "'of the and' has function words only"),
    ],
)
def test_bad_phrases_stop_before_anything_heavy(config, nothing_heavy, tmp_path, phrase, message):
    with pytest.raises(ValueError, match=message) as caught:
        ground_file.ground_file(config, film(tmp_path / "film.png"), phrase)
    assert "\n" not in str(caught.value)


def test_bad_images_stop_before_anything_heavy(config, nothing_heavy, tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("no image")
    for path, message in (
        (text, "not an image"),
        (tmp_path / "gone.png", "no such file"),
        (tmp_path, "is a directory"),
        (film(tmp_path / "tiny.png", (4, 90)), "only 90×4 pixels"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            ground_file.ground_file(config, path, PHRASE)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    black = tmp_path / "black.png"
    Image.new("L", (64, 64)).save(black)
    with pytest.raises(ValueError, match="every pixel is the same"):
        ground_file.ground_file(config, black, PHRASE)
    with pytest.raises(ValueError, match="is no folder"):
        ground_file.ground_file(config, film(tmp_path / "film.png"), PHRASE, out=black)


def test_a_phrase_with_dollars_is_drawn(config, quick, tmp_path):
    files = ground_file.ground_file(config, film(tmp_path / "film.png"), r"mass $x_$ left")
    assert all(file.is_file() for file in files)


def test_unknown_arm_stops_before_anything_heavy(config, nothing_heavy, tmp_path):
    with pytest.raises(ConfigError, match="unknown arm 'best': choose one of domain-frozen"):
        ground_file.ground_file(config, film(tmp_path / "film.png"), PHRASE, arm="best")


@pytest.mark.slow
def test_command_line_says_one_line(config, tmp_path):
    command = [sys.executable, "-m", "g2g_utils", "ground", "--profile", "smoke"]
    for words in (["gone.png", PHRASE], [str(film(tmp_path / "f.png")), "in the"]):
        run = subprocess.run(
            [*command, *words], capture_output=True, text=True, cwd=Path(__file__).parents[3]
        )
        assert run.returncode == 2 and run.stdout == ""
        assert run.stderr.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in run.stderr


def test_notebook_choice(config):
    own = ground_file.chosen_example(config, "", "", 1)
    assert own.array().shape == (64, 64) and own.boxes and own.phrase
    other = ground_file.chosen_example(config, "", "small left pleural effusion", 1)
    assert other.boxes == () and np.array_equal(other.array(), own.array())
    with pytest.raises(ValueError, match="pair=99: the test split has pairs 0 to"):
        ground_file.chosen_example(config, "", "", 99)
    shared = ground_file.chosen_example(config, "", "", -1)
    ranks = [ground_file.telling(p.phrase, p.finding) for p in products.evaluation_pairs(config)]
    assert ground_file.telling(shared.phrase, shared.finding) <= min(ranks) + 1
    with pytest.raises(ValueError, match="set the parameter `phrase` too"):
        ground_file.chosen_example(config, "film.png", "", 0)


def test_running_example():
    """A whole chest; a phrase with function words, a side and the finding's name."""
    example = ground_file.running_example(load("miniature"))
    assert example.phrase == "small effusion at the left base"
    told = [
        ground_file.telling(phrase, "Pleural Effusion")
        for phrase in ("fluid", "right fluid", "left effusion", "an effusion on the left")
    ]
    assert told == [4, 3, 2, 0]
    assert ground_file.telling("opacity at the left base", "Lung Opacity") == 1


def test_figures_of_own_images_stay_below_build():
    config = load("miniature")
    assert ground_file.figures_folder(config, "") == places.figures(config)
    assert places.build(config) in ground_file.figures_folder(config, "mine.png").parents


def real_images() -> list[Path]:
    """A handful of real films of different sizes and modes, or none where they are absent."""
    root = os.environ.get("G2G_SHARED", str(Path(__file__).parents[4] / "shared"))
    found: list[Path] = []
    for name, every in (("open", 6), ("nih64", 120)):
        found += sorted((Path(root) / "realdata" / name / "images").glob("*"))[::every]
    return found


def test_real_films(config, quick, tmp_path):
    films = real_images()
    if not films:
        pytest.skip("no real images (set G2G_SHARED)")
    assert len({Image.open(path).size for path in films}) > 2
    for path in films:
        written = ground_file.ground_file(config, path, PHRASE, out=tmp_path / "real")
        assert all(one.is_file() for one in written)
        heatmap = np.load(written[1])["heatmap"]
        assert heatmap.min() == 0 and heatmap.max() == 1


ODD = [
    b"a\xff",
    b"\xff\xfe",
    b"a\nb",
    b"a'b",
    b'a"b',
    b" a ",
    b"{a}",
    b"a$b",
    b"caf\xc3\xa9",
    b"-a",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_of_films_are_grounded(config, quick, tmp_path, name):
    path = film(tmp_path / "film.png").rename(tmp_path / os.fsdecode(name + b".png"))
    files = ground_file.ground_file(config, path, PHRASE)
    assert all(file.is_file() for file in files)
    files[0].parent.name.encode()
    assert files[0].parent.name.isprintable()


@pytest.mark.parametrize("out", ["film.png/x", "gone/../film.png", "a\0b", "/proc/x", "l" * 300])
def test_a_folder_that_cannot_be_made_stops_before_anything_heavy(
    config, nothing_heavy, tmp_path, out
):
    path = film(tmp_path / "film.png")
    with pytest.raises(ValueError, match="is no folder: name one") as caught:
        ground_file.ground_file(config, path, PHRASE, out=tmp_path / out)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("stem", ["a" * 240, "é" * 120, "film"])
def test_long_names_leave_room_for_more(stem):
    short = ground_file.short_name(stem)
    assert stem.startswith(short) and len(f".{short}-12345678.tmp".encode()) < 255
    assert short == stem or len(short.encode()) >= 199


def test_other_methods_write_their_own_maps_and_what_the_film_says(config, quick, tmp_path, capsys):
    image, maps, folders = film(tmp_path / "f.png"), {}, set()
    for method in ("attention", "information", "both", "zero-shot-ldm"):
        written = ground_file.ground_file(config, image, PHRASE, method=method)
        maps[method] = np.load(written[1])["heatmap"]
        said = json.loads(written[2].read_text())
        folders.add(written[0].parent)
        assert said["parameters"]["method"] == method
        gains, printed = len(said.get("total_gain_over", [])), capsys.readouterr().out.strip()
        if method in ("attention", "zero-shot-ldm"):
            assert "presence" not in said and not printed and not gains
        else:
            assert "not calibrated" in said["presence"]["said"]  # and nothing is made for it
            assert printed == f"presence: {said['presence']['said']}" and "\n" not in printed
            assert gains == 2
    assert len(folders) == 4
    assert said["parameters"]["sampling"] == "inversion" and said["otsu"] > 0
    assert len(said["timesteps"]) == 2  # of smoke's row: the middle of ten steps
    assert maps["zero-shot-ldm"].max() == 1 and (maps["zero-shot-ldm"] == 0).mean() > 0.2
    assert not np.allclose(maps["information"], maps["both"])
    with pytest.raises(ValueError, match="method 'magic': choose one of attention, information"):
        ground_file.ground_file(config, image, PHRASE, method="magic")


def test_a_picture_unlike_the_training_images_is_told(config, quick, untrained, tmp_path, capsys):
    """Beyond the calibrated limit stderr and the JSON say so; below it only the JSON does."""
    from g2g_utils.experiment import novelty as calibrated

    noisy = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noisy).save(tmp_path / "noise.png")
    found = novelty.features(untrained, noisy / 255).numpy()
    near = novelty.Reference(found, np.eye(len(found)), np.ones(20))
    far = novelty.Reference(found + 9, np.eye(len(found)), np.ones(20))
    for reference, flagged in ((near, False), (far, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibrated, "reference", lambda *_, r=reference: r)
            *_, report = ground_file.ground_file(
                config, tmp_path / "noise.png", PHRASE, out=tmp_path / str(flagged)
            )
        told = json.loads(report.read_text())["novelty"]
        assert told["flagged"] is flagged and told["limit"] == 1
        assert ("unlike" in told["said"]) is flagged
        assert (f"noise.png is {told['said']}" in capsys.readouterr().err) is flagged


def test_without_a_reference_novelty_says_how_to_make_one(config, quick, tmp_path):
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "a.png")
    *_, report = ground_file.ground_file(config, tmp_path / "a.png", PHRASE, out=tmp_path / "o")
    told = json.loads(report.read_text())["novelty"]
    assert told["flagged"] is None and "make novelty/domain-frozen-s0" in told["said"]
