"""G2D (Liu et al., NeurIPS 2024): cosine map of a network pre-trained by pseudo-segmentation.

The paper grounds by cosines between a projected prompt and "the dense feature map of the final
convolutional layer" and leaves open which vectors these are. `value`: each pixel by itself through
the pooling's value, output and final projections (as MaskCLIP does), the only dense features in the
text's space. `projected`: the pooling's input, which no loss compared with text. `attention`: what
the pooling looks at, whatever the phrase.

Trained against reports alone, all phrases share a large component that lies away from lesions, and
plain cosines may be anti-correlated with the boxes. `against` names prompts whose mean cosine is
subtracted, as zero-shot classification does with its negative prompt. Own code, after the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from g2g_utils import models
from g2g_utils.methods.base import HeatMap, Query, films, no_map
from g2g_utils.methods.registry import G2DRow, Parts
from g2g_utils.methods.two_tower import cosine_map
from g2g_utils.metrics import resize
from g2g_utils.models import g2d
from g2g_utils.text import PhraseError, stack, tokenize


@dataclass(frozen=True, eq=False)
class Joint:
    """A network and the text encoder it was trained with."""

    network: g2d.G2D
    tokenizer: Any
    text_encoder: Any
    max_length: int

    @torch.no_grad()
    def patches(self, image: Tensor, features: g2d.Dense = "value") -> Tensor:
        """Pixel features [d, h, w] of an image [1 or 3, S, S] in [0, 1], averaged to grey."""
        return self.network.dense(grey(image), features)[0]

    @torch.no_grad()
    def words(self, phrase: str) -> Tensor:
        """The projected first token [1, d] of a phrase."""
        tokens = tokenize(self.tokenizer, phrase, self.max_length)
        states = models.text_states(self.text_encoder, *stack([tokens]))
        return self.network.project_text(states[:, 0])


def grey(image: Tensor) -> Tensor:
    """An image [1 or 3, S, S] as a batch of one grey image [1, 1, S, S]."""
    return image.float().mean(0, keepdim=True)[None]


@dataclass(frozen=True, eq=False)
class Dense:
    """Grounds by the cosines of pixels and phrase, or by attention. Films are encoded once."""

    name: str
    image_size: int
    joint: Joint
    row: G2DRow

    @torch.no_grad()
    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Maps of queries, resized to the image."""
        found = []
        for film in films(queries):
            pixels = self._pixels(queries[film[0]].image)
            found += [self._map(pixels, queries[k].phrase) for k in film]
        return found

    def _pixels(self, image: Tensor) -> Tensor:
        """Features [d, h, w] of an image, or its attention [h, w]."""
        if self.row.features == "attention":
            return cast(Tensor, self.joint.network(grey(image), decode=False).attention[0].mean(0))
        return self.joint.patches(image, self.row.features)

    def _map(self, pixels: Tensor, phrase: str) -> HeatMap:
        try:
            words = self.joint.words(phrase)  # also where no word is read: a phrase without words
        except PhraseError as error:
            return no_map(error)
        if self.row.features == "attention":
            return HeatMap(resize(pixels, self.image_size))
        values = cosine_map(pixels, words)
        if self.row.against:
            others = torch.cat([self.joint.words(prompt) for prompt in self.row.against])
            values = values - cosine_map(pixels, others)
        return HeatMap(resize(values, self.image_size))


def build(parts: Parts, name: str, row: G2DRow, seed: int | None) -> Dense:
    """The method of a row: a network of the profile's arm, made if it is missing."""
    config = parts.config
    assert config.g2d is not None
    network = g2d.load(parts.product(f"g2d/{row.network}-s{row.seed}"))
    encoder = config.encoders[config.g2d.text]
    source = encoder.pretrained or parts.product(f"encoders/{config.g2d.text}")
    tokenizer, text_encoder = models.load_text_encoder(source, encoder.revision)
    joint = Joint(network, tokenizer, text_encoder, config.text.max_length)
    return Dense(name, config.image_size, joint, row)
