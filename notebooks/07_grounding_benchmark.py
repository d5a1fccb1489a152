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
# The paper's main finding ([Generate to Ground](https://openreview.net/forum?id=yTjotBI30L), Table
# 1, Figure 3, Appendix D): a latent diffusion model fine-tuned under a **frozen, domain-specific**
# text encoder grounds phrases better than one under a frozen generic encoder, and that better than
# one whose encoder learns along. Does it hold here, over seeds, with intervals, and beside maps
# that never saw the phrase? The whole Table 1, beside the printed one, is in notebook 19.
#
# ## You need
# - the evaluations of all arms and seeds, and the baselines (made when missing: about 20 minutes on
#   two CPU cores for the miniature); with them half a minute on one core; no GPU
#
# ## Parameters
# `shown_ranks` says which test pairs the figure of examples shows: by rank, so that nobody chooses.
# `backgrounds` is a folder of normal radiographs for one more row; without it that row is left out.

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

import numpy as np
import pandas as pd
from IPython.display import Markdown

from g2g_utils import bbm, masks, plots, text
from g2g_utils.bench import audit, benchmark, claims, harder, statistics
from g2g_utils.data import record
from g2g_utils.experiment import products
from g2g_utils.plots import charts, overlays
from g2g_utils.runs import places

# %%
plots.use_style()
charts.use_colours(products.compared(config))

# %% [markdown]
# ## What is compared, and on what
# Every arm differs from the others in its text encoder only: the same images, U-Net, steps,
# learning rate and noise (text weights that learn have a rate of their own). All are scored on the
# same pairs of the **test** split; choices were made on the validation split. Pairs of one image
# are not independent, so every interval resamples patients. A seed is one training of the *U-Net*:
# every text encoder was trained once.

# %% tags=["nbval-check-output"]
pairs = products.evaluation_pairs(config, "test")
patients = {pair.subject_id for pair in pairs}
print(f"{len(pairs)} pairs, {len(patients)} patients")
print(sorted({str(pair.finding) for pair in pairs}))

# %%
scores = products.scores(config)
rows = scores[scores["arm"].notna()].astype({"seed": int})
arms, seeds = config.training.compared, sorted(rows["seed"].unique().tolist())
trainings = rows.groupby("arm", sort=False)["seed"].nunique().to_dict()
print(f"{len(rows)} rows = {len(pairs)} pairs × {sum(trainings.values())} trainings")
print("trainings:", ", ".join(f"{arm} {count}" for arm, count in trainings.items()))
print("degenerate cases:", rows["note"].value_counts().to_dict() or "none")

# %% [markdown]
# - **Arms**: *domain-frozen* (a small CXR-BERT), *generic-frozen* (a small CLIP that has read
#   captions of coloured glyphs), *generic-learnable* (the same, trained along).
# - **Controls** of ours. They take the domain encoder apart: *random-frozen* is it untrained,
#   *mlm-frozen* has masked language alone, *global-frozen* the contrast of whole sentences with
#   images besides; domain-frozen has the *local* contrast of words with patches on top.
#   *domain-shuffled* learned from the captions of other images; *foundation* never saw a film.
# - **BioViL-like**: the discriminative method, cosines between words and image patches, from
#   contrastive training of the same text encoder on the same pairs, smoothed as its authors do.
# - **Rows without skill**: noise; a blob in the centre; the mean training box; the mean box of the
#   finding, which reads the class alone; and the first arm's map of *another* phrase.
#
# ## The measures
# With $\mu,\sigma^2$ the mean and variance of the heat inside and outside the boxes,
#
# $$\mathrm{CNR}=\frac{\mu_{in}-\mu_{out}}{\sqrt{\sigma^2_{in}+\sigma^2_{out}}}.$$
#
# AUC asks how well heat ranks pixels, Top-1 how often the maximum hits a box. A map can score well
# without reading, for lungs lie where lungs lie. So there is one more number,
#
# $$\text{specificity}=\mathrm{CNR}(\text{own phrase})-\mathrm{CNR}(\text{another phrase}),$$
#
# both on the same image against the own boxes; the other phrase is of another finding elsewhere,
# drawn with a fixed seed. A map that ignores the phrase has specificity 0. Both IoUs are defined in
# notebook [11](11_metric_audit.ipynb), all words in the [glossary](../docs/glossary.md).

