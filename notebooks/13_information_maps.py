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
# # 13 · What does the phrase tell the model about this film?
#
# ## Question
# To read the attention, the film's latent is noised and the U-Net predicts the noise. That
# prediction is thrown away. But the noise that was added is known, so one can ask: *where does the
# phrase help to predict it?* Where it helps, the phrase explains something that is on this film.
# This is an **information map**. It is the project's own; the paper does not have it.
#
# ## You need
# - the scores of the methods (made when missing: about four minutes on two CPU cores for the
#   miniature); with them two minutes on one core; no GPU
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
pair: int = -1  # the worked example: a test pair; -1 the running example
shown_ranks: str = "0 0.5 1"  # examples by gain over attention: 0 the best test pair, 1 the worst
word_pairs: int = 24  # pairs for the words

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import json

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown
from scipy.integrate import trapezoid

from g2g_utils import bbm, information, plots, sampling, text
from g2g_utils.bench import benchmark, claims, presence, statistics
from g2g_utils.experiment import ground_file, products
from g2g_utils.methods import registry
from g2g_utils.plots import charts, overlays
from g2g_utils.runs import places

# %%
plots.use_style()
charts.use_colours(products.compared(config))

# %% [markdown]
# ## From two predictions to a map, in five steps
# **1. Noise that we know.** The film's latent $z$ is mixed with noise $\varepsilon$ that we draw
# ourselves: $z_t=\alpha_t z+\sigma_t\varepsilon$. The later the timestep $t$, the less of the film
# is left.

# %%
# NBVAL_CHECK_OUTPUT
example = ground_file.chosen_example(config, "", "", pair)
image, phrase = example.array(), example.phrase
T = config.grounding.timesteps
print(f"image {image.shape}, phrase {phrase!r}, T = {T} timesteps")

