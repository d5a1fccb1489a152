"""G2D's networks, pseudo masks, losses and arms against vectors of the authors' functions."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from g2g_utils import config
from g2g_utils.config import DenseArm, G2DSettings
from g2g_utils.models import MissingWeights, g2d
from g2g_utils.training import g2d as training
from g2g_utils.training import pseudo_masks
from g2g_utils.training.fit import seeded

SHARED = Path(os.environ.get("G2G_SHARED", Path(__file__).parents[4] / "shared"))
FULL = SHARED / "reference" / "g2d" / "reference_open.npz"
CUT = Path(__file__).parents[2] / "vectors" / "g2d.npz"
RULES = {"mean": None, "median": 0.5, "quantil0.85": 0.85, "quantil0.75": 0.75}
SIDE, WIDTH = 32, 10


@pytest.fixture(autouse=True)
def _same_numbers():
    """Every test draws the same numbers, alone or after others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module", params=[CUT, FULL], ids=["cut", "full"])
def vectors(request):
    """Tensors by name; the repository's part, then the full vectors."""
    if not request.param.is_file():
        pytest.skip(f"no vectors at {FULL}; the repository's part was tested (G2G_SHARED)")
    stored = np.load(request.param)
    return {name: torch.from_numpy(np.asarray(stored[name])) for name in stored.files
            if stored[name].dtype.kind != "U"}  # fmt: skip


def close(ours, theirs, tolerance=1e-5):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance


# -- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["pool4", "pool2", "pool_mean"])
def test_attention_pooling(vectors, case):
    x, start = vectors[f"{case}/x"], f"{case}/weights/"
    out = vectors[f"{start}c_proj.weight"].shape[0]
    pool = g2d.AttentionPool(x[0, 0].numel(), x.shape[1], int(vectors[f"{case}/heads"]), out)
    pool.load_state_dict({k.removeprefix(start): v for k, v in vectors.items() if start in k})
    pooled, attention = pool(x)
    close(pooled, vectors[f"{case}/y"])
    theirs = vectors[f"{case}/attention"]
    close(attention.mean(1, keepdim=True) if theirs.shape[1] == 1 else attention, theirs)
    assert torch.allclose(attention.sum(-1), torch.ones(()))


def test_pseudo_masks_are_exact(vectors):
    names = [n for n in vectors if n.startswith("pseudo") and "/maps" in n]
    assert len(names) >= 8
    for name in names:
        case, rule, maps, size = name.split("/")
        found = pseudo_masks.pseudo_mask(
            vectors[f"{case}/att"],
            int(size),
            quantile=RULES[rule],
            per_head=maps == "maps4",
            compat="published",
        )
        assert torch.equal(found, vectors[name].float()), name


def test_contrast(vectors):
    for case in ("clip6", "clip13"):
        image, text = vectors[f"{case}/image"], vectors[f"{case}/text"]
        for name, options in (("loss", ()), ("loss_t0.2", (0.2,))):
            ours = 2 * training.alignment(image, text, *options)  # the code sums both directions
            assert float(ours - vectors[f"{case}/{name}"]) == pytest.approx(0, abs=1e-5)


def test_published_loss_and_its_defect(vectors):
    logits, target = vectors["bcedice/logits"].clone().requires_grad_(), vectors["bcedice/target"]
    loss = training.mask_loss(logits, target, compat="published")
    loss.backward()
    close(loss.detach(), vectors["bcedice/train"])
    close(logits.grad, vectors["bcedice/train_grad"])
    close(training.dice_loss(logits, target).mean(), vectors["bcedice/no_train"])
    wrong, quarter = torch.full((2, 1, 8, 8), -3.0), torch.zeros(2, 1, 8, 8)
    quarter[..., :2] = 1
    published = training.mask_loss(wrong, quarter, compat="published")
    close(published, vectors["bcedice/strong_negative_train"])
    assert training.mask_loss(wrong, quarter) > 0.8 > published  # ours is not fooled
    with pytest.raises(ValueError, match="published"):
        training.mask_loss(wrong, quarter, compat="old")


