"""AdaPatch starts as a convolution and keeps its gradients; words are real ones only."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel, PvtConfig, PvtModel

from g2g_utils import models
from g2g_utils.models import adamatch
from g2g_utils.models.adamatch import AdaMatch, AdaPatch, Shape
from tests.duck import Model

SHAPE = Shape(32, 16, (8, 16), (1, 1), (1, 2), (2, 1), joint=12)


def pvt(seed=0):
    with models.initialised(seed):
        return PvtModel(
            PvtConfig(
                image_size=32, num_channels=1, num_encoder_blocks=2, depths=[1, 1],
                hidden_sizes=[8, 16], num_attention_heads=[1, 2], sequence_reduction_ratios=[2, 1],
                patch_sizes=[4, 2], strides=[4, 2], mlp_ratios=[2, 2],
            )
        ).eval()  # fmt: skip


def embedding():
    """The second stage's patch embedding, with positions that differ from zero."""
    found = pvt().encoder.patch_embeddings[1]
    with models.initialised(1), torch.no_grad():
        found.position_embeddings.normal_()
        found.projection.bias.normal_()
    return found


def text_model():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with models.initialised(2):
        return BertModel(
            BertConfig(vocab_size=20, intermediate_size=16, **sizes), add_pooling_layer=False
        ).eval()


@pytest.fixture
def network():
    with models.initialised(3):
        return AdaMatch(SHAPE, text_model()).eval()


@pytest.fixture
def features():
    return torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("moves", [True, False])
def test_it_starts_as_the_convolution(features, moves):
    given = embedding()
    tokens, height, width = AdaPatch(given, moves=moves)(features)
    own = given.layer_norm(given.projection(features).flatten(2).transpose(1, 2))
    expected = own + given.position_embeddings[:, 1:]  # without the start token's
    assert (height, width) == (4, 4)
    assert (tokens - expected).abs().max() < 1e-6


def test_it_works_inside_the_library_s_model():
    model = pvt()
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    model.encoder.patch_embeddings[1] = AdaPatch(model.encoder.patch_embeddings[1])
    found = model(images).last_hidden_state
    assert found.shape == (2, 16, 16) and found.isfinite().all()


def test_only_patches_of_two_by_two_are_replaced():
    with pytest.raises(ValueError, match=r"2x2 patches, not \(4, 4\)"):
        AdaPatch(pvt().encoder.patch_embeddings[0])


def test_offsets_and_sizes_follow_the_equations(features):
    patch = AdaPatch(embedding())
    with torch.no_grad():
        patch.predict.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(5))
    boxes, start = patch.boxes(features), adamatch.anchors(4, 4)
    seen = F.gelu(patch.look_norm(patch.look(features).flatten(2).transpose(1, 2)))
    out = seen @ patch.predict.weight.T
    centre = start + out[..., :2].tanh() / 4
    half = (out[..., 2:] + math.atanh(0.25)).tanh().clamp(min=0) / 4
    expected = torch.cat([centre - half, centre + half], -1).clamp(0, 1)
    torch.testing.assert_close(boxes, expected)
    assert not torch.allclose(boxes[0], boxes[1])  # boxes depend on the image


def test_samples_are_bilinear_and_not_faded_at_the_rim():
    ramp = (torch.arange(4.0) + 0.5).div(4).expand(1, 1, 4, 4)  # value = x in shares of the side
    boxes = torch.tensor([[[0.3, 0.2, 0.7, 0.2], [0.0, 0.0, 1.0, 1.0]]])
    found = adamatch.sample(ramp, boxes)[0].unflatten(-1, (3, 3))
    torch.testing.assert_close(found[0, 0], torch.tensor([0.3, 0.5, 0.7]))
    torch.testing.assert_close(found[1, 2], torch.tensor([0.125, 0.5, 0.875]))
    assert adamatch.sample(torch.ones(1, 2, 4, 4), boxes).eq(1).all()


def test_boxes_that_shrink_are_counted_and_keep_their_gradient():
    published, ours = (AdaPatch(embedding(), smallest=low) for low in (0.0, 0.1))
    for patch, alive in ((published, False), (ours, True)):
        with torch.no_grad():
            patch.size_bias.fill_(-1.0)
        half = patch.half_sides(torch.zeros(2))
        half.sum().backward()
        assert bool(patch.size_bias.grad.abs().min() > 0) == alive
    features = torch.zeros(1, 8, 8, 8)
    assert adamatch.dead(published.boxes(features), 4).all()
    torch.testing.assert_close(ours.half_sides(torch.zeros(2)), torch.full((2,), 0.1))
    assert adamatch.dead(ours.boxes(features), 4, 0.1).all()
    assert not adamatch.dead(AdaPatch(embedding()).boxes(features), 4, 0.1).any()


def test_gradients_reach_every_part(network):
    ids = torch.randint(5, 20, (2, 6), generator=torch.Generator().manual_seed(6))
    owners = torch.tensor([[-1, 0, 1, 1, 2, -1], [-1, 0, 1, -1, -1, -1]])
    words, counts = network.words(ids, torch.ones_like(ids), owners)
    found = adamatch.similarity(
        network.patches(
            torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        ).vectors,
        words,
        counts,
    )
    adamatch.contrast(found, network.temperature, ["a", "b"]).backward()
    with torch.no_grad():
        silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    allowed = ("findings.", "embeddings.token_type", ".look", "attention.self.key.bias")
    assert [n for n in silent if not any(part in n for part in allowed)] == []
    assert counts == [3, 2] and words.shape == (5, 12)


