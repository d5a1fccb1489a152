"""The bench: one score for every method, statistics over pairs, ablations and claims.

`bench.score(method, pairs)` is `benchmark.score`, imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from g2g_utils.bench.benchmark import score as score


def __getattr__(name: str) -> Any:
    """The public name `score`."""
    if name == "score":
        from g2g_utils.bench import benchmark

        return benchmark.score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