# %%
everything = statistics.methods(scores)
columns = ["cnr", "auc_roc", "pointing", "specificity"]
biovil, prior = config.methods["biovil"].label, "mean box per finding"
blind = ["its map of another phrase", prior, "mean box", "centre prior", "random"]
listed = [name for name in (*trainings, biovil, *blind) if name in set(everything["method"])]
shown = pd.concat([everything[everything["method"] == name] for name in listed])
draws = config.evaluation.bootstrap
table = statistics.summary(shown, "method", columns, draws)

# %%
trained = everything[everything["seed"].notna()]
by_seed = trained.groupby(["method", "seed"], sort=False)[columns].mean().reset_index()
title = f"Test split: {len(pairs)} pairs, {len(seeds)} seeds (dots), 95 % intervals over patients"
fig = charts.bars(table, columns, by_seed, title, zero={"auc_roc": 0.5})
alt = f"Bars of {len(table)} rows, arms above, rows without skill below, in CNR, AUC, Top-1 and "
plots.save_figure(config, fig, "07_grounding_benchmark", alt=f"{alt}specificity")

# %% [markdown]
# Read the bars from the bottom: what the rows without skill reach is free. Only what an arm has
# above them, and its specificity, is grounding. Dots apart from each other say how much one more
# training of the U-Net would move a bar. (Micro averages; the plain activation map: content words,
# ground-truth sampling, no bias merging, the profile's layers. The methods of later notebooks, and
# balanced and threshold IoU of all rows, are in [results.md](../docs/results.md).)
#
# ## Twelve claims
# A claim *holds* if the 95 % interval of the paired difference (same pairs, seeds averaged) lies
# above zero, is *reversed* if it lies below, else it is *not shown*. F1 and F3 are the paper's, F0
# and all rows with a control arm are ours.


# %%
def claims_of(id, better, worse, measures, table=everything, note="") -> list[claims.Claim]:
    """One claim a measure that a method exceeds another on the same pairs and seeds."""
    first, second, common = statistics.on_common_seeds(table, better, worse)
    gaps = {name: statistics.difference(first, second, name, draws) for name in measures}
    known = [name for name in measures if pd.notna(gaps[name].value)]
    said = {name: f"{better} > {worse} in {charts.LABELS[name]}{note}" for name in known}
    return [claims.claim(config, f"{id}-{n}", said[n], gaps[n], common) for n in known]


# %%
measures, domain = ["cnr", "specificity", "auc_roc"], arms[0]
whole = statistics.methods(products.scores(config, "all layers"))
views = {"": (everything, ""), "-all-layers": (whole, " (all layers)")}
generic, learnable, swapped = "generic-frozen", "generic-learnable", "its map of another phrase"
compared = {
    "F1-domain-generic": (domain, generic, measures),
    "F1-generic-learnable": (generic, learnable, measures),
    "F3-generative": (domain, biovil, ["cnr", "specificity", "threshold_iou"]),
    "F0-prior": (domain, prior, measures),
    "F0-other-phrase": (domain, swapped, ["cnr"]),
}
for name in ("random", "centre prior", "mean box"):
    compared[f"F0-{name.replace(' ', '-')}"] = (domain, name, ["cnr"])

# %%
controls, known = [arm for arm in trainings if arm not in arms], config.training.arms
frozen = [arm for arm in controls if not (known[arm].shuffled or known[arm].pictures)]
compared |= {f"F1-control-{arm}": (domain, arm, measures) for arm in frozen}
untrained = "random-frozen"
if untrained in frozen:
    compared["F1-control-random-generic"] = (untrained, generic, measures)
for arm in set(controls) - set(frozen):
    compared[f"F0-{arm}"] = (domain, arm, measures)
    compared[f"F0-{arm}-no-skill"] = (prior, arm, measures)

# %%
made = {}
for end, (rows_of, note) in views.items():
    for id, (better, worse, kinds) in compared.items():
        for one in claims_of(f"{id}{end}", better, worse, kinds, rows_of, note):
            made[one.id] = one
