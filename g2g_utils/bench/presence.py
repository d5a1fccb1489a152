"""Presence: does the total gain of a phrase tell whether the phrase is true of the image?

Phantoms know their truth. Every false phrase stands against a true one of the same film, in four
kinds: an absent finding, the right finding on the wrong side, the right finding in the wrong zone,
and a finding that is there, denied. The score is the mean total gain of `information.Information`
(diffusion classifiers compare the same sums: Li et al., ICCV 2023), less what speaks for the other
side; rivals are judged by the maximum of their map.

A calibration is a logistic curve (Platt, 1999) fitted on validation films. Its probabilities hold
for questions as `questions` asks them: as many true as false phrases of computed films.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from g2g_utils import information
from g2g_utils.bench.statistics import Interval, bootstrap
from g2g_utils.data.phantoms import OPAQUE
from g2g_utils.data.phantoms.wording import NEGATIONS
from g2g_utils.data.record import FINDINGS, Example, Region
from g2g_utils.information import Image, Information
from g2g_utils.methods.base import Grounder, Query
from g2g_utils.models.protocol import LatentDiffusion
from g2g_utils.text import side_of, swap_sides

KINDS = {
    "absent": "absent finding",
    "side": "right finding, wrong side",
    "zone": "right finding, wrong zone",
    "denied": "denied finding",
}
READ = ("absent", "side")  # kinds that the gain tells apart; a calibration knows these alone
SCORE, GAIN, ATTENTION = "presence", "total gain", "maximum of attention"
OTHER_SIDE = 0.5  # weight of the gain of the phrase with its side swapped, chosen on validation
WRONG = 0.1  # share of true validation phrases that a calibration may call not supported
ZONES = {"upper": "lower", "lower": "upper", "mid": "lower", "middle": "upper"}

Numbers = NDArray[np.float64]


class Question(NamedTuple):
    """A phrase asked of a film, with its truth."""

    kind: str
    truth: bool
    phrase: str


class Evidence(NamedTuple):
    """What a film says of a phrase."""

    told: Information
    score: float  # the total gain; of a phrase with a side, less half of its swapped one's


# -- asking ---------------------------------------------------------------------------------------


def measure(
    model: LatentDiffusion, image: Image, phrases: Sequence[str], **options: object
) -> list[Evidence]:
    """Evidence for phrases of one image, from shared noise; arguments of `information.measure`.

    A phrase that names one side is compared with the other: max(0, total of the swapped phrase)
    times `OTHER_SIDE` is taken from its own total.
    """
    swapped = {phrase: swap_sides(phrase) for phrase in phrases if side_of(phrase)}
    every = list(dict.fromkeys([*phrases, *swapped.values()]))
    told = dict(zip(every, information.measure(model, image, every, **options), strict=True))
    return [evidence(told[p], told[swapped[p]] if p in swapped else None) for p in phrases]


def evidence(own: Information, swapped: Information | None) -> Evidence:
    """Evidence for a phrase from its information and, if it names one side, its swapped one's."""
    against = max(0.0, swapped.total) if swapped else 0.0
    return Evidence(own, own.total - OTHER_SIDE * against)


def questions(films: Sequence[Example], seed: int = 0) -> list[list[Question]]:
    """Questions of every film: in each kind as many false phrases as true ones.

    Phrases of absent findings are those of other films in `films`, so no wording tells true from
    false.
    """
    draw, pool = random.Random(seed), [region for film in films for region in film.regions]
    return [list(_of_film(film, pool, draw)) for film in films]


def other_zone(phrase: str) -> str | None:
    """The phrase with its zone moved, or None where it names none."""
    moved = re.sub(r"\b(upper|lower|middle|mid)\b", lambda m: ZONES[m.group()], phrase, count=1)
    return moved if moved != phrase else None


def _of_film(film: Example, pool: Sequence[Region], draw: random.Random) -> Iterator[Question]:
    """Questions of one film, each false one after a true one or before it."""
    present = [region.finding for region in film.regions]
    absent = [f for f in FINDINGS if f not in present]
    absent = [f for f in absent if f != "Lung Opacity" or not set(present) & set(OPAQUE)]
    strangers = [region.phrase for region in pool if region.finding in absent]
    for region in film.regions:
        single = present.count(region.finding) == 1  # else the moved phrase may be true as well
        if strangers:
            yield Question("absent", True, region.phrase)
            yield Question("absent", False, draw.choice(strangers))
        if side_of(region.phrase) and single:
            yield Question("side", True, region.phrase)
            yield Question("side", False, swap_sides(region.phrase))
        if single and (moved := other_zone(region.phrase)):
            yield Question("zone", True, region.phrase)
            yield Question("zone", False, moved)
        if absent:
            yield Question("denied", False, "no " + draw.choice(NEGATIONS[region.finding]))
            yield Question("denied", True, "no " + draw.choice(NEGATIONS[draw.choice(absent)]))


