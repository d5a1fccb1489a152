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
# # 15 · Does a network learn to see better by predicting where it looked?
#
# ## Question
# G2D (Liu et al., NeurIPS 2024) pre-trains on films and reports alone. Beside the contrast of whole
# film and whole report, a decoder must predict a mask that nobody drew: where the network's own
# attention was. The paper finds that this *pseudo-segmentation* gives denser features: better
# masks from few labels, better grounding. Does it here, and beside Generate to Ground (G2G)?
#
# ## You need
# - the rows of the method on the bench (made when missing: 20 core-seconds each) and the warm-up of
#   its training (half a core-minute); with them about two minutes on one core; no GPU
#
# ## Parameters
# Shown is the film of notebook [00](00_quickstart.ipynb), then the ranks of
# [07](07_grounding_benchmark.ipynb).

# %% tags=["parameters"]
profile: str = "miniature"
pair: int = -1  # number of a test pair; -1: the running example
shown_ranks: str = "0 0.25 0.5 0.75 1"  # test pairs by the first arm's CNR, as in notebook 07
arm: str = "ps"  # that trains live, an arm of `g2d.arms`

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import json
import shutil
import time

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

# %%
from g2g_utils import plots
from g2g_utils.bench import benchmark, claims, statistics
from g2g_utils.bench import dense as worth
from g2g_utils.data import sources
from g2g_utils.experiment import dense, ground_file, products
from g2g_utils.methods import registry
from g2g_utils.models import g2d
from g2g_utils.plots import charts, overlays
from g2g_utils.runs import places
from g2g_utils.training import fit, pseudo_masks
from g2g_utils.training import g2d as training

plots.use_style()

# %% [markdown]
# ## The idea
#
# ```
#  film ─▶ encoder ─▶ 8×8 map ─▶ 1×1 ─▶ attention pooling ─▶ film's vector ◀─ contrast ─▶ report's
#             │                              │    query: the mean pixel                    vector
#             │ skips                        └─▶ where it looked, 8×8, mean over heads
#             ▼                                     │ enlarge · body · 85th percentile · smooth
#          U-Net decoder ─▶ logits ◀── Dice + BCE ──┴── pseudo mask       (no gradient this way)
# ```
#
# The mask does not read the report: it is a function of the film alone. Words act only through the
# contrast, which teaches the pooling what is worth looking at. Before that has begun the attention
# is noise, so training starts with the contrast alone (*warm-up*), and all arms branch from there.
#
# ## The film

# %% tags=["nbval-check-output"]
example = ground_file.chosen_example(config, "", "", pair)
image = torch.as_tensor(example.array())[None]
print(f"image {tuple(image.shape)}, phrase {example.phrase!r}, {len(example.boxes)} box(es)")

# %%
rows = [row for row in registry.rows(config).values() if row.kind.name == "g2d"]
method = products.method(config, rows[0].name)
joint, side = method.joint, config.image_size
network, text_encoder = joint.network, joint.text_encoder
with torch.no_grad():
    found = network(image[None].float())
count = sum(p.numel() for p in network.parameters())
print(f"{rows[0].label}: {count / 1e6:.2f} million weights, "
      f"attention {tuple(found.attention.shape)}, logits {tuple(found.logits.shape)}")  # fmt: skip

# %% [markdown]
# ## From attention to a mask
# The attention is averaged over heads, enlarged without interpolation, kept within the body and cut
# at its own 85th percentile; a bilateral filter softens the steps. With 64 cells and ">" exactly
# nine are kept, whatever the film: the mask says *where*, never *how much*.

# %% tags=["nbval-check-output"]
cut = {"smooth": False}
mask = pseudo_masks.pseudo_mask(found.attention, side, **cut)
cells = int(mask.sum()) * found.attention[0, 0].numel() / side**2
print(f"above the 85th percentile: {cells:.0f} of {found.attention[0, 0].numel()} cells")
for share in (0.75, 0.5):
    wider = pseudo_masks.pseudo_mask(found.attention, side, quantile=share, **cut)
    print(f"above the {share:.0%} quantile: {float(wider.mean()):.0%} of the pixels")

# %%
body = pseudo_masks.body_mask(image.float())
target = pseudo_masks.pseudo_mask(found.attention, side, body=body)
heads = found.attention[0]
fig, axes = overlays.panels(5)
overlays.show_image(axes[0, 0], image[0], boxes=example.boxes, title=overlays.wrapped(
    example.phrase, 28))  # fmt: skip
