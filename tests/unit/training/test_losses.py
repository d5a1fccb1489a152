"""The losses, against their formulas written out and against other libraries' code."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from g2g_utils import config, models
from g2g_utils.models.image_text import Heads
from g2g_utils.training import finetune
from g2g_utils.training.pretrain import (
    augment,
    contrast,
    local_contrast,
    masked_language_loss,
    sentence_state,
)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def cross_entropy(rows):
    """Mean over rows k of -log softmax(row)[k]."""
    return sum(math.log(sum(map(math.exp, row))) - row[k] for k, row in enumerate(rows)) / len(rows)


# -- global contrast ----------------------------------------------------------------------------


def test_contrast_is_cross_entropy_both_ways():
    a, b, scale = random(4, 6), random(4, 6, seed=1), torch.tensor(1.3, dtype=torch.float64)
    logits = [[math.exp(1.3) * cosine(x, y) for y in b] for x in a]
    expected = (cross_entropy(logits) + cross_entropy(list(zip(*logits, strict=True)))) / 2
    value = float(contrast(a, b, scale))
    assert value == pytest.approx(expected, rel=1e-9)
    assert value == pytest.approx(float(image_text_contrastive_loss(torch.tensor(logits))))


def test_contrast_is_symmetric_and_knows_directions_only():
    a, b, scale = random(5, 3), random(5, 3, seed=1), torch.tensor(2.0)
    value = contrast(a, b, scale)
    torch.testing.assert_close(contrast(b, a, scale), value)
    torch.testing.assert_close(contrast(7 * a, 0.1 * b, scale), value)
    assert contrast(a, a, scale) < value < contrast(a, -a, scale)
    assert contrast(a[:1], b[:1], scale) == 0  # one pair has nothing to be told from


def test_contrast_caps_its_scale_at_100_and_learns_it_below():
    a, b = random(4, 6), random(4, 6, seed=1)
    capped = contrast(a, b, torch.tensor(9.0))
    torch.testing.assert_close(capped, contrast(a, b, torch.tensor(100.0).log()))
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(contrast, (a.requires_grad_(), b, scale))


# -- local contrast -----------------------------------------------------------------------------

WORDS, PATCHES = random(3, 4, 5), random(3, 5, 2, 3, seed=1)
REAL = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]).bool()


def score(words, patches):
    """Score of one text's words [n, d] and one image's patches [d, p], word by word."""
    total = 0.0
    for word in words:
        weights = [math.exp(10 * cosine(word, patch)) for patch in patches.T]
        context = sum(
            w / sum(weights) * patch / patch.norm()
            for w, patch in zip(weights, patches.T, strict=True)
        )
        total += math.exp(5 * cosine(context, word))
    return 2 * math.log(total / len(words))


def test_local_contrast_is_its_formula():
    scores = [
        [score(w[m], p.flatten(1)) for p in PATCHES] for w, m in zip(WORDS, REAL, strict=True)
    ]
    expected = (cross_entropy(scores) + cross_entropy(list(zip(*scores, strict=True)))) / 2
    assert float(local_contrast(WORDS, REAL, PATCHES)) == pytest.approx(expected, rel=1e-9)


def test_words_that_are_masked_have_no_say():
    words, patches = WORDS.clone().requires_grad_(), PATCHES.clone().requires_grad_()
    value = local_contrast(words, REAL, patches)
    value.backward()
    assert (words.grad[~REAL] == 0).all() and (words.grad[REAL].norm(dim=-1) > 0).all()
    assert (patches.grad.flatten(1).norm(dim=1) > 0).all()
    changed = torch.where(REAL[..., None], WORDS, 9 * random(3, 4, 5, seed=2))
    torch.testing.assert_close(local_contrast(changed, REAL, PATCHES), value.detach())


def test_a_texts_length_has_no_say():
    value = local_contrast(WORDS, REAL, PATCHES)
    doubled = local_contrast(WORDS.repeat(1, 2, 1), REAL.repeat(1, 2), PATCHES)
    torch.testing.assert_close(doubled, value)


def test_local_contrast_prefers_texts_whose_words_are_somewhere_in_the_image():
    corners = random(3, 5, seed=3)
    patches = 0.1 * PATCHES
    patches[:, :, 1, 2] = corners  # one patch of each image
    words = corners[:, None].repeat(1, 4, 1)
    right = local_contrast(words, REAL, patches)
    wrong = local_contrast(words.roll(1, 0), REAL, patches)
    assert right < 0.1 * wrong
    assert local_contrast(words[:1], REAL[:1], patches[:1]) == pytest.approx(0)


# -- masked language ----------------------------------------------------------------------------

VOCABULARY, WIDTH, MASK = 11, 6, 4


class Lookup(nn.Module):
    """A BERT without attention: the state of a token is its embedding. Keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask):
        self.seen = input_ids, attention_mask
        return SimpleNamespace(last_hidden_state=self.table(input_ids))


