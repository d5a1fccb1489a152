"""Generate to Ground (Nützel, Dombrowski and Kainz, MIDL 2025).

The cross-attention of a diffusion model whose U-Net was fine-tuned under a frozen text encoder,
under ground-truth sampling, plain or merged with its biases (Bimodal Bias Merging). The authors'
code and weights are MIT. This is the project's own implementation, tested against theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_args

from g2g_utils import bbm
from g2g_utils.attention import Layers
from g2g_utils.grounding import Grounding, Options, ground_batch
from g2g_utils.methods.base import HeatMap, Query, films, no_map
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import PhraseError, select_tokens, tokenize

if TYPE_CHECKING:
    from g2g_utils.methods.registry import G2GRow, Parts, Variants


@dataclass(frozen=True, eq=False)
class G2G:
    """A diffusion model that grounds by its cross-attention.

    Forwards hold the k-th query of several films: a film's own map is the same to the last digit
    whether or not other phrases are asked of it.
    """

    name: str
    model: LatentDiffusion
    options: Mapping[str, Any] = field(default_factory=dict)  # of `grounding.ground`

    @property
    def image_size(self) -> int:
        """Side of the model's frame."""
        return int(self.model.image_size)

    @property
    def films(self) -> int:
        """Films whose maps share forwards."""
        return Options(**self.options).group

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Heat maps [h, w] at latent resolution; `capture` is the `Grounding`."""
        found: dict[int, HeatMap] = {}
        each, group = films(queries), self.films
        for start in range(0, len(each), group):
            some = each[start : start + group]
            for k in range(max(map(len, some))):
                rows = [film[k] for film in some if k < len(film)]
                found |= zip(rows, self._together([queries[row] for row in rows]), strict=True)
        return [found[k] for k in range(len(queries))]

    def _together(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Heat maps of queries that share forwards; those without a usable phrase are left out."""
        problems = [self._problem(query) for query in queries]
        asked = [q for q, problem in zip(queries, problems, strict=True) if not problem]
        maps = iter(
            ground_batch(
                self.model,
                [q.image for q in asked],
                [q.phrase for q in asked],
                findings=[q.finding for q in asked],
                **self.options,
            )
            if asked
            else ()
        )
        return [no_map(p) if p else heat_map(next(maps)) for p in problems]

    def _problem(self, query: Query) -> str:
        """Why a phrase cannot be grounded; empty if it can."""
        options = Options(**self.options)
        try:
            words = tokenize(self.model.tokenizer, query.phrase, self.model.max_length)
            select_tokens(
                words,
                options.filter,
                query.finding,
                spacy_model=options.spacy_model,
                compat=options.compat,
            )
        except PhraseError as error:
            return str(error)
        return ""


def heat_map(found: Grounding) -> HeatMap:
    """The result of a grounding as a method's answer."""
    cut = f"cut off: {' '.join(found.phrase_tokens.truncated)}"
    return HeatMap(
        found.heatmap,
        note=cut if found.phrase_tokens.truncated else "",
        details={} if found.confidence is None else {"confidence": found.confidence},
        capture=found,
    )


def views(choices: Mapping[str, Layers | None]) -> Variants:
    """Variants of one capture by layers (None: all); needs keep="layers"."""

    def reduced(query: Query, result: HeatMap) -> dict[str, HeatMap]:
        found: Grounding = result.capture
        if found.interaction is not None:
            raise ValueError("views are of activation maps: use curve=None")
        maps = {
            name: found.activation if layers is None else found.select(layers=layers)
            for name, layers in choices.items()
        }
        return {name: HeatMap(heat, note=result.note) for name, heat in maps.items()}

    return reduced


def curves(query: Query, result: HeatMap) -> dict[str, HeatMap]:
    """Variants of one capture by curve: the plain activation map and its merged forms (eq. 5-7)."""
    found: Grounding = result.capture
    assert found.interaction is not None and found.confidence is not None
    maps = {"none": found.activation}
    for curve in get_args(bbm.Curve):
        maps[curve] = bbm.merge(found.activation, found.interaction, found.confidence, curve)
    details = {"confidence": found.confidence}
    return {name: HeatMap(heat, note=result.note, details=details) for name, heat in maps.items()}


def build(parts: Parts, name: str, row: G2GRow, seed: int | None) -> G2G:
    """The method of a training arm and seed."""
    options = parts.config.grounding.model_dump() | {"curve": row.curve}
    if row.layers is not None:
        options["layers"] = row.layers
    return G2G(name, parts.model(row.arm, seed), options)


def variants(method: G2G, row: G2GRow) -> tuple[G2G, Variants] | None:
    """All curves of one capture; of a plain map over some layers also the one over all."""
    if row.curve is not None:
        return method, curves
    layers = method.options["layers"]
    if layers is None:
        return None
    every = replace(method, options={**method.options, "layers": None, "keep": "layers"})
    return every, views({"own": layers, "all layers": None})