def test_fixed_patches_have_the_same_parameters(network):
    with models.initialised(3):
        fixed = AdaMatch(Shape(**{**SHAPE.__dict__, "adaptive": False}), text_model())
    sizes = [{n: p.shape for n, p in net.named_parameters()} for net in (network, fixed)]
    assert sizes[0] == sizes[1]
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.patches(image).vectors, fixed.patches(image).vectors)


def test_similarity_is_that_of_the_equations():
    generator = torch.Generator().manual_seed(7)
    patches = F.normalize(torch.randn(3, 5, 4, generator=generator), dim=-1)
    counts = [2, 1, 4]
    words = F.normalize(torch.randn(7, 4, generator=generator), dim=-1)
    found = adamatch.similarity(patches, words, counts)
    for j, own in enumerate(words.split(counts)):
        for i in range(3):
            cosines = patches[i] @ own.T
            assert found.by_patch[i, j] == pytest.approx(float(cosines.amax(1).mean()), abs=1e-6)
            assert found.by_word[i, j] == pytest.approx(float(cosines.amax(0).mean()), abs=1e-6)


def test_contrast_holds_reports_against_images_and_images_against_reports():
    by_patch = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    by_word = torch.tensor([[0.5, 2.0], [1.0, 0.0]])
    found = adamatch.contrast(adamatch.Similarity(by_patch, by_word), torch.tensor(0.5), ["a", "b"])
    rows = -(by_patch / 0.5).log_softmax(1).diag().mean()  # reports for an image
    columns = -(by_word / 0.5).log_softmax(0).diag().mean()  # images for a report
    torch.testing.assert_close(found, (rows + columns) / 2)


def test_equal_texts_are_no_wrong_answers():
    same = adamatch.Similarity(torch.zeros(2, 2), torch.zeros(2, 2))
    assert adamatch.contrast(same, torch.tensor(1.0), ["a", "a"]) == 0
    assert adamatch.contrast(same, torch.tensor(1.0), ["a", "b"]) == pytest.approx(math.log(2))


def test_padding_changes_nothing(network):
    ids, owners = torch.tensor([[2, 7, 8, 3]]), torch.tensor([[-1, 0, 1, -1]])
    alone, _ = network.words(ids, torch.ones_like(ids), owners)
    padded = (
        F.pad(ids, (0, 3)),
        F.pad(torch.ones_like(ids), (0, 3)),
        F.pad(owners, (0, 3), value=-1),
    )
    again, counts = network.words(*padded)
    torch.testing.assert_close(alone, again, atol=1e-6, rtol=0)
    assert counts == [2]


def test_pieces_of_a_word_are_summed():
    states = torch.arange(10.0).reshape(1, 5, 2)
    found, counts = adamatch.word_vectors(states, torch.tensor([[-1, 0, 0, 1, -1]]))
    assert found.tolist() == [[6.0, 8.0], [6.0, 7.0]] and counts == [2]


def test_a_saved_network_answers_alike(network, tmp_path):
    with torch.no_grad():
        network.log_temperature.fill_(-1)
    adamatch.save(network, tmp_path)
    again = adamatch.load(tmp_path, BertModel.from_pretrained(tmp_path, add_pooling_layer=False))
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for a, b in zip(network.patches(image), again.patches(image), strict=True):
        torch.testing.assert_close(a, b)
    assert again.shape == SHAPE and again.temperature == network.temperature


@pytest.fixture
def published():
    """A trained PVT of four stages in colour, small."""
    with models.initialised(7):
        return PvtModel(
            PvtConfig(image_size=32, num_channels=3, hidden_sizes=[8, 16, 16, 24],
                      num_attention_heads=[1, 2, 2, 2], sequence_reduction_ratios=[4, 2, 2, 1],
                      depths=[1, 1, 1, 1], mlp_ratios=[2, 2, 4, 4])
        ).eval()  # fmt: skip


LIKE = adamatch.Shape(
    32, 16, (8, 16, 16), (1, 1, 1), (1, 2, 2), (4, 2, 2), joint=8, mlp_ratios=(2, 2, 4), channels=3
)


def test_the_first_stages_of_a_published_network_are_the_start(published):
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = (image * 2 - 1).expand(-1, 3, -1, -1)
    for k in range(3):  # the published forward, without its fourth stage
        tokens, rows, columns = published.encoder.patch_embeddings[k](expected)
        for block in published.encoder.block[k]:
            tokens = block(tokens, rows, columns)[0]
        expected = tokens.transpose(1, 2).reshape(2, -1, rows, columns)
    with models.initialised(0):
        network = adamatch.AdaMatch(LIKE, Model().text_encoder, published).eval()
    found, boxes = network.features(image)
    assert found.shape == (2, 4, 16) and boxes.shape == (2, 4, 4)
    norm = network.image.encoder.layer_norm
    torch.testing.assert_close(found, norm(tokens), atol=1e-5, rtol=1e-5)


def test_a_published_network_of_other_sizes_is_named(published):
    wrong = replace(LIKE, depths=(1, 2, 1))
    with pytest.raises(ValueError, match=r"pretrained PVT has depths \[1, 1, 1\], not \[1, 2, 1\]"):
        adamatch.AdaMatch(wrong, Model().text_encoder, published)
