"""The explorer without widgets and browser: state, captures, views, pictures, exports."""

import datetime
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from g2g_utils import attention, bbm, config, explorer, grounding, information
from g2g_utils.bench.presence import Calibration
from g2g_utils.data.record import Example, Region
from g2g_utils.experiment import presence
from g2g_utils.explorer import export, maps, render, session, state, study
from tests.duck import Model

PHRASE = "small left effusion"
DEFAULTS = config.Grounding(timesteps=5, keep_last=3)
BOX = (4.0, 4.0, 12.0, 10.0)


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def settings():
    return config.load(
        "smoke",
        image_size=32,
        **{"grounding.timesteps": 5, "grounding.keep_last": 3, "grounding.layers": None},
    )


@pytest.fixture
def opened(settings, model, monkeypatch):
    """A session over three made-up pictures and the tiny random model under two names."""
    images = np.random.default_rng(0).random((3, 32, 32), dtype=np.float32)
    regions = (
        (Region(PHRASE, "Pleural Effusion", "left", (BOX,)),),
        (Region("edema", "Edema", None, ((0, 0, 30, 9),)), Region(PHRASE, "Edema", None, (BOX,))),
        (),
    )
    rows = [
        Example(image, "no finding", None, (), f"i{i}", f"s{i}", "test", own)
        for i, (image, own) in enumerate(zip(images, regions, strict=True))
    ]
    names = ["domain-frozen-s0", "generic-frozen-s0"]
    monkeypatch.setattr(session.sources, "examples", lambda *_: rows)
    monkeypatch.setattr(session, "available_models", lambda _: names)
    monkeypatch.setattr(session.products, "model", lambda *_: model)
    monkeypatch.setattr(export.runs, "git_state", lambda _: {"commit": "abc", "dirty": False})
    return explorer.Session(settings, device="cpu")


@pytest.fixture
def start(opened):
    return opened.start()


@pytest.fixture(scope="module")
def capture(model):
    image = torch.rand(32, 32, generator=torch.Generator().manual_seed(1))
    return maps.capture_image(model, image, PHRASE, timesteps=5, batch_size=5)


# -- captures and reductions ------------------------------------------------------------------


def test_capture_holds_every_axis_and_padding_as_one_column(capture):
    assert capture.columns == 6 and capture.padding_column == 5  # start, 3 words, end, padding
    assert capture.weight(5) == 12 - 5 and capture.weight(1) == 1
    assert capture.positions([1, 5]) == [1, *range(5, 12)]
    for name, kept in capture.maps.items():
        assert kept.shape[:2] == (5, 6) and kept.dtype == torch.float16, name
    assert capture.nbytes == sum(m.numel() * 2 for m in capture.maps.values())
    assert len(capture.timesteps) == 5 and capture.maps.size == (16, 16)


def test_attention_of_all_columns_sums_to_one(capture):
    chosen = maps.Selection((1,), capture.layers, (0, 4))
    means = capture.maps.token_means(**chosen.over)
    total = sum(float(means[c]) * capture.weight(c) for c in range(capture.columns))
    assert total == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("columns", [(1, 2, 3), (3,), (0, 5), (2, 4)])
@pytest.mark.parametrize("keep_last", [5, 2])
def test_activation_is_what_ground_gives(model, capture, columns, keep_last):
    image = torch.rand(32, 32, generator=torch.Generator().manual_seed(1))
    chosen = maps.Selection(columns, capture.layers, (5 - keep_last, 4))
    found = grounding.ground(
        model, image, PHRASE, tokens=capture.positions(columns), timesteps=5, keep_last=keep_last
    )
    ours = bbm.minmax(maps.activation(capture, chosen))
    assert torch.allclose(ours, found.heatmap, atol=5e-3)


def test_reductions_agree_with_each_other(capture):
    chosen = maps.Selection((1, 3), capture.layers[1:3], (1, 3))
    each = capture.maps.by_token(**chosen.over)
    assert each.shape == (6, 16, 16)
    assert torch.allclose(each[[1, 3]].mean(0), maps.activation(capture, chosen), atol=1e-6)
    grid = capture.maps.by_step(chosen.columns, **chosen.over)
    assert list(grid) == list(chosen.layers) and all(len(m) == 3 for m in grid.values())
    up = torch.stack([attention.upsample(m.mean(0)[None], (16, 16))[0] for m in grid.values()])
    assert torch.allclose(up.mean(0), maps.activation(capture, chosen), atol=1e-6)