@pytest.mark.parametrize("name", ["proj_v", "proj_t"])
def test_projectors(vectors, name):
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d), (torch.nn.Conv1d, torch.nn.BatchNorm1d)
    first, last = vectors[f"{name}/w0"], vectors[f"{name}/w3"]
    sizes = first.shape[1], first.shape[0], last.shape[0]
    layers = g2d.projector(*kinds[name == "proj_t"], *sizes)
    layers.load_state_dict({"0.weight": first, "3.weight": last}, strict=False)
    x = vectors[f"{name}/x"]
    close(layers(x), vectors[f"{name}/train"])
    close(layers.eval()(x), vectors[f"{name}/eval_after_one_train_step"])


def test_bilateral_filter(vectors):
    mask = vectors["plain_bilateral/mask"]
    for name in (n for n in vectors if n.startswith("plain_bilateral/radius")):
        radius, space, colour = name.split("/")[1].split("_")
        ours = pseudo_masks.bilateral(mask, int(radius[6:]), float(space[1:]), float(colour[1:]))
        close(ours, vectors[name], 1e-9)


# -- properties of masks ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attention():
    return torch.rand(5, 4, 8, 8, generator=seeded(3)).softmax(-1)


@pytest.mark.parametrize("share, cells", [(0.85, 9), (0.75, 16), (0.5, 32)])
def test_a_percentile_is_a_count_of_cells(attention, share, cells):
    mask = pseudo_masks.pseudo_mask(attention, 64, quantile=share, smooth=False)
    assert (mask.sum((1, 2, 3)) == cells * 64).all()
    large = pseudo_masks.enlarge(pseudo_masks.aggregate(attention), 64)
    reached = pseudo_masks.quantile_mask(large, share, strict=False)
    assert (reached.sum((1, 2, 3)) == (cells + (share == 0.85)) * 64).all()


def test_masks_ignore_the_scale_and_follow_the_batch(attention):
    mask = pseudo_masks.pseudo_mask(attention, 64)
    assert torch.equal(mask, pseudo_masks.pseudo_mask(attention * 7.5, 64))
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(mask[order], pseudo_masks.pseudo_mask(attention[order], 64))
    flipped = pseudo_masks.pseudo_mask(attention.flip(-1), 64)
    assert torch.allclose(mask.flip(-1), flipped, atol=1e-6)


def test_percentile_of_the_body(attention):
    everywhere = torch.ones(5, 64, 64, dtype=torch.bool)
    options = {"smooth": False, "body": everywhere}
    whole = pseudo_masks.pseudo_mask(attention, 64, **options)
    assert torch.equal(whole, pseudo_masks.pseudo_mask(attention, 64, of="body", **options))
    half = everywhere.clone()
    half[..., 32:] = False
    some = pseudo_masks.pseudo_mask(attention, 64, smooth=False, body=half, of="body")
    assert not some[..., 32:].any()
    assert (some.sum((1, 2, 3)) == 4 * 64).all()  # of the 32 cells of the body


def test_the_body_keeps_dark_lungs():
    image = torch.full((2, 32, 32), 0.02)
    image[0, 4:28, 4:28] = 0.6
    image[0, 10:20, 8:14] = 0.01  # a lung
    image[0, 0, 31] = 0.9  # a mark
    body = pseudo_masks.body_mask(image)
    assert body[0, 4:28, 4:28].all() and body[0].sum() == 24 * 24
    assert body[1].all()  # nothing bright: nothing is left out