mean = heads.mean(0)
overlays.show_map(axes[0, 1], mean / mean.max(), title="attention, mean of heads")
overlays.overlay(axes[0, 2], image[0], mask[0, 0], boxes=example.boxes, title="85th percentile")
overlays.overlay(axes[0, 3], image[0], target[0, 0], boxes=example.boxes, title="body, smoothed")
answer = found.logits[0, 0].sigmoid()
overlays.overlay(axes[0, 4], image[0], answer, boxes=example.boxes, title="the decoder's answer")
overlays.legend(fig, boxes=bool(example.boxes))
drawn = "A film, its attention, the cut, the smoothed mask and what the decoder predicts"
plots.save_figure(config, fig, "15_g2d_mask", alt=drawn)

# %% [markdown]
# ## One step of training
# These lines are the whole method. `alignment` is the contrast (paper: one direction; released
# code: the sum of both; here their mean), `mask_loss` half of soft Dice plus cross-entropy. The
# released code takes the Dice of raw logits, which is not bounded; ours takes probabilities.


# %%
def step(images: torch.Tensor, states: torch.Tensor, bodies: torch.Tensor) -> torch.Tensor:
    """Loss of a batch: contrast, and the decoder against the network's own attention."""
    out = network(images, states)
    goal = pseudo_masks.pseudo_mask(out.attention.detach(), side, body=bodies)
    return training.alignment(out.image, out.text) + training.mask_loss(out.logits, goal)


# %%
films = sources.examples(config, "test")
images = torch.as_tensor(np.stack([film.array() for film in films]))[:, None].float()
states = dense.first_states(config, config.g2d.text, [film.phrase for film in films])
bodies = pseudo_masks.body_mask(images[:, 0])
few = slice(0, config.g2d.batch_size)
with torch.no_grad():
    loss = step(images[few], states[few], bodies[few])
print(f"loss of {len(images[few])} test films under the finished network: {float(loss):.2f}")

# %% [markdown]
# ## The arm, live
# From the shared warm-up, a short training of the arm with the real recipe.

# %%
seed = config.g2d.seeds[0]
folder = places.build(config) / "live" / f"g2d-{arm}-s{seed}"
shutil.rmtree(folder, ignore_errors=True)
warm = products.ensure(config, f"g2d-warmup/{config.g2d.heads}-s{seed}")
begin = time.time()
dense.train(config, arm, seed, folder, steps=config.g2d.live_steps)
print(
    f"{config.g2d.live_steps} steps, {config.g2d.live_steps / (time.time() - begin):.1f} a second"
)

# %%
finished = products.ensure(config, f"g2d/{arm}-s{seed}")
runs = {"live": (folder, "#fb8761"), "finished run": (finished, "#b5367a")}
fig, ax = overlays.plt.subplots(figsize=(6.5, 2.6))
for name, (place, colour) in runs.items():
    log = pd.DataFrame(fit.read_log(place))
    mean = log["loss"].rolling(5, min_periods=1).mean()
    ax.plot(log["step"], mean, color=colour, marker="." if name == "live" else None, label=name)
ax.set(title=f"{arm}: contrast + decoder's loss", xlabel="step after the warm-up", ylabel="loss")
ax.legend()
plots.save_figure(config, fig, "15_g2d_live", alt="Training loss against steps, live and finished")

# %% [markdown]
# What do the masks hold? Nobody told the network what a lesion is. Against the true masks of all
# findings of the test films, by network, with another film's mask as the row without skill:

# %%
lesions = worth.task_masks(films, None, side)
scores = {}
for name, place in {"warm-up": warm, "live": folder, "finished": finished}.items():
    with torch.no_grad():
        attention = g2d.load(place)(images, decode=False).attention
    found_by = worth.mask_scores(attention, lesions, bodies)
    cuts = ("85th", "75th", "median", "mixture", "shuffled")
    scores[name] = {cut: float(found_by[cut]["iou"].nanmean()) for cut in cuts}
    scores[name]["between films"] = worth.spread(attention)["between"]
pd.DataFrame(scores).T.rename_axis("IoU with lesions").round(3)

# %% [markdown]
# (*between films*: share of the attention's variance that lies between films; near 0 the mask would
# be a fixed prior.)
#
# ## How it grounds
# The paper compares a phrase with "the dense feature map" and leaves open which. Here every pixel
# goes through the pooling's value and output layers, as if pooling had looked at it alone: the only
# dense features in the report's space. All phrases share a component that lies *away* from lesions,
# so the cosine of a normal impression is subtracted:

# %%
plain, words = joint.patches(image), joint.words(example.phrase)
answer = method.ground([benchmark.Query(image.float(), example.phrase)])[0].values
near = torch.nn.functional.cosine_similarity(plain, words[0][:, None, None], dim=0)
fig, axes = overlays.panels(3)
overlays.show_image(axes[0, 0], image[0], boxes=example.boxes, title="film")
for ax, values, title in ((axes[0, 1], near, "plain cosine"), (axes[0, 2], answer, "less normal")):
    low, high = float(values.min()), float(values.max())
    shown = (values - low) / (high - low)
    overlays.overlay(ax, image[0], shown, boxes=example.boxes, title=title)
overlays.colour_bar(fig, axes, "scaled to [0, 1]")
overlays.legend(fig, boxes=bool(example.boxes))
drawn = "A film with its box; the plain cosine map; the map less the cosine of a normal impression"
plots.save_figure(config, fig, "15_g2d_cosines", alt=drawn)

# %% [markdown]
# ## The same films as everywhere
# Above G2G's map, below this method's. From the pair that G2G grounds best to the one it grounds
# worst.

# %%
table = products.scores(config)
plain_rows = [r for r in registry.rows(config).values() if r.kind.name == "g2g" and not r.merged]
first_seed = config.training.seeds[0]
best = table[(table["arm"] == plain_rows[0].arm) & (table["seed"] == first_seed)]
pairs = products.evaluation_pairs(config, "test")
ranks = statistics.ranked(best, "cnr", [float(rank) for rank in shown_ranks.split()])
chosen = [statistics.pair_of(row, pairs).framed(config.image_size) for _, row in ranks.iterrows()]
both = [products.method(config, plain_rows[0].name, first_seed), method]

# %%
fig, axes = overlays.panels(len(chosen), 2, size=1.9)
for asked, line in zip(both, axes, strict=True):
    for ax, one in zip(line, chosen, strict=True):
        heat = benchmark.answer(asked, one).values
        heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-9)
        overlays.overlay(ax, one.array(), heat, boxes=one.boxes)
        ax.set_title(overlays.wrapped(one.phrase, 26) if asked is both[0] else "", fontsize=7.5)
    line[0].set_ylabel(asked.name, fontsize=8)
overlays.legend(fig)
overlays.colour_bar(fig, axes, "heat, scaled to [0, 1]")
drawn = "Heat maps of G2G (above) and G2D (below) on the same films"
plots.save_figure(config, fig, "15_g2d_films", alt=drawn)

# %% [markdown]
# ## Its rows on the bench
# Test split, micro averages with 95 % intervals over patients. *Attention* reads no words: what it
# scores is what the film alone gives away, and its specificity is zero by construction.

# %%
shown = [plain_rows[0].label, *(row.label for row in rows)]
shown += [r.label for r in registry.rows(config).values() if r.kind.name == "biovil"]
shown += ["mean box per finding", "centre prior"]
columns = ["cnr", "auc_roc", "pointing", "threshold_iou", "balanced_iou", "specificity"]
listed = pd.concat([table[table["method"] == name] for name in shown])
bench_rows = statistics.summary(listed, "method", columns, config.evaluation.bootstrap)
charts.readable(bench_rows)

# %%
title = f"Test split: {len(pairs)} pairs, 95 % intervals over patients"
fig = charts.bars(bench_rows, columns, title=title, zero={"auc_roc": 0.5})
plots.save_figure(config, fig, "15_g2d_bench", alt="Bars of six metrics for G2D and its neighbours")

# %% [markdown]
# Above the rows without skill?


# %%
def claim_of(worse: str, measure: str) -> claims.Claim:
    """The claim that G2D exceeds a row without training on the same pairs."""
    rows_of = [table[table["method"] == name] for name in (rows[0].label, worse)]
    a, b = (one[one["seed"].isna() | (one["seed"] == one["seed"].min())] for one in rows_of)
    gap = statistics.difference(a, b, measure, config.evaluation.bootstrap)
    text = f"{rows[0].label} > {worse} in {charts.LABELS[measure]}"
    name = f"G2D-{worse}-{measure}".replace(" ", "-")
    return claims.claim(config, name, text, gap, [rows[0].settings.seed])


# %%
without = ("mean box per finding", "centre prior")
made = [claim_of(name, measure) for name in without for measure in ("cnr", "specificity")]
Markdown(claims.verdicts(made))