def test_merging_is_what_ground_gives(model, capture):
    image = torch.rand(32, 32, generator=torch.Generator().manual_seed(1))
    chosen = maps.Selection((1, 3), capture.layers, (1, 3))
    text = maps.capture_text(model, capture.phrase, timesteps=5, text_guidance=4.0)
    ours = bbm.merge(
        maps.activation(capture, chosen), *maps.merging(capture, text, chosen), "mixture"
    )
    kwargs = {"tokens": [1, 3], "timesteps": 5, "steps": (1, 3), "curve": "mixture"}
    found = grounding.ground(model, image, PHRASE, text_guidance=4.0, **kwargs)
    assert torch.allclose(bbm.minmax(ours), found.heatmap, atol=2e-2)


def test_progress_counts_forwards_and_leaves_no_hook(model):
    told = []
    image = torch.rand(32, 32)
    found = maps.capture_image(
        model, image, PHRASE, timesteps=5, batch_size=2, progress=lambda *a: told.append(a)
    )
    assert told == [("maps", 1, 3), ("maps", 2, 3), ("maps", 3, 3)]
    maps.capture_text(model, found.phrase, timesteps=3, progress=lambda *a: told.append(a))
    assert told[-1] == ("text bias", 3, 3)
    assert not model.unet._forward_hooks  # noqa: SLF001


def test_names_of_layers(capture):
    labels = maps.layer_labels(capture)
    assert labels[0] == "down 0.0 (16×16)" and len(set(labels)) == len(labels)
    assert maps.layer_labels(capture, short=True)[0] == "down 0.0"
    spans = maps.blocks(capture)
    assert list(spans) == ["down", "mid", "up"] and spans["up"][1] == len(labels) - 1
    assert maps.resolutions(capture) == (16, 8)


# -- state ------------------------------------------------------------------------------------


def test_state_functions_are_pure(start):
    before = replace(start)
    state.edit_phrase(start, "edema"), state.swap(start), state.undrawn(start)
    assert start == before


def test_editing_the_phrase_chooses_its_content_words(start):
    old = replace(start, columns=(2,))
    assert state.edit_phrase(old, "edema").columns is None
    assert state.edit_phrase(old, f"  {PHRASE} ") == old  # only spaces differ
    with pytest.raises(ValueError, match="empty"):
        state.edit_phrase(old, "  ")


def test_swap_compares_with_the_other_side(start):
    swapped = state.swap(start)
    assert (swapped.compare, swapped.other_phrase) == ("phrase", "small right effusion")
    assert swapped.phrase == PHRASE
    with pytest.raises(ValueError, match="no side to swap in 'edema'"):
        state.swap(replace(start, phrase="edema"))


def test_toggle():
    assert state.toggle((1, 2), (2,)) == (1,)
    assert state.toggle((1,), (2, 3)) == (1, 2, 3)
    assert state.toggle((1, 2), (2, 3)) == (1, 2, 3)  # partly on: first on


def test_chips(capture):
    assert [c.label for c in state.chips(capture)] == ["small", "left", "effusion"]
    every = state.chips(capture, special=True)
    assert [c.label for c in every] == [
        "start", "small", "left", "effusion", "end", "padding ×7"
    ]  # fmt: skip
    assert [c.kind for c in every] == ["special", "word", "word", "word", "special", "special"]


def pieces(*tokens, words):
    """A capture-like phrase of made-up word pieces."""
    from g2g_utils.text import PhraseTokens, Word

    spans = [Word(w, 0, 1, t) for w, t in words]
    found = PhraseTokens("x", None, None, tokens, tuple(spans), 0, len(tokens) - 1, (), ())
    return SimpleNamespace(
        phrase=found, columns=len(tokens), padding_column=None, weight=lambda _: 1
    )


def test_word_pieces_are_visible_and_apart_on_request():
    bert = pieces(
        "[CLS]", "cardio", "##mega", "##ly", ",", "[SEP]", words=[("cardiomegaly", (1, 2, 3))]
    )
    assert [c.label for c in state.chips(bert)] == ["cardio·mega·ly"]
    apart = state.chips(bert, pieces=True)
    assert [c.label for c in apart] == ["cardio", "·mega", "·ly"]
    assert [c.label for c in state.chips(bert, special=True)] == [
        "start", "cardio·mega·ly", ",", "end"
    ]  # fmt: skip
    clip = pieces("<s>", "e", "ff</w>", "</s>", words=[("eff", (1, 2))])
    assert [c.label for c in state.chips(clip)] == ["e·ff"]


