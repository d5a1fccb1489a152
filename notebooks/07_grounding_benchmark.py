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
# # 07 · Does a frozen domain encoder ground better, and better than knowing nothing?
#
# ## Question
# The paper's main finding: a latent diffusion model fine-tuned under a **frozen, domain-specific**
# text encoder grounds phrases better than one under a frozen generic encoder, and that better than
# one whose encoder learns along. Does it hold here, over seeds, with intervals, and beside maps
# that never saw the phrase?
#
# ## You need
# - the evaluations of all arms and seeds, and the baselines (made when missing: about 20 minutes on
#   two CPU cores for the miniature); with them half a minute on one core; no GPU
#
# ## Parameters
# `shown_ranks` says which test pairs the figure of examples shows: by rank, so that nobody chooses.
# `backgrounds` is a folder of normal radiographs for the last section; it is skipped without one.

# %% tags=["parameters"]
profile: str = "miniature"
shown_ranks: str = "0 0.25 0.5 0.75 1"  # 0: the best pair by CNR, 1: the worst
backgrounds: str = ""  # folder of normal radiographs (PNG, JPEG, DICOM); "": $G2G_BACKGROUNDS
background_images: int = 64  # test phantoms drawn into them

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import os
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from g2g_utils import plots, text
from g2g_utils.bench import ablations, claims, harder, statistics
from g2g_utils.data import record
from g2g_utils.experiment import products
from g2g_utils.plots import charts, overlays

# %%
plots.use_style()
charts.use_colours(products.compared(config))

# %% [markdown]
# ## What is compared, and on what
# Every arm differs from the others in its text encoder only: the same images, U-Net, steps,
# learning rate and noise (text weights that learn have a rate of their own). Two controls are
# exceptions: one has the captions of other images, and on real data one is the pretrained model
# as it was published. All are scored on the same pairs of the **test** split; choices are made on
# the validation split. Pairs of one image are not independent, so every interval resamples
# patients. A seed is one training of the *U-Net*: every text encoder, BioViL's included, was
# trained once.

# %%
# NBVAL_CHECK_OUTPUT
pairs = products.evaluation_pairs(config, "test")
patients = {pair.subject_id for pair in pairs}
print(f"{len(pairs)} pairs, {len(patients)} patients")
print(sorted({str(pair.finding) for pair in pairs}))

# %%
scores = products.scores(config)
rows = scores[scores["arm"].notna()].astype({"seed": int})
arms, seeds = config.training.compared, sorted(rows["seed"].unique().tolist())
trainings = rows.groupby("arm", sort=False)["seed"].nunique().to_dict()
print(f"{len(rows)} rows = {len(pairs)} pairs × {sum(trainings.values())} trainings: {trainings}")
print("degenerate cases:", rows["note"].value_counts().to_dict() or "none")

# %% [markdown]
# ## The measures
# With $\mu,\sigma^2$ the mean and variance of the heat inside and outside the boxes,
#
# $$\mathrm{CNR}=\frac{\mu_{in}-\mu_{out}}{\sqrt{\sigma^2_{in}+\sigma^2_{out}}}.$$
#
# AUC asks how well heat ranks pixels, Top-1 whether the maximum hits a box. **Balanced IoU** (the
# mean of foreground and background IoU of the mask) is what the paper calls mIoU; **threshold IoU**
# (foreground only, mean over cuts at 0.1 … 0.5) is what earlier work calls mIoU: notebook
# [11](11_metric_audit.ipynb) shows how far they lie apart.
#
# A map can score well without reading: lungs lie where lungs lie. So there is one more number,
#
# $$\text{specificity}=\mathrm{CNR}(\text{own phrase})-\mathrm{CNR}(\text{another phrase}),$$
#
# both on the same image against the own boxes. The other phrase is drawn with a fixed seed from the
# test phrases of another finding whose boxes overlap by less than 0.1. A map that ignores the
# phrase has specificity 0.

# %% [markdown]
# ## Rows without skill
# `random` is noise; the `centre prior` a Gaussian blob; `mean box` the average training box. `mean
# box per finding` reads one thing only, the class: it has a specificity of its own, and an arm that
# does not exceed it has learned no more than where such findings usually lie. `its map of another
# phrase` is the first arm's map, asked the wrong question. The `BioViL-like` row is the
# discriminative method: cosines between words and image patches, smoothed as BioViL's authors do,
# from contrastive training of the same text encoder on the same pairs.

