"""Claims that a run computes: printed with their numbers and collected in findings.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from g2g_utils import runs
from g2g_utils.bench.statistics import Interval
from g2g_utils.config import Config
from g2g_utils.runs import places

SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["id", "claim", "holds", "estimate", "low", "high", "seeds", "split", "run"],
        "properties": {
            "id": {"type": "string", "minLength": 1},
            "claim": {"type": "string", "minLength": 1},
            "holds": {"type": "boolean"},
            "estimate": {"type": "number"},
            "low": {"type": "number"},
            "high": {"type": "number"},
            "seeds": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
            "split": {"enum": ["validation", "test"]},
            "run": {"type": "string", "minLength": 1},
        },
    },
}
"""JSON schema of findings.json."""


@dataclass(frozen=True)
class Claim:
    """A claim. It holds only if the 95 % interval of the difference lies above zero."""

    id: str
    claim: str
    holds: bool
    estimate: float
    low: float
    high: float
    seeds: tuple[int, ...]
    split: str
    run: str

    def __str__(self) -> str:
        number = shown(self.estimate, self.low, self.high)
        seeds = f"{len(self.seeds)} seed{'s' * (len(self.seeds) != 1)}"
        return f"{self.claim}: {verdict(self)}, {number} ({seeds}, {self.split})"


def claim(
    config: Config, id: str, text: str, gap: Interval, seeds: Sequence[int], split: str = "test"
) -> Claim:
    """Make a claim about a paired difference and keep it for findings.json.

    Args:
        id: key of the claim; a later one of the same id replaces it.
        text: the claim in words.
        gap: difference with its interval, positive if the claim is right.
        seeds: seeds of the trainings behind it.
        split: "test" or "validation".
    """
    estimate, low, high = (round(float(end), 4) for end in gap)
    made = Claim(
        id=id,
        claim=text,
        holds=low > 0,
        estimate=estimate,
        low=low,
        high=high,
        seeds=tuple(int(seed) for seed in seeds),
        split=split,
        run=runs.settings_id(config),
    )
    _keep(path(config), made)
    runs.report({f"{id}.{name}": getattr(made, name) for name in ("estimate", "low", "high")})
    return made


def shown(estimate: float, low: float, high: float) -> str:
    """A difference with its interval: two decimals, more if it is small or a bound near zero."""
    places = 2 if abs(estimate) >= 0.1 else 3
    while places < 6 and any(end and not round(end, places) for end in (low, high)):
        places += 1
    return f"{estimate:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}]"


def verdict(row: Claim) -> str:
    """Verdict: "holds", "not shown" (the interval meets zero) or "reversed" (it lies below)."""
    return "holds" if row.holds else "reversed" if row.high < 0 else "not shown"


def verdicts(claims: Sequence[Claim]) -> str:
    """Markdown list of claims with their verdicts."""
    rows = []
    for made in claims:
        number = shown(made.estimate, made.low, made.high)
        rows.append(
            f"- **{verdict(made)}**: {made.claim} — {number}, {len(made.seeds)} seeds, {made.split}"
        )
    return "\n".join(rows)


def said(row: Claim) -> str:
    """Verdict and number of a claim for a sentence: '**holds** (+0.31 [+0.24, +0.38])'."""
    return f"**{verdict(row)}** ({shown(row.estimate, row.low, row.high)})"


def told(row: Claim, *, holds: str, reversed: str = "", not_shown: str = "") -> str:
    """Verdict and number of a claim, then the sentences that go with that verdict."""
    reasons = {"holds": holds, "reversed": reversed, "not shown": not_shown}
    return f"{said(row)}. {reasons[verdict(row)]}".strip()


def folded(shown: Sequence[Claim], more: Sequence[Claim], about: str) -> str:
    """Markdown list of the claims that matter, the others folded below it.

    Args:
        shown: claims that are listed, at most a dozen.
        more: claims behind the fold.
        about: what the folded ones are about.
    """
    if not more:
        return verdicts(shown)
    summary = f"<summary>{len(more)} more: {about}</summary>"
    return f"{verdicts(shown)}\n\n<details>{summary}\n\n{verdicts(more)}\n\n</details>"


def path(config: Config) -> Path:
    """File of a profile's claims, findings.json."""
    return places.figures(config) / "findings.json"


def read(config: Config) -> list[dict[str, Any]]:
    """All claims computed so far under a profile."""
    return runs.read_json(path(config)) if path(config).is_file() else []


def _keep(file: Path, made: Claim) -> None:
    """Replace the entry of the same id and drop entries of other settings, which have no run here.

    Notebooks may write at the same time.
    """
    with runs.lock(file):
        rows = runs.read_json(file) if file.is_file() else []
        rows = [row for row in rows if row["id"] != made.id and row["run"] == made.run]
        rows.append(asdict(made))
        runs.write_json(file, sorted(rows, key=lambda row: row["id"]))


def outcome(gap: Interval) -> str:
    """Verdict and number of a difference that is no claim of its own, for a sentence.

    It holds above zero, is reversed below, and else not shown: '**holds** (+0.31 [+0.24, +0.38])'.
    """
    word = "holds" if gap.low > 0 else "reversed" if gap.high < 0 else "not shown"
    return f"**{word}** ({shown(*map(float, gap))})"
