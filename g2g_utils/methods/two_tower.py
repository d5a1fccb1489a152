"""Methods with two towers: cosines between patches of an image and vectors of a phrase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from g2g_utils.methods.base import HeatMap, Query, films, no_map
from g2g_utils.text import PhraseError


def cosine_map(patches: Tensor, text: Tensor, sigma: float = 0.0) -> Tensor:
    """Mean cosine [h, w] between text vectors [n, d] and patch features [d, h, w].

    Args:
        sigma: width of the Gaussian on the grid, in patches; 0 for none. The border is mirrored.
    """
    words = F.normalize(text, dim=-1)
    cosines = torch.einsum("nd,dhw->hw", words, F.normalize(patches, dim=0)) / len(words)
    return torch.from_numpy(gaussian_filter(cosines.numpy(), sigma)) if sigma else cosines


@dataclass(frozen=True, eq=False)
class TwoTower:
    """Grounds by the cosine map of two encoders. Each image's patches are computed once."""

    name: str
    image_size: int
    patches: Callable[[Tensor], Tensor]  # image [1|3, S, S] in [0, 1] -> features [d, h, w]
    words: Callable[
        [str], Tensor
    ]  # phrase -> vectors [n, d]; PhraseError for a phrase without words
    sigma: float = 0.0  # of the Gaussian, in patches
    framed: Callable[[Tensor], Tensor] = lambda cosines: cosines  # map of a crop -> whole frame
    thresholds: bool = False  # fixed thresholds mean something on the clamped cosines

    @torch.no_grad()
    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Cosine maps of queries."""
        found = []
        for film in films(queries):
            patches = self.patches(queries[film[0]].image)
            found += [self._map(patches, queries[k].phrase) for k in film]
        return found

    def _map(self, patches: Tensor, phrase: str) -> HeatMap:
        try:
            vectors = self.words(phrase)
        except PhraseError as error:
            return no_map(error)
        values = self.framed(cosine_map(patches, vectors, self.sigma))
        return HeatMap(values, absolute=values.clamp(min=0) if self.thresholds else None)
