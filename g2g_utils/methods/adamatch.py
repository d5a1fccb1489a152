"""AdaMatch (Chen et al., ACL 2024): heat map of the cosines between moving patches and words.

Each patch gets its mean cosine with the phrase's content words, less its mean cosine with every
word that the text side knows (`centred`): the contrast leaves patches that agree with any word more
than others, and says nothing of that. The value is painted over the box that the patch was sampled
from; where boxes overlap the largest is taken (or the mean), where none lies the map has its
minimum. The paper shows boxes and words (figure 8) and scores no grounding: this map is the
project's own reading, chosen on validation pairs. On its nominal grid instead (`boxes: false`) an
adaptive patch is read where it did not look. Own code, from the paper's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from g2g_utils import models
from g2g_utils.methods.base import HeatMap, Query, films, no_map
from g2g_utils.methods.registry import AdaMatchRow, Parts
from g2g_utils.models import adamatch
from g2g_utils.models.adamatch import AdaMatch, Patches
from g2g_utils.text import PhraseError, content_words, select_tokens, tokenize

SHORTEST = 3  # letters of a vocabulary's words; shorter entries are letters and pieces


@dataclass(frozen=True, eq=False)
class Joint:
    """A network with the tokenizer of its text side."""

    network: AdaMatch
    tokenizer: Any
    max_length: int

    @torch.no_grad()
    def patches(self, image: Tensor) -> Patches:
        """Patches of an image [1 or 3, S, S] in [0, 1], averaged to grey."""
        return self.network.patches(image.float().mean(0, keepdim=True)[None])

    @cached_property
    def habit(self) -> Tensor:
        """Mean unit vector [d] of the content words of the tokenizer's vocabulary, read alone."""
        known = sorted(w for w in self.tokenizer.get_vocab() if w.isalpha() and len(w) >= SHORTEST)
        found = [torch.zeros(1, self.network.shape.joint)]
        for word in known:
            try:
                found.append(self.words(word)[1])
            except PhraseError:  # a function word
                continue
        return torch.cat(found).sum(0) / max(1, len(found) - 1)

    @torch.no_grad()
    def words(self, phrase: str) -> tuple[list[str], Tensor]:
        """Content words of a phrase and their unit vectors [k, d].

        Raises:
            PhraseError: the phrase has no content word, or none that the text side knows.
        """
        tokens = tokenize(self.tokenizer, phrase, self.max_length)
        select_tokens(tokens)  # refuses what cannot be grounded
        kept = [word for word in content_words(tokens) if word.tokens]
        owners = torch.full_like(tokens.input_ids, -1)
        for index, word in enumerate(kept):
            owners[0, list(word.tokens)] = index
        vectors, _ = self.network.words(tokens.input_ids, tokens.attention_mask, owners)
        return [word.text for word in kept], vectors


def load(folder: Path, max_length: int) -> Joint:
    """The network of a product `adamatch/ARM-sSEED`."""
    tokenizer, encoder = models.load_text_encoder(folder)
    return Joint(adamatch.load(folder, encoder), tokenizer, max_length)


def drawn(boxes: Tensor, margin: float) -> Tensor:
    """Boxes [n, 4] grown on every side by half a cell of the map that they sample, within [0, 1].

    At the start they are the cells of the fixed patches.
    """
    return (boxes + margin * boxes.new_tensor([-1, -1, 1, 1])).clamp(0, 1)


def painted(values: Tensor, boxes: Tensor, side: int, pool: str = "max") -> tuple[Tensor, Tensor]:
    """Map [side, side] of the values [n] of boxes [n, 4], and where any box lies (bool).

    Args:
        boxes: x1 y1 x2 y2 in shares of the side; a box holds the pixels whose centres it holds.
        pool: "mean" or "max" of the boxes over a pixel. Other pixels take the least value.
    """
    at = (torch.arange(side) + 0.5) / side
    columns = (at >= boxes[:, :1]) & (at <= boxes[:, 2:3])  # n side
    rows = (at >= boxes[:, 1:2]) & (at <= boxes[:, 3:])
    inside = rows[:, :, None] & columns[:, None]
    covered = inside.any(0)
    if pool == "max":
        heat = values[:, None, None].where(inside, values.new_tensor(-torch.inf)).amax(0)
    else:
        counts = inside.sum(0).clamp(min=1)
        heat = torch.einsum("n,nhw->hw", values, inside.to(values)) / counts
    return heat.where(covered, values.min()), covered


@dataclass(frozen=True, eq=False)
class Matcher:
    """Grounds by the boxes that agree with a phrase. Each image's patches are computed once."""

    name: str
    joint: Joint
    boxes: bool = True  # False: every patch at its place in the grid
    pool: str = "max"
    sigma: float = 0.0  # width of the Gaussian, in pixels
    centred: bool = True  # less each patch's mean over the vocabulary

    @property
    def image_size(self) -> int:
        """Side of its frame, in pixels."""
        return self.joint.network.shape.side

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Heat maps of queries, on the grid of the first stage."""
        found = []
        for film in films(queries):
            patches = self.joint.patches(queries[film[0]].image)
            found += [self._map(patches, queries[k].phrase) for k in film]
        return found

    def _map(self, patches: Patches, phrase: str) -> HeatMap:
        try:
            _, words = self.joint.words(phrase)
        except PhraseError as error:
            return no_map(error)
        asked = words.mean(0) - self.joint.habit if self.centred else words.mean(0)
        return self.heat(patches.vectors[0] @ asked, patches.boxes[0])

    def heat(self, values: Tensor, boxes: Tensor) -> HeatMap:
        """Heat map of the patches' values [n] and boxes [n, 4], with shares of the boxes."""
        shape = self.joint.network.shape
        cells, fine = shape.grid, 2 * shape.grid
        dead = adamatch.dead(boxes, cells, shape.smallest if shape.adaptive else 0.0)
        if not self.boxes:
            half = adamatch.START / cells
            centre = adamatch.anchors(cells, cells)
            boxes = torch.cat([centre - half, centre + half], -1)
        placed = drawn(boxes, 0.5 / fine)
        heat, covered = painted(values, placed, shape.side, self.pool)
        if self.sigma:
            heat = torch.from_numpy(gaussian_filter(heat.numpy(), self.sigma))
        small = F.adaptive_avg_pool2d(heat[None], min(fine, shape.side))[0]
        shares = {"covered": float(covered.float().mean()), "dead": float(dead.float().mean())}
        return HeatMap(small, details=shares)


def build(parts: Parts, name: str, row: AdaMatchRow, seed: int | None) -> Matcher:
    """The method of a network of the profile's section `adamatch`."""
    joint = load(parts.product(row.product), parts.config.text.max_length)
    return Matcher(name, joint, row.boxes, row.pool, row.sigma, row.centred)