def test_carry_keeps_words_and_special_tokens_across_tokenizers():
    bert = pieces("[CLS]", "left", "effusion", "[SEP]", words=[("left", (1,)), ("effusion", (2,))])
    clip = pieces(
        "<s>", "le", "ft", "effu", "sion", "</s>", words=[("left", (1, 2)), ("effusion", (3, 4))]
    )
    assert state.carry((0, 2, 3), bert, clip) == (0, 3, 4, 5)
    assert state.carry((1, 2), clip, bert) == (1,)
    other = pieces("[CLS]", "edema", "[SEP]", words=[("edema", (1,))])
    assert state.carry((1,), bert, other) is None


def test_select(capture, start):
    chosen = state.select(start, capture, None, DEFAULTS)
    assert chosen.columns == (1, 2, 3) and chosen.steps == (2, 4)
    assert chosen.layers == capture.layers
    some = state.select(replace(start, layers=(1, 3), sizes=(8,)), capture, (2,), DEFAULTS)
    assert some.layers == tuple(n for n in capture.layers[1:4] if capture.maps[n].shape[-1] == 8)
    with pytest.raises(ValueError, match="no word is chosen"):
        state.select(start, capture, (), DEFAULTS)
    with pytest.raises(ValueError, match="no layer is chosen"):
        state.select(replace(start, layers=(0, 0), sizes=(8,)), capture, None, DEFAULTS)
    up = state.select(start, capture, None, DEFAULTS.model_copy(update={"layers": "up"}))
    assert up.layers == tuple(n for n in capture.layers if n.startswith("up"))
    assert "words: small left effusion; t" in state.describe(chosen, capture)


# -- session ----------------------------------------------------------------------------------


def test_pictures_are_grouped_and_bring_phrase_and_boxes(opened, start):
    assert [p.title for p in opened.pictures.values()] == [
        "0: Pleural Effusion", "1: Edema", "2: no finding"
    ]  # fmt: skip
    assert start.phrase == PHRASE and start.region == 0
    second = opened.pick_image(start, "test:1")
    assert second.phrase == "edema"
    assert opened.pick_region(second, 1).phrase == PHRASE
    assert opened.pick_region(second, None).region is None
    assert opened.pick_image(start, "test:2").region is None
    with pytest.raises(ValueError, match="no picture 'test:9'"):
        opened.pick_image(start, "test:9")
    with pytest.raises(ValueError, match="no model 'x'"):
        opened.pick_model(start, "x")


def test_pairs_of_one_image_are_one_picture(opened):
    image = np.zeros((64, 32), np.float32)  # taller than wide: boxes move with the crop
    rows = [
        Example(image, p, f, ((8, 32, 8, 8),), "i", "s", "test")
        for p, f in (("a b", "Edema"), ("c", "Mass"))
    ]
    (picture,) = session.pictures(rows, 32)
    assert picture.title == "0: Edema, Mass" and picture.label == "0: Edema +1"
    assert [r.phrase for r in picture.regions] == ["a b", "c"]
    assert picture.regions[0].boxes == ((8, 16, 8, 8),) and picture.image.shape == (32, 32)


def test_view_has_map_mask_and_numbers_beside_no_skill(opened, start):
    view = opened.view(start)
    (panel,) = view.panels
    assert panel.heatmap.shape == panel.mask.shape == (16, 16)
    assert panel.heatmap.min() == 0 and panel.heatmap.max() == 1
    assert panel.metrics.keys() == view.no_skill.keys() and view.no_skill["cnr"] > 0
    assert panel.confidence is None and panel.interaction is None
    assert opened.view(replace(start, region=None)).no_skill == {}


def test_maps_are_made_once_and_text_bias_only_for_a_curve(opened, start, monkeypatch):
    calls = []
    for name in ("capture_image", "capture_text"):
        real = getattr(maps, name)
        monkeypatch.setattr(
            maps, name, lambda *a, n=name, r=real, **k: calls.append(n) or r(*a, **k)
        )
    for change in ({}, {"opacity": 0.1}, {"columns": (1,)}, {"steps": (0, 1)}, {"layers": (1, 2)}):
        opened.view(replace(start, **change))
    assert calls == ["capture_image"]
    for change in (
        {"curve": "linear"},
        {"curve": "mixture"},
        {"curve": "mixture", "columns": (2,)},
    ):
        assert 0 <= opened.view(replace(start, **change)).panels[0].confidence <= 1
    assert calls == ["capture_image", "capture_text"]
    opened.view(replace(start, seed=1))
    assert calls == ["capture_image", "capture_text", "capture_image"]


def test_what_only_concerns_the_drawing_computes_nothing(opened, start, monkeypatch):
    opened.view(start)
    monkeypatch.setattr(session, "gmm_mask", lambda *_: pytest.fail("computed again"))
    opened.view(replace(start, opacity=0.2, show="mask", contour=False, scale="shared"))


