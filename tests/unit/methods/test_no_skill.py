import pytest
import torch

from g2g_utils.methods import no_skill
from g2g_utils.methods.base import Query
from g2g_utils.metrics import evaluate


def test_random_and_centre():
    assert torch.equal(no_skill.random_map((8, 9), 1), no_skill.random_map((8, 9), 1))
    assert not torch.equal(no_skill.random_map((8, 9), 1), no_skill.random_map((8, 9), 2))
    centre = no_skill.centre_prior((9, 11))
    assert centre.shape == (9, 11) and centre.argmax() == 4 * 11 + 5
    assert torch.allclose(centre, centre.flip(0, 1))


def test_brightness_is_the_downsized_image():
    image = torch.rand(1, 32, 32)
    small = no_skill.brightness(image, (8, 8))
    assert small.shape == (8, 8) and small[0, 0] == pytest.approx(float(image[0, :4, :4].mean()))


def test_mean_boxes():
    boxes = [[[0, 0, 16, 16]], [[0, 0, 16, 32], [16, 0, 16, 32]], [[16, 16, 16, 16]]]
    mean = no_skill.mean_box(boxes, 32, (4, 4))
    assert mean[0, 0] == mean[3, 3] == pytest.approx(2 / 3)
    assert mean[0, 3] == pytest.approx(1 / 3)
    each = no_skill.mean_box_per_finding(boxes, ["a", "b", "a"], 32, (4, 4))
    assert each["a"][0, 0] == 0.5 and (each["b"] == 1).all()
    with pytest.raises(ValueError, match="no samples"):
        no_skill.mean_box([], 32, (4, 4))


def test_they_go_through_the_metrics():
    found = evaluate(no_skill.centre_prior((16, 16)), [[24, 24, 16, 16]], 64)
    assert found["pointing"] == 1 and found["auc_roc"] > 0.9 and found["cnr"] > 1


def test_the_side_of_a_phrase_chooses_the_mean_box():
    regions = [
        {"finding": "a", "phrase": "left a", "boxes": [[16, 0, 16, 32]]},
        {"finding": "a", "phrase": "right a", "boxes": [[0, 0, 16, 32]]},
    ]
    rule = no_skill.rules(regions, 32, (4, 4))["mean box per finding and side"]
    left, right, none, other = (
        rule(Query(torch.zeros(1, 32, 32), phrase, finding))
        for phrase, finding in (("left a", "a"), ("right a", "a"), ("a", "a"), ("b", "b"))
    )
    assert torch.equal(left, right.flip(1)) and left[0].tolist() == [0, 0, 1, 1]
    assert (none == 0.5).all() and (other == 0.5).all()