def test_bilateral_keeps_constants_and_symmetry(attention):
    flat = torch.ones(1, 1, 16, 16)
    assert torch.allclose(pseudo_masks.bilateral(flat, 4, 2.0), flat)
    assert not pseudo_masks.bilateral(flat * 0, 4, 2.0).any()
    mask = pseudo_masks.pseudo_mask(attention, 64, smooth=False)
    soft = pseudo_masks.bilateral(mask, 8, 4.0)
    assert torch.allclose(soft.flip(-1), pseudo_masks.bilateral(mask.flip(-1), 8, 4.0), atol=1e-6)
    assert 0 <= soft.min() and soft.max() <= 1
    assert torch.equal((soft > 0.5).float(), mask)  # the edge stays where it was
    assert torch.allclose(pseudo_masks.bilateral(mask, 8, 4.0, colour=0.1), mask, atol=1e-6)


def test_a_mixture_parts_two_groups():
    generator = seeded(4)
    low = torch.randn(3, 50, generator=generator) * 0.1
    high = 4 + torch.randn(3, 14, generator=generator) * 0.1
    edges = pseudo_masks.mixture_edge(torch.cat([low, high], 1))
    assert torch.allclose(edges, torch.full((3,), 2.0, dtype=torch.float64), atol=0.1)
    maps = torch.cat([low, high], 1).view(3, 1, 8, 8)
    mask = pseudo_masks.pseudo_mask(maps, 64, mixture=True, smooth=False)
    assert (mask.sum((1, 2, 3)) == 14 * 64).all()


# -- networks -----------------------------------------------------------------------------------


def network(seed=0, **sizes):
    return training.build(g2d.Shape(SIDE, WIDTH, **{"joint": 16, "heads": 2, **sizes}), seed)


@pytest.mark.parametrize("heads", [1, 2, 3, 4])
def test_any_number_of_heads(heads):
    found = network(heads=heads)(torch.rand(2, 1, SIDE, SIDE), torch.rand(2, WIDTH))
    assert found.image.shape == found.text.shape == (2, 16)
    assert found.attention.shape == (2, heads, 4, 4) and found.logits.shape == (2, 1, SIDE, SIDE)


@pytest.mark.parametrize("skips", [0, 1, None])
def test_skips_may_be_left_out(skips):
    assert network(skips=skips)(torch.rand(1, 1, SIDE, SIDE)).logits.shape == (1, 1, SIDE, SIDE)


def test_value_features_of_equal_cells_are_the_pooled_vector():
    pool = g2d.AttentionPool(16, 8, 2, 6)
    torch.nn.init.zeros_(pool.positional_embedding)
    x = torch.rand(3, 8, 1, 1).expand(-1, -1, 4, 4)
    cells = pool.values(x)
    assert torch.allclose(cells, pool(x)[0][..., None, None].expand_as(cells), atol=1e-6)


def test_value_features_average_to_the_pooled_vector():
    """With one head pooling is the attention's mean of the value features."""
    pool, x = g2d.AttentionPool(16, 8, 1, 6), torch.rand(3, 8, 4, 4)
    pooled, attention = pool(x)
    first = pool.c_proj(pool.mhsa.values(pool.tokens(x)))  # b 1+hw d
    assert torch.allclose(torch.einsum("bhn,bnd->bd", attention, first), pooled, atol=1e-6)


def test_the_published_sizes():
    with torch.device("meta"):
        real = g2d.G2D(g2d.Shape(256, 768, "resnet50"))
        found = real.eval()(torch.rand(1, 1, 256, 256), torch.rand(1, 768))
    count = {n: sum(p.numel() for p in m.parameters()) for n, m in real.img_model.named_children()}
    assert round(count["encoder"] / 1e6, 1) == 23.5 and round(count["decoder"] / 1e6, 1) == 9.0
    assert found.attention.shape == (1, 4, 8, 8) and found.logits.shape == (1, 1, 256, 256)
    names = set(real.state_dict())
    assert {"img_model.encoder.layer4.2.bn3.weight", "img_model.decoder.blocks.4.conv2.1.weight",
            "img_model.segmentation_head.0.bias", "attnpool.mhsa.out_proj.bias",
            "proj_t.3.weight", "proj_v.1.running_var"} <= names  # fmt: skip