def test_difference_views(opened, start):
    selected = opened.view(replace(start, show="difference", columns=(3,)))
    assert selected.difference_label == "selection − default"
    default = opened.view(replace(start, show="difference"))
    assert float(default.difference.abs().max()) == 0
    merged = opened.view(replace(start, show="difference", curve="linear"))
    expected = merged.panels[0].heatmap - bbm.minmax(merged.panels[0].raw)
    assert torch.equal(merged.difference, expected)


def test_comparing_phrases_and_models(opened, start):
    view = opened.view(state.swap(replace(start, columns=(2,))))
    first, second = view.panels
    assert second.phrase == "small right effusion" and second.selection.columns == (2,)
    assert torch.equal(view.difference, second.heatmap - first.heatmap)
    other = replace(start, compare="model", other_model="generic-frozen-s0")
    view = opened.view(other)
    assert [p.model for p in view.panels] == opened.models
    assert float(view.difference.abs().max()) == 0  # the same weights under two names
    with pytest.raises(ValueError, match="choose a model"):
        opened.view(replace(start, compare="model"))


def test_scales_are_shared_by_the_panels(opened, start):
    view = opened.view(replace(state.swap(start), scale="shared"))
    low, high, label = view.limits
    assert (low, label) == (0, "attention probability")
    assert high == pytest.approx(max(float(p.raw.max()) for p in view.panels))
    assert opened.view(start).limits[:2] == (0, 1)


def test_model_change_keeps_the_words(opened, start):
    new = opened.pick_model(replace(start, columns=(0, 2)), "generic-frozen-s0")
    assert new.columns == (0, 2) and new.model == "generic-frozen-s0"


def test_cache_bound_holds_over_many_phrases(opened, start):
    opened.captures.limit = opened.capture(start).nbytes * 2
    for word in ("edema", "opacity", "lung", "effusion", "left lung"):
        opened.view(replace(start, phrase=word))
        assert opened.captures.nbytes <= opened.captures.limit


def test_upload(opened, start):
    stream = io.BytesIO()
    Image.fromarray(np.full((50, 40), 90, np.uint8)).save(stream, "PNG")
    key = opened.upload("chest.png", stream.getvalue())
    now = opened.pick_image(start, key)
    view = opened.view(now)
    assert view.picture.title == "chest.png" and view.boxes == () and now.phrase == PHRASE
    assert view.picture.image.shape == (32, 32)
    for i in range(session.UPLOADS + 3):
        Image.fromarray(np.full((50, 40), i, np.uint8)).save(stream := io.BytesIO(), "PNG")
        opened.upload("more.png", stream.getvalue())
    assert sum(k.startswith("upload") for k in opened.pictures) == session.UPLOADS


def encoded(picture, kind):
    """A picture as the bytes of a file."""
    stream = io.BytesIO()
    picture.save(stream, kind)
    return stream.getvalue()


GREY = np.random.default_rng(1).integers(0, 255, (60, 50), dtype=np.uint8)