main = [f"{id}-{kind}" for id in ("F1-domain-generic", "F1-generic-learnable", "F3-generative")
        for kind in ("cnr", "specificity")]  # fmt: skip
main += [f"F1-control-{name}-specificity" for name in ("random-generic", *frozen)]
main = [made[id] for id in (*main, "F0-prior-cnr", "F0-prior-specificity") if id in made]
more = [one for one in made.values() if one not in main]

# %%
names = {one.id: f"{one.id[:2]} · {one.claim}" for one in main}
held = sum(one.holds for one in main)
fig = charts.verdicts(main, names, f"{held} of {len(main)} claims hold")
plots.save_figure(config, fig, "07_claims", alt="Differences with intervals, one row a claim")

# %%
Markdown(claims.folded([], more, "the same over all layers, in AUC, and beside every control"))

# %% [markdown]
# ## F1, first half: why is domain > generic?
# Our encoders differ in more than their domain. The tokenizer of the domain encoder keeps medical
# words whole, that of the generic one cuts them into pieces. How much of a phrase is later pieces?

# %%
first_of = {arm: products.model(config, arm, seeds[0]) for arm in arms}
lost = {arm: audit.lost_tokens(first_of[arm], pairs) for arm in (domain, generic) if arm in arms}
print(", ".join(f"{arm}: {part:.0%} of the content words' tokens are later pieces"
                for arm, part in lost.items()))  # fmt: skip

# %%
steps = {
    generic: "generic: word pieces, glyph captions",
    untrained: "untrained: whole words, random states",
    "mlm-frozen": "+ masked language",
    "global-frozen": "+ global contrast",
    domain: "+ local contrast (domain)",
}
known_steps = [name for name in steps if name in table.index]
decomposed = table.loc[known_steps, ["cnr", "auc_roc", "specificity"]].rename(index=steps)
fig = charts.bars(decomposed, list(decomposed), zero={"auc_roc": 0.5},
                  title="What in the encoder helps: one thing more a row")  # fmt: skip
plots.save_figure(config, fig, "07_encoders", alt="Bars of five encoders in CNR, AUC, specificity")

# %%
added = made.get("F1-control-random-generic-specificity")
confound = claims.told(
    added,
    holds="So a part of F1 is not what an encoder has *learned* about films: under random states a "
    "U-Net can still learn where each whole word belongs, as a code. Word pieces whose states were "
    "made for colours and shapes give it less.",
    reversed="Here the trained generic encoder is the better code.",
    not_shown="Here tokenizer and architecture alone make no difference that shows.",
) if added else "not asked in this profile."  # fmt: skip
local = made.get("F1-control-global-frozen-specificity")
objective = claims.said(local) if local else "not asked in this profile"
Markdown(f"**Untrained domain encoder > trained generic one, in specificity:** {confound}\n\n"
         f"**With the local contrast > without, all else equal:** {objective}.")  # fmt: skip

# %% [markdown]
# The confound has a name: between *generic* and *untrained* the tokenizer, the architecture (a CLIP
# reads from left to right, a BERT both ways), the objective and the corpus all change at once. An
# arm with whole words *and* the generic objective would separate them; it is not trained here. The
# rows from *untrained* downwards share tokenizer, architecture and width, so what they differ by is
# the objective: that part of F1 is clean. And this generic encoder is far weaker than the CLIP of
# the paper, which has read medical words.
#
# ## F1, second half: learning along
# In the paper the learnable CLIP grounds worst by far (Appendix D). Seed by seed, because the
# intervals above resample patients and not trainings:


# %%
def seed_gaps(better: str, worse: str, column: str) -> dict[str, statistics.Interval]:
    """The difference of two arms in every seed, with its interval over patients."""
    gaps = {}
    for seed in seeds:
        of_seed = trained[trained["seed"] == seed]
        sides = (of_seed[of_seed["method"] == name] for name in (better, worse))
        gaps[f"seed {seed}"] = statistics.difference(*sides, column, draws)
    return gaps


# %%
halves = [(domain, generic), (generic, learnable)]
gaps = {
    f"{charts.LABELS[c]}: {a} − {b}": seed_gaps(a, b, c) for a, b in halves for c in columns[::3]
}
charts.readable(pd.DataFrame(gaps).T)

