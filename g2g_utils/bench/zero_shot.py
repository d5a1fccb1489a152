"""One-factor ablation of the zero-shot method: layers, window, scaling, tokens, blur, threshold.

All factors but the U-Net's input are reductions of one capture, so a study costs one pass over the
pairs: every step and layer is recorded once, and each choice is a variant of `bench.score`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from g2g_utils import sampling
from g2g_utils.attention import AttentionMaps, find_layers
from g2g_utils.bench import benchmark, statistics
from g2g_utils.data.record import Example
from g2g_utils.methods import zero_shot_ldm as method
from g2g_utils.methods.base import HeatMap, Query, no_map
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import Filter, PhraseError, select_tokens, tokenize

AS_PUBLISHED = "as published"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way from attention to heat; the defaults are the method's."""

    factor: str
    layers: tuple[str, ...]
    window: range  # steps from the clean end
    scaled: bool = True  # each map before the average, or their average alone
    tokens: Filter = "all"
    sigma: float = method.SIGMA  # in cells of the coarsest map
    masked: bool = True  # heat below Otsu's threshold is 0


def choices(model: LatentDiffusion, count: int) -> dict[str, Choice]:
    """The published choice, then others that differ from it in one factor each."""
    unet = model.unet
    layers, coarse = list(find_layers(unet)), method.coarsest(unet)
    fine, up = [n for n in layers if n not in coarse], [n for n in coarse if n.startswith("up")]
    steps = len(sampling.inversion_timesteps(model, count))
    fifth = steps // 5
    base = Choice(factor="", layers=tuple(coarse), window=method.step_window(count))
    found = {AS_PUBLISHED: base}
    for name, some in (
        ("coarsest, without the first up layer", [n for n in coarse if n not in up[:1]]),
        ("finer layers alone", fine),
        ("all layers", layers),
        ("decoder layers", [n for n in layers if n.startswith("up")]),
    ):
        if some:
            found[name] = replace(base, factor="layers", layers=tuple(some))
    for k, name in enumerate(("cleanest fifth", "second fifth", "", "fourth fifth", "noisiest")):
        if name:
            part = range(k * fifth, (k + 1) * fifth)
            found[f"window: {name}"] = replace(base, factor="window", window=part)
    found["window: all steps"] = replace(base, factor="window", window=range(steps))
    found["scaled after averaging"] = replace(base, factor="scaling", scaled=False)
    found["content words alone"] = replace(base, factor="tokens", tokens="lexical")
    for sigma in (0.0, 0.3, 1.0):
        found[f"blur of {sigma:g} cells"] = replace(base, factor="blur", sigma=sigma)
    found["no threshold"] = replace(base, factor="Otsu", masked=False)
    return found


@dataclass(frozen=True, eq=False)
class Recorded:
    """A method whose answers hold all attention of a film's walk, for `Reduced`."""

    asked: method.ZeroShotLDM
    films: int = 16

    @property
    def name(self) -> str:
        """Name of the method that is recorded."""
        return self.asked.name

    @property
    def image_size(self) -> int:
        """Side of the model's frame."""
        return self.asked.image_size

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Answers whose `capture` is the attention: steps, layers and tokens apart."""
        model = self.asked.model
        phrases = [tokenize(model.tokenizer, q.phrase, model.max_length) for q in queries]
        inner = [list(phrase.inner) for phrase in phrases]
        maps = self.asked.record([q.image for q in queries], phrases, inner, keep="all")
        return [HeatMap(torch.zeros(1, 1), capture=one) for one in maps]


@dataclass(frozen=True, eq=False)
class Reduced:
    """Variants of a capture of `Recorded`, one a choice."""

    model: LatentDiffusion
    choices: Mapping[str, Choice]

    def __call__(self, query: Query, found: HeatMap) -> dict[str, HeatMap]:
        """The map of every choice."""
        return {name: self._map(found.capture, query, one) for name, one in self.choices.items()}

    def _map(self, maps: AttentionMaps, query: Query, choice: Choice) -> HeatMap:
        phrase = tokenize(self.model.tokenizer, query.phrase, self.model.max_length)
        try:
            tokens = select_tokens(phrase, choice.tokens, query.finding)
        except PhraseError as error:
            return no_map(error)
        last, side = len(maps.timesteps) - 1, self.model.image_size
        by_step = maps.by_step(tokens, choice.layers, [last - i for i in choice.window])
        mean, *_ = method.aggregate(by_step.values(), side, choice.scaled)
        cell = side / min(m.shape[-2] for m in by_step.values())
        made = None if mean is None else method.postprocess(mean, choice.sigma * cell)
        if made is None:
            return no_map("constant attention")
        return HeatMap(made.heat if choice.masked else made.scaled, mask=made.mask)


def study(
    model: LatentDiffusion,
    pairs: Sequence[Example],
    count: int = 50,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> pd.DataFrame:
    """Score every choice, and the published one under the other inputs of the U-Net.

    Args:
        model: the diffusion model.
        pairs: on which choices are made: validation pairs.
        count: number T that sets the spacing of the steps.
        batch_size: U-Net rows in one forward.
        progress: show bars.

    Returns:
        Rows of `bench.score` with the columns `choice` and `factor`.
    """
    own = choices(model, count)
    asked = method.ZeroShotLDM(name="zero-shot", model=model, timesteps=count)
    asked = replace(asked, batch_size=batch_size)
    every = tuple(find_layers(model.unet))
    steps = range(len(sampling.inversion_timesteps(model, count)))
    options: dict[str, Any] = {"by": "choice", "progress": progress}
    recorded = Recorded(replace(asked, layers=every, window=steps))
    tables = [
        benchmark.score(recorded, pairs, variants=Reduced(model, own), title="choices", **options)
    ]
    for name, other in {"inversion P": "inversion_p", "noising": "gt"}.items():
        table = benchmark.score(
            replace(asked, sampling=other), pairs, title=name, progress=progress
        )
        tables.append(table.assign(choice=f"input: {name}"))
    found = pd.concat(tables, ignore_index=True)
    factors = {name: choice.factor for name, choice in own.items()}
    return found.assign(factor=found["choice"].map(factors).fillna("input"))


def compared(
    table: pd.DataFrame, columns: Sequence[str], resamples: int
) -> dict[str, dict[str, statistics.Interval]]:
    """Paired difference of every choice to the published one, seeds averaged, over patients."""
    base = table[table["choice"] == AS_PUBLISHED]
    return {
        str(name): {c: statistics.difference(part, base, c, resamples) for c in columns}
        for name, part in table.groupby("choice", sort=False)
        if name != AS_PUBLISHED
    }