# %%
everything = statistics.methods(scores)
everything.groupby("method", sort=False).size().to_dict()

# %% [markdown]
# ## The table
# Micro averages (over pairs), seeds averaged first, with 95 % intervals over patients. The plain
# activation map: content words, ground-truth sampling, no bias merging, and the profile's layers
# (the miniature's were chosen on the validation split, notebook [08](08_hyperparameters.ipynb)).

# %%
columns = ["cnr", "auc_roc", "pointing", "balanced_iou", "threshold_iou", "specificity"]
table = statistics.summary(everything, "method", columns, config.evaluation.bootstrap)
charts.readable(table)

# %%
trained = everything[everything["seed"].notna()]
by_seed = trained.groupby(["method", "seed"], sort=False)[columns].mean().reset_index()
fig = charts.bars(
    table,
    columns,
    by_seed,
    zero={"auc_roc": 0.5},
    title=f"Test split: {len(pairs)} pairs, {len(seeds)} seeds (dots), 95 % intervals",
)
plots.save_figure(config, fig, "07_grounding_benchmark")

# %% [markdown]
# Read the bars from the bottom: what the rows without skill reach is free. Only what an arm has
# above them, and its specificity, is grounding. Dots apart from each other say how much training
# noise matters; the intervals over patients don't contain it, so a difference should also hold seed
# by seed:

# %%
arm_seeds = by_seed[by_seed["method"].isin(list(trainings))]
arm_seeds.pivot(index="seed", columns="method", values="cnr")[list(trainings)].round(2)

# %%
arm_seeds.pivot(index="seed", columns="method", values="specificity")[list(trainings)].round(2)

# %% [markdown]
# ## The same over all layers
# The paper averages over every cross-attention layer; a profile may choose some. Because a choice
# of layers can decide a comparison of encoders, every claim about them is also made over all.

# %%
whole = statistics.methods(products.scores(config, "all layers"))
in_all = whole[whole["method"].isin(list(trainings))]
charts.readable(statistics.summary(in_all, "method", columns, config.evaluation.bootstrap))

# %%
by_seed = in_all.astype({"seed": int}).groupby(["seed", "method"], sort=False)
by_seed["specificity"].mean().unstack().round(2)

# %% [markdown]
# ## F1: frozen domain > frozen generic > learnable generic
# A claim holds if the 95 % interval of the *paired* difference (same pairs, seeds averaged) lies
# above zero. It is computed here, printed, and collected in `claims.json`.


# %%
def claims_of(id, better, worse, measures, table=everything, note="") -> list[claims.Claim]:
    """One claim a measure that a method exceeds another on the same pairs and seeds."""
    first, second, common = statistics.on_common_seeds(table, better, worse)
    n = config.evaluation.bootstrap
    gaps = {name: statistics.difference(first, second, name, n) for name in measures}
    text = {name: f"{better} > {worse} in {charts.LABELS[name]}{note}" for name in measures}
    known = [name for name in measures if pd.notna(gaps[name].value)]
    made = {name: (f"{id}-{name}", text[name], gaps[name], common) for name in known}
    return [claims.claim(config, *claim) for claim in made.values()]


# %%
measures = ["cnr", "auc_roc", "specificity"]
f1 = claims_of("F1-domain-generic", "domain-frozen", "generic-frozen", measures)
f1 += claims_of("F1-generic-learnable", "generic-frozen", "generic-learnable", measures)
print(*f1, sep="\n")

# %%
every = {"table": whole, "note": " (all layers)"}
generic, learnable = "generic-frozen", "generic-learnable"
f1_all = claims_of("F1-domain-generic-all-layers", "domain-frozen", generic, measures, **every)
f1_all += claims_of("F1-generic-learnable-all-layers", generic, learnable, measures, **every)
print(*f1_all, sep="\n")

# %% [markdown]
# These intervals resample patients, not trainings. So the same differences seed by seed: a finding
# about *encoders* has to hold in each, and by a margin that dwarfs how much the seeds differ.


