"""Probes of attention by token: shares of token groups, and the places of single words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from g2g_utils.bench.benchmark import FILMS, answers, identity
from g2g_utils.bench.sanity import one_sided, share_of_side
from g2g_utils.data.record import Example
from g2g_utils.grounding import Grounding, GroundOptions, record_image
from g2g_utils.methods.g2g import G2G
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import VOCABULARY, PhraseTokens, disease_words, side_of, swap_sides

GROUPS = ("content", "other words", "start", "end", "padding")
UNIFORM = "padding if even"  # padding's share of the positions


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


def side_word_shifts(
    model: LatentDiffusion, pairs: Sequence[Example], **options: Unpack[GroundOptions]
) -> pd.DataFrame:
    """Which word carries the side: attention that moves when left and right are swapped.

    For pairs that name one side, the map of a word is taken under the own and under the swapped
    phrase, on the same film. Its share on the named side of the image is compared, so that the
    film's pose drops out: a word that does not know the side moves by 0.

    Returns:
        Identity, `word` ("side word" or "finding's words") and `shift` of that share, in [-1, 1].
    """
    sided = one_sided(pairs)
    swapped = [replace(pair, phrase=swap_sides(pair.phrase)) for pair in sided]
    rows = []
    method = G2G("side words", model, options)
    for (query, own), other, example in answers(method, sided, swapped, films=FILMS):
        assert other is not None
        side = str(side_of(query.phrase))
        maps = [_word_maps(found.capture, example.finding) for found in (own, other[1])]
        for word in maps[0].keys() & maps[1].keys():
            first, second = (share_of_side(found[word], side) for found in maps)
            rows.append(identity(example) | {"word": word, "shift": first - second})
    return pd.DataFrame(rows)


def _word_maps(found: Grounding, finding: str | None) -> dict[str, Tensor]:
    """Maps of the side word and of the words that name the finding, where a phrase has them."""
    words = found.phrase_tokens.words
    sides = [i for i, word in enumerate(words) if word.text.lower() in ("left", "right")]
    named = disease_words(found.phrase_tokens, finding) if finding in VOCABULARY else []
    chosen = {"side word": [words[i] for i in sides], "finding's words": named}
    return {
        name: torch.stack([found.word_map(word) for word in some]).mean(0)
        for name, some in chosen.items()
        if some
    }