@torch.no_grad()
def ask(
    model: LatentDiffusion,
    films: Sequence[Example],
    asked: Sequence[Sequence[Question]],
    rivals: Mapping[str, Grounder],
    *,
    title: str = "presence",
    **options: object,
) -> pd.DataFrame:
    """Scores of every question, one row each.

    Args:
        model: the diffusion model whose gain is measured.
        films: with regions whose findings, sides and zones are all that is there.
        asked: questions of every film.
        rivals: methods by the name of their column.
        title: of the progress bar.
        **options: of `information.measure`.

    Returns:
        image_id, subject_id, kind, truth, phrase; `SCORE`, the total gain alone, the maximum of
        attention and of every rival's map.
    """
    rows = []
    for film, own in tqdm(list(zip(films, asked, strict=True)), title, disable=None):
        image = torch.as_tensor(film.framed(model.image_size).array())[None]
        scores = _scores(model, image, sorted({q.phrase for q in own}), rivals, options)
        name = {"image_id": film.image_id, "subject_id": film.subject_id}
        rows += [name | question._asdict() | scores[question.phrase] for question in own]
    return pd.DataFrame(rows)


def _scores(
    model: LatentDiffusion,
    image: torch.Tensor,
    phrases: Sequence[str],
    rivals: Mapping[str, Grounder],
    options: Mapping[str, object],
) -> dict[str, dict[str, float]]:
    """Scores by phrase, of one image [1, S, S]."""
    found = {
        told.phrase: {
            SCORE: score,
            GAIN: told.total,
            ATTENTION: float(told.token_maps[list(told.tokens)].mean(0).max()),
        }
        for told, score in measure(model, image, phrases, **options)
    }
    for name, rival in rivals.items():
        maps = rival.ground([Query(image, phrase) for phrase in phrases])
        for phrase, answer in zip(phrases, maps, strict=True):
            found[phrase][name] = float(answer.values.max())
    return found


# -- areas under the ROC curve --------------------------------------------------------------------


def area(table: pd.DataFrame, score: str, resamples: int = 2000, seed: int = 0) -> Interval:
    """Area under the ROC curve of a score, with its 95 % interval over patients.

    It is the share of pairs of a true and a false phrase that the score puts in order; ties count
    half. Training seeds (column `seed`, if any) are judged apart and their areas averaged. Rows
    without a score are left out.

    Raises:
        ValueError: no true or no false phrase.
    """
    table = table[table[score].notna()]
    codes, names = pd.factorize(table["subject_id"])
    drawn = np.random.default_rng(seed)
    counts = drawn.multinomial(len(names), np.full(len(names), 1 / len(names)), resamples)
    weights: Numbers = np.vstack([np.ones(len(names)), counts]).astype(float)  # first: all once
    patients, seeds = np.eye(len(names))[codes], table.get("seed", pd.Series(0, table.index))
    found = [
        _areas(part[score], part["truth"], patients[(seeds == number).to_numpy()], weights)
        for number, part in table.groupby(seeds, sort=False)
    ]
    value, *spread = np.mean(found, 0)
    return Interval(float(value), *map(float, np.nanquantile(spread, [0.025, 0.975])))


def _areas(scores: pd.Series, truth: pd.Series, patients: Numbers, counts: Numbers) -> Numbers:
    """Areas under resampled patients [n]; patients: one-hot [rows, g], counts [n, g]."""
    values, true = scores.to_numpy(float), truth.to_numpy(bool)
    if true.all() or not true.any():
        raise ValueError("an area under the ROC curve needs true and false phrases")
    gap = np.sign(values[true, None] - values[None, ~true])  # true false
    ordered = patients[true].T @ ((gap + 1) / 2) @ patients[~true]  # g g
    pairs = (counts @ patients[true].T).sum(1) * (counts @ patients[~true].T).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Numbers = ((counts @ ordered) * counts).sum(1) / pairs
    return found


