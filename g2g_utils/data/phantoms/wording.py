"""Truthful radiology wording for phantoms, held out by split.

A region's phrase is drawn from templates until its text hashes into the wanted split. No phrase of
one split is ever a phrase of another, while all words are shared.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Facts:
    """Facts about one region: all that its phrase may say."""

    finding: str
    side: str | None  # "left" | "right" | "bilateral" | None (patient's side)
    zone: str | None  # "upper" | "mid" | "lower" | "lateral" | None
    size: str  # "small" | "moderate" | "large"
    near: str | None = None  # "apical" | "perihilar" | "basal" where the place deserves it


# finding -> (noun, number); number: "a" (countable), "" (mass), "s" (plural)
NOUNS: dict[str, tuple[tuple[str, str], ...]] = {
    "Atelectasis": (
        ("atelectasis", ""),
        ("band-like atelectasis", ""),
        ("plate-like atelectasis", ""),
        ("linear atelectasis", ""),
        ("atelectatic band", "a"),
        ("atelectatic changes", "s"),
    ),
    "Cardiomegaly": (
        ("cardiomegaly", ""),
        ("cardiac enlargement", ""),
        ("enlarged heart", "a"),
        ("enlarged cardiac silhouette", "a"),
        ("enlargement of the heart", ""),
        ("enlargement of the cardiac silhouette", ""),
    ),
    "Consolidation": (
        ("consolidation", "a"),
        ("dense consolidation", "a"),
        ("airspace consolidation", ""),
        ("consolidative change", ""),
        ("dense airspace consolidation", "a"),
    ),
    "Edema": (
        ("edema", ""),
        ("pulmonary edema", ""),
        ("interstitial edema", ""),
        ("vascular congestion with edema", ""),
        ("hazy edema", ""),
    ),
    "Lung Opacity": (
        ("opacity", "a"),
        ("lung opacity", "a"),
        ("hazy opacity", "a"),
        ("ill-defined opacity", "a"),
        ("faint opacification", ""),
        ("hazy opacification", ""),
    ),
    "Pleural Effusion": (
        ("effusion", "a"),
        ("pleural effusion", "a"),
        ("pleural fluid", ""),
        ("layering pleural fluid", ""),
        ("layering effusion", "a"),
    ),
    "Pneumonia": (
        ("pneumonia", ""),
        ("patchy pneumonia", ""),
        ("multifocal pneumonia", ""),
        ("bronchopneumonia", ""),
        ("clustered foci of pneumonia", "s"),
    ),
    "Pneumothorax": (
        ("pneumothorax", "a"),
        ("pleural air", ""),
        ("pneumothorax with a visible pleural line", "a"),
        ("air-filled pleural space", "a"),
    ),
}
PLURAL = {
    "effusion": "effusions",
    "pleural effusion": "pleural effusions",
    "layering effusion": "layering effusions",
}
SIZES = {
    "small": ("small", "mild", "minor", "small-sized"),
    "moderate": ("moderate", "moderate-sized", "medium-sized"),
    "large": ("large", "extensive", "marked", "large-sized"),
}
DEGREES = {
    "small": ("mild", "minor", "slight"),
    "moderate": ("moderate",),
    "large": ("marked", "severe", "extensive"),
}
ADVERBS = {
    "small": ("mildly", "slightly"),
    "moderate": ("moderately",),
    "large": ("markedly", "severely"),
}
ZONES = {
    "upper": ("upper zone", "upper lung", "upper lobe", "upper-zone", "upper lung zone"),
    "mid": ("mid zone", "mid lung", "mid-lung", "middle zone", "mid lung zone"),
    "lower": ("lower zone", "lower lung", "lower lobe", "lower-zone", "lower lung zone"),
    "lateral": ("lateral", "peripheral"),
}
NEAR_ADJECTIVES = {
    "apical": ("apical", "apical", "apex"),
    "perihilar": ("perihilar", "hilar"),
    "basal": ("basal", "basilar", "base"),
}
NEAR_PLACES = {"apical": "apex", "perihilar": "hilum", "basal": "base"}
FLUID_AND_AIR = ("Pleural Effusion", "Pneumothorax")
DIFFUSE = ("Edema", "Cardiomegaly", "Atelectasis", "Pneumonia")
FORMS = ("prefix", "prefix", "place", "place", "sided", "lung", "lung-zone", "at")
NEGATIONS = {
    "Atelectasis": ("atelectasis",),
    "Cardiomegaly": ("cardiomegaly", "cardiac enlargement"),
    "Consolidation": ("consolidation", "focal consolidation"),
    "Edema": ("edema", "pulmonary edema"),
    "Lung Opacity": ("focal opacity",),
    "Pleural Effusion": ("effusion", "pleural effusion", "pleural fluid"),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax",),
}
DEVICES = {
    "pacemaker": ("pacemaker in place", "a pacemaker is noted", "left-sided pacemaker"),
    "line": ("central line in place", "a central venous line is seen", "right-sided central line"),
    "leads": ("overlying ecg leads", "monitoring leads are noted"),
}
NORMALS = (
    ("no acute", "no evidence of acute", "no radiographic evidence of acute", "without acute"),
    (
        "cardiopulmonary process",
        "cardiopulmonary abnormality",
        "intrathoracic process",
        "chest disease",
    ),
    (
        "lungs are clear",
        "the lungs are clear",
        "both lungs are clear",
        "clear lungs",
        "heart size is normal",
        "the heart is normal in size",
        "normal heart and lungs",
        "normal chest",
    ),
)


def split_of(phrase: str) -> str:
    """The one split to which a phrase may belong: crc32 of the lower-case text, 7 : 1 : 2."""
    bucket = zlib.crc32(phrase.lower().encode()) % 10
    return "train" if bucket < 7 else "validation" if bucket == 7 else "test"


def _words(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _draw_size(facts: Facts, draw: random.Random) -> str:
    if draw.random() > 0.8:
        return ""
    table = DEGREES if facts.finding in DIFFUSE else SIZES
    return draw.choice(table[facts.size])


def _heart(facts: Facts, draw: random.Random) -> tuple[str, str]:
    """Cardiomegaly: a noun phrase, or a sentence about the heart."""
    if draw.random() < 0.4:
        subject = draw.choice(
            ("the heart", "the cardiac silhouette", "heart size", "the heart size")
        )
        how = draw.choice(ADVERBS[facts.size]) if draw.random() < 0.85 else ""
        verb = draw.choice(("is", "appears"))
        what = "increased" if "size" in subject else "enlarged"
        return _words(subject, verb, how, what), "sentence"
    noun, number = draw.choice(NOUNS["Cardiomegaly"])
    if noun.startswith("enlarged"):
        return _words(draw.choice(("", *ADVERBS[facts.size])), noun), number
    return _words(_draw_size(facts, draw), noun), number


def _bilateral(facts: Facts, draw: random.Random) -> tuple[str, str]:
    noun, number = draw.choice(NOUNS[facts.finding])
    noun, number = PLURAL.get(noun, noun), "s" if noun in PLURAL else number
    size = _draw_size(facts, draw)
    near = (
        draw.choice(NEAR_ADJECTIVES[facts.near][:2]) if facts.near and draw.random() < 0.6 else ""
    )
    if draw.random() < 0.55:
        both = draw.choice(("bilateral", "bilateral", "two-sided"))
        return _words(size, both, near, noun), number
    where = draw.choice(("in both lungs", "on both sides", "bilaterally", "of both lungs"))
    return _words(size, near, noun, where), number


def _place(facts: Facts, draw: random.Random) -> str:
    """The zone as an adjective before a noun ('upper lobe', 'basal'), or nothing."""
    if facts.near and draw.random() < 0.5:
        return draw.choice(NEAR_ADJECTIVES[facts.near][:2])
    if facts.zone is None or draw.random() < 0.1:
        return ""
    if facts.finding in FLUID_AND_AIR and facts.zone != "lateral":
        return draw.choice(NEAR_ADJECTIVES[facts.near][:2]) if facts.near else ""
    return draw.choice(ZONES[facts.zone])


def _one_sided(facts: Facts, draw: random.Random) -> tuple[str, str]:
    noun, number = draw.choice(NOUNS[facts.finding])
    size, side, place = _draw_size(facts, draw), str(facts.side), _place(facts, draw)
    form = draw.choice(FORMS)
    zone = f"{facts.zone} zone" if facts.zone in ("upper", "mid", "lower") else ""
    pleural = facts.finding in FLUID_AND_AIR
    if form == "at" and facts.near:
        text = _words(size, noun, f"at the {side} {NEAR_PLACES[facts.near]}")
    elif form == "place" and place and not pleural and " " in place:
        text = _words(size, noun, f"in the {side} {place}")
    elif form == "place" and pleural:
        text = _words(size, place, noun, draw.choice((f"on the {side}", f"on the {side} side")))
    elif form == "sided":
        where = f"in the {zone}" if zone and not pleural else ""
        text = _words(size, f"{side}-sided", "" if where else place, noun, where)
    elif form == "lung-zone" and zone and not pleural:
        text = _words(size, noun, f"in the {facts.zone} {side} lung")
    elif form == "lung" and not pleural:
        text = _words(size, place, noun, draw.choice(("in", "of")), f"the {side} lung")
    else:
        text = _words(size, side, place, noun)
    return text, number


def draw_phrase(facts: Facts, split: str, draw: random.Random) -> tuple[str, str]:
    """Draw a wording of the facts that belongs to the split, with its grammatical number.

    Raises:
        RuntimeError: the templates hold no wording for the split (they do for all facts).
    """
    words = _heart if facts.side is None else _one_sided
    words = _bilateral if facts.side == "bilateral" else words
    for _ in range(2000):
        text, number = words(facts, draw)
        if split_of(text) == split:
            return text, number
    raise RuntimeError(f"no wording of {facts} falls into split {split!r}: add templates")


def _lead_in(phrase: str, number: str, draw: random.Random) -> str:
    """'there is a small …', 'evidence of …', or the phrase unchanged."""
    article = {"a": "an " if phrase[0] in "aeio" else "a "}.get(number, "")
    be = "there are " if number == "s" else "there is "
    choices = ["", "", "", be + article, be + article, article, "evidence of " + article]
    return phrase if number == "sentence" else draw.choice(choices) + phrase


def _negation(absent: Sequence[str], draw: random.Random) -> str:
    chosen = [draw.choice(NEGATIONS[f]) for f in draw.sample(list(absent), draw.choice((1, 1, 2)))]
    start = draw.choice(("no ", "no ", "without ", "no evidence of ", "there is no "))
    return start + " or ".join(chosen)


DENIALS = ("no ", "without", "there is no ")


def _join(sentences: list[str], draw: random.Random) -> str:
    text, before = sentences[0], sentences[0]
    for sentence in sentences[1:]:
        if before.startswith(DENIALS):  # its scope must end here
            glue = draw.choice((". ", ". ", "; "))
        elif sentence.startswith((*DENIALS, "there", "the ", "heart size")):
            glue = draw.choice((". ", ", ", ". "))
        else:
            glue = draw.choice((". ", ". ", ", ", " and ", " with ", "; "))
        text, before = text + glue + sentence, sentence
    text += draw.choice((".", ".", ""))
    return text[0].upper() + text[1:] if draw.random() < 0.15 else text


def _compose(
    phrases: list[tuple[str, str]],
    absent: Sequence[str],
    devices: Sequence[str],
    draw: random.Random,
) -> str:
    sentences = [_lead_in(phrase, number, draw) for phrase, number in phrases]
    if devices and draw.random() < 0.5:
        sentences.append(draw.choice(DEVICES[draw.choice(list(devices))]))
    draw.shuffle(sentences)
    if draw.random() < 0.45:
        sentences.insert(draw.choice((0, len(sentences))), _negation(absent, draw))
    return _join(sentences, draw)


def draw_impression(
    facts: Sequence[Facts],
    absent: Sequence[str],
    devices: Sequence[str],
    split: str,
    draw: random.Random,
) -> tuple[str, list[str]]:
    """Draw an impression of 5–25 words that describes every region, and the regions' phrases in it.

    Args:
        absent: findings that the image does not show, for negations.
        devices: keys of DEVICES.
    """
    if not facts:
        return _draw_normal(split, draw), []
    while True:
        phrases = [draw_phrase(f, split, draw) for f in facts]
        if len({text for text, _ in phrases}) < len(phrases):
            continue
        for _ in range(8):
            text = _compose(phrases, absent, devices, draw)
            if 5 <= len(text.split()) <= 25:
                return text, [phrase for phrase, _ in phrases]


def _draw_normal(split: str, draw: random.Random) -> str:
    """Draw an impression of a normal image, held out by the same hash."""
    while True:
        start, process, clear = (draw.choice(options) for options in NORMALS)
        parts = [f"{start} {process}", clear, "no " + draw.choice(NEGATIONS["Pneumothorax"])]
        parts = parts[: draw.choice((2, 3))]
        draw.shuffle(parts)
        text = _join(parts, draw)
        if split_of(text) == split:
            return text
