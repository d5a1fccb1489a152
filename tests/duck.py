"""A diffusion model small enough for unit tests, with phrases and boxes that it knows."""

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import BertConfig, BertModel, BertTokenizerFast

from g2g_utils.data.record import Example

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] small left right effusion edema opacity in the lung ."

PHRASES = ["small left effusion", "edema in the right lung", "opacity"]

BOXES = [[[2, 3, 8, 9]], [[20, 4, 9, 20]], [[0, 0, 6, 6], [10, 20, 9, 9]]]

FAST = {"timesteps": 5, "keep_last": 3}


class Model:
    """What grounding asks of a model; the posterior is a fixed projection of the image."""

    name = "duck"

    image_size, max_length, latent_shape, zero_padding = 32, 12, (4, 16, 16), False
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
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
        with torch.no_grad():
            for name, weight in self.unet.named_parameters():
                if ".attn2.to_q." in name or ".attn2.to_k." in name:
                    weight.mul_(6)
        self.scheduler = DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1)

    @torch.no_grad()
    def encode_text(self, input_ids, attention_mask):
        return self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state

    def image_posterior(self, images):
        mean = torch.nn.functional.pixel_unshuffle(images[:, :1], 2) * 2 - 1
        return mean, torch.full_like(mean, 0.1)

    def add_noise(self, latents, noise, timesteps):
        return self.scheduler.add_noise(latents, noise, timesteps)


def examples(images):
    """Three pairs of images [3, 1, 32, 32], each of its own finding."""
    findings = ["Pleural Effusion", "Edema", "Lung Opacity"]
    return [
        Example(image[0].numpy(), phrase, finding, boxes, f"i{i}", f"s{i}", "test")
        for i, (image, phrase, finding, boxes) in enumerate(
            zip(images, PHRASES, findings, BOXES, strict=True)
        )
    ]
