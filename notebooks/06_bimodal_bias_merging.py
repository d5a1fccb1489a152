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
# # 06 · Does merging image and text bias sharpen the map?
#
# ## Question
# An attention map mixes what the phrase asks for with what the model expects anyway. The paper's
# **Bimodal Bias Merging** (BBM) measures both expectations, the image's and the text's, and merges
# them into the map, the more the better they agree. How does it work, and does it help here?
#
# Paper: section 2.3, equations 2 to 6; results in Table 1 and Appendix B. Terms:
# [glossary](../docs/glossary.md); longer derivations: [derivations](../docs/derivations.md).
#
# ## You need
# - notebooks 04 and 05 (how a map is made, what start and content tokens are)
# - the evaluations of the arms (made when missing: about 20 minutes on two CPU cores for the
#   miniature); with them one minute on one core; no GPU
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
pair: int = -1  # number of a test pair; -1: the running example of all notebooks
guided_pairs: int = 24  # pairs for the effect of the text bias's guidance

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import pandas as pd
import torch
from IPython.display import Markdown

from g2g_utils import bbm, grounding, plots
from g2g_utils.bench import ablations, claims, merging_probes, sanity, statistics
from g2g_utils.experiment import ground_file, products
from g2g_utils.plots import charts, lessons

plots.use_style()

# %% [markdown]
# ## The plain map of one pair
# $A$ is the mean of the content words' attention over the profile's layers and the last $k$
# timesteps, scaled to [0, 1].

# %%
example = ground_file.chosen_example(config, "", "", pair)
image, options = example.array(), products.grounding_options(config)
steps, guidance = options["timesteps"], options["text_guidance"]

# %% tags=["nbval-check-output"]
print(f"image {image.shape}, T = {steps}, k = {options['keep_last']}, text guidance {guidance:g}")

# %%
model = products.model(config)
found = grounding.ground(model, image, example.phrase, curve="mixture", **options)
print(f"{example.phrase!r}: A {tuple(found.activation.shape)}, words {', '.join(found.words)}")

# %% [markdown]
# ## Image bias
# The start token stands for no word. Its maps, while the U-Net looks at the **real image**, are
# taken for what the *image* draws attention to: $B_I[t,l]$, one map a timestep $t$ and layer $l$.

# %%
keep = {name: options[name] for name in ("timesteps", "batch_size", "layers")}
maps, words = grounding.record_image(model, image, example.phrase, **keep)
image_bias = list(maps.by_step([words.start]).values())
print(f"{len(image_bias)} layers, the first {tuple(image_bias[0].shape)} (T, h, w)")

# %% [markdown]
# **Predict.** Is that map the same whatever is asked? The domain encoder is a BERT, in which every
# token sees every other; the generic encoder is a CLIP, which is *causal*: a token sees only those
# before it, and before the start token there is none. In which of the two does the start token's
# map change when another phrase is asked of the same film?

# %%
other = ground_file.other_phrase(config, example) or sanity.contrary(example.phrase)
arms = config.training.compared
starts = {}
for arm in arms[:2]:
    of_arm = products.model(config, arm)
    for asked in (example.phrase, other):
        recorded, tokens = grounding.record_image(of_arm, image, asked, **keep)
        starts[arm, asked] = recorded.mean([tokens.start])
likeness = {
    arm: sanity.correlation(*(starts[arm, p] for p in (example.phrase, other))) for arm in arms[:2]
}

# %%
rows = [
    (
        arm,
        image,
        example.boxes,
        {f"“{asked}”": starts[arm, asked] for asked in (example.phrase, other)},
    )
    for arm in arms[:2]
]
said = ", ".join(f"{arm} {value:.2f}" for arm, value in likeness.items())
title = f"The start token's map under two phrases: correlation {said}"
fig = lessons.map_rows(rows, title)
alt = "Start-token maps, one row an arm: the film, under its own phrase, under another phrase."
plots.save_figure(config, fig, "06_start_token", alt=alt)

# %%
said = [
    f"under {arm} it {'hardly depends' if value > 0.9 else 'depends'} on the phrase "
    f"(correlation {value:.2f})"
    for arm, value in likeness.items()
]
Markdown(
    f"The start token's map: {'; '.join(said)}. A bidirectional encoder writes the phrase into its "
    "start token (it is the state that the global contrast of notebook 02 trains). A causal one "
    "cannot, because that token precedes all words; what little moves there comes from the "
    "softmax, in which the other words compete. So “image bias” is a name: under a BERT it is a "
    "map of the image *and* the whole phrase. Notebook 05 measures how well it grounds by itself."
)

# %% [markdown]
# ## Text bias
# The content words' maps while the model draws from **pure noise**, with the same phrase and no
# image: $B_T[t,l,s]$, one map a content token $s$. They show where the words belong in general.
# The sampling is DDIM with classifier-free guidance (notebook 03), and depends on the phrase
# alone, so it is remembered per phrase.

