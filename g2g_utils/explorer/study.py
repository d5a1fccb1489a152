"""Small tables about one view, for the notebook around the explorer."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from g2g_utils.bench.benchmark import specificity
from g2g_utils.experiment import ground_file
from g2g_utils.explorer import maps, state
from g2g_utils.explorer.session import Panel, Session
from g2g_utils.explorer.state import State


def starting_state(session: Session, picture: int = -1) -> State:
    """A picture by its number; -1: the notebooks' running example (`ground_file`)."""
    if picture >= 0:
        return session.start(image=f"test:{picture}")
    shared = ground_file.running_example(session.config)
    pictures = session.pictures.items()
    key = next(k for k, p in pictures if p.rows[0].image_id == shared.image_id)
    phrases = [region.phrase for region in session.pictures[key].regions]
    return session.pick_region(session.start(image=key), phrases.index(shared.phrase))


def token_table(panel: Panel) -> pd.DataFrame:
    """Mean attention of every column, its share of all, and whether it is chosen."""
    capture, means = panel.capture, panel.token_means
    columns = range(capture.columns)
    shares = [float(means[c]) * capture.weight(c) for c in columns]
    return pd.DataFrame(
        {
            "mean attention": [float(means[c]) for c in columns],
            "share": shares,
            "chosen": ["●" if c in panel.selection.columns else "" for c in columns],
        },
        index=pd.Index([state.column_label(capture, c) for c in columns], name="token"),
    ).round(4)


def total_attention(panel: Panel) -> float:
    """Sum of the mean attention over all token positions: 1, as every softmax sums to 1."""
    capture = panel.capture
    return sum(float(panel.token_means[c]) * capture.weight(c) for c in range(capture.columns))


def other_phrase(session: Session, now: State) -> str:
    """A test phrase of another finding that lies elsewhere; "" if there is none, or no boxes."""
    picture = session.pictures[now.image]
    if now.region is None:
        return ""
    region = picture.regions[now.region]
    example = replace(
        picture.rows[0],
        image=picture.image,
        phrase=region.phrase,
        finding=region.finding,
        boxes=region.boxes,
    )
    return ground_file.other_phrase(session.config, example)


def by_resolution(session: Session, now: State, other: str = "") -> pd.DataFrame:
    """Scores of the state's view by the layers used: of one resolution, all, the profile's.

    Args:
        other: `other_phrase`, for specificity: the CNR that is lost when it is grounded instead.
    """
    capture = session.capture(now)
    every = replace(now, layers=(0, len(capture.layers) - 1))
    choices = {f"{s}×{s}": replace(every, sizes=(s,)) for s in maps.resolutions(capture)}
    rows = {}
    for name, chosen in (choices | {"all layers": every, "the profile's": now}).items():
        asked = replace(chosen, compare="phrase", other_phrase=other) if other else chosen
        panel, *against = session.view(asked).panels
        rows[name] = {"layers": len(panel.selection.layers), **panel.metrics}
        for swapped in against:
            cnr = (float(shown.metrics["cnr"]) for shown in (panel, swapped))
            rows[name]["specificity"] = specificity(*cnr)
    table = pd.DataFrame(rows).T.drop(columns=["note", "abs_cnr"], errors="ignore")
    return table.astype(float).round(3).rename_axis(index="layers used")


def best(table: pd.DataFrame, metric: str) -> str:
    """Name of the row with the highest score."""
    return str(table[metric].idxmax()) if table[metric].notna().any() else "no resolution"
