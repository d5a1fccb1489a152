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
# **Bimodal Bias Merging** (BBM) measures both expectations, the image's and the text's, and
# strengthens the map where they agree. How does it work, and does it help here?
#
# ## You need
# - the evaluations of the arms (made when missing: about 20 minutes on two CPU cores for the
#   miniature); with them one minute on one core; no GPU
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
confidence_rank: float = 0.9  # the worked example: 0 the least confident test pair, 1 the most
guided_pairs: int = 24  # pairs for the effect of the text bias's guidance

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import torch
from IPython.display import Markdown

from g2g_utils import bbm, grounding, plots
from g2g_utils.bench import ablations, benchmark, claims, statistics
from g2g_utils.experiment import products
from g2g_utils.plots import charts, overlays

plots.use_style()

# %% [markdown]
# ## One pair
# The example is chosen by rank, not by eye: among the evaluated test pairs one of high confidence
# (defined below), because at confidence 0 merging does nothing.

# %%
table = products.scores(config, "curves")
arms, seeds = list(table["arm"].unique()), sorted(table["seed"].unique().tolist())
plain = table[table["curve"] == "none"]
first = plain[(plain["arm"] == arms[0]) & (plain["seed"] == seeds[0])].reset_index(drop=True)
chosen = statistics.ranked(first, "confidence", [1 - confidence_rank]).iloc[0]
example = statistics.pair_of(chosen, products.evaluation_pairs(config, "test"))
example = example.framed(config.image_size)

# %%
# NBVAL_CHECK_OUTPUT
image, options = example.array(), products.grounding_options(config)
steps, guidance = options["timesteps"], options["text_guidance"]
print(f"image {image.shape}, T = {steps}, k = {options['keep_last']}, text guidance {guidance:g}")

# %% [markdown]
# The plain activation map $A$ first: the mean of the content words' attention over the profile's
# layers and the last $k$ timesteps, scaled to [0, 1].

# %%
model = products.model(config)
found = grounding.ground(model, image, example.phrase, curve="mixture", **options)
print(f"{example.phrase!r}: A {tuple(found.activation.shape)}, words {', '.join(found.words)}")

# %% [markdown]
# ## Image bias
# The start token carries no word. Its maps, while the U-Net looks at the **real image**, show where
# attention goes whatever is asked: $B_I[t,l]$, one map a timestep $t$ and layer $l$.

# %%
maps, words = grounding.record_image(
    model, image, example.phrase, **{k: options[k] for k in ("timesteps", "batch_size", "layers")}
)
image_bias = list(maps.by_step([words.start]).values())
print(f"{len(image_bias)} layers, the first {tuple(image_bias[0].shape)} (T, h, w)")

# %% [markdown]
# ## Text bias
# The content words' maps while the model draws from **pure noise**, with the same phrase and no
# image: $B_T[t,l,s]$, one map a content token $s$. They show where the words belong in general.
# The sampling is DDIM with classifier-free guidance, and depends on the phrase alone, so it is
# remembered per phrase.

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
product_of_means = bbm.minmax(mean_image @ mean_text)
print(
    f"M {tuple(interaction.shape)}; same as `ground` gives: "
    f"{torch.allclose(interaction, found.interaction, atol=2e-2)}"
)
gap = float((interaction - product_of_means).abs().max())
print(f"largest gap to the product of means: {gap:.3f}")

# %% [markdown]
# Row $y$ of a matrix product is a mixture of the *rows* of the text bias, weighted by row $y$ of
# the image bias. So $M$ keeps the image bias's height profile and the text bias's width profile
# rather than their overlap, which the elementwise (Hadamard) product would give. Both are shown
# below, as $M$ and $B_I\circ B_T$.
#
# ## Confidence
# How far the two expectations agree, by the structural similarity of their mean maps, negatives cut
# off:
#
# $$c=\max\bigl(0,\ \mathrm{SSIM}(\overline{B_I},\overline{B_T})\bigr)\in[0,1].$$

# %%
confidence = bbm.confidence(mean_image, mean_text)
print(f"c = {confidence:.3f} (from `ground`: {found.confidence:.3f})")

# %% [markdown]
# ## Merging: three curves
# Bézier curves from $A$ (at $c=0$) to $M$ (at $c=1$), with $\circ$ the Hadamard product:
#
# $$\text{linear: } (1-c)A+cM$$
#
# $$\text{quadratic: } (1-c)^2A+2c(1-c)(A\circ M)+c^2M$$
#
# $$\text{mixture: } (1-c)^2A+c(1-c)(A+M+A\circ M)+c^2M = \text{linear}+c(1-c)(A\circ M)$$
#
# The mixture is what the published code runs. Its weights don't add up to one, so it can exceed 1.

# %%
seen = plain[plain["arm"] == arms[0]]["confidence"].dropna()
title = f"At the median confidence seen here ({seen.median():.2f}) A keeps most of the weight"
title = title if seen.median() < 0.25 else f"Median confidence here: {seen.median():.2f}"
fig = charts.curve_weights(seen.tolist(), f"{title} (ticks: test pairs)")
plots.save_figure(config, fig, "06_curves")