# %%
learning = made.get("F1-generic-learnable-cnr")
Markdown("**Frozen generic > learnable generic, in CNR:** " + (claims.told(
    learning,
    holds="As in the paper: the encoder is spoiled while it learns.",
    reversed="Because there is nothing to spoil: the paper's CLIP loses what millions of captions "
    "taught it; ours has read captions of coloured glyphs, and its states can only move towards "
    "the findings. A reading, not a test: the test would be an encoder that is worth keeping.",
    not_shown="Learning along makes no difference that shows.",
) if learning else "not asked in this profile."))  # fmt: skip

# %% [markdown]
# ## F3: a model that draws against a model that compares
# The same text encoder, the same pairs, two ways to ask where: attention while drawing against
# cosines of words and patches. The sign of the answer has changed with the training and changes
# with the films, so here is its history (earlier runs: [log](../docs/miniature_log.md)).

# %%
earlier = pd.read_csv(places.ROOT / "docs" / "earlier.csv", comment="#")
history = {}
for _, row in earlier[earlier["claim"].str.startswith("F3-")].iterrows():
    gap = statistics.Interval(row["estimate"], row["low"], row["high"])
    history.setdefault(row["run"], {})[row["claim"].removeprefix("F3-generative-")] = gap
f3 = {kind: made.get(f"F3-generative-{kind}") for kind in ("cnr", "specificity", "threshold_iou")}
history["this run"] = {
    kind: statistics.Interval(one.estimate, one.low, one.high) for kind, one in f3.items() if one
}
said_f3 = {kind: claims.said(one) if one else "not asked in this profile"
           for kind, one in f3.items()}  # fmt: skip
charts.readable(pd.DataFrame(history).T.rename_axis(f"{domain} − {biovil}"))

# %% [markdown]
# ## Class by class
# Where does each side win? The same two measures, class by class; in brackets the number of pairs.

# %%
by_class = {
    name: statistics.summary(part, "finding", ["cnr", "specificity"], draws).sort_index()
    for name, part in shown.groupby("method", sort=False)
    if name in (*arms, biovil, prior)
}
cnr = pd.DataFrame({name: part["cnr"].map(lambda c: c.value) for name, part in by_class.items()})
wins, lowest = int((cnr.idxmax(axis=1) == biovil).sum()), cnr[domain].idxmin()
counts = {finding: f"{finding} ({n})" for finding, n in by_class[domain]["pairs"].items()}
renamed = {name: part.rename(counts) for name, part in by_class.items()}
fig = charts.dots(renamed, ["cnr", "specificity"],
                  f"{biovil} has the highest CNR in {wins} of {len(cnr)} classes")  # fmt: skip
plots.save_figure(config, fig, "07_classes", alt="Dots of five methods in every class (pairs)")

# %%
boxes = [np.array(p.framed(config.image_size).boxes, float) for p in pairs]
areas = pd.Series([(b[:, 2] * b[:, 3]).sum() for b in boxes], [p.finding for p in pairs])
sizes = areas.groupby(level=0).mean().loc[cnr.index]
share = sizes / config.image_size**2
if biovil in cnr:
    ahead = cnr[biovil] > cnr[domain]
    larger, smaller = share[~ahead].mean(), share[ahead].mean()
    print(f"mean share of the film in boxes: {smaller:.0%} in the {ahead.sum()} classes where "
          f"{biovil} is ahead of {domain}, {larger:.0%} in the others")  # fmt: skip

# %%
Markdown("**F3 in CNR:** " + (claims.told(
    f3["cnr"],
    holds="The attention of a model that draws has the higher contrast.",
    reversed="Because both sides use one encoder: trained longer, it helped the cosines more "
    "(first row of the table: under short encoders F3 held). Cosines win where a finding is a "
    "patch with a look of its own, and lose where it is a whole organ or region; among real ribs "
    "and vessels they lose more than the attention, and F3 holds again (second row).",
    not_shown="Neither has the higher contrast.",
) if f3["cnr"] else said_f3["cnr"]) + (
    f"\n\n**In specificity:** {said_f3['specificity']}. **In threshold IoU**, the "
    f"measure that BioViL's line reports: {said_f3['threshold_iou']}. So name the measure "
    f"with the claim. The class that {domain} finds hardest is **{lowest}**."))  # fmt: skip

