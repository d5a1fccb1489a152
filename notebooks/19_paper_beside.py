# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 19 · How do the paper's tables look beside ours?
#
# ## Question
# What does *Generate to Ground* print for every class and method, and what does the same cell say
# here? The worlds differ (MS-CXR there, phantoms here), so directions can be compared and sizes
# cannot. The site's paper map leads from the paper's other items to their notebooks.
#
# ## You need
# - the scores of the benchmark (made when missing: about 20 minutes); with them seconds; no GPU
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import pandas as pd

from g2g_utils import plots
from g2g_utils.bench import paper
from g2g_utils.experiment import products
from g2g_utils.plots import paper as drawn

plots.use_style()

# %% [markdown]
# ## Table 1: class by class, method by method
# Rows of our arms stand for the paper's models: the frozen domain encoder for CXR-BERT, the frozen
# generic one for CLIP, BioViL-like for BioViL-L. `±` is the standard deviation over trainings.
# **Predict** first: in which class does the diffusion model lead most, and in which does it fail?

# %%
scores = products.scores(config)
merged = paper.merged_rows(products.scores(config, "curves"), "domain-frozen")
table = paper.table_1(pd.concat([scores, merged], ignore_index=True))
table["cnr"]

# %%
# NBVAL_CHECK_OUTPUT
print(f"{len(table)} rows, {len(table['cnr'].columns.unique(0))} methods of the paper")

# %%
fig = drawn.beside(table, "cnr", "CNR")
plots.save_figure(config, fig, "19_table1_cnr", alt="CNR of four methods in every class, twice")

# %% [markdown]
# Balanced IoU, which the paper calls mIoU, judges the mask:

# %%
table["balanced_iou"]

# %%
fig = drawn.beside(table, "balanced_iou", "balanced IoU")
plots.save_figure(config, fig, "19_table1_iou", alt="Balanced IoU in every class, twice")

# %% [markdown]
# The last row is a different average in each: over pairs here; the paper's is of classes weighted
# by the square of their counts, or a macro mean for BioViL (notebook
# [11](11_metric_audit.ipynb)).
#
# ## Appendix A: what the U-Net sees
# The paper's CNR of four sampling inputs under six encoders (guidance 16). GT: ground truth, the
# film in every step; GT-1: in the first step only. Which input is best is counted below. Here only
# GT is part of the run (the table above). The other inputs are *not measured* by it:
# `./run_all.sh sweep inputs` measures them.

# %%
inputs = paper.printed("g2g_appendix_a")
inputs.pivot(index="encoder", columns="sampling_input", values="cnr").round(2)

# %% [markdown]
# ## What we learned

# %%
ours = table.xs("here", axis=1, level=2)
absent = int((ours == paper.NOT_MEASURED).sum().sum())
best = inputs.loc[inputs.groupby("encoder")["cnr"].idxmax(), "sampling_input"].value_counts()
print(f"cells of Table 1 that no run measured: {absent} of {ours.size}")
print(f"best input of the paper's encoders: {best.to_dict()}")

# %% [markdown]
# ## Next
# - [07](07_grounding_benchmark.ipynb): which of these differences hold, with intervals
# - [11](11_metric_audit.ipynb): what the averages do