# %%
merged = {c: bbm.merge(found.activation, interaction, confidence, c) for c in charts.CURVES}
maps = {
    "A": found.activation,
    "image bias": mean_image,
    "text bias": mean_text,
    "M": interaction,
    "B_I ∘ B_T": mean_image * mean_text,
    **merged,
}

# %%
fig, axes = overlays.panels(4, 2, size=2.0)
for ax, (name, heatmap) in zip(axes.flat, maps.items(), strict=True):
    cnr = benchmark.quick_scores([heatmap], example.boxes, config.image_size)[0]["cnr"]
    title = f"{name}: CNR {cnr:.2f}"
    overlays.overlay(ax, image, bbm.minmax(heatmap), boxes=example.boxes, title=title)
title = overlays.literal(f"“{example.phrase}”, c = {confidence:.2f}")
fig.suptitle(title, x=0.01, ha="left")
overlays.colour_bar(fig, axes, "each map scaled to [0, 1]")
overlays.legend(fig)
plots.save_figure(config, fig, "06_worked_example")

# %% [markdown]
# ## Over many pairs
# One example proves nothing. The same four maps (no merging and three curves) of the same test
# pairs, for every arm and seed; CNR judges the map, IoU and balanced IoU the mask, and specificity
# (the CNR lost when another phrase is asked for on the same image) whether it reads.

# %%
columns = ["cnr", "specificity", "iou", "balanced_iou"]
resamples = config.evaluation.bootstrap
print(f"{len(table)} rows, {table['curve'].nunique()} maps, arms {arms}, seeds {seeds}")
main = table[table["arm"] == arms[0]]
summary = statistics.summary(main, "curve", columns, resamples)
charts.readable(summary)

# %%
by_seed = main.groupby(["curve", "seed"], sort=False)[columns].mean().reset_index()
fig = charts.bars(summary, columns, by_seed, f"{arms[0]}: merged maps against the plain one (none)")
plots.save_figure(config, fig, "06_bias_merging")

# %% [markdown]
# The bars' intervals hold how much *pairs* differ, which all curves share; paired differences leave
# that out and are sharper.
#
# ## F4: CNR rises; quadratic helps the mask, linear hurts it
# A claim holds if the 95 % interval of the paired difference lies above zero. The claim that a
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
all_claims = [
    against_plain(arm, curve, "cnr") for arm in arms for curve in ("mixture", "quadratic")
]
all_claims += [against_plain(arm, "quadratic", "balanced_iou") for arm in arms]
all_claims += [against_plain(arm, "linear", "balanced_iou", -1) for arm in arms]
print(*all_claims, sep="\n")

# %%
held = sum(made.holds for made in all_claims)
fig = charts.forest(all_claims, f"{held} of {len(all_claims)} differences lie above zero")
plots.save_figure(config, fig, "06_claims")

# %% [markdown]
# ## Why: how large is the confidence?
# If the image's and the text's expectations hardly agree, $c$ is near 0 and BBM hands back $A$
# almost unchanged, for better or worse.

# %%
title = f"{(seen < 0.1).mean():.0%} of the pairs have c below 0.1"
fig = charts.histogram(seen.tolist(), "confidence c", title)
plots.save_figure(config, fig, "06_confidence")

# %% [markdown]
# ## The cost of the text bias
# The published runs sample the text bias at guidance 16, which runs the U-Net twice a step: with
# the empty prompt too. At guidance 1 that half is not needed. What does it change?

# %%
some = products.evaluation_pairs(config, "test")[:guided_pairs]
results = {}
for scale in (16.0, 1.0):
    settings = options | {"text_guidance": scale}
    rows = ablations.curves(model, some, **settings)
    results[scale] = rows[rows["curve"] == "mixture"].reset_index(drop=True)

# %%
sides = (results[1.0], results[16.0])
change, read = (statistics.difference(*sides, c, resamples) for c in ("cnr", "specificity"))
c16, c1 = (results[scale]["confidence"].mean() for scale in (16.0, 1.0))
print(
    f"guidance 1 instead of 16, {len(some)} pairs: CNR {change.value:+.3f} "
    f"[{change.low:+.3f}, {change.high:+.3f}], specificity {read.value:+.3f} "
    f"[{read.low:+.3f}, {read.high:+.3f}]; mean c {c16:.3f} -> {c1:.3f}"
)
fig = charts.paired_points(
    results[16.0]["cnr"],
    results[1.0]["cnr"],
    ("CNR, guidance 16", "CNR, guidance 1"),
    f"Mean change {change.value:+.2f} CNR at half the cost of the text bias",
)
plots.save_figure(config, fig, "06_text_guidance")

# %% [markdown]
# ## What we learned
# Written by the run:

# %%
Markdown(claims.verdicts(all_claims))

# %% [markdown]
# A claim that is not shown is not thereby false: the interval may be wide. And BBM can only be as
# good as its biases: a start token that attends to nothing in particular gives no image bias to
# merge. Where the published code samples the text bias even when BBM is off, this one does not.
#
# ## Next
# - [07 · the benchmark of the plain maps](07_grounding_benchmark.ipynb)
# - [08 · which settings matter](08_hyperparameters.ipynb)