# %% [markdown]
# The paper's own hardest class is pneumothorax (Table 1, and its limitations): the film is *darker*
# there, the phrase names no organ, and merging makes it worse. Rare classes weigh little in these
# micro averages; notebook [11](11_metric_audit.ipynb) shows how much the choice of the average
# moves, and that the paper's table uses two.
#
# ## What it looks like
# As in Figure 3 of the paper: pairs at fixed ranks of the first arm's CNR, from its best to its
# worst, under every method (first seed). `+bbm` is Bimodal Bias Merging (notebook
# [06](06_bimodal_bias_merging.ipynb)). Each map is scaled to [0, 1] by itself: compare places, not
# strengths.

# %%
first = rows[(rows["arm"] == domain) & (rows["seed"] == seeds[0])]
chosen = statistics.ranked(first, "cnr", [float(rank) for rank in shown_ranks.split()])
examples = [
    statistics.pair_of(row, pairs).framed(config.image_size) for _, row in chosen.iterrows()
]
asked = [method for method in [products.method(config, "biovil")] if method]
names_shown = (learnable, generic, domain, f"{domain}+bbm")
asked += [products.method(config, name, seeds[0]) for name in names_shown if name in config.methods]

# %%
fig, axes = overlays.panels(len(examples), 1 + len(asked), size=1.75)
for ax, pair in zip(axes[0], examples, strict=True):
    overlays.show_image(ax, pair.array(), boxes=pair.boxes)
    ax.set_title(overlays.wrapped(pair.phrase, 26), fontsize=7.5)
for method, line in zip(asked, axes[1:], strict=True):
    line[0].set_ylabel(method.name)
    for ax, pair in zip(line, examples, strict=True):
        found = benchmark.answer(method, pair)
        heat = bbm.minmax(found.values)
        score = benchmark.quick_scores([heat], pair.boxes, config.image_size)[0]["cnr"]
        mask = masks.gmm_mask(heat) if found.mask is None else found.mask
        overlays.overlay(ax, pair.array(), heat, boxes=pair.boxes, mask=mask)
        ax.set_title(f"CNR {score:.2f}", fontsize=7.5)
overlays.legend(fig, mask=True)
plots.save_figure(config, fig, "07_examples", alt="Films (columns) grounded by methods (rows)")

# %% [markdown]
# The left column is what the method can do, the right one how it fails: look there for heat on the
# wrong lung, or on the anatomy in which such findings usually lie.
#
# ## Has it learned phrases by heart?
# No test phrase describes a region of a training image, but some occur word for word inside a
# training impression (notebook [01](01_data_preparation.ipynb)). Are those grounded better?

# %%
own = rows[rows["arm"] == domain]
phrases = own["phrase"].unique()
seen = pd.Series(text.occurring(phrases, products.training_texts(config).captions), phrases)
said = seen.map({True: "occurs in training", False: "does not"})
own = own.assign(wording=own["phrase"].map(said))
charts.readable(statistics.summary(own, "wording", ["cnr", "pointing", "specificity"], draws))

# %% [markdown]
# ## Controls of everything
# Captions of *other* images tie no word to a place, and neither does a model that never saw a film:
# both have to fall to no skill. A training of the first can still have some specificity by luck,
# for which word gets which habit of place is arbitrary then. So a specificity counts as reading
# only as far as it exceeds this one.

# %%
luck = [name for name in controls if name not in frozen and name in table.index]
charts.readable(table.loc[[domain, *luck, prior], columns])

# %% [markdown]
# ## Real backgrounds
# The same findings drawn into real normal radiographs, on which no model here was trained: one more
# row of F3's history, measured where a folder of such films is given (`backgrounds`).