def areas(table: pd.DataFrame, scores: Sequence[str], resamples: int = 2000) -> pd.DataFrame:
    """Areas of several scores: kind of false phrase x score, with the number of questions."""
    rows = {}
    for kind, name in KINDS.items():
        part = table[table["kind"] == kind]
        if part["truth"].nunique() == 2:
            asked = len(part) // part.get("seed", pd.Series(0)).nunique()
            found = {score: area(part, score, resamples) for score in scores}
            rows[name] = {"questions": asked, **found}
    return pd.DataFrame(rows).T.rename_axis(index="false phrase")


# -- calibration ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Logistic curve from the total gain to the probability that a film supports a phrase."""

    slope: float  # never negative: more gain is never less probable
    intercept: float
    threshold: float  # probability below which a phrase is called not supported

    def probability(self, gain: ArrayLike) -> Numbers:
        """Probability of total gains, of the same shape."""
        raised = np.clip(self.slope * np.asarray(gain, float) + self.intercept, -60, 60)
        found: Numbers = 1 / (1 + np.exp(-raised))
        return found

    def supported(self, gain: ArrayLike) -> NDArray[np.bool_]:
        """Whether the probability reaches the threshold."""
        return np.asarray(self.probability(gain) >= self.threshold)


def calibrate(table: pd.DataFrame, score: str = SCORE, wrong: float = WRONG) -> Calibration:
    """Fit the curve and choose the threshold on validation questions of the kinds in `READ`.

    A score that orders phrases no better than chance gives one half for all, and no refusals.

    Args:
        table: of `ask`.
        score: its column.
        wrong: share of true phrases that may fall below the threshold.
    """
    from sklearn.linear_model import LogisticRegression

    known = readable(table)
    values, truth = known[score].to_numpy(float), known["truth"].to_numpy(bool)
    spread = float(values.std()) or 1.0
    fit = LogisticRegression(C=1e6).fit((values / spread)[:, None], truth)
    slope, intercept = float(fit.coef_[0, 0]) / spread, float(fit.intercept_[0])
    if slope <= 0:
        return Calibration(0.0, 0.0, 0.0)
    plain = Calibration(slope, intercept, 0.0)
    threshold = float(np.quantile(plain.probability(values[truth]), wrong))
    return Calibration(slope, intercept, threshold)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Questions of the kinds that the gain tells apart."""
    return table[table["kind"].isin(READ)]


def judged(calibration: Calibration, table: pd.DataFrame, score: str = SCORE) -> pd.DataFrame:
    """Questions of the kinds in `READ` with `probability` and `supported`."""
    known = readable(table)
    return known.assign(
        probability=calibration.probability(known[score]),
        supported=calibration.supported(known[score]),
    )


def reliability(table: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Mean probability and share of true phrases in bins of equal count of a `judged` table."""
    places = np.array_split(table["probability"].to_numpy().argsort(kind="stable"), bins)
    chosen = [table.iloc[place] for place in places if len(place)]
    return pd.DataFrame(
        {
            "predicted": [part["probability"].mean() for part in chosen],
            "observed": [part["truth"].mean() for part in chosen],
            "questions": [len(part) for part in chosen],
        }
    )


def errors(table: pd.DataFrame, resamples: int = 2000) -> dict[str, Interval]:
    """Errors of a `judged` table, with 95 % intervals over patients where patients are drawn.

    Returns:
        "wrong": share of true phrases called not supported; "absent", "side": share of the false
        phrases of that kind called not supported; "brier": mean squared error of the probability
        (.25 for one half always); "ece": expected calibration error over ten bins, no interval.
    """

    def share(part: pd.DataFrame, values: pd.Series) -> Interval:
        if part.empty:
            return Interval(np.nan, np.nan, np.nan)
        return bootstrap(values[part.index], part["subject_id"], n=resamples)

    refused, truth = 1.0 - table["supported"].astype(float), table["truth"].astype(bool)
    squares = (table["probability"] - truth) ** 2
    bins = reliability(table)
    gap = (bins["predicted"] - bins["observed"]).abs()
    ece = float(np.average(gap, weights=bins["questions"]))
    false = {kind: table[~truth & (table["kind"] == kind)] for kind in READ}
    return {
        "wrong": share(table[truth], refused),
        **{kind: share(part, refused) for kind, part in false.items()},
        "brier": share(table, squares),
        "ece": Interval(ece, np.nan, np.nan),
    }