@pytest.mark.parametrize(
    "name, content",
    [
        ("sixteen.png", encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG")),
        ("cmyk.jpg", encoded(Image.fromarray(np.repeat(GREY[..., None], 4, 2), "CMYK"), "JPEG")),
        ("alpha.png", encoded(Image.fromarray(np.repeat(GREY[..., None], 4, 2), "RGBA"), "PNG")),
        ("flat.png", encoded(Image.new("L", (64, 48)), "PNG")),
        ("no suffix", encoded(Image.fromarray(GREY), "PNG")),
    ],
)
def test_unusual_uploads_are_shown(opened, start, name, content):
    view = opened.view(opened.pick_image(start, opened.upload(name, content)))
    assert view.picture.title == name and view.picture.image.shape == (32, 32)
    assert 0 <= view.picture.image.min() <= view.picture.image.max() <= 1


@pytest.mark.parametrize(
    "content, problem",
    [
        (encoded(Image.new("L", (1, 1)), "PNG"), "only 1×1 pixels"),
        (encoded(Image.new("1", (20_000, 20_000)), "PNG"), "resize the image first"),
        (encoded(Image.fromarray(GREY), "JPEG")[:400], "truncated or damaged"),
    ],
)
def test_uploads_that_cannot_be_used_say_why(opened, content, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        opened.upload("new\nfilm.png", content)
    assert str(caught.value).startswith("new film.png: ") and "\n" not in str(caught.value)


def test_an_image_uploaded_again_is_the_newest(opened):
    contents = [encoded(Image.fromarray(GREY + i), "PNG") for i in range(session.UPLOADS)]
    first, *_ = (opened.upload("film.png", content) for content in contents)
    assert opened.upload("film.png", contents[0]) == first
    opened.upload("other.png", contents[1])
    assert first in opened.pictures


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_bad_upload_is_one_line_with_the_name_and_no_path(opened, content):
    with pytest.raises(ValueError) as caught:
        opened.upload("../secret/bad.png", content)
    text = str(caught.value)
    assert text.startswith("bad.png: ") and "\n" not in text and "/" not in text


# -- information ------------------------------------------------------------------------------


def measured(opened, now, phrases):
    """Information of phrases as `ground` asks for it."""
    options = presence.options(opened.config) | {"seed": now.seed}
    image = opened.pictures[now.image].image
    told = information.measure(opened.model(now.model), image, phrases, **options)
    return dict(zip(phrases, told, strict=True))


def test_information_of_all_words_is_that_of_the_phrase(opened, start):
    told = measured(opened, start, [PHRASE])[PHRASE]
    view = opened.view(state.pick_method(start, "information"))
    assert torch.allclose(view.panels[0].heatmap, told.heatmap(), atol=1e-4)
    assert view.limits == (0.0, 1.0, "information, min–max")
    plain = opened.view(start).panels[0].heatmap
    both = opened.view(state.pick_method(start, "both")).panels[0].heatmap
    assert torch.allclose(both, bbm.minmax(told.heatmap() * plain.sqrt()), atol=1e-4)
    assert not torch.allclose(both, plain, atol=0.05)


def test_chosen_words_are_judged_given_the_others(opened, start):
    now = replace(state.pick_method(start, "information"), columns=(2,))
    told = measured(opened, start, [PHRASE, "small effusion"])
    expected = told[PHRASE].gain - told["small effusion"].gain
    assert torch.allclose(opened.view(now).panels[0].gain, expected, atol=1e-4)
    words = opened.word_information(now)
    assert list(words) == ["small", "left", "effusion"]
    assert torch.allclose(words["left"], information.smooth(expected), atol=1e-4)
    with pytest.raises(ValueError, match="information is of words"):
        opened.view(replace(now, columns=(0, 5)))


def test_information_is_measured_once_a_phrase_and_attention_stays_the_default(
    opened, start, monkeypatch
):
    asked, real = [], information.measure
    monkeypatch.setattr(
        session.information, "measure", lambda *a, **k: asked.append(a[2]) or real(*a, **k)
    )
    opened.view(start)
    assert start.method == "attention" and asked == []
    now = state.pick_method(start, "both")
    for change in ({}, {"opacity": 0.1}, {"layers": (1, 2)}, {"steps": (0, 1)}, {"show": "mask"}):
        opened.view(replace(now, **change))
    swapped = "small right effusion"
    assert asked == [[PHRASE, swapped]]  # the other side, for presence
    opened.view(state.swap(now))
    assert asked == [[PHRASE, swapped]]
    opened.view(replace(now, columns=(2, 3)))
    assert asked[1:] == [["small"]]
    opened.view(replace(now, seed=1))
    assert asked[2:] == [[PHRASE, swapped]]


def test_presence_is_said_of_the_phrase_and_only_under_information(opened, start, monkeypatch):
    errors = {"wrong": [0.1, 0, 1], "absent": [0.7, 0, 1], "side": [0.6, 0, 1]}
    never = presence.Calibrated(Calibration(0.0, 0.0, 0.6), errors, {})
    monkeypatch.setattr(session.presence, "calibrated", lambda *_: never)
    assert opened.view(start).panels[0].presence is None
    view = opened.view(state.pick_method(start, "information"))
    told = measured(opened, start, [PHRASE, "small right effusion"])
    own, other = (one.total for one in told.values())
    said = view.panels[0].presence
    assert said["score"] == pytest.approx(own - 0.5 * max(0, other), abs=2e-3)
    assert said["said"].startswith("not supported by this film (p = 0.50; on phantoms")
    known = export.facts(opened, view)
    assert known["panels"][0]["presence"] == said and known["state"]["method"] == "information"


def test_biases_are_merged_with_attention_alone(opened, start):
    merged = replace(start, curve="mixture")
    assert state.pick_method(merged, "both").curve is None
    assert state.pick_method(merged, "attention") == merged
    with pytest.raises(ValueError, match="only attention is merged"):
        opened.view(replace(merged, method="information"))


def test_pictures_of_information(opened, start):
    now = state.pick_method(start, "both")
    alone = render.main_view(opened.view(now))
    assert alone.width == render.main_view(opened.view(start)).width
    gap = opened.view(replace(now, show="difference"))
    assert gap.difference_label == "attention × information − attention"
    words = render.word_view(opened.view(now), opened.word_information(now))
    assert words.width > 400


# -- pictures, exports, code ------------------------------------------------------------------


def test_pictures_draw(opened, start):
    alone = render.main_view(opened.view(start))
    both = render.main_view(opened.view(state.swap(start)))
    assert both.width > alone.width and alone.mode == "RGB"
    for change in ({"show": "mask"}, {"show": "difference"}, {"scale": "shared"}):
        assert render.main_view(opened.view(replace(start, **change))).width == alone.width
    shown = opened.view(replace(start, scale="shared"))
    assert render.token_view(shown).width > 500 and render.grid_view(shown, most=2).width > 150
    assert len(render.jpeg(alone)) < len(render.png(alone))


def test_colours_are_fixed_by_the_limits():
    values = torch.tensor([[0.0, 0.5, 1.0, 2.0]])
    colours = render.coloured(values, 0, 1)
    assert tuple(colours[0, 0]) == tuple(render.palette(render.MAP_COLOURS)[0])
    assert (
        tuple(colours[0, 2])
        == tuple(colours[0, 3])
        == tuple(render.palette(render.MAP_COLOURS)[255])
    )
    assert tuple(render.coloured(values, 0, 2)[0, 2]) != tuple(colours[0, 2])


def test_outline_is_inside_the_mask_and_not_along_the_border():
    mask = np.zeros((20, 20), bool)
    mask[:10, 5:15] = True
    edge = render.outline(mask)
    assert edge[5, 5] and edge[9, 8] and not edge[0, 10] and not edge[5, 10]
    assert not (edge & ~mask).any()


def test_word_buttons_are_coloured_by_attention(opened, start):
    view = opened.view(replace(start, special=True))
    colours = dict(zip([c.label for c in view.chips], render.chip_colours(view), strict=True))
    means = view.panels[0].token_means
    strongest = ["small", "left", "effusion"][int(means[1:4].argmax())]
    assert colours[strongest] == tuple(map(int, render.palette(render.MAP_COLOURS)[255]))


def test_word_buttons_can_be_read():
    for colour in render.palette(render.MAP_COLOURS):
        under = render.luminance(tuple(map(int, colour)))
        over = {"#000000": 0.0, "#ffffff": 1.0}[render.ink(tuple(map(int, colour)))]
        high, low = max(under, over), min(under, over)
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour
    assert render.luminance((255, 255, 255)) == pytest.approx(1)


def test_text_fits():
    lines = render.fitted("a very long phrase about the lower left lung", 90, 14, 2)
    assert len(lines) == 2 and lines[1].endswith("…")
    assert all(render.font(14).getlength(t) <= 90 for t in lines)
    assert render.fitted("short", 90, 14) == ["short"]
    assert render.fitted("i" * 100_000, 90, 14)[0].endswith("…")  # quickly


def test_export_holds_maps_parameters_and_notice(opened, start, tmp_path):
    view = opened.view(replace(state.swap(start), curve="mixture"))
    picture = render.png(render.main_view(view), export.facts(opened, view))
    png, npz = explorer.save(opened, view, picture, tmp_path)
    assert png.stem == npz.stem and png.stem.startswith("small-left-effusion-")
    with np.load(npz) as kept:  # allow_pickle is off
        known = json.loads(str(kept["parameters"]))
        assert str(kept["notice"]) == render.NOTICE == known["notice"]
        assert np.array_equal(kept["A_heatmap"], view.panels[0].heatmap.numpy())
        assert kept["B_token_maps"].shape == (6, 16, 16) and kept["B_interaction"].shape == (16, 16)
    assert known["panels"][0]["tokens"] == [1, 2, 3] and known["state"]["curve"] == "mixture"
    text = Image.open(png).text
    assert text["Notice"] == render.NOTICE and json.loads(text["Parameters"]) == known


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"columns": (0, 5)},
        {"steps": (1, 2)},
        {"steps": (1, 2), "curve": "linear", "columns": (2, 5), "layers": (1, 3)},
        {"curve": "mixture", "layers": (2, 4)},
        {"sizes": (8,), "seed": 3},
        {"method": "information"},
        {"method": "information", "columns": (2,), "seed": 2},
        {"method": "both", "columns": (1, 3), "layers": (2, 4)},
    ],
)
def test_copied_code_gives_the_view_again(opened, start, change, monkeypatch):
    view = opened.view(replace(start, **change))
    text = explorer.code(opened, view)
    compile(text, "copied", "exec")
    names: dict = {}
    image = view.picture.image
    shown = SimpleNamespace(load=lambda _: image)
    monkeypatch.setattr("g2g_utils.data.sources.examples", lambda *_: [shown])
    exec(text, names)
    assert torch.allclose(names["heatmap"], view.panels[0].heatmap, atol=2e-2)
    assert names["c"] == opened.config


