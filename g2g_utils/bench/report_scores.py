"""Scores of written reports: word overlap by name of variant, and agreement with known facts.

Word overlap rewards templates, so rows without skill belong beside every number: the most frequent
training report, and the report of the nearest training film. Where an image's facts are known (as
in phantoms), findings, sides, zones and denials of a report are read from its words and compared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torchmetrics.functional.text import bleu_score

from g2g_utils.data.plain import plain

BETA = 1.2  # of ROUGE-L, as pycocoevalcap has it
BLEU = (1, 2, 3, 4)

Fact = tuple[str | None, ...]  # finding, side, zone, size

NAMES: dict[str, str] = {  # finding -> pattern of its names, in plain lower case
    "Atelectasis": r"atelecta\w+",
    "Cardiomegaly": (
        r"cardiomegaly|cardiac enlargement|enlarged (?:heart|cardiac silhouette)"
        r"|enlargement of the (?:heart|cardiac silhouette)"
        r"|(?:heart|silhouette|heart size) (?:is|appears) (?:\w+ )?(?:enlarged|increased)"
    ),
    "Consolidation": r"consolidati\w+",
    "Edema": r"edema",
    "Lung Opacity": r"opacit\w+|opacification",
    "Pleural Effusion": r"effusions?|pleural fluid",
    "Pneumonia": r"(?:broncho)?pneumonia",
    "Pneumothorax": r"pneumothora\w+|pleural air|air-filled pleural space",
}
_NAMES = {finding: re.compile(rf"\b(?:{names})\b") for finding, names in NAMES.items()}
_SAME = {"vascular congestion with edema": "edema", "pneumothorax with a visible": "pneumothorax"}
_DENIAL = re.compile(r"\b(?:no|without)\b[^.;]*")
_JOINT = re.compile(r"[.;,]| and | with ")
_SIDES = {
    "left": re.compile(r"\bleft\b"),
    "right": re.compile(r"\bright\b"),
    "bilateral": re.compile(r"\b(?:bilateral|bilaterally|both|two-sided)\b"),
}
_ZONES = {
    "upper": re.compile(r"\b(?:upper|apical|apex)\b"),
    "mid": re.compile(r"\b(?:mid|middle|perihilar|hilar|hilum)\b"),
    "lower": re.compile(r"\b(?:lower|basal|basilar|base)\b"),
    "lateral": re.compile(r"\b(?:lateral|peripheral)\b"),
}


def words(report: str) -> list[str]:
    """Words of a report, lower case, without punctuation: the form in which reports are scored."""
    return re.findall(r"\w+", plain(report).lower())


# ---------------------------------------------------------------- overlap of words


def bleu(reports: Sequence[str], references: Sequence[str], n: int) -> float:
    """BLEU-n of a corpus, one reference each, without smoothing (torchmetrics)."""
    given = [" ".join(words(report)) for report in reports]
    wanted = [[" ".join(words(reference))] for reference in references]
    return float(bleu_score(given, wanted, n_gram=n))


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = np.zeros(len(b) + 1, int)
    for word in a:
        taken = np.where([word == other for other in b], row[:-1] + 1, row[1:])
        row[1:] = np.maximum.accumulate(taken)
    return int(row[-1])


def rouge_l(report: str, reference: str, beta: float = BETA) -> float:
    """ROUGE-L of one report: F of the longest common subsequence, recall weighted by `beta`."""
    given, wanted = words(report), words(reference)
    common = longest_common(given, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def meteor(report: str, reference: str) -> float:
    """METEOR by exact words (no stems, no synonyms; nltk's weights), of one report.

    Each word is matched once, the longest common runs first, and runs are the chunks. Not METEOR
    1.5, which weighs words and knows stems, synonyms and paraphrases.
    """
    given, wanted = words(report), words(reference)
    matches, chunks = _runs(given, wanted)
    if not matches:
        return 0.0
    precision, recall = matches / len(given), matches / len(wanted)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


def _runs(a: list[str], b: list[str]) -> tuple[int, int]:
    """Words of the longest common runs of a and b, taken one after another, and their number."""
    matches = chunks = 0
    left, right = [True] * len(a), [True] * len(b)
    while True:
        best = (0, 0, 0)
        for i in range(len(a)):
            for k in range(len(b)):
                n = 0
                while (
                    i + n < len(a) and k + n < len(b) and left[i + n] and right[k + n]
                    and a[i + n] == b[k + n]
                ):  # fmt: skip
                    n += 1
                best = max(best, (n, -i, -k))
        n, i, k = best[0], -best[1], -best[2]
        if not n:
            return matches, chunks
        left[i : i + n], right[k : k + n] = [False] * n, [False] * n
        matches, chunks = matches + n, chunks + 1


# ---------------------------------------------------------------- facts


@dataclass
class Stated:
    """Statements of a report: sides and zones by finding, and findings that it denies."""

    sides: dict[str, set[str]] = field(default_factory=dict)
    zones: dict[str, set[str]] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)

    @property
    def findings(self) -> set[str]:
        """Findings that the report states."""
        return set(self.sides)


def _named(text: str) -> set[str]:
    return {finding for finding, names in _NAMES.items() if names.search(text)}


def read(report: str) -> Stated:
    """Statements of a report in the phantoms' wording.

    A denial reaches to the end of its sentence. A side or a zone belongs to the finding of its part
    of the sentence (between commas, "and" and "with").
    """
    text = plain(report).lower()
    for long, short in _SAME.items():
        text = text.replace(long, short)
    found = Stated(denied={f for part in _DENIAL.findall(text) for f in _named(part)})
    for part in _JOINT.split(_DENIAL.sub(" ", text)):
        for finding in _named(part):
            for name, table in (("sides", _SIDES), ("zones", _ZONES)):
                said = {key for key, pattern in table.items() if pattern.search(part)}
                getattr(found, name).setdefault(finding, set()).update(said)
    return found


def _values(facts: Iterable[Fact], finding: str, place: int) -> set[str]:
    """Sides (1) or zones (2) of a finding among facts."""
    return {value for fact in facts if fact[0] == finding and (value := fact[place])}


def _agreement(stated: Stated, facts: frozenset[Fact]) -> Iterator[tuple[str, float]]:
    true = {str(fact[0]) for fact in facts}
    both = stated.findings & true
    total = len(stated.findings) + len(true)
    yield "finding_f1", 2 * len(both) / total if total else 1.0
    yield "false_denials", float(len(stated.denied & true))
    for name, said, place in (("side", stated.sides, 1), ("zone", stated.zones, 2)):
        known = [
            (said[f], values) for f in both if (values := _values(facts, f, place)) and said[f]
        ]
        yield name, float(np.mean([a == b for a, b in known])) if known else np.nan


def agreement(report: str, facts: frozenset[Fact]) -> dict[str, float]:
    """Agreement of a report with the facts of its image.

    Returns:
        finding_f1: of the findings stated (1 where both are none); false_denials: findings that are
        there and denied; side, zone: share of rightly stated findings whose stated sides (zones)
        are the true ones, NaN where none is stated.
    """
    return dict(_agreement(read(report), facts))


# ---------------------------------------------------------------- tables


def table(
    reports: Sequence[str],
    references: Sequence[str],
    subjects: Sequence[str],
    facts: Sequence[frozenset[Fact]] | None = None,
) -> pd.DataFrame:
    """One row per report: text, reference, ROUGE-L, METEOR (exact), agreement with known facts."""
    rows = []
    for k, (report, reference) in enumerate(zip(reports, references, strict=True)):
        row: dict[str, object] = {"subject_id": subjects[k], "report": report}
        known = {} if facts is None else agreement(report, facts[k])
        overlap = {"rouge_l": rouge_l(report, reference), "meteor": meteor(report, reference)}
        rows.append(row | {"reference": reference, **overlap, **known})
    return pd.DataFrame(rows)


def corpus_bleu(rows: pd.DataFrame) -> dict[str, float]:
    """BLEU-1 to BLEU-4 of a table's reports."""
    return {f"bleu_{n}": bleu(list(rows["report"]), list(rows["reference"]), n) for n in BLEU}


# ---------------------------------------------------------------- without skill


def most_frequent(training: Sequence[str]) -> str:
    """The most frequent training report, the first of equals, compared by its words."""
    counts = Counter(" ".join(words(report)) for report in training)
    best = counts.most_common(1)[0][0]
    return next(report for report in training if " ".join(words(report)) == best)


def nearest(images: NDArray[np.float32], training: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Row of the training film with the least squared difference to each image.

    Args:
        images: [n, S, S] in [0, 1].
        training: [m, S, S].
    """
    asked = images.reshape(len(images), -1).astype(np.float32)
    best, found = np.full(len(asked), np.inf), np.zeros(len(asked), np.intp)
    for start in range(0, len(training), 1024):
        some = np.asarray(training[start : start + 1024], np.float32).reshape(-1, asked.shape[1])
        some = some / 255
        distance = (some**2).sum(1) - 2 * asked @ some.T  # up to the image's own norm
        least = distance.min(1)
        found = np.where(least < best, start + distance.argmin(1), found)
        best = np.minimum(best, least)
    return found
