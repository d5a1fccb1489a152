"""Probes of attention by token: shares of token groups, and the places of single words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2g_utils.bench.benchmark import FILMS, answers, identity
from g2g_utils.bench.sanity import one_sided, share_of_side
from g2g_utils.bench.statistics import Interval
from g2g_utils.data.record import Example
from g2g_utils.grounding import Grounding, GroundOptions, record_image
from g2g_utils.methods.g2g import G2G
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import PhraseTokens

GROUPS = ("content", "other words", "start", "end", "padding")
UNIFORM = "padding if even"  # padding's share of the positions
COLOURS = ("#b5367a", "#e8a2c4", "#fb8761", "#51127c", "#c9c9c9")


def stacked(maps: Sequence[Tensor]) -> Tensor:
    """Maps [h, w] as one tensor [n, h, w]."""
    return torch.stack(list(maps))


def group_positions(phrase: PhraseTokens) -> dict[str, list[int]]:
    """Positions of every token group of GROUPS; together all tokens, each once."""
    content = phrase.content()
    return {
        "content": content,
        "other words": [i for i in phrase.inner if i not in content],
        "start": [phrase.start],
        "end": [phrase.end],
        "padding": list(phrase.padding),
    }


def attention_mass(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> pd.DataFrame:
    """Share of all attention that each token group holds, one row per pair. Rows add up to 1.

    Mean over places, layers and timesteps of ground-truth sampling. Every layer counts alike.
    UNIFORM is the share of the padding if every position held the same.
    """
    steps = {k: options[k] for k in ("timesteps", "seed", "batch_size") if k in options}
    rows = []
    for example in tqdm(pairs, desc="attention mass", mininterval=2):
        image = example.framed(model.image_size).array()
        maps, phrase = record_image(model, image, example.phrase, **steps)
        mass = maps.token_means()  # tokens
        shares = {g: float(mass[where].sum()) for g, where in group_positions(phrase).items()}
        even = len(phrase.padding) / len(mass)
        rows.append(identity(example) | shares | {UNIFORM: even})
    return pd.DataFrame(rows)


def side_word_shares(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> pd.DataFrame:
    """For pairs that name one side: share of the side word's attention on the patient's side."""
    rows = []
    method = G2G("side words", model, options)
    for (_, answer), _, example in answers(method, one_sided(pairs), films=FILMS):
        found: Grounding = answer.capture
        words = [word.text.lower() for word in found.phrase_tokens.words]
        side = "left" if "left" in words else "right"
        share = share_of_side(found.word_map(words.index(side)), side)
        rows.append(identity(example) | {"side": side, "share": share})
    return pd.DataFrame(rows)


def draw_shares(ax: Any, shares: pd.DataFrame) -> None:
    """Draw stacked bars: rows of `shares` with the columns GROUPS; UNIFORM from the right."""
    left = np.zeros(len(shares))
    for group, colour in zip(GROUPS, COLOURS, strict=True):
        ax.barh(shares.index, shares[group], left=left, color=colour, label=group)
        left += shares[group].to_numpy()
    if UNIFORM in shares:
        ax.vlines(1 - shares[UNIFORM], *np.add([[-0.4], [0.4]], np.arange(len(shares))), color="k")
    ax.set(xlim=(0, 1), xlabel="share of attention")
    ax.invert_yaxis()
    ax.legend(ncols=len(GROUPS), loc="upper left", bbox_to_anchor=(0, -0.35), fontsize=8)


def draw_intervals(ax: Any, cells: dict[str, dict[str, Interval]]) -> None:
    """Draw points with 95 % intervals: one place per outer key, one colour per inner key."""
    kinds = list(next(iter(cells.values())))
    for k, (kind, colour) in enumerate(
        zip(kinds, ("#b5367a", "#fb8761", "#51127c", "#2a788e"), strict=False)
    ):
        places = np.arange(len(cells)) + 0.18 * (k - (len(kinds) - 1) / 2)
        found = [row[kind] for row in cells.values()]
        values = np.array([one.value for one in found])
        reach = np.abs(np.array([[one.low, one.high] for one in found]).T - values)
        ax.errorbar(places, values, yerr=reach, fmt="o", color=colour, label=kind, capsize=2)
    ax.axhline(0, color="0.6", lw=0.8)
    ax.set_xticks(range(len(cells)), list(cells))
    ax.legend()
