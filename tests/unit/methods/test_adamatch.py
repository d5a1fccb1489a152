"""AdaMatch's map: boxes are painted where they lie, and follow the words."""

import pytest
import torch
from transformers import BertModel

from g2g_utils import config, models
from g2g_utils.config import ConfigError
from g2g_utils.methods import adamatch as method
from g2g_utils.methods import registry
from g2g_utils.methods.base import Query
from g2g_utils.models import adamatch
from tests.duck import PHRASES, Model


@pytest.fixture
def joint():
    duck = Model()
    with models.initialised(0):
        network = adamatch.AdaMatch(adamatch.Shape(32, 16, (8, 16)), duck.text_encoder)
    return method.Joint(network.eval(), duck.tokenizer, duck.max_length)


def test_boxes_at_the_start_are_drawn_as_the_cells_of_the_grid():
    centre = adamatch.anchors(4, 4)
    boxes = torch.cat([centre - 0.25 / 4, centre + 0.25 / 4], -1)
    placed = method.drawn(boxes, 0.5 / 8)
    values = torch.arange(16.0)
    for pool in ("mean", "max"):
        heat, covered = method.painted(values, placed, 32, pool)
        assert covered.all()
        assert heat.equal(values.reshape(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1))


def test_overlaps_are_averaged_and_gaps_take_the_minimum():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.75, 1.0]])
    mean, covered = method.painted(torch.tensor([1.0, 3.0]), boxes, 4, "mean")
    most, _ = method.painted(torch.tensor([1.0, 3.0]), boxes, 4, "max")
    assert mean[0].tolist() == [1, 2, 3, 1] and most[0].tolist() == [1, 3, 3, 1]
    assert covered[0].tolist() == [True, True, True, False]


def test_a_drawn_box_stays_in_the_image():
    placed = method.drawn(torch.tensor([[0.0, 0.1, 1.0, 0.2]]), 0.05)
    torch.testing.assert_close(placed, torch.tensor([[0.0, 0.05, 1.0, 0.25]]))


def test_the_map_lies_where_the_best_patch_looks(joint):
    matcher = method.Matcher("m", joint)
    boxes = torch.cat([adamatch.anchors(4, 4) - 0.0625, adamatch.anchors(4, 4) + 0.0625], -1)
    boxes[5] = torch.tensor([0.7, 0.7, 0.9, 0.9])  # a patch of the upper left that looks down
    values = torch.zeros(16)
    values[5] = 1
    moved = matcher.heat(values, boxes)
    row, column = divmod(int(moved.values.argmax()), 8)
    assert row >= 5 and column >= 5 and moved.details["dead"] == 0
    grid = method.Matcher("m", joint, boxes=False).heat(values, boxes).values
    row, column = divmod(int(grid.argmax()), 8)
    assert row in (2, 3) and column in (2, 3)


def test_words_are_content_words_as_in_training(joint):
    words, vectors = joint.words("small effusion in the left lung")
    assert words == ["small", "effusion", "left", "lung"]
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))


def test_the_habit_of_a_patch_is_its_mean_over_the_vocabulary(joint):
    names = ("edema", "effusion", "left", "lung", "opacity", "right", "small")
    vectors = torch.cat([joint.words(name)[1] for name in names])
    torch.testing.assert_close(joint.habit, vectors.mean(0))
    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = method.Matcher("m", joint).ground([Query(image, name) for name in names])
    plain = method.Matcher("m", joint, centred=False).ground([Query(image, "edema")])[0]
    assert not torch.allclose(found[0].values, plain.values)
    whole = method.Matcher("m", joint, pool="mean").ground([Query(image, name) for name in names])
    total = sum(one.values for one in whole)
    assert float(total.abs().max()) < 1e-5  # over all words nothing is left


def test_a_phrase_without_content_words_is_a_note(joint):
    image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0))
    good, empty, function = method.Matcher("m", joint).ground(
        [Query(image, PHRASES[0]), Query(image, " "), Query(image, "in the")]
    )
    assert good.exists and not empty.exists and "content" in function.note


def test_a_row_names_a_network_of_the_profile():
    kind, row = registry.parse("mine", {"kind": "adamatch", "network": "fixd"})
    with pytest.raises(ConfigError, match=r"'fixd': choose from adaptive"):
        kind.needs(config.load("smoke"), row)
    with pytest.raises(ConfigError, match="give the profile a section adamatch"):
        kind.needs(config.load("open"), row)


def test_a_product_is_read_back(joint, tmp_path):
    adamatch.save(joint.network, tmp_path)
    joint.tokenizer.save_pretrained(tmp_path)
    again = method.load(tmp_path, joint.max_length)
    assert isinstance(again.network.text, BertModel)
    torch.testing.assert_close(again.words(PHRASES[0])[1], joint.words(PHRASES[0])[1])