# %%
def seed_gaps(better: str, worse: str, column: str) -> pd.Series:
    """The difference of two arms in every seed, with its interval over patients."""
    gaps = {}
    for seed in seeds:
        of_seed = trained[trained["seed"] == seed]
        sides = (of_seed[of_seed["method"] == name] for name in (better, worse))
        gaps[f"seed {seed}"] = statistics.difference(*sides, column, config.evaluation.bootstrap)
    return pd.Series(gaps, name=f"{charts.LABELS[column]}: {better} − {worse}")


# %%
gaps = pd.DataFrame([seed_gaps(*p, c) for p in pairwise(arms) for c in ("cnr", "specificity")])
charts.readable(gaps)

# %%
for name, row in gaps.iterrows():
    above, values = sum(gap.low > 0 for gap in row), [gap.value for gap in row]
    print(f"{name}: above zero in {above} of {len(row)} seeds, "
          f"from {min(values):+.2f} to {max(values):+.2f}")  # fmt: skip

# %% [markdown]
# Control arms say *what* in the encoder helps: the same architecture, corpus and budget with random
# weights (`random-frozen`), with masked language only (`mlm-frozen`), and with the global contrast
# of whole sentences with images (`global-frozen`), which comes after and beside masked language, as
# in the first arm. The first arm has the local contrast of words with patches on top. Each is
# compared with the first arm, over the seeds both were trained with:

# %%
controls, known = [arm for arm in trainings if arm not in arms], config.training.arms
frozen = [arm for arm in controls if not (known[arm].shuffled or known[arm].pictures)]
for arm in frozen:
    f1 += claims_of(f"F1-control-{arm}", "domain-frozen", arm, measures)
    f1_all += claims_of(f"F1-control-{arm}-all-layers", "domain-frozen", arm, measures, **every)
print(*[made for made in f1 + f1_all if "control" in made.id], sep="\n")
print("control arms:", ", ".join(controls) or "none in this profile")

# %% [markdown]
# And the controls of everything: a U-Net trained on the same images with the captions of *other*
# images, and one that was trained on other pictures and never saw a film. Nothing ties their words
# to places, so they have to fall to no skill: below the first arm, and not above the best map that
# knows the finding's name.

# %%
shuffled = [arm for arm in controls if arm not in frozen]
for arm in shuffled:
    f1 += claims_of(f"F0-{arm}", "domain-frozen", arm, measures)
    f1 += claims_of(f"F0-{arm}-no-skill", "mean box per finding", arm, measures)
    f1_all += claims_of(f"F0-{arm}-all-layers", "domain-frozen", arm, measures, **every)
    no_skill_claim = (f"F0-{arm}-no-skill-all-layers", "mean box per finding", arm)
    f1_all += claims_of(*no_skill_claim, measures, **every)
print(*[made for made in f1 + f1_all if made.id.startswith("F0")], sep="\n")

# %%
for arm in shuffled:
    for name, kind in {"profile's layers": everything, "all layers": whole}.items():
        own = kind[kind["method"] == arm]
        score = statistics.interval(own, "specificity", config.evaluation.bootstrap)
        means = own.groupby("seed")["specificity"].mean()
        by_training = ", ".join(f"{seed:.0f}: {mean:.2f}" for seed, mean in means.items())
        print(f"{arm}, {name}: specificity {score}; by seed {by_training}")

# %% [markdown]
# A training of this control can have a specificity by luck: which words get which habit of place is
# arbitrary then, and an interval over patients doesn't see that. So a specificity counts as reading
# only as far as it exceeds the control's *on the same layers*. (Its text encoder is the first
# arm's: only the U-Net's captions are shuffled.)

# %% [markdown]
# ## F3: generative against discriminative
# The same text encoder, the same pairs, two ways to ask where: attention of a model that draws
# against cosines of a model that compares. Threshold IoU is the measure of the paper's headline
# ("doubling mIoU" against BioViL) in the form that earlier work reports.

# %%
discriminative = config.methods["biovil"].label
compared_by = ["cnr", "threshold_iou", "specificity"]
f3 = claims_of("F3-generative", "domain-frozen", discriminative, compared_by)
f3 += claims_of("F3-generative-all-layers", "domain-frozen", discriminative, compared_by, **every)
print(*f3, sep="\n")

# %% [markdown]
# ## F0: against no skill
# The arm has to beat the best prior that knows the finding's name, and its own map of another
# phrase.

