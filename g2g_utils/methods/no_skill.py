"""Maps that know nothing of the phrase, the image or both: what any grounding model has to beat.

All return float32 maps [H, W] that go through the same mask and metrics as a model's.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from g2g_utils.methods.base import HeatMap, Query, no_map
from g2g_utils.metrics import Boxes, Size, rasterise
from g2g_utils.text import side_of

if TYPE_CHECKING:
    from g2g_utils.methods.registry import NoSkillRow, Parts


def random_map(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Uniform noise [H, W] in [0, 1]."""
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def centre_prior(size: tuple[int, int], sigma: float = 0.25) -> Tensor:
    """Gaussian [H, W] around the image centre; sigma in image sides."""
    y, x = ((torch.arange(n) + 0.5) / n - 0.5 for n in size)
    return torch.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * sigma**2))


def brightness(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image [1 or 3, S, S] itself, averaged down to [H, W]."""
    return F.adaptive_avg_pool2d(image.float().mean(0, keepdim=True)[None], size)[0, 0]


def mean_box(boxes: Sequence[Boxes], frame: Size, size: tuple[int, int]) -> Tensor:
    """Share of training samples [H, W] whose boxes cover each place.

    boxes: one list of [x, y, w, h] per sample, in pixels of `frame`. Raises ValueError for none.
    """
    if not boxes:
        raise ValueError("mean box of no samples: pass the training examples' boxes")
    total = torch.zeros(size)
    for sample in boxes:
        drawn = rasterise(sample, frame).float()[None, None]
        total += F.adaptive_avg_pool2d(drawn, size)[0, 0]
    return total / len(boxes)


def mean_box_per_finding(
    boxes: Sequence[Boxes], findings: Sequence[str], frame: Size, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Mean training box [H, W] of each finding; one finding per sample."""
    grouped: dict[str, list[Boxes]] = defaultdict(list)
    for sample, finding in zip(boxes, findings, strict=True):
        grouped[finding].append(sample)
    return {finding: mean_box(lists, frame, size) for finding, lists in grouped.items()}


# ---------------------------------------------------------------- on the bench


@dataclass(frozen=True, eq=False)
class NoSkill:
    """A method that makes its map of a query by a rule that reads no words."""

    name: str
    image_size: int
    rule: Callable[[Query], Tensor]  # -> [h, w]

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """The rule's map of each query."""
        return [
            HeatMap(self.rule(q)) if q.phrase.strip() else no_map("empty phrase") for q in queries
        ]


def seed_of(image: Tensor) -> int:
    """A seed that depends on an image's pixels alone."""
    content = hashlib.blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=7)
    return int.from_bytes(content.digest(), "big")


def mean_boxes(
    regions: Sequence[Mapping[str, Any]], side: int, size: tuple[int, int]
) -> dict[str, Tensor]:
    """Mean training box [h, w] of each finding, and of "all".

    regions: `finding` and `boxes` in a frame of `side` pixels.
    """
    boxes, findings = [r["boxes"] for r in regions], [r["finding"] for r in regions]
    by_finding = mean_box_per_finding(boxes, findings, side, size)
    return by_finding | {"all": mean_box(boxes, side, size)}


def sided(finding: str | None, phrase: str) -> str:
    """A finding with the side that its phrase names, as the name of a mean box."""
    return f"{finding}, {side_of(phrase) or 'no side'}"


def rules(
    regions: Sequence[Mapping[str, Any]], side: int, size: tuple[int, int]
) -> dict[str, Callable[[Query], Tensor]]:
    """The rules by name; those of mean boxes only where there are training regions."""
    found: dict[str, Callable[[Query], Tensor]] = {
        "random": lambda query: random_map(size, seed_of(query.image)),
        "centre prior": lambda query: centre_prior(size),
        "brightness": lambda query: brightness(query.image, size),
    }
    if not regions:
        return found
    priors = mean_boxes(regions, side, size)
    named = [r | {"finding": sided(r["finding"], r.get("phrase", ""))} for r in map(dict, regions)]
    by_side = mean_boxes(named, side, size)

    def of_finding(query: Query) -> Tensor:
        return priors.get(str(query.finding), priors["all"])

    return found | {
        "mean box": lambda query: priors["all"],
        "mean box per finding": of_finding,
        "mean box per finding and side": lambda query: by_side.get(
            sided(query.finding, query.phrase), of_finding(query)
        ),
    }


def build(parts: Parts, name: str, row: NoSkillRow, seed: int | None) -> NoSkill | None:
    """The rule of a row; None, with a line, for a mean box where no boxes are known."""
    config, (_, side) = parts.config, parts.latent_size()
    regions = parts.regions() if row.rule.startswith("mean") else ()
    known = rules(regions, config.image_size, (side, side))
    if row.rule not in known:
        print(f"no {name}: neither training images nor validation pairs have boxes")
        return None
    return NoSkill(name, config.image_size, known[row.rule])