def test_static_views(opened, start, tmp_path):
    paths = explorer.static_views(opened, start, tmp_path)
    assert [p.name for p in paths] == [f"explorer_{n}.png" for n in NAMES]
    assert all(Image.open(p).size[0] > 100 for p in paths)
    assert (
        len(explorer.static_views(opened, replace(start, phrase="edema"), tmp_path))
        == len(NAMES) - 1
    )


NAMES = ("view", "tokens", "layers_timesteps", "information", "words", "swapped")


def test_tables_of_the_notebook(opened, start):
    panel = opened.view(start).panels[0]
    table = study.token_table(panel)
    assert list(table.index) == ["start", "small", "left", "effusion", "end", "padding ×7"]
    assert study.total_attention(panel) == pytest.approx(1, abs=2e-3)
    scores = study.by_resolution(opened, start)
    assert list(scores.index) == ["16×16", "8×8", "all layers", "the profile's"]
    assert study.best(scores, "cnr") in scores.index
    assert "specificity" not in scores
    read = study.by_resolution(opened, start, "edema")
    assert read["cnr"].equals(scores["cnr"]) and (read["specificity"] != 0).any()
    swapped = study.by_resolution(opened, replace(start, phrase="edema"))
    gap = (scores["cnr"] - swapped["cnr"]).tolist()
    assert read["specificity"].tolist() == pytest.approx(gap, abs=2e-3)
    assert study.starting_state(opened).phrase == PHRASE
    assert study.starting_state(opened, 1).phrase == "edema"