# %%
model = products.model(config)
times = sampling.timesteps(model, T)
latents = sampling.posterior(model, [sampling.check_image(model, image)])
middle = times[len(times) // 2]
noisy, noise = sampling.noised(model, latents, middle, seed=0)
print(f"z_t and ε at t = {middle}: {tuple(noisy.shape)} (film, channels, height, width)")

# %% [markdown]
# **2. Two predictions of that noise** from the same $z_t$: one under the phrase, one under a
# *condition* to compare with. Here it is the empty prompt, which the model knows because a share of
# the captions was dropped in training.

# %%
states = torch.cat([model.encode_phrases([phrase]), sampling.empty_states(model)])
with torch.no_grad():
    predicted = information.predicted_noise(model, noisy, torch.tensor([middle]), states)[0]
print(f"ε̂ under phrase and empty prompt: {tuple(predicted.shape)}")

# %% [markdown]
# **3. Which is nearer to the truth, place by place?** Squared errors, summed over the channels; the
# *gain* is the error without the phrase minus the error with it:
#
# $$G(p)=\sum_{\text{channels}}\bigl[(\varepsilon-\hat\varepsilon(z_t,\varnothing))^2-
# (\varepsilon-\hat\varepsilon(z_t,c))^2\bigr](p).$$

# %%
errors = (noise[0] - predicted).square().sum(1)  # phrase, empty: 2 h w
single = errors[1] - errors[0]
print(f"gain of one draw at one timestep: {tuple(single.shape)}, sum {float(single.sum()):+.2f}")

# %% [markdown]
# **4. Average** over timesteps and draws of the noise. `information.measure` does all of it, with
# the same noise for every phrase and every condition. Two conditions are averaged: the empty prompt
# ("what does the phrase add?") and a normal impression ("what does it explain that a normal film
# does not have?"). The second matters most; both were chosen on validation pairs.

# %%
options = {"timesteps": T, "layers": config.grounding.layers}
told = information.measure(model, image, [phrase], **options)[0]
for condition, total in zip(told.conditions, told.totals, strict=True):
    print(f"total gain over {condition or 'the empty prompt'!r}: {total:+.3f}")

# %% [markdown]
# **5. A heat map.** The gain is smoothed by a Gaussian of 1.5 places of 16 and kept positive by a
# softplus: negative gain means that the phrase misleads there. The attention was recorded in the
# same forwards, so the **product** with its square root costs nothing more.

# %%
gain = information.smooth(told.gain)
largest = float(gain.abs().max())
steps = {
    f"one draw, t = {middle}": single,
    "all timesteps": told.gain,
    "smoothed": gain,
}
maps = {"information": told.heatmap(), "attention": told.attention, "product": told.product()}

# %%
fig, axes = overlays.panels(4, 2, size=2.1)
for ax, (name, values) in zip(axes[0], steps.items(), strict=False):
    limit = float(values.abs().max())
    overlays.show_map(ax, values, title=name, limits=(-limit, limit), signed=True)
overlays.show_image(axes[0, 3], image, boxes=example.boxes, title="the film")
for ax, (name, heat) in zip(axes[1], maps.items(), strict=False):
    cnr = benchmark.quick_scores([heat], example.boxes, config.image_size)[0]["cnr"]
    overlays.overlay(ax, image, heat, boxes=example.boxes, title=f"{name}: CNR {cnr:.2f}")
axes[1, 3].axis("off")
fig.suptitle(overlays.literal(f"“{phrase}”: gain (orange: the phrase helps)"), x=0.01, ha="left")
overlays.legend(fig)
plots.save_figure(config, fig, "13_five_steps")

# %% [markdown]
# ## Why squared errors: a toy whose answer is known
# Over all noise levels, the gain is a difference of log-likelihoods (Kong et al., *Interpretable
# Diffusion via Information Decomposition*, ICLR 2024). With $\lambda=\log(\alpha^2/\sigma^2)$ and
# the best possible predictions,
#
# $$\tfrac12\int \mathbb{E}_\varepsilon\bigl[(\varepsilon-\hat\varepsilon_\varnothing)^2-
# (\varepsilon-\hat\varepsilon_c)^2\bigr]\,d\lambda=\log p(z\mid c)-\log p(z).$$
#
# For Gaussians both sides can be written down. Take $z\sim N(0,1)$ where nothing is said, and
# $z\sim N(1,0.5^2)$ where the phrase is. The best prediction for $N(m,v)$ is
# $\hat\varepsilon=\sigma\,(z_t-\alpha m)/(\alpha^2v+\sigma^2)$.


# %%
def log_density(z, mean, variance):
    """Logarithm of a Gaussian's density."""
    return -0.5 * ((z - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def squared_error(z, alpha, sigma, mean, variance):
    """Expected squared error of the best prediction at every level [n], exact by quadrature."""
    noise, weights = np.polynomial.hermite_e.hermegauss(9)  # of a standard Gaussian
    noisy = alpha[:, None] * z + sigma[:, None] * noise
    scale = sigma / (alpha**2 * variance + sigma**2)
    error = (noise - scale[:, None] * (noisy - alpha[:, None] * mean)) ** 2
    return error @ weights / weights.sum()


# %%
levels = np.linspace(-14, 14, 400)  # log-SNR
alpha, sigma = np.sqrt(1 / (1 + np.exp(-levels))), np.sqrt(1 / (1 + np.exp(levels)))
rows = []
for z in (-1.0, 0.0, 0.5, 1.0, 2.0):
    plain, knowing = (squared_error(z, alpha, sigma, *p) for p in ((0, 1), (1, 0.25)))
    integral = trapezoid(plain - knowing, levels) / 2
    exact = log_density(z, 1, 0.25) - log_density(z, 0, 1)
    rows.append({"z": z, "integral of the gain": integral, "log-likelihood ratio": exact})
toy = pd.DataFrame(rows).set_index("z").round(3)
toy

# %%
# NBVAL_CHECK_OUTPUT
gap = (toy["integral of the gain"] - toy["log-likelihood ratio"]).abs().max()
print(f"largest gap between the two sides: {gap:.3f} nats")

# %% [markdown]
# So the gain is large where the phrase makes *this* film likelier, and negative where the film
# contradicts it. Attention cannot say that: it is the same softmax whether the finding is there or
# not. For a real U-Net predictions are not perfect, and the maps here weigh timesteps by
# $\sigma_t^2$ instead of integrating over $\lambda$ (better on validation): their unit is no nat.
#
# ## On the bench
# The same test pairs and seeds as in notebook [07](07_grounding_benchmark.ipynb): attention, the
# information alone, and both multiplied.

# %%
scores = products.scores(config)
arm = next(iter(config.training.arms))
known = registry.rows(config)
ours = [row.label for row in known.values() if row.kind.name == "information"]
rivals = [row.label for row in known.values() if row.kind.name == "biovil"]
shown = scores[scores["method"].isin([arm, *ours, *rivals])]
print(f"{shown.groupby('method', sort=False).size().to_dict()} rows")

# %%
columns = ["cnr", "auc_roc", "pointing", "threshold_iou", "balanced_iou", "specificity"]
table = statistics.summary(shown, "method", columns, config.evaluation.bootstrap)
charts.readable(table)

# %%
trained = shown[shown["seed"].notna()]
by_seed = trained.groupby(["method", "seed"], sort=False)[columns].mean().reset_index()
title = "Test pairs, seeds as dots, 95 % intervals over patients"
fig = charts.bars(table, columns, by_seed, title, zero={"auc_roc": 0.5})
plots.save_figure(config, fig, "13_information_benchmark")

# %% [markdown]
# ## F7: information × attention > attention
# A claim holds if the 95 % interval of the paired difference lies above zero.

# %%
product_label = ours[0]
first, second, seeds = statistics.on_common_seeds(shown, product_label, arm)
gaps = {c: statistics.difference(first, second, c, config.evaluation.bootstrap) for c in columns}
f7 = [
    claims.claim(
        config, f"F7-{c}", f"{product_label} > attention in {charts.LABELS[c]}", gap, seeds
    )
    for c, gap in gaps.items()
]
print(*f7, sep="\n")

# %%
gaps_by_seed = {
    f"seed {seed}": {
        charts.LABELS[c]: statistics.difference(
            first[first["seed"] == seed], second[second["seed"] == seed], c, 200
        )
        for c in columns
    }
    for seed in seeds
}
charts.readable(pd.DataFrame(gaps_by_seed).T)

# %% [markdown]
# ## Where it helps, and where it loses
# By finding, the difference of the product to attention:

# %%
keys = ["image_id", "phrase", "finding"]
means = [part.groupby(keys)[["cnr", "specificity"]].mean() for part in (first, second)]
difference = (means[0] - means[1]).reset_index()
by_finding = difference.groupby("finding")[["cnr", "specificity"]].agg(["mean", "size"])
by_finding = by_finding.drop(columns=[("specificity", "size")])
by_finding.columns = ["CNR, difference", "pairs", "specificity, difference"]
by_finding.sort_values("CNR, difference", ascending=False).round(2)

# %%
losing = difference[difference["cnr"] < 0]
worst = by_finding["CNR, difference"].idxmin()
print(
    f"the product has the lower CNR in {len(losing)} of {len(difference)} pairs; it gains least "
    f"for {worst} ({by_finding.loc[worst, 'CNR, difference']:+.2f})"
)

# %% [markdown]
# Pairs at fixed ranks of that difference, from the best to the worst for the product. Rows: the
# film, attention, information, product.

# %%
pairs = products.evaluation_pairs(config, "test")
ranks = [float(rank) for rank in shown_ranks.split()]
ranked = first.assign(gap=first["cnr"].to_numpy() - second["cnr"].to_numpy())
chosen = statistics.ranked(ranked[ranked["seed"] == seeds[0]], "gap", ranks)
films = [statistics.pair_of(row, pairs).framed(config.image_size) for _, row in chosen.iterrows()]
model = products.model(config, arm, seeds[0])
found = [information.measure(model, f.array(), [f.phrase], **options)[0] for f in films]

# %%
fig, axes = overlays.panels(len(films), 4, size=1.9)
for column, film, one in zip(axes.T, films, found, strict=True):
    overlays.show_image(column[0], film.array(), boxes=film.boxes)
    column[0].set_title(overlays.wrapped(film.phrase, 28), fontsize=7.5)
    heats = {"attention": one.attention, "information": one.heatmap(), "product": one.product()}
    for ax, (name, heat) in zip(column[1:], heats.items(), strict=True):
        cnr = benchmark.quick_scores([heat], film.boxes, config.image_size)[0]["cnr"]
        overlays.overlay(ax, film.array(), heat, boxes=film.boxes)
        ax.set_title(f"{name}: CNR {cnr:.2f}", fontsize=7.5)
overlays.legend(fig)
plots.save_figure(config, fig, "13_examples")

# %% [markdown]
# ## Quality against cost
# One row is one sample in one forward of the U-Net. Attention costs $T$ rows a phrase; information
# costs $T$ rows for each draw of the noise, for the phrase and for every condition (the phrases of
# a film share those of the conditions). The curves are of *validation* pairs and were measured by
# `benchmarks/information.py`, because the default run does not repeat them.

# %%
measured = json.loads((places.ROOT / "benchmarks" / "information.json").read_text())
curve = pd.DataFrame(measured["curve"])
shown_metrics = ["cnr", "pointing", "threshold_iou"]
interval = {m: curve[m].map(lambda cell: statistics.Interval(*cell)) for m in shown_metrics}
curve = curve.assign(**interval)
labels = {"product": "attention × information", "alone": "information"}
per_map = {
    labels[name]: part.sort_values(["rows", "T"]).groupby("rows").last()
    for name, part in curve.groupby("map", sort=False)
}

# %%
title = "Validation, three seeds; attention costs 10 rows, the cheap setting 30, the default 60"
fig = charts.lines(per_map, shown_metrics, "U-Net rows a phrase", title, True)
plots.save_figure(config, fig, "13_cost")

# %% [markdown]
# ## Which arms does it expose?
# Information asks whether the phrase *changes the prediction for the better*. An arm whose text
# says nothing to the U-Net cannot pass, however its attention looks. All arms on the test pairs at
# cheap cost (the first 96), from the same file:

# %%
arms = pd.DataFrame(measured["arms"])
cells = {
    metric: [statistics.Interval(*cell) for cell in arms[metric]]
    for metric in ("cnr", "pointing", "specificity")
}
charts.readable(arms[["arm", "map"]].assign(**cells).set_index(["arm", "map"]))

# %% [markdown]
# ## Words
# What does one word tell, given the rest? Leave it out and measure again: the information of the
# phrase minus that of the phrase without the word, from the same noise. The example is the first
# test phrase with a small effusion on one side, the kind that the paper shows.


# %%
def is_example(found) -> bool:
    """A small effusion on one side."""
    words = found.phrase.lower()
    return "effusion" in words and "small" in words and text.side_of(words) is not None


chosen = next((p for p in pairs if is_example(p)), pairs[0]).framed(config.image_size)
words = information.word_information(model, chosen.array(), chosen.phrase, **options)
whole = information.measure(model, chosen.array(), [chosen.phrase], **{**options, "filter": "all"})
print(f"{chosen.phrase!r}: {', '.join(words)}")

# %%
tokens = {word.text: list(word.tokens) for word in whole[0].phrase_tokens.words}
fig, axes = overlays.panels(len(words), 2, size=1.8)
for column, (word, gained) in zip(axes.T, words.items(), strict=True):
    attended = bbm.minmax(whole[0].token_maps[tokens[word]].mean(0))
    told_by = bbm.minmax(information.positive(information.smooth(gained)))
    overlays.overlay(column[0], chosen.array(), attended, boxes=chosen.boxes, title=word)
    title = f"gain {float(gained.sum()):+.2f}"
    overlays.overlay(column[1], chosen.array(), told_by, boxes=chosen.boxes, title=title)
fig.suptitle(overlays.literal(f"“{chosen.phrase}”: attention above, information below"), x=0.01,
             ha="left")  # fmt: skip
overlays.legend(fig)
plots.save_figure(config, fig, "13_words")

# %% [markdown]
# In numbers, over many pairs: the kinds of words, with the CNR of their own attention and of their
# own information against the boxes, and their share of the phrase's total gain.


# %%
def kind_of(word: str) -> str:
    """What a word says."""
    if word.lower() in ("left", "right"):
        return "side"
    if any(word.lower() in text.VOCABULARY[finding] for finding in text.VOCABULARY):
        return "finding"
    return "other"


# %%
rows = []
for some in pairs[:word_pairs]:
    film = some.framed(config.image_size)
    gains = information.word_information(model, film.array(), film.phrase, draws=1, **options)
    asked = {**options, "filter": "all", "draws": 1}
    full = information.measure(model, film.array(), [film.phrase], **asked)[0]
    places_of = {word.text: list(word.tokens) for word in full.phrase_tokens.words}
    for word, gained in gains.items():
        heats = [
            bbm.minmax(full.token_maps[places_of[word]].mean(0)),
            bbm.minmax(information.positive(information.smooth(gained))),
        ]
        cnr = [r["cnr"] for r in benchmark.quick_scores(heats, film.boxes, config.image_size)]
        rows.append([film.subject_id, kind_of(word), *cnr, float(gained.sum())])

# %%
names = ["subject_id", "word", "CNR of its attention", "CNR of its information", "total gain"]
kinds = pd.DataFrame(rows, columns=names).groupby("word")[names[2:]].agg("mean")
kinds.assign(words=pd.DataFrame(rows, columns=names).groupby("word").size()).round(2)

# %% [markdown]
# Attention shows where a *token* looks; a token's state holds the whole phrase, because the encoder
# reads in both directions. So the word "left" may look anywhere (notebook
# [05](05_token_maps.ipynb)). Information asks what the *word* changes: with "left" left out, the
# prediction for the named side gets worse.
#
# ## Presence: is the phrase true of this film at all?
# Summed over the film, the gain is evidence for the phrase. Phantoms know their truth, so it can be
# tested: true phrases against false ones of the same films, in four kinds. A score of .5 is a coin.

# %%
asked = products.questions(config)
judges = [presence.SCORE, presence.ATTENTION, *(name for name in rivals if name in asked)]
areas = presence.areas(asked, judges, config.evaluation.bootstrap)
charts.readable(areas)

# %%
f8 = []
asked_seeds = sorted(int(seed) for seed in asked["seed"].unique())
for kind, name in presence.KINDS.items():
    if name in areas.index:
        area = areas.loc[name, presence.SCORE]
        above = statistics.Interval(*(end - 0.5 for end in area))
        words = f"the gain tells true phrases from false ones, {name} (area − ½)"
        f8.append(claims.claim(config, f"F8-{kind}", words, above, asked_seeds))
print(*f8, sep="\n")

# %% [markdown]
# The model reads *finding* and *side*. It reads neither zone nor denial: "no effusion" has the same
# gain whether or not there is an effusion, because training texts deny findings on nearly every
# film, so that a denial tells the model nothing about the pixels.
#
# For `./run_all.sh ground … --method both` and the explorer, a logistic curve fitted on validation
# films turns the sum into a probability, with its error rate beside it. Is it honest on test films?

# %%
validation = products.questions(config, "validation")
calibration = presence.calibrate(validation)
judged = presence.judged(calibration, asked)
mistakes = presence.errors(judged, config.evaluation.bootstrap)
presence.reliability(judged).round(2)

# %%
print(f"Brier score {mistakes['brier'].value:.3f} (always one half: 0.250)")
print(f"true phrases called not supported: {mistakes['wrong'].value:.0%} "
      f"[{mistakes['wrong'].low:.0%}, {mistakes['wrong'].high:.0%}]")  # fmt: skip

# %% [markdown]
# That rate is of computed films, half of whose phrases were true. It is not the rate of any clinic,
# and no statement about a patient.
#
# ## With real data
# `./run_all.sh ground film.png "phrase" --method information` (or `both`) works under every
# profile; for the whole benchmark uncomment its row in `open` or `paper`. What changes: the U-Net
# must *know* such films (fine-tuned with dropped captions: 30 % in the paper), and at Stable
# Diffusion's size 30 rows at the cheap setting take three times as long as attention at $T=10$.
# Under the miniature's weights real films give noise, because they were never seen in training.
#
# ## What we learned
# Written by the run:

# %%
all_claims = f7 + f8
held = sum(made.holds for made in all_claims)
fig = charts.forest(all_claims, f"{held} of {len(all_claims)} differences lie above zero")
plots.save_figure(config, fig, "13_claims")
Markdown(claims.verdicts(all_claims))

# %% [markdown]
# Precedents: Kong et al. (ICLR 2024) decompose information in natural pictures; diffusion
# classifiers (Li et al., ICCV 2023) compare the sums; arXiv 2502.03687 does so for medical images.
# Grounding by the gain against a normal impression, and its product with attention, are new here.
#
# ## Next
# - [07 · the whole benchmark](07_grounding_benchmark.ipynb)
# - [10 · the explorer, with information and presence](10_explorer.ipynb)