def test_a_saved_network_is_the_same(tmp_path):
    made = network().eval()
    g2d.save(made, tmp_path, half=False)
    again, images = g2d.load(tmp_path), torch.rand(2, 1, SIDE, SIDE)
    assert torch.allclose(again(images).logits, made(images).logits, atol=1e-6)
    (tmp_path / g2d.FILE).write_bytes(b"no weights")
    with pytest.raises(MissingWeights, match="no sound G2D"):
        g2d.load(tmp_path)


def test_checkpoints_in_the_authors_naming_load(tmp_path):
    theirs, ours = network(1), network(2)
    whole = theirs.state_dict() | {"lm_model.x": torch.ones(1), "pseudo_conv.weight": torch.ones(1)}
    layouts = {
        "whole": {"epoch": 3, "model_state_dict": whole, "optimizer_state_dict": {"state": {}}},
        "unet": theirs.img_model.state_dict(),
        "encoder": theirs.img_model.encoder.state_dict(),
    }
    for name, state in layouts.items():
        torch.save(state, tmp_path / name)
    for name in ("encoder", "unet", "whole"):
        filled = g2d.load_published(ours, tmp_path / name)
    assert {"img_model", "proj_v", "attnpool"} <= set(filled)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


def test_an_encoder_of_another_library_loads(tmp_path):
    """As ImageNet's ResNet-50 is published: a classifier on top, no counters of BatchNorm."""
    theirs, ours = network(1).img_model.encoder, network(2)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith(g2d.COUNTER)}
    torch.save(state | {"fc.weight": torch.ones(2, 3)}, tmp_path / "resnet.pth")
    g2d.load_published(ours, tmp_path / "resnet.pth")
    assert all(torch.equal(v, ours.img_model.encoder.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("attnpool.c_proj.bias"), "c_proj.bias is absent"),
        (lambda s: s.update({"attnpool.c_proj.bias": torch.ones(3)}), r"is \(3,\), the network's"),
        (lambda s: s.clear(), "no checkpoint of G2D"),
    ],
)
def test_checkpoints_of_another_network_are_one_line(tmp_path, change, message):
    state = dict(network().state_dict())
    change(state)
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(MissingWeights, match=message) as error:
        g2d.load_published(network(), tmp_path / "bad.pth")
    assert "\n" not in str(error.value)


def test_a_file_of_no_weights_is_one_line(tmp_path):
    (tmp_path / "page.pth").write_text("<html>")
    for name in ("page.pth", "absent.pth"):
        with pytest.raises(MissingWeights, match=name):
            g2d.load_published(network(), tmp_path / name)


# -- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    generator = seeded(5)
    images = (torch.rand(12, SIDE, SIDE, generator=generator) * 255).byte().numpy()
    lesions = torch.rand(12, SIDE, SIDE, generator=generator) > 0.8
    bodies = torch.ones(12, SIDE, SIDE, dtype=torch.bool)
    return training.Pairs(images, torch.randn(12, WIDTH, generator=generator), bodies, lesions)


def settings(**more):
    arms = {"ps": DenseArm()}
    return G2DSettings(arms=arms, joint=16, heads=2, batch_size=4, steps=4, **more)


def train(folder, pairs, arm, start=None, steps=4, **more):
    made = training.build(network().shape, 0, start)
    training.pretrain(
        made, pairs, arm, settings(**more), folder, seed=0, first=10, steps=steps, name="test"
    )
    return g2d.load(folder).state_dict()


