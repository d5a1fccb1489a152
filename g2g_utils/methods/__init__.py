"""Methods: everything that turns an image and a phrase into a heat map.

`Query`, `HeatMap` and `Grounder` are `base`'s, imported when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from g2g_utils.methods.base import Grounder as Grounder
    from g2g_utils.methods.base import HeatMap as HeatMap
    from g2g_utils.methods.base import Query as Query


def __getattr__(name: str) -> Any:
    """The protocol's public names."""
    if name in ("Grounder", "HeatMap", "Query"):
        from g2g_utils.methods import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
