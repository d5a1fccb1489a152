"""The protocol of all methods: a query (image, phrase) goes in, a heat map comes out.

The bench, `ground` and the explorer know methods by this page alone. A method is one file that
registers its kind (see `registry`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Query:
    """One question: where in this image is this phrase?"""

    image: Tensor  # [1 or 3, S, S], float in [0, 1]; S = the method's image_size
    phrase: str
    finding: str | None = None  # radiological class, for methods that know classes


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A method's answer to one query."""

    values: Tensor  # [h, w], float32, CPU, over the whole frame; larger = more likely; NaN: no map
    mask: Tensor | None = None  # [h, w], bool: the method's own; None: the bench's Gaussian mixture
    absolute: Tensor | None = None  # [h, w]: values on which fixed thresholds mean something
    note: str = ""  # why there is no map, or a remark about it
    details: Mapping[str, float] = field(
        default_factory=dict
    )  # further numbers of this map, such as a confidence
    capture: Any = field(default=None, repr=False)  # from which variants reduce other maps

    @property
    def exists(self) -> bool:
        """True if there is a map."""
        return bool(torch.isfinite(self.values).all())


def no_map(reason: object, size: tuple[int, int] = (1, 1)) -> HeatMap:
    """The answer to a query that cannot be grounded: NaN everywhere, and the reason."""
    return HeatMap(torch.full(size, float("nan")), note=str(reason) or "no map")


class Grounder(Protocol):
    """A method: it grounds phrases in images."""

    @property
    def name(self) -> str:
        """Row of every table, key of its colour."""
        ...

    @property
    def image_size(self) -> int:
        """Side S of its frame, in pixels."""
        ...

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """Heat maps of queries, in their order.

        Queries of one image follow each other and share the tensor: results that depend on the
        image alone are computed once. A phrase that cannot be grounded gives `no_map`, never an
        error.
        """
        ...


def films(queries: Sequence[Query]) -> list[list[int]]:
    """Positions of the queries of each image: neighbours that share a tensor."""
    found: list[list[int]] = []
    for k, query in enumerate(queries):
        if found and queries[found[-1][0]].image is query.image:
            found[-1].append(k)
        else:
            found.append([k])
    return found


@dataclass(frozen=True, eq=False)
class Given:
    """Maps that exist already, by phrase: one grounding may be scored beside methods."""

    name: str
    image_size: int
    maps: Mapping[str, Tensor]  # phrase -> [h, w]

    def ground(self, queries: Sequence[Query]) -> list[HeatMap]:
        """The map of each query's phrase, whatever its image."""
        return [
            HeatMap(self.maps[q.phrase]) if q.phrase in self.maps else no_map("no map of it")
            for q in queries
        ]