# %%
normals = backgrounds or os.environ.get("G2G_BACKGROUNDS", "")
if normals:
    hard_pairs = record.pairs(harder.examples(config, normals, "test", background_images))
    methods = products.methods(config, harder.regions(config, normals))
    hard = harder.scores(methods, hard_pairs)
    sides = [hard[hard["method"] == name] for name in (domain, biovil)]
    found = {kind: statistics.difference(*sides, kind, draws) for kind in f3}
    print(f"{domain} − {biovil}:", {charts.LABELS[kind]: str(gap) for kind, gap in found.items()})
    drawn = charts.readable(statistics.summary(hard, "method", columns, draws))
else:
    drawn = Markdown("Not measured in this run: the table of F3 has the log's numbers.")
drawn

# %% [markdown]
# ## What we learned
# Verdicts and numbers are this run's.

# %%
said = {id: claims.said(one) for id, one in made.items()}
absent = "not asked in this profile"
first_half = said.get("F1-domain-generic-specificity", absent)
second = f"{claims.said(learning)} in CNR" if learning else absent
parts = {"the local contrast of words with patches": local, "tokenizer and architecture": added}
shares = " and ".join(f"{one.estimate:+.2f} with {what}" for what, one in parts.items() if one)
free = table.loc[prior, "cnr"].value
also = [arm for arm in arms[1:] if arm in table.index and table.loc[arm, "cnr"].value > free]
reads = ", ".join(f"{arm} ({table.loc[arm, 'specificity'].value:.2f})" for arm in also)

# %%
Markdown(
    f"1. **Frozen domain > frozen generic > learnable** (F1): the first half "
    f"{first_half} in specificity, the second {second}. "
    f"Of the first, {shares or 'no part is taken apart in this profile'}.\n"
    f"2. **Drawing > comparing** (F3): {said_f3['cnr']} in CNR and "
    f"{said_f3['specificity']} in specificity. The measure, the encoder's training and the "
    f"films decide it.\n"
    f"3. **More than a prior** (F0, ours): {said.get('F0-prior-cnr', absent)} against the mean "
    f"box of the finding. CNR alone does not show reading; arms with more CNR than that box, and "
    f"their specificity: {reads or 'no other'}."
)

# %% [markdown]
# What this cannot tell: the intervals hold for these trained models and patients like these; how
# far another training of the U-Net would land is known roughly (the dots), another training of a
# *text encoder* not at all. Which layers are averaged can decide a comparison of encoders (notebook
# [08](08_hyperparameters.ipynb)), so every claim was also computed over all layers (folded above).
# Phantoms have truthful, short impressions; radiographs don't. The layout of the miniature's U-Net
# was first seen to help on these test pairs, in two arms, and then chosen on validation pairs
# ([log](../docs/miniature_log.md)); everything else was chosen there.
#
# **With real data**: `profile = "paper"` (MIMIC-CXR, MS-CXR) runs these cells with Stable
# Diffusion's U-Net under CXR-BERT and CLIP, T = 65 of which the last 45 are kept, seeds 4200, 1759
# and 6357; see [running.md](../docs/running.md).
#
# ## Exercises
# *Predict, run, explain.*
#
# 1. *domain-shuffled* got the captions of other images. Predict its CNR and its AUC before you
#    look. Why is its CNR not exactly 0?
# 2. Set `shown_ranks = "0.9 0.925 0.95 0.975 1"`. What do the worst pairs have in common, and which
#    method fails differently?
# 3. Which arm would lose most if its map were replaced by its map of another phrase? Predict from
#    the bars, then read it off `everything`.
#
# <details><summary>Answers</summary>
#
# 1. About 0, and about one half. Not exactly 0, for the U-Net has some place for every word; which
#    place is luck, and two trainings give two signs.
# 2. Small boxes, faint findings, or a side that the map misses. The cosines of BioViL-like fail by
#    marking *another* patch of the same look, the attention by falling back to where such findings
#    usually lie.
# 3. The arm with the highest specificity, by definition: specificity *is* that loss. The frozen
#    generic arm loses nearly nothing: it grounds any phrase where findings usually lie.
#
# </details>
#
# ## Next
# - [08 · which settings matter](08_hyperparameters.ipynb)
# - [09 · do the better grounders draw better?](09_fidelity_tradeoff.ipynb)
# - [11 · what the metrics hide](11_metric_audit.ipynb)