# -- widgets, in a process without a browser ------------------------------------------------------


@pytest.fixture
def widget(opened):
    from g2g_utils.explorer.view import Explorer

    return Explorer(opened)


def picture_of(widget):
    return widget.pictures[0].value


def test_controls_change_the_state_and_the_picture(widget):
    before = picture_of(widget)
    widget.words.children[1].click()
    assert widget.state.columns == (1, 3) and picture_of(widget) != before
    assert [b.description for b in widget.words.children] == ["✓ small", "left", "✓ effusion"]
    widget.steps.index = (0, 1)
    widget.layers.index = (1, 2)
    widget.curve.value = "linear"
    widget.opacity.value = 0.8
    widget.seed.value = 2
    assert widget.state == replace(
        widget.state, steps=(0, 1), layers=(1, 2), curve="linear", opacity=0.8, seed=2
    )
    assert "confidence c =" in widget.numbers.value and "no skill" in widget.numbers.value
    widget.content.click()
    assert widget.state.columns is None
    widget.phrase.value = "edema"
    assert widget.state.phrase == "edema" and len(widget.words.children) == 1


def test_swap_and_compare_through_the_widgets(widget):
    widget.swap.click()
    assert widget.compare.value == "phrase" and widget.other_phrase.layout.display is None
    widget.other_phrase.value = "edema"
    assert widget.view.panels[1].phrase == "edema"
    widget.compare.value = "model"
    assert widget.other_model.value == "generic-frozen-s0" and len(widget.view.panels) == 2


def test_an_error_is_one_line_and_the_last_good_view_stays(widget):
    before, good = picture_of(widget), widget.state
    for bad in ("   ", "…"):
        widget.phrase.value = bad
        assert "error" in widget.status.value and "empty" in widget.status.value
        assert widget.state == good and picture_of(widget) == before
    for button in widget.words.children:
        button.click()
    assert "no word is chosen" in widget.status.value
    assert widget.view.panels[0].selection.columns == (3,)
    widget.opacity.value = 0.9
    assert "error" not in widget.status.value


def test_going_back_by_hand_clears_the_error(widget):
    widget.phrase.value = "   "
    assert "error" in widget.status.value
    widget.phrase.value = PHRASE  # what is shown already
    assert "error" not in widget.status.value and "words: small left" in widget.status.value
    widget.sizes.value = ()  # no resolution means all, and the control says so
    assert widget.sizes.value == (16, 8)


def test_every_answer_is_counted_and_comes_last(widget):
    """What a browser waits for: the count moves once per action, after everything else did."""
    sent = []

    def listen(control, *names):
        control.observe(lambda change: sent.append(change["owner"]), names)

    listen(widget.status, "value")
    for control in (
        widget.numbers,
        widget.pictures[0],
        widget.other_phrase,
        widget.progress.layout,
    ):
        listen(control)
    count = answers(widget)
    actions = [
        lambda: widget.words.children[1].click(),
        widget.swap.click,
        lambda: setattr(widget.phrase, "value", "  "),
        lambda: setattr(widget.tabs, "selected_index", 1),
        widget.code.click,
        widget.content.click,
        widget.content.click,
    ]
    for i, action in enumerate(actions, start=1):
        action()
        assert answers(widget) == count + i and sent[-1] is widget.status, i


