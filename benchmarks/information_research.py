"""Three more questions about information maps, on validation pairs of the first arm's seeds.

    python benchmarks/information_research.py

1. Bias merging with the information in place of the start token: does it help, where merging with
   the start token did not (F4)?
2. Antithetic noise: the second draw of a timestep is the first with its sign turned.
3. Which timesteps: of 20, the ten in the middle, the ten noisiest, every second one, at equal cost.

Writes information_research.json: CNR, Top-1 and threshold IoU with 95 % intervals over patients,
and paired differences to the plain choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2g_utils import bbm, config, grounding, information, metrics, runs, sampling
from g2g_utils.bench import statistics
from g2g_utils.bench.benchmark import identity
from g2g_utils.data.record import Example
from g2g_utils.experiment import parts

OUT = Path(__file__).with_suffix(".json")
METRICS = ["cnr", "pointing", "threshold_iou"]
T, PAIRS = 10, 32  # the first validation pairs
SUBSETS = {
    "every second": list(range(0, 20, 2)),
    "middle": list(range(5, 15)),
    "noisiest": list(range(10)),
    "least noisy": list(range(10, 20)),
}


@contextmanager
def antithetic() -> Iterator[None]:
    """Inside, an odd draw is the draw before it with the signs of all noise turned."""
    drawn = sampling.noised

    def noised(model: Any, images: Any, t: int, seed: int, draw: int = 0) -> tuple[Tensor, Tensor]:
        if draw % 2 == 0:
            return drawn(model, images, t, seed, draw)
        _, noise = drawn(model, images, t, seed, draw - 1)
        times = torch.full((len(noise),), t)
        return model.add_noise(images.mean, -noise, times), -noise

    sampling.noised = noised
    try:
        yield
    finally:
        sampling.noised = drawn


def product(told: information.Information, gain: Tensor) -> Tensor:
    """Information × attention from a gain [H, W]."""
    heat = bbm.minmax(information.positive(information.smooth(gain)))
    return bbm.minmax(heat * told.attention.sqrt())


def merged(
    model: Any, image: Any, told: information.Information, settings: Any
) -> dict[str, Tensor]:
    """Attention, merged with the start token's and with the information's maps by the mixture."""
    options = {"layers": settings.layers, "batch_size": settings.batch_size, "timesteps": T}
    plain = {**options, "keep_last": T, "filter": settings.filter}
    found = grounding.ground(
        model, image, told.phrase, curve="mixture", text_guidance=settings.text_guidance, **plain
    )
    bias = grounding.text_bias(
        model, told.phrase, tokens=found.tokens, timesteps=T, text_guidance=settings.text_guidance
    )
    size = tuple(found.activation.shape)
    text = [
        maps for maps in bias.by_step(layers=found.layers).values() if maps.shape[-1] == size[0]
    ]
    steps = information.positive(information.smooth(told.steps.mean(0)))  # T h w
    interaction = bbm.interaction_native([steps] * len(text), text, size)
    c = bbm.confidence(steps.mean(0), bbm.native_mean(text, size))
    return {
        "attention": found.activation,
        "merged with the start token": found.heatmap,
        "merged with the information": bbm.merge(found.activation, interaction, c, "mixture"),
    }


def maps(model: Any, pair: Example, settings: Any) -> dict[str, Tensor]:
    """Heat maps of one pair by choice."""
    image, phrase = pair.array(), pair.phrase
    options = {"layers": settings.layers, "batch_size": settings.batch_size}

    def ask(**more: Any) -> information.Information:
        return information.measure(model, image, [phrase], **options, **more)[0]

    twice, long = ask(timesteps=T, draws=2), ask(timesteps=20, draws=1)
    with antithetic():
        turned = ask(timesteps=T, draws=2)
    once = ask(timesteps=T, draws=1)
    found = merged(model, image, once, settings)
    found["two draws"], found["antithetic draws"] = twice.product(), turned.product()
    for name, chosen in SUBSETS.items():
        weights = long.weights[chosen] / long.weights[chosen].sum()
        gain = torch.einsum("t,cthw->hw", weights, long.steps[:, chosen]) / len(long.conditions)
        found[f"{name} of 20 timesteps"] = product(long, gain)
    return found


def rows(model: Any, pairs: Sequence[Example], settings: Any, title: str) -> pd.DataFrame:
    """Scores by pair and choice."""
    out = []
    for pair in tqdm(pairs, title):
        framed = pair.framed(model.image_size)
        for choice, heat in maps(model, framed, settings).items():
            scores = metrics.evaluate(heat, np.reshape(framed.boxes, (-1, 4)), model.image_size)
            out.append(identity(framed) | {"choice": choice} | {m: scores[m] for m in METRICS})
    return pd.DataFrame(out)


def compared(table: pd.DataFrame, plain: Mapping[str, str]) -> list[dict[str, Any]]:
    """Means of every choice and its paired difference to the plain one."""
    found = []
    for choice, some in table.groupby("choice", sort=False):
        row: dict[str, Any] = {"choice": choice}
        row |= {m: _numbers(statistics.interval(some, m, 2000)) for m in METRICS}
        if base := plain.get(str(choice)):
            other = table[table["choice"] == base]
            gaps = {m: _numbers(statistics.difference(some, other, m, 2000)) for m in METRICS}
            row["against"] = {base: gaps}
        found.append(row)
    return found


def _numbers(interval: statistics.Interval) -> list[float]:
    return [round(float(v), 4) for v in interval]


def main() -> None:
    """Measure all seeds and write the table."""
    settings = config.load("miniature")
    arm = next(iter(settings.training.arms))
    pairs = parts.evaluation_pairs(settings, "validation")[:PAIRS]
    tables = []
    for seed in settings.seeds(arm):
        model = parts.Parts(settings).model(arm, seed)
        table = rows(model, pairs, settings.grounding, f"seed {seed}")
        tables.append(table.assign(seed=seed))
    merging = dict.fromkeys(
        ("merged with the start token", "merged with the information"), "attention"
    )
    base = "every second of 20 timesteps"
    subsets = {f"{name} of 20 timesteps": base for name in list(SUBSETS)[1:]}
    plain = merging | {"antithetic draws": "two draws"} | subsets
    found = compared(pd.concat(tables, ignore_index=True), plain)
    runs.write_json(OUT, {"machine": runs.provenance(), "pairs": len(pairs), "choices": found})
    for row in found:
        print(row)


if __name__ == "__main__":
    main()
