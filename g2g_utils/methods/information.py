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
from typing import Any, Literal

from g2g_utils.config import Config, Section
from g2g_utils.information import Information, Options, measure
from g2g_utils.methods.base import HeatMap, Query, films, no_map
from g2g_utils.methods.registry import Kind, Parts, register
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import PhraseError, select_tokens, tokenize

Cost = Literal["default", "cheap"]
DRAWS: Mapping[Cost, int] = {"default": 2, "cheap": 1}


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
        for film in films(queries):
            phrases = {row: queries[row].phrase for row in film}
            problems = {row: self._problem(phrase) for row, phrase in phrases.items()}
            found |= {row: no_map(problem) for row, problem in problems.items() if problem}
            asked = [row for row in film if not problems[row]]
            if asked:
                image, words = queries[asked[0]].image, [phrases[row] for row in asked]
                told = measure(self.model, image, words, **self.options)
                found |= {row: self._map(one) for row, one in zip(asked, told, strict=True)}
        return [found[row] for row in range(len(queries))]

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


class Row(Section):
    """Settings of a row of kind `information`."""

    arm: str
    attention: bool = True  # false: information alone
    cost: Cost = "default"  # two noise draws per timestep; cheap: one
    conditions: tuple[str, ...] = Options.conditions  # prompts that phrases are compared with
    layers: str | tuple[str, ...] | None = (
        None  # of the attention; None: as the profile's `grounding.layers`
    )


def _options(config: Config, row: Row) -> dict[str, Any]:
    """Options of `measure`: T and batch size of the profile's grounding."""
    grounding = config.grounding
    return {
        "timesteps": grounding.timesteps,
        "draws": DRAWS[row.cost],
        "conditions": row.conditions,
        "layers": grounding.layers if row.layers is None else row.layers,
        "filter": "lexical" if grounding.filter == "disease" else grounding.filter,
        "batch_size": grounding.batch_size,
        "dropped_captions": config.training.dropout > 0,
    }


def _build(parts: Parts, name: str, row: Row, seed: int | None) -> InformationMaps:
    model = parts.model(row.arm, parts.config.training.seeds[0] if seed is None else seed)
    return InformationMaps(name, model, row.attention, _options(parts.config, row))


def _depends(config: Config, row: Row) -> dict[str, Any]:
    return _options(config, row)


register(
    Kind(
        name="information",
        settings=Row,
        build=_build,
        citation="Kong et al.: Interpretable Diffusion via Information Decomposition, ICLR 2024",
        licence="the project's own code",
        cost="2 T rows a phrase and 4 T rows a film (cheap: half of each)",
        arm=lambda row: row.arm,
        depends=_depends,
    )
)
