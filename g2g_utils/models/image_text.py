"""Image branch and projections that are pre-trained beside a text encoder, as in BioViL."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST = 64  # pixels a side: larger images are averaged down to it


class ImageBranch(nn.Module):
    """Small convolutional image encoder: grey or colour images -> patch features [b, d, h, w].

    With the text encoder's projections it is the miniature BioViL. The grid is 1/4 of the side.
    Images of more than `LARGEST` pixels a side are made as small first.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        sizes = (channels, 32, 48, 64, 64)
        strides = (2, 2, 1, 1)
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            layers += [
                nn.Conv2d(sizes[i], sizes[i + 1], 3, stride, 1),
                nn.GroupNorm(8, sizes[i + 1]),
                nn.SiLU(),
            ]
        self.trunk = nn.Sequential(*layers)
        self.local = nn.Conv2d(64, width, 1)
        self.pooled = nn.Linear(64, width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features [b, width, h, w] and global feature [b, width] of images in [0, 1]."""
        if images.shape[-1] > LARGEST:
            images = F.interpolate(images, (LARGEST, LARGEST), mode="area")
        features = self.trunk(images * 2 - 1)
        pooled = features.mean((2, 3)) + features.amax((2, 3))
        return self.local(features), self.pooled(pooled)


class Heads(nn.Module):
    """Projections and temperatures of the joint space, and the masked-language output bias."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.sentence = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.word = nn.Linear(width, width)
        self.masked = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.log_scale = nn.Parameter(torch.tensor(2.3))


def load_image_text(folder: Path, channels: int = 1) -> tuple[ImageBranch, Heads]:
    """Image branch and heads that `pretrain_encoder` saved beside a text encoder."""
    tensors = load_file(folder / "biovil.safetensors")
    width = tensors["image.pooled.weight"].shape[0]
    branch = ImageBranch(channels, width)
    heads = Heads(width, tensors["heads.bias"].shape[0])
    for prefix, module in (("image.", branch), ("heads.", heads)):
        part = {k.removeprefix(prefix): v.float() for k, v in tensors.items() if prefix in k[:6]}
        module.load_state_dict(part)
        module.eval()
    return branch, heads