def test_no_gradient_passes_the_mask(pairs):
    found = network()(torch.rand(4, 1, SIDE, SIDE))
    target = training.target_of(DenseArm(), pairs, SIDE)
    assert not target(found.attention, torch.arange(4), None).requires_grad
    logits = torch.zeros_like(found.logits, requires_grad=True)
    mask = training.mask_loss(logits, target(found.attention, torch.arange(4), None))
    mask.backward()
    assert found.attention.grad_fn is not None and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_no_image_keeps_its_mask_when_shuffled(pairs, batch):
    ramp = torch.arange(16.0).view(4, 4)  # every image's largest values lie elsewhere
    attention = torch.stack([ramp.flatten().roll(2 * b).view(4, 4) for b in range(batch)])
    attention, rows = attention[:, None].repeat(1, 2, 1, 1), torch.arange(batch)
    own, other = (
        training.target_of(DenseArm(target=t), pairs, SIDE)(attention, rows, None)
        for t in ("own", "other")
    )
    assert torch.equal(own.roll(1, 0), other)
    assert all(not torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_losses_follow_the_batch():
    logits, target = torch.randn(4, 1, 8, 8), (torch.rand(4, 1, 8, 8) > 0.5).float()
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(
        training.dice_loss(logits, target)[order], training.dice_loss(logits[order], target[order])
    )
    assert torch.allclose(
        training.mask_loss(logits, target), training.mask_loss(logits[order], target[order])
    )
    a, b = torch.randn(4, 8), torch.randn(4, 8)
    assert torch.allclose(training.alignment(a, b), training.alignment(a[order], b[order]))


def test_weight_zero_is_contrast_alone_and_resuming_repeats(tmp_path, pairs):
    start = network(7)
    alone = train(tmp_path / "vla", pairs, DenseArm(target="none"), start)
    none = train(tmp_path / "zero", pairs, DenseArm(weight=0), start)
    kept = [k for k in alone if not k.startswith(("img_model.decoder", "img_model.segm"))]
    assert all(torch.equal(alone[k], none[k]) for k in kept)
    full = train(tmp_path / "ps", pairs, DenseArm(), start)
    assert any(not torch.equal(alone[k], full[k]) for k in kept)

    stopped = tmp_path / "again"
    with pytest.MonkeyPatch.context() as patch:
        loss = training.step_loss

        def stops(*given):
            step = loss(*given)

            def one(k, *rest):
                if k == 3:
                    raise KeyboardInterrupt
                return step(k, *rest)

            return one

        patch.setattr(training, "step_loss", stops)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, pairs, DenseArm(), start, checkpoint_every=2)
    assert (stopped / "checkpoint.pt").is_file()
    again = train(stopped, pairs, DenseArm(), start, checkpoint_every=2)
    assert all(torch.equal(again[k], full[k]) for k in full)


def test_arms_are_equal_at_the_branch():
    start = network(7)
    arms = [training.build(network(skips=skips).shape, 3, start) for skips in (None, 0)]
    for k, value in start.state_dict().items():
        if not k.startswith(("img_model.decoder", "img_model.segm")):
            assert all(torch.equal(arm.state_dict()[k], value) for arm in arms)
    again = training.build(network().shape, 3, start).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in arms[0].state_dict().items())


@pytest.mark.parametrize("target", ["own", "other", "image", "lesions", "mean"])
def test_every_arm_learns(tmp_path, pairs, target):
    arm = DenseArm(target=target)
    before = network().state_dict()
    after = train(tmp_path, pairs, arm, network(), steps=2)
    assert any(not torch.equal(before[k], v) for k, v in after.items() if "decoder" in k)


def test_the_mean_mask_is_a_share(pairs):
    mean = training.mean_mask(network(), pairs, DenseArm())
    assert mean.shape == (1, 1, SIDE, SIDE) and 0 <= mean.min() and mean.max() <= 1


# -- settings -----------------------------------------------------------------------------------


def test_settings_that_do_not_fit_are_one_line():
    for given, message in (
        ({"arms": {}}, "g2d.arms"),
        ({"arms": {"warmup": {}}}, "not warmup"),
        ({"arms": {"ps": {"quantile": 1.5}}}, "quantile"),
        ({"arms": {"ps": {}}, "text": "nothing"}, "not in encoders"),
    ):
        with pytest.raises(config.ConfigError, match=message):
            config.load("smoke", g2d=given)
