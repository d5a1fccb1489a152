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
# # 12 · What does one setting give?
#
# ## Question
# One arm, one seed, one choice of timesteps, words and merging: how well does it ground? This is
# the template of a sweep (`./run_all.sh sweep NAME`), which asks it of every point of a grid; run
# alone, it is a single point, and the place to try a setting of your own.
#
# ## You need
# - one trained arm (the miniature's are shipped; another training takes 20 minutes); with it half a
#   minute on one core; no GPU
#
# ## Parameters
# Zero or empty means: as the profile says. The validation split, because settings are chosen on it.

# %% tags=["parameters"]
profile: str = "miniature"
arm: str = ""  # empty: the profile's first
seed: int = 0  # of the training
timesteps: int = 0  # T
keep_last: int = 0  # k least noisy of them
filter: str = ""  # lexical, disease or all
sampling: str = ""  # gt, gt_first, cfg or text: what the U-Net sees at each step
curve: str = "none"  # linear, quadratic, mixture; none: no Bimodal Bias Merging
pairs_used: int = 48  # image–phrase pairs
split: str = "validation"  # or test

# %%
from g2g_utils.config import load

given = {"timesteps": timesteps, "keep_last": keep_last, "filter": filter, "sampling": sampling}
given["curve"] = None if curve == "none" else curve
chosen = {f"grounding.{k}": v for k, v in given.items() if v or k == "curve"}
config = load(profile, **chosen)

# %% [markdown]
# ## Imports

# %%
import pandas as pd

from g2g_utils import bench, runs
from g2g_utils.bench import statistics
from g2g_utils.experiment import products
from g2g_utils.methods.g2g import G2G
from g2g_utils.plots import charts

# %% [markdown]
# ## The model and its pairs

# %% tags=["nbval-check-output"]
arm = arm or next(iter(config.training.arms))
pairs = products.evaluation_pairs(config, split)[:pairs_used]
options = config.grounding.model_dump()
shown = ("timesteps", "keep_last", "filter", "curve")
print(f"{arm}, seed {seed}, {len(pairs)} {split} pairs")
print("; ".join(f"{name.replace('_', ' ')}: {options[name] or 'none'}" for name in shown))

# %%
model = products.model(config, arm, seed)
print(
    f"latents {model.latent_shape}, {sum(p.numel() for p in model.unet.parameters()) / 1e6:.2f} M"
)

# %% [markdown]
# ## Every pair, scored
# One row a pair. *Specificity* is the contrast-to-noise ratio (CNR) lost when another phrase is
# asked for on the same image; it is zero for a map that does not read. Notebooks
# [07](07_grounding_benchmark.ipynb) and [11](11_metric_audit.ipynb) define the rest.

# %%
method = G2G(arm, model, options | {"seed": seed})
table = bench.score(method, pairs)  # the same other phrases for every seed
columns = ["cnr", "auc_roc", "pointing", "threshold_iou", "balanced_iou", "specificity"]
scores = {c: statistics.interval(table, c, config.evaluation.bootstrap) for c in columns}
charts.readable(pd.DataFrame({"mean, with its 95 % interval": scores}).rename(charts.LABELS), 3)

# %% [markdown]
# ## What we learned
# The means with their 95 % intervals (bootstrap over patients) are what this run hands over: in a
# sweep they go to the point's `metrics.json`, and from there into the table of all points.

# %%
handed = {name: score.value for name, score in scores.items()}
bounds = {f"{n}.{end}": getattr(s, end) for n, s in scores.items() for end in ("low", "high")}
runs.report(handed | bounds | {"pairs": len(pairs)})
read = scores["specificity"]
print(f"this setting {'reads' if read.low > 0 else 'is not shown to read'}: specificity {read}")

# %% [markdown]
# ## Next
# - [08 · which settings matter](08_hyperparameters.ipynb), with their intervals side by side
# - `workflow/sweeps/`: the grids that ship with this repository