def answers(widget):
    """How many answers the status line counts."""
    return int(widget.status.value.split('data-answers="')[1].split('"')[0])


def test_progress_is_shown_only_while_maps_are_made(widget):
    said, bars = [], []
    widget.status.observe(lambda change: said.append(change["new"]), "value")
    widget.progress.layout.observe(lambda change: bars.append(change["new"]), "display")
    widget.opacity.value = 0.7
    assert len(said) == 1 and "busy" not in said[0] and not bars
    widget.phrase.value = "edema"
    assert "busy" in said[1] and "maps: 1 of 1" in said[1]
    assert "busy" not in said[-1] and bars == [None, "none"]  # shown, then hidden
    widget.curve.value = "linear"
    assert any("text bias: 5 of 5" in line for line in said)


def test_what_was_cut_off_and_function_words_are_said(widget):
    widget.phrase.value = f"{PHRASE} of the lower lung and the apical pleural space"
    assert "words cut off after 12 tokens: " in widget.status.value
    widget.phrase.value = "of the"
    assert "function words only" in widget.status.value
    assert all(b.description.startswith("✓ ") for b in widget.words.children)
    widget.phrase.value = PHRASE
    assert "cut off" not in widget.status.value and "function" not in widget.status.value


def test_unexpected_errors_are_one_line_too(widget, monkeypatch):
    def broken(*_):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(widget.session, "view", broken)
    before = widget.state
    widget.opacity.value = 0.9
    assert "RuntimeError: first line" in widget.status.value
    assert "second line" not in widget.status.value and widget.state == before
    assert widget.opacity.value == before.opacity


def test_a_refused_layer_choice_puts_the_controls_back(widget):
    widget.layers.index = (0, 0)
    widget.sizes.value = (8,)
    assert "no layer is chosen" in widget.status.value
    assert widget.layers.index == (0, 0) and widget.state.sizes is None


def test_only_the_open_tab_is_drawn(widget):
    assert widget.pictures[1].value == widget.pictures[2].value == ""
    widget.tabs.selected_index = 2
    assert "map of every layer and timestep" in widget.pictures[2].value


def test_taking_away(widget, tmp_path, monkeypatch):
    monkeypatch.setenv("G2G_BUILD", str(tmp_path))
    widget.export.click()
    assert sorted(p.suffix for p in (tmp_path / "smoke" / "explorer").iterdir()) == [".npz", ".png"]
    assert widget.taken.value.count("download=") == 2
    widget.code.click()
    assert "grounding.ground(" in widget.taken.value


def test_upload_through_the_widget(widget):
    before = picture_of(widget)
    bad = {"name": "bad.png", "type": "", "size": 3, "content": b"bad"}
    bad["last_modified"] = datetime.datetime(2024, 1, 1)
    widget.upload.value = (bad,)
    assert "bad.png" in widget.status.value and picture_of(widget) == before
    stream = io.BytesIO()
    Image.fromarray(np.full((50, 40), 90, np.uint8)).save(stream, "PNG")
    widget.upload.value = (bad | {"name": "<b>.png", "content": stream.getvalue()},)
    assert widget.view.picture.title == "<b>.png" and picture_of(widget) != before
    assert "<b>" not in picture_of(widget) and "no boxes known" in widget.numbers.value


def test_every_control_has_a_label_and_pictures_have_words(widget):
    import ipywidgets

    def walk(node):
        yield node
        for child in getattr(node, "children", ()):
            yield from walk(child)

    for node in walk(widget.widget):
        quiet = isinstance(node, ipywidgets.HTML | ipywidgets.IntProgress)
        quiet = quiet or node.layout.visibility == "hidden"
        assert quiet or getattr(node, "description", "none needed"), node
    assert 'alt="overlay of “small left effusion”' in picture_of(widget)
    notice = "".join(n.value for n in walk(widget.widget) if isinstance(n, ipywidgets.HTML))
    assert render.NOTICE in notice and render.SIDES in notice


def test_gallery_pages_turn(widget):
    assert [b.description for b in widget.picks[:3]] == [
        "0: Pleural Effusion", "1: Edema", "2: no finding"
    ]  # fmt: skip
    assert widget.picks[3].layout.visibility == "hidden"
    widget.picks[1].click()
    assert widget.state.image == "test:1" and widget.phrase.value == "edema"
    widget.forth.click()
    assert widget.page == 0  # one page only: back at the start