# %%
prior, swapped = "mean box per finding", "its map of another phrase"
f0 = claims_of("F0-prior", "domain-frozen", prior, measures)
f0 += claims_of("F0-prior-all-layers", "domain-frozen", prior, measures, **every)
for blind in ("random", "centre prior", "mean box"):
    id = f"F0-{blind.replace(' ', '-')}"
    f0 += claims_of(id, "domain-frozen", blind, ["cnr"])
    f0 += claims_of(f"{id}-all-layers", "domain-frozen", blind, ["cnr"], **every)
f0 += claims_of("F0-other-phrase", "domain-frozen", swapped, ["cnr"])
f0 += claims_of("F0-other-phrase-all-layers", "domain-frozen", swapped, ["cnr"], **every)
print(*f0, sep="\n")

# %%
all_claims = f1 + f1_all + f3 + f0
beside = [made for made in all_claims if any(arm in made.claim for arm in controls)]
groups = {"07_claims": [made for made in all_claims if made not in beside], "07_controls": beside}
for name, some in groups.items():
    if some:
        held = sum(made.holds for made in some)
        fig = charts.forest(some, f"{held} of {len(some)} differences lie above zero")
        plots.save_figure(config, fig, name)

# %% [markdown]
# ## Class by class
# Classes differ in size and in how much text is needed to find them. Rare ones weigh little in the
# micro average and much in the macro average.

# %%
compared = (*arms, discriminative, "mean box per finding")
shown = [name for name in table.index if name in compared]
per_class = partial(statistics.per_class, column="cnr")
by_class = {name: per_class(everything[everything["method"] == name]) for name in shown}
cnr = pd.DataFrame({name: part["cnr"] for name, part in by_class.items()})
counts = by_class[shown[0]]["pairs"]
fig = charts.classes(cnr, counts, "CNR", "CNR by class, and the three averages of the classes")
plots.save_figure(config, fig, "07_classes")

# %%
per_class = partial(statistics.per_class, column="specificity")
by_class = {name: per_class(everything[everything["method"] == name]) for name in shown}
read = {name: part["specificity"] for name, part in by_class.items()}
pd.DataFrame(read).add_suffix(", specificity").round(2)

# %% [markdown]
# ## Phrases that training has read
# No test phrase describes a region of a training image, but some occur word for word inside a
# training impression (notebook [01](01_data_preparation.ipynb)). If those alone were grounded, the
# model would have learned phrases by heart:

# %%
known = text.occurring(rows["phrase"], products.training_texts(config).captions)
wording = np.where(known, "occurs in training", "does not")
first = rows.assign(wording=wording)[rows["arm"] == "domain-frozen"]
draws = config.evaluation.bootstrap
charts.readable(statistics.summary(first, "wording", ["cnr", "pointing", "specificity"], draws))

# %% [markdown]
# ## Three averages
# *micro*: over pairs. *macro*: over classes. *paper*: classes weighted by the **square** of their
# counts, which is what the published code computes and what its LDM rows report, while its BioViL
# rows are macro averages: one column of the paper's table compares two averages.

# %%
average = partial(statistics.summary, everything, "method", resamples=config.evaluation.bootstrap)
averaged = ["cnr", "abs_cnr", "balanced_iou", "specificity"]
kinds = {kind: average(columns=averaged, average=kind) for kind in ("micro", "macro", "paper")}
for column in averaged:
    by_kind = pd.DataFrame({kind: averages[column] for kind, averages in kinds.items()})
    display(charts.readable(by_kind.rename_axis(columns=charts.LABELS[column])))

# %% [markdown]
# ## What it looks like
# Pairs at fixed ranks of the first arm's CNR, from its best to its worst. Rows: the film with its
# boxes, then the map of every arm (first seed), each scaled to [0, 1] by itself: compare places,
# not strengths.

# %%
first = rows[(rows["arm"] == arms[0]) & (rows["seed"] == seeds[0])]
chosen = statistics.ranked(first, "cnr", [float(rank) for rank in shown_ranks.split()])
examples = [statistics.pair_of(row, pairs) for _, row in chosen.iterrows()]
options = products.grounding_options(config)

# %%
fig, axes = overlays.panels(len(examples), 1 + len(arms), size=1.9)
for ax, pair in zip(axes[0], examples, strict=True):
    framed = pair.framed(config.image_size)
    overlays.show_image(ax, framed.array(), boxes=framed.boxes)
    ax.set_title(overlays.wrapped(pair.phrase, 28), fontsize=7.5)
