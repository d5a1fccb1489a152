"""One score for every method: rows, the other phrase, specificity, notes, variants."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from g2g_utils import bench, grounding, metrics
from g2g_utils.attention import find_layers
from g2g_utils.bench import ablations, benchmark
from g2g_utils.data.record import Example
from g2g_utils.methods import g2g, no_skill
from g2g_utils.methods.base import Given, HeatMap
from g2g_utils.text import PhraseError
from tests.duck import BOXES, FAST, PHRASES, Model, examples


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def score(model, pairs, options=FAST, **more):
    return bench.score(g2g.G2G("duck", model, options), pairs, progress=False, **more)


def test_a_row_holds_identity_metrics_and_specificity(model, images):
    table = score(model, examples(images))
    assert list(table.image_id) == ["i0", "i1", "i2"] and (table.note == "").all()
    assert (table.method == "duck").all() and {*metrics.METRICS} <= set(table)
    assert np.allclose(table.specificity, table.cnr - table.other_cnr)
    assert all(p in PHRASES and p != q for p, q in zip(table.other_phrase, PHRASES, strict=True))
    one = grounding.ground(model, images[1], PHRASES[1], boxes=BOXES[1], **FAST)
    assert table.cnr[1] == pytest.approx(one.metrics["cnr"], abs=1e-4)
    large = score(model, examples(images), size=64)
    assert np.allclose(large.mask_fraction, table.mask_fraction, atol=0.1)


def test_own_maps_do_not_depend_on_other_phrases(model, images):
    with_others, without = (score(model, examples(images), others=o) for o in (True, False))
    assert with_others.cnr.tolist() == without.cnr.tolist()  # to the last digit
    assert "specificity" not in without


def test_the_other_map_is_scored_against_the_own_boxes(model, images):
    pairs = examples(images)
    table = score(model, pairs, others=[pairs[1], None, pairs[0]])
    other = grounding.ground(model, images[0], PHRASES[1], boxes=BOXES[0], **FAST)
    assert table.other_cnr[0] == pytest.approx(other.metrics["cnr"], abs=1e-4)
    assert np.isnan(table.specificity[1]) and table.other_phrase[1] == ""
    with pytest.raises(ValueError, match="2 other phrases for 3 pairs"):
        score(model, pairs, others=[None, None])


def test_the_other_phrase_is_of_another_finding_elsewhere():
    places = {"a": (0, 0, 10, 10), "b": (1, 0, 10, 10), "c": (20, 20, 9, 9), "d": (0, 20, 9, 9)}
    kinds = {"a": "Edema", "b": "Pneumonia", "c": "Edema", "d": "Pneumonia"}
    image = np.zeros((32, 32), np.float32)
    pairs = [
        Example(image, name, kinds[name], (box,), name, name, "test")
        for name, box in places.items()
    ]
    allowed = {"a": {"d"}, "b": {"c"}, "c": {"b", "d"}, "d": {"a", "c"}}  # a and b overlap
    seen = {name: set() for name in places}
    for seed in range(20):
        drawn = benchmark.draw_others(pairs, 32, seed)
        assert drawn == benchmark.draw_others(pairs, 32, seed)
        for name, other in zip(places, drawn, strict=True):
            seen[name].add(other.phrase)
    assert seen == allowed
    assert benchmark.draw_others(pairs[:2], 32) == [None, None]


def test_ablations_score_as_the_bench_does(model, images):
    pairs = examples(images)
    options = FAST | {"filter": "lexical", "layers": None}
    expected = score(model, pairs, options)
    for study, by, setting in (
        (ablations.filters, "filter", "lexical"),
        (ablations.resolutions, "layers", "all"),
        (ablations.curves, "curve", "none"),
    ):
        rows = study(model, pairs, **options)
        own = rows[rows[by] == setting]
        assert list(own["image_id"]) == list(expected["image_id"])
        for name in ("cnr", "auc_roc", "specificity"):
            assert np.allclose(own[name], expected[name], atol=5e-3), (by, name)


def test_halves_of_the_steps_are_those_of_the_last_k(model, images):
    pairs, options = examples(images), FAST | {"timesteps": 4}
    groups, halves = ablations.groups_and_halves(model, pairs, **options)
    alone = ablations.resolutions(model, pairs, **options)
    assert list(groups["layers"]) == list(alone["layers"])
    assert np.allclose(groups["cnr"], alone["cnr"], atol=5e-3)
    last = ablations.kept_steps(model, pairs, [2], **options)
    cleaner = halves[halves["timesteps"] == "cleaner half"]
    assert np.allclose(cleaner["cnr"], last["cnr"])
    assert not np.allclose(cleaner["cnr"], halves[halves["timesteps"] == "noisier half"]["cnr"])


def test_views_are_what_separate_captures_would_give(model, images):
    layers = find_layers(model.unet)
    views = {"fine": next(reversed(layers)), "all": None}
    kept = FAST | {"keep": "layers"}
    table = score(model, examples(images), kept, variants=g2g.views(views), by="view")
    assert list(table["view"]) == ["fine", "all"] * 3
    for view, chosen in views.items():
        own = table[table["view"] == view].reset_index(drop=True)
        alone = score(model, examples(images), FAST | {"layers": chosen})
        for name in ("cnr", "auc_roc", "specificity"):
            assert np.allclose(own[name], alone[name], atol=5e-3), (view, name)
    with pytest.raises(ValueError, match="curve=None"):
        merged = kept | {"curve": "mixture"}
        score(model, examples(images), merged, variants=g2g.views(views), by="view")


def test_phrases_and_boxes_that_cannot_be_scored_keep_their_rows(model, images):
    pairs = examples(images)
    pairs[0], pairs[1] = replace(pairs[0], phrase="in the"), replace(pairs[1], boxes=())
    table = score(model, pairs)
    assert table.cnr.isna().tolist() == [True, True, False]
    assert "no content words" in table.note[0] and "empty target" in table.note[1]
    kept = FAST | {"keep": "layers"}
    views = score(model, pairs, kept, variants=g2g.views({"a": None, "b": "up"}), by="view")
    assert list(views["view"]) == ["a", "b"] * 3 and views.cnr.isna().tolist()[:2] == [True] * 2


def test_truncated_words_are_noted(model, images):
    pairs = examples(images)
    long = "small left effusion in the right lung edema opacity left lung right edema"
    pairs[0] = replace(pairs[0], phrase=long)
    table = score(model, pairs)
    assert "cut off: lung right edema" in table.note[0] and np.isfinite(table.cnr[0])
    assert list(table.note[1:]) == ["", ""]


def test_baselines_know_at_most_the_finding():
    image = np.zeros((32, 32), np.float32)
    spots = {"Edema": (2.0, 2.0, 8.0, 8.0), "Pneumonia": (20.0, 20.0, 8.0, 8.0)}
    pairs = [
        Example(image, f"{finding} here", finding, (box,), f"i{k}", f"p{k}", "test")
        for k, (finding, box) in enumerate(spots.items())
    ]
    regions = [{"finding": finding, "boxes": [box]} for finding, box in spots.items()]
    rules = no_skill.rules(regions, 32, (8, 8))
    found = {
        name: bench.score(no_skill.NoSkill(name, 32, rule), pairs, progress=False)["specificity"]
        for name, rule in rules.items()
    }
    for blind in ("random", "centre prior", "mean box"):
        assert found[blind].tolist() == [0, 0]
    assert (found["mean box per finding"] > 1).all()


def test_quick_scores_of_several_maps_are_those_of_single_maps():
    maps = [torch.rand(8, 8, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    boxes = [[4.0, 4.0, 12.0, 8.0]]
    together = benchmark.quick_scores(maps, boxes, 32)
    alone = [benchmark.quick_scores([heatmap], boxes, 32)[0] for heatmap in maps]
    assert [row["cnr"] for row in together] == pytest.approx([row["cnr"] for row in alone])
    full = metrics.evaluate(maps[0], boxes, 32)
    for name in benchmark.QUICK:
        assert together[0][name] == pytest.approx(full[name])


def test_given_maps_go_through_the_same_door(images):
    heat = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    pairs = examples(images)[:1]
    table = bench.score(Given("mine", 32, {PHRASES[0]: heat}), pairs, progress=False)
    assert table.cnr[0] == pytest.approx(metrics.evaluate(heat, BOXES[0], 32)["cnr"])
    unknown = bench.score(Given("mine", 32, {}), pairs, progress=False)
    assert np.isnan(unknown.cnr[0]) and unknown.note[0] == "no map of it"


@pytest.mark.parametrize("boxes", [(), ((500, 500, 5, 5),)])
def test_pairs_of_which_none_has_a_box_are_refused_before_anything_runs(images, boxes):
    class Asked:
        name, image_size = "asked", 32

        def ground(self, queries):
            raise AssertionError("a method was asked")

    pairs = [replace(pair, boxes=boxes) for pair in examples(images)]
    with pytest.raises(ValueError, match=r"none of the 3 .* for asked has a box") as caught:
        bench.score(Asked(), pairs, progress=False)
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_list_of_pairs_is_refused():
    class Nothing:
        name, image_size = "nothing", 8

    with pytest.raises(ValueError, match="no image-phrase pairs for nothing"):
        benchmark.score(Nothing(), [])


class Strict:
    """A method that raises for a phrase instead of answering with a note."""

    name, image_size = "strict", 32

    def ground(self, queries):
        if any("in the" == query.phrase for query in queries):
            raise PhraseError("no content words")
        return [HeatMap(torch.rand(8, 8)) for _ in queries]


def test_a_method_that_raises_for_one_phrase_keeps_the_other_rows(images):
    pairs = examples(images)
    pairs[0] = replace(pairs[0], phrase="in the")
    table = bench.score(Strict(), pairs, progress=False)
    assert table.cnr.isna().tolist() == [True, False, False]
    assert table.note[0] == "no content words"


def test_a_variant_without_a_map_leaves_the_others_alone(images):
    heat = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))

    def variants(query, found):
        return {"sound": found, "broken": HeatMap(torch.full((8, 8), torch.nan), note="no layer")}

    for measure in ("all", "quick"):
        table = bench.score(
            Given("mine", 32, dict.fromkeys(PHRASES, heat)),
            examples(images),
            variants=variants,
            measure=measure,
            progress=False,
        )
        broken = table[table["variant"] == "broken"]
        assert broken.cnr.isna().all() and (broken.note == "no layer").all()
        assert table[table["variant"] == "sound"].specificity.notna().all()
