"""Explore tokens, layers and timesteps of a phrase's attention maps, in a notebook or the browser.

`Explorer(Session(config))` is the widget; everything it shows comes from pure functions of a
`State`: `Session.view` computes, `render` draws, `export` takes away.
"""

from g2g_utils.explorer.export import code, save, static_views
from g2g_utils.explorer.maps import Capture, Selection, capture_image, capture_text
from g2g_utils.explorer.session import Panel, Session, View
from g2g_utils.explorer.state import State, pick_method, swap

__all__ = [
    "Capture",
    "Explorer",
    "Panel",
    "Selection",
    "Session",
    "State",
    "View",
    "capture_image",
    "capture_text",
    "code",
    "pick_method",
    "save",
    "static_views",
    "swap",
]


def __getattr__(name: str) -> object:
    """Import `Explorer` on first use: the rest needs no widgets."""
    if name == "Explorer":
        from g2g_utils.explorer.view import Explorer

        return Explorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
