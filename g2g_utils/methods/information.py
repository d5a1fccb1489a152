"""Information maps as a method: places where the phrase explains the noise that was added.

Ground-truth sampling discards the predicted noise. Here it is compared between the phrase and
conditions (the empty prompt and a normal impression). The map is the gain, smoothed and kept
positive; with attention it is multiplied by the root of the activation map of the same forwards.
See `g2g_utils.information` for the formulas. The decomposition is Kong et al., Interpretable
Diffusion via Information Decomposition (ICLR 2024); sums over the image are diffusion classifiers
(Li et al., ICCV 2023). Its use for grounding phrases in radiographs, the normal impression as a
condition and the product are the project's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from g2g_utils import sampling
from g2g_utils.cache import Cache
from g2g_utils.config import Config
from g2g_utils.information import Information, Options, measure
from g2g_utils.methods.base import HeatMap, Query, films, no_map
from g2g_utils.methods.registry import InformationRow, Parts
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import PhraseError, select_tokens, tokenize

DRAWS: Mapping[str, int] = {"default": 2, "cheap": 1}

# Measurements by (weights, film, phrases, options), on the CPU: rows of one U-Net, with and without
# attention, read the same ones. 0.1 MB a film and two phrases in the miniature.
MEASURED = Cache(64 * 2**20)


class Film(tuple[Information, ...]):
    """Information of a film's phrases, in their order."""

    @property
    def nbytes(self) -> int:
        """Memory of the maps."""
        return sum(told.nbytes for told in self)


@dataclass(frozen=True, eq=False)
class InformationMaps:
    """A diffusion model that grounds by the information of the phrase about the image.

    The phrases of an image share their noise and the rows of the conditions.
    """

    name: str
    model: LatentDiffusion
    attention: bool = True  # multiply by the root of the activation map
    options: Mapping[str, Any] = field(default_factory=dict)  # of `information.measure`

    @property
    def image_size(self) -> int:
        """Side of the model's frame."""
        return int(self.model.image_size)

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Heat maps [h, w] at latent resolution; `capture` is the `Information`."""
        found: dict[int, HeatMap] = {}
        weights = sampling.fingerprint(self.model)
        for film in films(queries):
            phrases = {row: queries[row].phrase for row in film}
            problems = {row: self._problem(phrase) for row, phrase in phrases.items()}
            found |= {row: no_map(problem) for row, problem in problems.items() if problem}
            asked = [row for row in film if not problems[row]]
            if asked:
                image, words = queries[asked[0]].image, [phrases[row] for row in asked]
                key = (weights, sampling.digest(image), tuple(words), Options(**self.options))
                told = MEASURED.get(key, partial(self._measure, image, words))
                found |= {row: self._map(one) for row, one in zip(asked, told, strict=True)}
        return [found[row] for row in range(len(queries))]

    def _measure(self, image: Tensor, phrases: Sequence[str]) -> Film:
        """Information of a film's phrases from shared forwards."""
        return Film(measure(self.model, image, phrases, **self.options))

    def _map(self, told: Information) -> HeatMap:
        """The answer to one query; details: total gain over every condition, by its number."""
        cut = f"cut off: {' '.join(told.phrase_tokens.truncated)}"
        return HeatMap(
            told.product() if self.attention else told.heatmap(),
            note=cut if told.phrase_tokens.truncated else "",
            details={f"gain_{i}": total for i, total in enumerate(told.totals)},
            capture=told,
        )

    def _problem(self, phrase: str) -> str:
        """Reason why a phrase cannot be grounded; empty if it can."""
        options = Options(**self.options)
        same = " ".join(phrase.lower().split())
        if same and same in {" ".join(prompt.lower().split()) for prompt in options.conditions}:
            return f"phrase {phrase!r} is the condition itself: its gain is 0 everywhere"
        try:
            words = tokenize(self.model.tokenizer, phrase, self.model.max_length)
            select_tokens(words, options.filter, spacy_model=options.spacy_model)
        except PhraseError as error:
            return str(error)
        return ""


def options(config: Config, row: InformationRow) -> dict[str, Any]:
    """Options of `measure`: T and batch size of the profile's grounding."""
    grounding = config.grounding
    return {
        "timesteps": grounding.timesteps,
        "draws": DRAWS[row.cost],
        "conditions": Options.conditions if row.conditions is None else row.conditions,
        "layers": grounding.layers if row.layers is None else row.layers,
        "filter": "lexical" if grounding.filter == "disease" else grounding.filter,
        "batch_size": grounding.batch_size,
        "dropped_captions": config.training.dropout > 0,
    }


def build(parts: Parts, name: str, row: InformationRow, seed: int | None) -> InformationMaps:
    """The method of a training arm and seed."""
    found = parts.model(row.arm, seed)
    return InformationMaps(name, found, row.attention, options(parts.config, row))