def masked(ids, special=None, mask=None, seed=0):
    """Loss, model and heads of token ids [b, n]."""
    with models.initialised(0):
        bert, heads = Lookup(), Heads(WIDTH, VOCABULARY)
        nn.init.normal_(heads.bias)
    mask = torch.ones_like(ids) if mask is None else mask
    special = torch.zeros_like(ids).bool() if special is None else special
    generator = torch.Generator().manual_seed(seed)
    return masked_language_loss(bert, heads, ids, mask, MASK, special, generator), bert, heads


def test_masked_language_loss_is_cross_entropy_of_the_hidden_tokens():
    ids = torch.randint(5, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(1))
    value, bert, heads = masked(ids)
    hidden = bert.seen[0] != ids
    assert 0 < hidden.sum() < ids.numel() and (bert.seen[0][hidden] == MASK).all()
    state = heads.masked(bert.table.weight[MASK])  # every hidden token looks like the mask
    logits = (bert.table.weight @ state + heads.bias).tolist()
    total = math.log(sum(map(math.exp, logits)))
    expected = [total - logits[token] for token in ids[hidden].tolist()]
    assert value.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    again, other = masked(ids)[0], masked(ids, seed=1)[0]
    assert torch.equal(value, again) and not torch.equal(value, other)


def test_a_fifth_of_the_tokens_is_hidden_but_no_special_one_and_no_padding():
    ids = torch.randint(5, VOCABULARY, (300, 40), generator=torch.Generator().manual_seed(1))
    special = torch.zeros_like(ids).bool()
    special[:, 0] = True
    mask = torch.ones_like(ids)
    mask[:, 30:] = 0
    _, bert, _ = masked(ids, special, mask)
    hidden = (bert.seen[0] != ids).double()
    assert hidden[:, 0].sum() == hidden[:, 30:].sum() == 0
    assert float(hidden[:, 1:30].mean()) == pytest.approx(0.2, abs=0.015)
    assert torch.equal(bert.seen[1], mask)


def test_without_a_hidden_token_the_loss_is_zero_and_trains_nothing():
    ids = torch.full((2, 5), 7)
    value, bert, heads = masked(ids, special=torch.ones_like(ids).bool())
    value.backward()
    gradients = [p.grad for m in (bert, heads) for p in m.parameters() if p.grad is not None]
    assert value == 0 and gradients and all((g == 0).all() for g in gradients)


# -- what goes into the contrast ----------------------------------------------------------------