for arm, line in zip(arms, axes[1:], strict=True):
    model = products.model(config, arm, seeds[0])
    for ax, pair in zip(line, examples, strict=True):
        framed = pair.framed(config.image_size)
        found = ablations.example_grounding(model, pair, **options)
        overlays.overlay(ax, framed.array(), found.heatmap, boxes=framed.boxes, mask=found.mask)
        ax.set_title(f"{arm}: CNR {found.metrics['cnr']:.2f}", fontsize=7.5)
overlays.legend(fig, mask=True)
overlays.colour_bar(fig, axes, "heat, scaled to [0, 1]")
plots.save_figure(config, fig, "07_examples")

# %% [markdown]
# The left column is what the method can do, the right one how it fails: look there for heat on the
# wrong lung, or on the anatomy in which such findings usually lie.
#
# ## A harder world: real backgrounds
# The same findings, implanted into real normal radiographs: real ribs, vessels and hearts that no
# model here was trained on. The same table, with mean boxes of that world.

# %%
normals = backgrounds or os.environ.get("G2G_BACKGROUNDS", "")
hard = None
if normals:
    hard_pairs = record.pairs(harder.examples(config, normals, "test", background_images))
    methods = products.methods(config, harder.regions(config, normals))
    hard = harder.scores(methods, hard_pairs)
else:
    print("skipped: no folder of normal radiographs was given. Set the parameter `backgrounds`, or")
    print("run G2G_BACKGROUNDS=FOLDER ./run_all.sh, with films like those that ChestX-ray14 labels")
    print("'No Finding' (of 30 patients or more: splits share none)")

# %%
if hard is not None:
    display(
        charts.readable(statistics.summary(hard, "method", columns, config.evaluation.bootstrap))
    )
    others = [name for name in (*arms[1:], "mean box per finding") if name in set(hard["method"])]
    first_arm, resamples = hard[hard["method"] == arms[0]], config.evaluation.bootstrap
    for method in others:
        other = hard[hard["method"] == method]
        gap = {name: statistics.difference(first_arm, other, name, resamples) for name in measures}
        print(f"{arms[0]} − {method}:", {charts.LABELS[name]: str(gap[name]) for name in gap})

# %%
if hard is not None:
    drawn = harder.examples(config, normals, "test", len(examples))
    fig, axes = overlays.panels(len(drawn), 1, size=1.9)
    for ax, example in zip(axes.flat, drawn, strict=True):
        overlays.show_image(ax, example.array(), boxes=example.boxes)
        ax.set_title(overlays.wrapped(example.phrase, 34), fontsize=6)

# %% [markdown]
# ## What we learned
# Written by the run, not by hand:

# %%
main = [made for made in f1 + f3 + f0 if made not in beside and "all layers" not in made.claim]
more = [made for made in all_claims if made not in main]
folded = f"{len(more)} more, over all layers and beside the controls"
Markdown(
    f"{claims.verdicts(main)}\n\n<details><summary>{folded}</summary>\n\n"
    f"{claims.verdicts(more)}\n\n</details>"
)

# %%
blind = scores["arm"].isna() & ~scores["method"].isin(products.compared(config))
best = scores[blind].groupby("method")["cnr"].mean()
arm = table.loc[arms[0]]
print(f"{arms[0]}: CNR {arm['cnr']}, specificity {arm['specificity']}")
print(f"strongest row without skill: {best.idxmax()}, CNR {best.max():.3f}")

# %% [markdown]
# What this cannot tell: the intervals hold for these trained models and patients like these; with
# few seeds, how far another training of the U-Net would land is known only roughly (the dots, and
# the table seed by seed), and how far another training of a *text encoder* would, not at all. Which
# layers are averaged can decide a comparison of encoders, so both tables count. Phantoms have
# truthful, short impressions; radiographs don't.
#
# The layout of the miniature's U-Net was first seen to help on these test pairs, in two arms, and
# then chosen on validation pairs (docs/miniature_log.md); everything else was chosen there.
#
# ## Next
# - [08 · which settings matter](08_hyperparameters.ipynb)
# - [09 · do the better grounders draw better?](09_fidelity_tradeoff.ipynb)
# - [11 · what the metrics hide](11_metric_audit.ipynb)