# %%
bias = grounding.text_bias(
    model, words, tokens=found.tokens, timesteps=steps, text_guidance=guidance
)
text_bias = list(bias.by_step(layers=maps.layers).values())
print(f"{len(text_bias)} layers, the first {tuple(text_bias[0].shape)} (T, h, w), words averaged")

# %% [markdown]
# ## Interaction
# With @ the **matrix product** of two maps, taken for every timestep and layer after both were
# enlarged to the latent's size, and averaged after:
#
# $$M=\mathrm{minmax}\Bigl(\mathop{\mathrm{mean}}_{t,l,s}\; B_I[t,l]\;@\;B_T[t,l,s]\Bigr).$$
#
# A mean of products is not the product of means:

# %%
size = tuple(found.activation.shape)
interaction = bbm.interaction_native(image_bias, text_bias, size)
mean_image, mean_text = (bbm.native_mean(maps, size) for maps in (image_bias, text_bias))
gap = float((interaction - bbm.minmax(mean_image @ mean_text)).abs().max())
same = torch.allclose(interaction, found.interaction, atol=2e-2)
print(f"M {tuple(interaction.shape)}, {'the same' if same else 'not the same'} as `ground` gives")
print(f"largest gap to the product of means: {gap:.3f}")

# %% [markdown]
# Row $y$ of a matrix product is a mixture of the *rows* of the text bias, weighted by row $y$ of
# the image bias. So $M$ keeps the image bias's height profile and the text bias's width profile.
# It is not their overlap, which the elementwise (Hadamard) product $B_I\circ B_T$ would give.
#
# ## Confidence
# How far the two expectations agree: the structural similarity (SSIM, which compares mean, contrast
# and pattern in small windows) of their mean maps, negatives cut off:
#
# $$c=\max\bigl(0,\ \mathrm{SSIM}(\overline{B_I},\overline{B_T})\bigr)\in[0,1].$$

# %%
confidence = bbm.confidence(mean_image, mean_text)
print(f"c = {confidence:.3f} (from `ground`: {found.confidence:.3f})")

# %% [markdown]
# ## Merging: three curves
# A Bézier curve of degree two leads from $P_0$ to $P_2$ and is drawn towards a control point $P_1$
# on the way:
#
# $$B(c)=(1-c)^2P_0+2c(1-c)P_1+c^2P_2,\qquad P_0=A,\quad P_2=M.$$
#
# The three curves of the paper differ in the control point alone:
#
# | curve | $P_1$ | $B(c)$ |
# |---|---|---|
# | linear | $\frac12(A+M)$ | $(1-c)^2A+c(1-c)(A+M)+c^2M=(1-c)A+cM$ |
# | quadratic | $A\circ M$ | $(1-c)^2A+2c(1-c)(A\circ M)+c^2M$ |
# | mixture | $\frac12(A+M+A\circ M)$ | $(1-c)^2A+c(1-c)(A+M+A\circ M)+c^2M$ |
#
# The weights of $P_0,P_1,P_2$ always add up to $(1-c)^2+2c(1-c)+c^2=1$. But the linear control
# point is a mean of two maps, the quadratic one a product, and the mixture's half the sum of
# *three* maps. Collected by map, the mixture's weights are $1-c$, $c$ and $c(1-c)$: together
# $1+c(1-c)>1$, so it is the linear curve plus $c(1-c)\,A\circ M$ and can exceed 1. Published code
# runs the mixture.
#
# **Predict.** Take a pixel at which both maps agree that it matters, $a=m=0.8$. Which curve
# raises it, which lowers it, which leaves it alone?
#
# <details><summary>Answer</summary>
#
# Linear leaves it: a weighted mean of two equal numbers. Quadratic lowers it, because the product
# $a\,m$ is smaller than both. Mixture raises it by $c(1-c)\,a\,m$. So the quadratic curve is a
# *soft and* that darkens everything in between, and the mixture rewards agreement.
# </details>

# %%
fig = lessons.merged_values(title="One pixel from A (c = 0) to M (c = 1): where the curves differ")
alt = "Merged value against confidence for three pixels (a, m) under three curves."
plots.save_figure(config, fig, "06_curves", alt=alt)

# %% [markdown]
# ## Two pairs, chosen by rank
# In the evaluations of the first arm every test pair has a gain: the CNR of the merged map less
# that of the plain one. CNR, the contrast-to-noise ratio, is the mean heat inside the box less the
# mean outside, over the square root of the sum of the two variances
# ([glossary](../docs/glossary.md)). We look at the pairs at one tenth and nine tenths of that
# ranking.

