"""Information maps: a Gaussian whose answer is known, the guarantees of the engine, bad input."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import BertConfig, BertModel, BertTokenizerFast

from g2g_utils import grounding, information
from g2g_utils.information import leave_out, measure, positive, smooth, step_weights

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] small left right effusion edema opacity in the lung ."
PHRASES = ["small left effusion", "edema in the right lung"]


class Model:
    """A tiny latent diffusion model of random weights."""

    image_size, max_length, latent_shape = 32, 12, (4, 16, 16)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, prediction: str = "epsilon") -> None:
        self.tokenizer = BertTokenizerFast(vocab={w: i for i, w in enumerate(WORDS.split())})
        torch.manual_seed(0)
        size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        self.text_encoder = BertModel(
            BertConfig(vocab_size=20, intermediate_size=16, **size), add_pooling_layer=False
        ).eval()
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
        ).eval()
        self.scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", steps_offset=1, prediction_type=prediction
        )

    @torch.no_grad()
    def encode_text(self, input_ids, attention_mask):
        return self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state

    def image_posterior(self, images):
        mean = torch.nn.functional.pixel_unshuffle(images[:, :1], 2) * 2 - 1
        return mean, torch.full_like(mean, 0.1)

    def add_noise(self, latents, noise, timesteps):
        return self.scheduler.add_noise(latents, noise, timesteps)


@pytest.fixture(scope="module")
def model():
    return Model()


@pytest.fixture(scope="module")
def image():
    return torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(1))


class Gaussian(Model):
    """The best U-Net for latents that are N(0, 1), or N(shift, width²) under a phrase."""

    shift, width = 0.7, 0.8

    def __init__(self, prediction):
        super().__init__(prediction)
        self.scheduler = DDIMScheduler(
            beta_start=1e-6, beta_end=0.03, clip_sample=False, prediction_type=prediction
        )

        def forward(noisy, times, states):
            kept = self.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
            alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
            told = states[:, 0, :1, None, None]  # 1 under a phrase
            mean, var = told * self.shift, 1 + told * (self.width**2 - 1)
            eps = sigma * (noisy - alpha * mean) / (alpha**2 * var + sigma**2)
            clean = (noisy - sigma * eps) / alpha
            out = {"epsilon": eps, "sample": clean, "v_prediction": alpha * eps - sigma * clean}
            return SimpleNamespace(sample=out[prediction])

        self._forward = forward

    def noise_of(self, noisy, times, states):
        return information.predicted_noise(self._with_unet(), noisy, times, states)

    def _with_unet(self):
        return SimpleNamespace(unet=self._forward, scheduler=self.scheduler)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_half_the_integral_over_log_snr_is_the_log_likelihood_ratio(prediction):
    toy = Gaussian(prediction)
    times = list(range(999, -1, -5))
    draws = 400
    clean = torch.tensor([-1.0, 0.0, 0.5, 1.5]).view(1, 1, 2, 2)
    told, untold = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    gain = torch.zeros(len(times), 2, 2)
    for i, t in enumerate(times):
        noise = torch.randn(draws, 1, 2, 2, generator=generator)
        steps = torch.full((draws,), t)
        noisy = toy.scheduler.add_noise(clean.expand(draws, -1, -1, -1), noise, steps)
        own = toy.noise_of(noisy, steps, told)[:, 0]
        base = toy.noise_of(noisy, steps, untold)[:, 0]
        gain[i] = ((noise - base).square() - (noise - own).square()).sum(1).mean(0)
    found = torch.einsum("t,thw->hw", step_weights(toy, times, "nats"), gain)
    given = torch.distributions.Normal(toy.shift, toy.width)
    exact = given.log_prob(clean) - torch.distributions.Normal(0.0, 1.0).log_prob(clean)
    assert torch.allclose(found, exact[0, 0], atol=0.06)


def test_maps_are_the_same_in_any_batch_and_company(model, image):
    together = measure(model, image, PHRASES, timesteps=4, batch_size=64)
    for k, phrase in enumerate(PHRASES):
        alone = measure(model, image, [phrase], timesteps=4, batch_size=1)[0]
        assert torch.allclose(alone.steps, together[k].steps, atol=1e-4)
        assert torch.allclose(alone.differences, together[k].differences, atol=1e-4)
        assert torch.allclose(alone.token_maps, together[k].token_maps, atol=1e-5)


def test_the_first_draw_records_the_attention_of_ground_truth_sampling(model, image):
    found = measure(model, image, PHRASES[:1], timesteps=5, draws=1)[0]
    same = grounding.ground(model, image, PHRASES[0], timesteps=5, keep_last=5)
    assert torch.allclose(found.attention, same.activation, atol=1e-4)
    assert found.timesteps == same.timesteps


def test_more_draws_refine_the_same_noise(model, image):
    one, two = (measure(model, image, PHRASES[:1], timesteps=3, draws=n)[0] for n in (1, 2))
    assert one.gain.shape == (16, 16)
    assert not torch.allclose(one.steps, two.steps)
    assert two.steps.shape == (2, 3, 16, 16)


def test_difference_is_not_negative_and_heat_maps_are_scaled(model, image):
    found = measure(model, image, PHRASES[:1], timesteps=3)[0]
    assert (found.differences >= 0).all()
    for heat in (found.heatmap(), found.product(), found.attention):
        assert heat.min() == 0 and heat.max() == 1
    assert found.total == pytest.approx(float(found.gain.sum()), rel=1e-4)
    assert found.totals == pytest.approx(found.gains.sum((1, 2)).tolist(), rel=1e-4)


def test_rows_are_counted_and_conditions_are_run_once(model, image):
    rows = []
    hook = model.unet.conv_in.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    measure(model, image, PHRASES, timesteps=4, draws=2, batch_size=6)
    hook.remove()
    assert sum(rows) == information.Options(timesteps=4, draws=2).rows(2) == 32
    assert max(rows) <= 6


def test_words_left_out(model, image):
    found = information.word_information(model, image, PHRASES[0], timesteps=2, draws=1)
    assert list(found) == ["small", "left", "effusion"]
    assert all(m.shape == (16, 16) for m in found.values())
    assert leave_out("small left effusion, left base", "left") == "small effusion, base"
    assert leave_out("effusion", "effusion") == ""


def test_weights(model):
    times = [901, 501, 1]
    for kind in ("flat", "noise"):
        assert step_weights(model, times, kind).sum() == pytest.approx(1)
    ends = information.log_snr(model, times)
    whole = step_weights(model, times, "nats").sum()
    assert whole == pytest.approx(float(ends[-1] - ends[0]) / 2, rel=1e-5)


def test_smoothing_keeps_constants_and_softplus_keeps_the_order():
    flat = torch.full((2, 8, 12), 3.0)
    assert torch.allclose(smooth(flat, 0.1), flat)
    assert smooth(flat, 0) is flat
    gain = torch.linspace(-2, 3, 16).view(4, 4)
    assert (positive(gain).flatten().diff() > 0).all()
    assert torch.isfinite(positive(torch.zeros(4, 4))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": 0}, "draws=0: at least one"),
        ({"timesteps": 1001}, "timesteps=1001: the noise schedule has 1000"),
        ({"conditions": ()}, "at least one prompt"),
        ({"conditions": ("Small  left effusion",)}, "is a condition too"),
        ({"weights": "none"}, "choose noise, flat or nats"),
        ({"weights": "nats", "timesteps": 1}, "at least two timesteps"),
    ],
)
def test_bad_questions_are_one_line(model, image, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        measure(model, image, PHRASES, **options)
    assert "\n" not in str(caught.value)


def test_a_model_without_an_unconditional_state_warns(model, image):
    with pytest.warns(UserWarning, match="never saw dropped captions"):
        measure(model, image, PHRASES[:1], timesteps=1, draws=1, dropped_captions=False)
