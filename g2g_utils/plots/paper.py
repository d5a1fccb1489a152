"""The paper's table as dots, beside ours."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from g2g_utils.plots import charts

MARKS = ("o", "s", "^", "D", "v")


def beside(table: pd.DataFrame, metric: str, label: str, title: str = "") -> Figure:
    """Classes as rows, methods as dots; the paper's numbers at the left, ours at the right.

    Args:
        table: of `bench.paper.table_1`.
        metric: a metric of the table.
        label: its name on the axes.
        title: a claim.
    """
    fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
    whose = {"paper": "paper, on MS-CXR", "here": "here, on the profile's pairs"}
    for ax, (key, name) in zip(axes, whose.items(), strict=True):
        for place, method in enumerate(table[metric].columns.unique(0)):
            values = table[metric, method, key].str.split().str[0]
            numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
            colour, mark = charts.PALETTE[place], MARKS[place]
            ax.plot(numbers, range(len(table)), mark, color=colour, label=method, ms=6)
        ax.axvline(0, color=charts.GREY, lw=0.8)
        ax.set(title=name, xlabel=label)
    axes[0].set_yticks(range(len(table)), list(table.index))
    axes[0].invert_yaxis()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    if title:
        fig.suptitle(title, x=0.01, ha="left")
    return fig