# %%
table = products.scores(config, "curves")
seeds, resamples = sorted(table["seed"].unique().tolist()), config.evaluation.bootstrap
gains = merging_probes.gains(table[table["arm"] == arms[0]])
chosen = statistics.ranked(gains, "gain", [0.1, 0.9])
print(
    f"{len(gains)} pairs, gains from {gains['gain'].min():+.2f} to {gains['gain'].max():+.2f} CNR"
)

# %%
rows = []
for _, row in chosen.iterrows():
    one = statistics.pair_of(row, products.evaluation_pairs(config)).framed(config.image_size)
    views = merging_probes.maps_of(model, one, **options)
    rows.append((f"{one.phrase}\nc = {row['confidence']:.2f}", one.array(), one.boxes, views))

# %%
best, worst = (float(value) for value in chosen["gain"])
title = f"Where the mixture helps and where it hurts: CNR {best:+.2f} and {worst:+.2f}"
fig = lessons.map_rows(rows, title, size=1.6)
alt = "Two test pairs, a row each: film, plain map, image bias, text bias, interaction, merged map."
plots.save_figure(config, fig, "06_worked_example", alt=alt)

# %% [markdown]
# ## Over all pairs: what is gained, and where?
# If the two expectations hardly agree, $c$ is near 0 and BBM hands back $A$, for better or worse.
# Where $c$ is large, $M$ takes over. Is $M$ right there? The text bias has never seen this film: it
# knows where an effusion lies *in general*, not how this patient was placed. So beside $c$ stands
# how well the text bias alone would ground each pair.

# %%
some = products.evaluation_pairs(config, "test")[:guided_pairs]
results = {}
for scale in (16.0, 1.0):
    settings = options | {"text_guidance": scale}
    rows = ablations.curves(model, some, **settings)
    results[scale] = rows[rows["curve"].isin(["none", "mixture"])].assign(seed=0)

# %%
blind = merging_probes.text_bias_scores(model, some, **(options | {"text_guidance": 16.0}))
of_some = merging_probes.gains(results[16.0])
halves = merging_probes.by_confidence(gains, resamples)
columns = {"confidence c": gains["confidence"]}
few = ", ".join(f"{gap.value:+.2f} in the {name}" for name, gap in halves.items())
fig = lessons.gain_scatter(columns, gains["gain"], f"Mean gain of the mixture: {few}")
alt = "Gain in CNR by merging against the confidence, one dot a test pair, mean of the seeds."
plots.save_figure(config, fig, "06_confidence", alt=alt)

# %%
alone, plain = statistics.bootstrap(blind, n=resamples), float(of_some["plain"].mean())
relation = merging_probes.rank_correlation(gains["confidence"], gains["gain"])
amount = merging_probes.rank_correlation(gains["confidence"], gains["gain"].abs())
Markdown(
    f"Confidence decides *how much* is mixed in (rank correlation with the size of the change "
    f"{amount:+.2f}), not *whether it helps* (with the gain itself {relation:+.2f}), because it "
    f"says that two expectations are alike, not that they are right. The text bias alone reaches "
    f"CNR {alone.value:.2f} [{alone.low:.2f}, {alone.high:.2f}] on {len(some)} pairs, the plain "
    f"map {plain:.2f}: what is mixed in is {'worse' if alone.high < plain else 'not worse'} than "
    f"what it is to sharpen, because it does not know the pose of the film."
)

# %% [markdown]
# ## F4: CNR rises; quadratic helps the mask, linear hurts it
# What Appendix B reports on MS-CXR, beside the first arm here. *Balanced IoU* is the mean of the
# overlap of mask and box (intersection over union) and of that of their complements
# ([glossary](../docs/glossary.md)); the paper calls it mIoU.

# %%
measured, columns = list(table["arm"].unique()), ["cnr", "balanced_iou"]
first = table[table["arm"] == measured[0]].groupby("curve", sort=False)[columns].mean()
published = merging_probes.appendix_b().rename({"lexical filter": "none"}).reindex(first.index)
beside = pd.concat({"paper": published[columns], "here": first}, axis=1).swaplevel(axis=1)
charts.readable(beside.sort_index(axis=1, ascending=[False, False]), 3)

# %% [markdown]
# Here a claim **holds** if the 95 % interval of the paired difference lies above zero, is
# **reversed** if it lies below, and **not shown** if the interval meets zero. The claim that a
# curve *lowers* a metric is about plain − merged, so that above zero always means: as claimed.


# %%
def against_plain(arm: str, curve: str, column: str, sign: int = 1) -> claims.Claim:
    """The claim that a curve raises (or, with sign -1, lowers) a metric of an arm."""
    rows = table[table["arm"] == arm]
    both = [rows[rows["curve"] == name] for name in (curve, "none")[::sign]]
    gap = statistics.difference(*both, column, resamples)
    text = f"{curve} BBM {'raises' if sign > 0 else 'lowers'} {charts.LABELS[column]} ({arm})"
    return claims.claim(config, f"F4-{arm}-{curve}-{column}", text, gap, seeds)