# %% [markdown]
# ## What the decoder's task is worth: G1 to G6
# The claims of the paper need many trainings: arms of three seeds, and decoders from few labels.
# They were run by `benchmarks/dense.py`; its tables lie in `benchmarks/dense/`, its claims in
# `benchmarks/dense.json`. Arms differ in what the decoder must predict:
# `vla` nothing, `ps` the own mask, `shuffled` another film's, `reconstruction` the film itself,
# `oracle` the true lesions. All of a seed branch from one warm-up and see the same batches.

# %%
measured = json.loads((places.ROOT / "benchmarks" / "dense.json").read_text())
numbers = pd.DataFrame(measured["networks"]).T
numbers.index = pd.MultiIndex.from_tuples(
    [(name.rpartition("-s")[0], int(name.rpartition("-s")[2])) for name in numbers.index]
)
segmentation = [c for c in numbers if str(c).startswith("opacities,")]
dice = numbers[segmentation].stack().map(lambda cell: cell["positives"]).unstack()
published = numbers[segmentation].stack().map(lambda cell: cell["published"]).unstack()
dice.groupby(level=0).mean().round(3)

# %% [markdown]
# Dice of films with the finding, mean over draws of labels and seeds; columns: labelled films /
# what is transferred. The Dice that is usually published counts 1 for a film without the finding
# on which nothing is predicted. It rewards silence: predicting nothing at all scores what the last
# column says.

# %%
published.groupby(level=0).mean().round(3)

# %%
told = [row for row in measured["claims"] if row["seeds"]]
ran = [row for row in told if not row["claim"].startswith(("G5: masks", "lever"))]
forest = [
    claims.Claim(row["claim"].split(":")[0], row["claim"].partition(": ")[2], row["gap"][1] > 0,
                 *row["gap"], tuple(row["seeds"]), "test", "benchmarks/dense.py")
    for row in ran
]  # fmt: skip
fig = charts.forest(forest, "What pseudo-segmentation adds (test split)")
drawn = "Differences of the claims with intervals over films and runs"
plots.save_figure(config, fig, "15_g2d_claims", alt=drawn)

# %%
lines = []
for row in measured["claims"]:
    number = f" — {claims.shown(*row['gap'])}, {len(row['seeds'])} seed(s)" if row["seeds"] else ""
    lines.append(f"- **{row['verdict']}**: {row['claim']}{number}")
Markdown("\n".join(lines))

# %% [markdown]
# ## What the miniature leaves out
# - The published network is a ResNet-50 at 256² (`encoder: resnet50` is the same code) with
#   ClinicalBERT, whose upper layers learn; here the text encoder is small and frozen, and has seen
#   masked language alone. The maps have 8×8 cells in both, so every count above is the paper's.
# - Paper and released code disagree about heads (3, which 128 channels can't be split into; 4),
#   body mask and smoothing (only the paper), the loss, the rate and the schedule. We follow the
#   paper's losses and the code's sizes. No weights were published.
# - Detection and full fine-tuning were not built. Films are phantoms; normal ones are rare.
# - Licence and source: none given with the code (`cheliu-computation/G2D-NeurIPS24`); the code here
#   is the project's own, tested against numbers of theirs (`tests/unit/training/test_g2d.py`).
#
# ## With real data
# A section `g2d:` in a profile (that of `paper` is commented: ResNet-50, ImageNet weights as
# `start`, ClinicalBERT) and a row `g2d: {kind: g2d}` in `methods:`; `./run_all.sh paper --dry-run`
# says what it costs. A checkpoint in the authors' naming is such a `start`, too.
#
# ## Exercises
# 1. *Predict*: what does the mask of a normal film look like? *Run* the mask's cell with such a
#    film.
# 2. *Predict*: does the row `attention` change when the phrase names the other side?
#
# <details><summary>Answers</summary>
#
# 1. It has nine cells like every other: a percentile always finds its share. The decoder is taught
#    foreground where there is nothing.
# 2. No: the query is the film's mean pixel. Its specificity is exactly zero.
#
# </details>
#
# ## What we learned

# %%
main_claims = [row for row in measured["claims"] if row["claim"].startswith(("G1", "G2", "G3"))]
for row in main_claims:
    print(f"{row['verdict']}: {row['claim']}")
print(f"masks of the finished network against lesions: IoU {scores['finished']['85th']:.3f}, "
      f"another film's {scores['finished']['shuffled']:.3f}")  # fmt: skip

# %% [markdown]
# ## Next
# - [07 · who grounds best](07_grounding_benchmark.ipynb): all methods in one table
# - [14 · does a diffusion model ground without training for it](14_zero_shot_ldm.ipynb)