def test_the_sentence_is_berts_first_and_clips_last_real_token():
    states = random(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert torch.equal(sentence_state(states, mask, mask, "bert"), states[:, 0])
    last = torch.stack([states[0, 2], states[1, 4]])
    assert torch.equal(sentence_state(states, mask, mask, "clip"), last)


def test_augmented_images_differ_in_brightness_and_contrast_alone():
    images = torch.rand(64, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    changed = augment(images, torch.Generator().manual_seed(1))
    again = augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(changed, again)
    assert changed.min() >= 0 and changed.max() <= 1
    for before, after in zip(images, changed, strict=True):
        inside = (after > 0) & (after < 1)
        x, y = before[inside].double(), after[inside].double()
        gain = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        level = y.mean() - 0.5 - gain * (x.mean() - 0.5)  # of mid grey
        assert 0.8 - 1e-4 <= gain <= 1.2 + 1e-4 and abs(level) <= 0.1 + 1e-4
        torch.testing.assert_close(y, gain * (x - 0.5) + 0.5 + level, atol=1e-5, rtol=0)


# -- denoising ----------------------------------------------------------------------------------


def noise(timesteps):
    shape = (len(timesteps), 4, 3, 2)
    draws = random(*shape, seed=4, dtype=torch.float32), random(*shape, seed=5, dtype=torch.float32)
    return finetune.Noise(*draws, torch.tensor(timesteps), torch.zeros(len(timesteps)).bool())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_denoising_loss_by_hand_and_by_the_library(kind):
    latents, drawn = random(3, 4, 3, 2, dtype=torch.float32), noise([0, 400, 999])
    scheduler = DDIMScheduler(**models.SD_SCHEDULE | {"prediction_type": kind})
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = (1 - betas).cumprod(0)[drawn.timesteps].view(-1, 1, 1, 1)
    z, eps = latents.double(), drawn.noise.double()
    noised = kept.sqrt() * z + (1 - kept).sqrt() * eps
    target = eps if kind == "epsilon" else kept.sqrt() * eps - (1 - kept).sqrt() * z
    ids, mask, shown = torch.tensor([[5]] * 3), torch.ones(3, 1), []

    def predict(prediction):
        def module(*args):
            shown.append(args)
            return prediction.float()

        return finetune.denoising_loss(module, scheduler, latents, drawn, ids, mask)

    assert float(predict(target)) == pytest.approx(0, abs=1e-10)
    wrong = random(3, 4, 3, 2, seed=6)
    expected = float((wrong - target).square().mean())
    assert float(predict(wrong)) == pytest.approx(expected, rel=1e-5)
    given, timesteps, *words = shown[0]
    torch.testing.assert_close(given.double(), noised, atol=1e-5, rtol=0)
    library = scheduler.add_noise(latents, drawn.noise, drawn.timesteps)
    assert torch.equal(given, library) and torch.equal(timesteps, drawn.timesteps)
    assert words[0] is ids and words[1] is mask


# -- modules and their parameters ---------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    with models.initialised(0):
        return models.build_unet(config.load("smoke").unet, 4, 8, 32)


def test_a_wordless_unet_ignores_words_and_how_it_would_read_them(unet):
    module = finetune.Wordless(unet)
    latents, t = random(2, 4, 8, 8, dtype=torch.float32), torch.tensor([3, 700])
    some, others = torch.tensor([[1], [2]]), torch.tensor([[8, 9], [7, 6]])
    with torch.no_grad():
        value = module(latents, t, some, some)
        assert torch.equal(module(latents, t, others, others), value)
        several = unet(latents, t, encoder_hidden_states=torch.zeros(2, 5, 32)).sample
        torch.testing.assert_close(several, value, atol=1e-5, rtol=1e-5)
        before = {k: w.clone() for k, w in unet.state_dict().items()}
        for name, weight in unet.named_parameters():
            if ".attn2.to_k." in name or ".attn2.to_v." in name:
                weight.normal_()
        torch.testing.assert_close(module(latents, t, some, some), value, atol=1e-5, rtol=1e-5)
        unet.load_state_dict(before)


def groups_of(unet, learnable=False, **changes):
    text = nn.Linear(3, 2)
    module = finetune.Denoising(unet, models.Conditioning(None, text, 77), learnable)
    options = config.load("smoke").training.model_copy(update=changes)
    return finetune.parameter_groups(module, options), text


def test_parameter_groups_hold_every_parameter_once_at_its_rate(unet):
    rates = {"learning_rate": 1e-3, "attention_lr_scale": 3.0, "text_learning_rate": 2e-4}
    names = {id(p): name for name, p in unet.named_parameters()}
    (rest, cross), text = groups_of(unet, **rates)
    assert (rest["lr"], cross["lr"]) == (1e-3, pytest.approx(3e-3))
    in_cross = {names[id(p)] for p in cross["params"]}
    assert in_cross == {name for name in names.values() if ".attn2." in name}
    held = [id(p) for group in (rest, cross) for p in group["params"]]
    assert sorted(held) == sorted(names)
    assert not any(p.requires_grad for p in text.parameters())
    (*_, words), text = groups_of(unet, learnable=True, **rates)
    assert words["lr"] == 2e-4 and words["params"] == list(text.parameters())
    assert all(p.requires_grad for p in words["params"])


def test_frozen_weights_of_a_unet_are_in_no_group(unet):
    frozen = [p for name, p in unet.named_parameters() if "attn1" in name or "conv_in" in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    held = {id(p) for group in groups_of(unet)[0] for p in group["params"]}
    for parameter in frozen:
        parameter.requires_grad_(True)
    assert held and not held & {id(p) for p in frozen}
