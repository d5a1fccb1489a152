"""The discriminative baseline: cosine map of a contrastive image-text model (BioViL's way).

The miniature BioViL is the image branch that was pre-trained together with the domain text
encoder, on the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from g2g_utils import models
from g2g_utils.pretraining import Heads, ImageBranch, load_image_text
from g2g_utils.text import select_tokens, stack, tokenize


@dataclass(frozen=True, eq=False)
class BioViL:
    """Image branch, projections and the text encoder they were trained with."""

    branch: ImageBranch
    heads: Heads
    tokenizer: Any
    text_encoder: Any
    max_length: int

    @torch.no_grad()
    def heatmap(self, image: np.ndarray | Tensor, phrase: str, filter: str = "lexical") -> Tensor:
        """Mean cosine [h, w] between content words and patches of an image [S, S] in [0, 1]."""
        words = tokenize(self.tokenizer, phrase, self.max_length)
        states = models.text_states(self.text_encoder, *stack([words]))
        chosen = select_tokens(words, filter)  # type: ignore[arg-type]
        text = F.normalize(self.heads.word(states)[0, chosen], dim=-1)  # words d
        pixels = torch.as_tensor(np.asarray(image), dtype=torch.float32)
        patches, _ = self.branch(pixels.reshape(1, 1, *pixels.shape[-2:]))
        return torch.einsum("nd,dhw->hw", text, F.normalize(patches[0], dim=0)) / len(chosen)


def load(folder: Path, max_length: int) -> BioViL:
    """The miniature BioViL of an encoder folder made by `pretraining.pretrain_encoder`."""
    tokenizer, encoder = models.load_text_encoder(folder)
    branch, heads = load_image_text(folder)
    return BioViL(branch, heads, tokenizer, encoder, max_length)