# %%
all_claims = [against_plain(arm, c, "cnr") for arm in measured for c in ("mixture", "quadratic")]
all_claims += [against_plain(arm, "quadratic", "balanced_iou") for arm in measured]
all_claims += [against_plain(arm, "linear", "balanced_iou", -1) for arm in measured]
of_first = [made for made in all_claims if f"-{measured[0]}-" in made.id]
Markdown(claims.folded(of_first, [c for c in all_claims if c not in of_first], "the other arms"))


# %%
def added(arm: str, curve: str, column: str) -> statistics.Interval:
    """Merged less plain, mean over pairs and seeds."""
    rows = table[table["arm"] == arm]
    both = (rows[rows["curve"] == name] for name in (curve, "none"))
    return statistics.difference(*both, column, resamples)


# %%
keys = [(arm, curve) for arm in measured for curve in charts.CURVES]
gaps = {
    charts.LABELS[c]: {k: added(*k, c) for k in keys}
    for c in ("cnr", "balanced_iou", "specificity")
}
held = sum(gap.low > 0 for gap in gaps["CNR"].values())
title = f"Merging raises CNR in {held} of {len(keys)} cases"
fig = lessons.merging_effects(gaps, title)
alt = "What each curve adds to CNR, balanced IoU and specificity of each arm, with 95 % intervals."
plots.save_figure(config, fig, "06_bias_merging", alt=alt)

# %% [markdown]
# *Specificity* is the CNR that is lost when a phrase of another finding is asked for on the same
# film: zero for a map that does not read.
#
# ## The cost of the text bias
# The published runs sample the text bias at guidance 16, which runs the U-Net twice a step: with
# the empty prompt too. At guidance 1 that half is not needed. What does it change?

# %%
merged = [results[scale].query("curve == 'mixture'") for scale in (1.0, 16.0)]
change = statistics.difference(*merged, "cnr", resamples)
read = statistics.difference(*merged, "specificity", resamples)
mean_c = {scale: results[scale]["confidence"].mean() for scale in (16.0, 1.0)}
print(f"guidance 1 instead of 16, {len(some)} pairs: CNR {claims.shown(*change)}")
print(f"specificity {claims.shown(*read)}; mean c {mean_c[16.0]:.3f} → {mean_c[1.0]:.3f}")

# %% [markdown]
# ## Exercises
# 1. **Predict, run, explain.** Set `pair` to the number of a cardiomegaly pair. Hearts lie in the
#    middle of every chest; is $c$ larger or smaller than for the effusion, and what does $M$ show?
#
#    <details><summary>Answer</summary>
#    Larger as a rule: where a heart lies hardly depends on the film, so the two expectations look
#    alike. $M$ then shows the heart of the average film; if this film is shifted, merging moves
#    heat off the true heart.
#    </details>
# 2. **Predict, run, explain.** Replace the matrix product by the Hadamard product in the cell of
#    $M$. Does the largest value of $M$ move?
#
#    <details><summary>Answer</summary>
#    Often: an overlap can be large only where *both* biases are large. The matrix product mixes
#    rows and may be largest at a height from one map and a column from the other.
#    </details>
#
# ## With real data
# `profile = "paper"` with MS-CXR (credentialed) or `"open"` with ChestX-ray14's boxes. What
# changes: $T=65$, $k=45$ and 64 × 64 maps in place of 10, 10 and 16 × 16; the text bias costs two
# U-Net rows a step and phrase at guidance 16; and films of a hospital are centred, so that a text
# bias that knows no pose is wrong less often than on phantoms, which are shifted on purpose.
#
# ## What we learned

# %%
more = halves.get("more confident half", change)
lines = [
    f"- Merging raises the CNR of {made.claim.rsplit('(', 1)[-1][:-1]} with the "
    f"{made.claim.split()[0]} curve: {claims.said(made)}."
    for made in of_first
    if made.id.endswith("-cnr")
]
quadratic = next(made for made in of_first if "quadratic-balanced_iou" in made.id)
lines += [
    f"- The quadratic curve helps the mask: {claims.said(quadratic)}, because a product of two "
    "maps pushes middling heat down and so tightens the mask.",
    f"- Merging helps where confidence is above its median: {claims.outcome(more)}, because "
    "likeness of two expectations is no proof of either.",
]
Markdown("\n".join(lines))

# %% [markdown]
# A claim that is not shown is not thereby false: the interval may be wide. And BBM can only be as
# good as its biases: a start token that attends to nothing in particular gives no image bias to
# merge. Where the published code samples the text bias even when BBM is off, this one does not.
#
# ## Next
# - [07 · the benchmark of the plain maps](07_grounding_benchmark.ipynb)
# - [08 · which settings matter](08_hyperparameters.ipynb)
