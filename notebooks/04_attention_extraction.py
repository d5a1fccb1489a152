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
# # 04 · How does cross-attention become one map?
#
# ## Question
# A U-Net has many cross-attention layers, each with several heads, at every timestep, over every
# token. Which of these numbers make the activation map $A$, in what order are they averaged, how
# does a map become a mask, and what does it cost to keep them?
#
# Paper: section 2.2 (activation map and mask); Appendix C (timesteps) and E (layers).
# Terms: [glossary](../docs/glossary.md); the U-Net as a picture: [diagrams](../docs/diagrams.md).
#
# ## You need
# - nothing but this repository; notebook 03 says how the U-Net was trained
# - about 30 seconds on one CPU core
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
pair: int = -1  # number of a test pair; -1: the running example of all notebooks
layer_index: int = -3  # which layer is looked at by hand
timestep: int = 401  # at which noise level
seed: int = 0
mask_pairs: int = 12  # test pairs among which the mask that overshoots most is shown

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import pandas as pd
import torch
from IPython.display import Markdown

from g2g_utils import attention, bbm, grounding, masks, metrics, plots, text
from g2g_utils.bench import benchmark
from g2g_utils.experiment import ground_file, products
from g2g_utils.plots import charts, lessons, overlays

plots.use_style()

# %% [markdown]
# ## The layers
# Most blocks of the U-Net ask the text: queries $Q$ are places of the latent, keys $K$ and
# values $V$ are tokens. Stable Diffusion has 16 such layers (6 down, 1 middle, 9 up) and none in
# its deepest down and up blocks; a profile's own, smaller U-Net has fewer.

# %%
model = products.model(config)

# %% tags=["nbval-check-output"]
layers = attention.find_layers(model.unet)
for name, layer in layers.items():
    print(f"{name.replace('.transformer_blocks.0.attn2', '')}: {layer.heads} heads")

# %%
example = ground_file.chosen_example(config, "", "", pair)
image = torch.as_tensor(example.array())
tokens = text.tokenize(model.tokenizer, example.phrase, model.max_length)
states = model.encode_text(tokens.input_ids, tokens.attention_mask)
content = tokens.content()
print(f"{example.phrase!r}: states {tuple(states.shape)}, content tokens {content}")

# %% [markdown]
# ## One layer by hand
# $$P=\mathrm{softmax}\bigl(QK^\top/\sqrt d\bigr)\in\mathbb{R}^{(h\cdot w)\times\text{tokens}}$$
#
# We noise the image's latent to one timestep, catch what enters the layer, and project it
# ourselves.

# %%
with torch.no_grad():
    mean, std = model.image_posterior(image[None, None])
latent_noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed))
noised = model.add_noise(mean, latent_noise, torch.tensor([timestep]))
print("latent", tuple(mean.shape), "noised to t =", timestep)

# %%
name = list(layers)[layer_index]
layer, caught = layers[name], []
hook = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
with torch.no_grad():
    model.unet(noised, torch.tensor([timestep]), states)
hook.remove()
print(name, "gets", tuple(caught[0].shape))  # 1 hw d

# %% tags=["nbval-check-output"]
with torch.no_grad():
    query = layer.head_to_batch_dim(layer.to_q(caught[0]))  # heads hw d
    key = layer.head_to_batch_dim(layer.to_k(states))  # heads tokens d
    scores = query @ key.transpose(1, 2) * layer.scale
    by_hand = scores.softmax(-1)  # heads hw tokens
print("Q", tuple(query.shape), "K", tuple(key.shape), "P", tuple(by_hand.shape))
spent = torch.allclose(by_hand.sum(-1), torch.ones(()))
print("every place spends exactly 1 on all tokens:", "yes" if spent else "no")

# %% [markdown]
# The mean over heads, of the content tokens, reshaped to the layer's grid and enlarged (nearest,
# as the paper's code does) to the size of the latent:

# %%
size = model.latent_shape[1:]
grid = attention.native_size(by_hand.shape[1], size)
heads = by_hand[:, :, content].mean(-1).unflatten(1, grid)  # heads h w
enlarged = attention.upsample(heads.mean(0), size)
print(
    "heads", tuple(heads.shape), "-> mean", tuple(heads.mean(0).shape), "->", tuple(enlarged.shape)
)

# %%
span = (0.0, float(heads.max()))
fig, axes = overlays.panels(len(heads) + 2, size=1.7)
overlays.show_image(axes[0, 0], image, boxes=example.boxes, title="film")
titles = [*(f"head {i}" for i in range(len(heads))), "mean of the heads"]
for ax, one, title in zip(axes[0, 1:], [*heads, heads.mean(0)], titles, strict=True):
    artist = overlays.show_map(ax, one, limits=span, title=title)
fig.colorbar(artist, ax=axes, label="attention on content words", fraction=0.03)
plots.save_figure(
    config, fig, "04_attention_heads", alt="The film, each head's map, and their mean"
)

# %% [markdown]
# ## The recorder does the same, everywhere
# `CrossAttentionRecorder` stands in for the attention processors inside a `with` block and puts the
# originals back afterwards, also after an error. Its numbers are ours:

# %% tags=["nbval-check-output"]
with attention.CrossAttentionRecorder(model.unet, keep="layers") as recorder, torch.no_grad():
    model.unet(noised, torch.tensor([timestep]), states)
recorded = recorder.sample()[name][0]  # tokens h w
ours = by_hand.mean(0).T.unflatten(1, grid)
agree = torch.allclose(recorded, ours, atol=1e-5)
print(tuple(recorded.shape), "equal to ours" if agree else "not equal to ours")
print("a map of every kept axis:", tuple(recorder.maps().shape), "batch, layers, tokens, H, W")

# %% [markdown]
# ## Ground-truth sampling
# Where does the noised latent come from? Not from sampling: at **every** timestep the U-Net is
# shown the *real image*, noised afresh:
# $z_t=\sqrt{\bar\alpha_t}\,z+\sqrt{1-\bar\alpha_t}\,\varepsilon$. The
# timesteps are $T$ evenly spaced ones of the 1000 of training, so that the film is seen under every
# amount of noise. The U-Net's prediction is never used, so the steps do not depend on each other
# and go through it as one batch, and classifier-free guidance would only double the cost.
#
# <details><summary>What the published code appears to do differently</summary>
#
# It runs the guided half all the same, and its seeds do not seem to reach this noise. Where it
# noises the image once and then samples, ready-made latents seem to miss the VAE's scaling factor;
# and it assumes a CUDA device. Here latents are scaled whatever is sampled, and everything runs on
# the model's device.
# </details>

# %%
options = ground_file.options_of(config) | {"seed": seed}
keep = {k: v for k, v in options.items() if k in ("timesteps", "seed", "batch_size")}
full, _ = grounding.record_image(model, image, example.phrase, **keep)
times = full.timesteps
print(
    f"{len(times)} timesteps {times[0]} … {times[-1]}; one layer keeps "
    f"{tuple(full[name].shape)}: steps, tokens, h, w"
)

# %%
chosen = times[:: max(1, len(times) // 5)]
rows = torch.tensor(chosen)
with torch.no_grad():
    drawn = model.add_noise(
        mean.expand(len(chosen), -1, -1, -1), latent_noise.expand(len(chosen), -1, -1, -1), rows
    )
    seen = model.decode(drawn)[:, 0]
titles = [f"t = {t}" for t in chosen]
fig = overlays.image_grid(list(seen), titles, columns=len(chosen), size=1.5)
plots.save_figure(config, fig, "04_attention_noised", alt="The film at several timesteps")

# %% [markdown]
# ## Which layer, which timestep?
# All maps of the content words: rows are layers in forward order, columns go from noise to image.
# Each map is scaled by itself, so compare *places*, not strengths.

# %%
labels = overlays.layer_labels(full.sizes)
maps = list(full.by_step(content).values())  # each T h w
fig = overlays.layer_step_grid(
    maps, labels, times, boxes=example.boxes, frame=config.image_size, image=image
)
fig.suptitle(overlays.literal(f"“{example.phrase}”"), x=0.01, ha="left")
alt = "A grid of attention maps: rows are layers, columns timesteps from noise to image."
plots.save_figure(config, fig, "04_attention_layers", alt=alt)

# %% [markdown]
# ## How well does a map point? CNR, AUC, Top-1
# A box divides the pixels of a map $A$ into two populations. Three scores ask how far apart they
# are ([glossary](../docs/glossary.md)):
#
# - **CNR**, the contrast-to-noise ratio, is the distance of their means in units of their spread:
#   $$\mathrm{CNR}=\frac{\mu_{in}-\mu_{out}}{\sqrt{\sigma_{in}^2+\sigma_{out}^2}}$$
# - **AUC** is the probability that a random pixel inside is hotter than a random one outside.
# - **Top-1** is 1 if the hottest pixel of all lies inside, else 0.

# %%
average = full.mean(content, layers=config.grounding.layers)
enlarged = metrics.resize(bbm.minmax(average), config.image_size)
inside = metrics.rasterise(example.boxes, config.image_size)
contrast = float(metrics.contrast_to_noise(enlarged, inside))
title = f"Heat inside the box and outside it: CNR {contrast:.2f}"
fig = lessons.two_populations(enlarged, inside, title)
alt = "Histograms of the running example's heat inside and outside the box, with their means."
plots.save_figure(config, fig, "04_populations", alt=alt)

# %% [markdown]
# **Predict.** A map that is 1 on the whole lower half of the film: high or low AUC, high or low
# Top-1 for this box?
#
# <details><summary>Answer</summary>
#
# AUC is fair, because most pixels outside lie in the upper half; CNR is moderate for the same
# reason; Top-1 is the share of the box among all equally hot pixels, so nearly 0. No score alone
# says that a map points: that is why they stand together.
# </details>
#
# ## Which layers point at the box?
# The scores of each layer's mean over timesteps, and how much CNR is lost when a phrase of another
# finding is asked for (*specificity*: 0 for a map that does not read). For this pair only;
# notebook 08 asks the same of a whole data set, and beside a generic arm (Appendix E).


# %%
def of_layers(recorded, chosen: list[int]) -> pd.DataFrame:
    """Scores of every layer's mean map of the chosen tokens."""
    maps = [recorded.mean(chosen, layers=name) for name in recorded.layers]
    return pd.DataFrame(
        benchmark.quick_scores(maps, example.boxes, config.image_size), index=labels
    )


# %%
other, scores = ground_file.other_phrase(config, example), of_layers(full, content)
if other:
    against, words = grounding.record_image(model, image, other, **keep)
    lost = of_layers(against, words.content())["cnr"]
    scores["specificity"] = benchmark.specificity(scores["cnr"], lost)
print(f"the other phrase: {other!r}" if other else "no other phrase lies apart here")
charts.readable(scores)

# %% [markdown]
# ## The activation map
# $A=\mathrm{minmax}\bigl(\text{mean over timesteps, layers, content tokens}\bigr)$, all at latent
# resolution. Layers are those of the profile (all in the paper), timesteps the $k$ least noisy of
# $T$: $k=45$ of $T=65$ were best in the paper (Appendix C), all ten are used here. Averaging
# ourselves gives what `ground` returns:

# %% tags=["nbval-check-output"]
last = range(len(times) - config.grounding.keep_last, len(times))
average = full.mean(content, layers=config.grounding.layers, steps=last)
result = grounding.ground(model, image, example.phrase, boxes=example.boxes, **options)
same = torch.allclose(bbm.minmax(average), result.activation, atol=5e-3)
print("activation", tuple(result.activation.shape), "equal to ours" if same else "not equal")

# %%
fig = overlays.grounding_panels(
    image, result.heatmap, result.mask, phrase=example.phrase, boxes=example.boxes
)
alt = "The running example: film with its box, heat map over it, mask over it."
plots.save_figure(config, fig, "04_attention_activation", alt=alt)

# %% [markdown]
# ## From map to mask
# A mask needs a threshold. A fixed one would depend on how peaked a map happens to be, so the paper
# (section 2.2) lets each map choose its own: two Gaussians are fitted to the map's values,
#
# $$p(v)=\pi_0\,\mathcal N(v;\mu_0,\sigma_0^2)+\pi_1\,\mathcal N(v;\mu_1,\sigma_1^2),$$
#
# one for background and one for foreground, and the mask is everything above $(\mu_0+\mu_1)/2$.
# Afterwards a 3 × 3 majority vote removes orphan pixels.
#
# **Predict.** The mixture always finds two components. What does it do with a map that has no clear
# foreground?

# %%
pairs = [p.framed(config.image_size) for p in products.evaluation_pairs(config)[:mask_pairs]]
several = grounding.ground_batch(
    model, [p.array() for p in pairs], [p.phrase for p in pairs], **options
)
areas = [float(metrics.rasterise(p.boxes, config.image_size).float().mean()) for p in pairs]
excess = [float(g.mask.float().mean()) / a for g, a in zip(several, areas, strict=True)]
over = max(range(len(pairs)), key=lambda k: excess[k])

# %%
shown = [
    (f"“{p.phrase}”", p.array(), p.boxes, g.heatmap)
    for p, g in ((example, result), (pairs[over], several[over]))
]
title = f"Below: of {len(pairs)} pairs the mask that overshoots most, {excess[over]:.0f} × its box"
fig = lessons.mask_rows(shown, title)
alt = "Two maps' histograms with the fitted Gaussians and the cut; the maps; the masks."
plots.save_figure(config, fig, "04_mask", alt=alt)

# %%
low, high = masks.components(several[over].heatmap)[0]
Markdown(
    f"The lower map is warm over a wide area. The mixture's background has its mean at {low:.2f}, "
    f"its foreground at {high:.2f}, and the cut at {(low + high) / 2:.2f} takes in *all that is "
    "warm*, not only the peak: two components must be found, also where there are more, or one. "
    "*IoU*, the area shared by mask and box over the area of both together, then punishes the "
    "mask, while CNR, AUC and Top-1, which need no cut, do not."
)

# %% [markdown]
# ## What it costs to keep
# A mean needs no history: the recorder adds each step's maps to a running sum and forgets them.
# What every variant holds for this image, and what the same would be for Stable Diffusion at
# 512², where the published code keeps the enlarged half-precision maps of all steps and layers:

# %%
held = {"everything (keep='all')": full.nbytes}
for kind in ("layers", "mean"):
    stream = attention.CrossAttentionRecorder(model.unet, keep=kind)
    with stream, torch.no_grad():
        model.unet(noised, torch.tensor([timestep]), states)
    held[f"running sums (keep='{kind}')"] = stream.nbytes
pd.Series(held).div(1024).round().astype(int).to_frame("KiB for this image")

# %% tags=["nbval-check-output"]
sides, n, steps = [64] * 5 + [32] * 5 + [16] * 5 + [8], 77, 50  # Stable Diffusion 1.5 at 512²
stored = len(sides) * 64**2 * n * steps * 2  # float16, every map enlarged to the latent
streamed = sum(side**2 for side in set(sides)) * n * 4  # float32, one sum a resolution
print(
    f"{len(sides)} layers: stored {stored / 2**20:.0f} MiB, streamed {streamed / 2**20:.1f} MiB, "
    f"{stored // streamed} times less"
)

# %% [markdown]
# ## Exercises
# 1. **Predict, run, explain.** Set `timestep` to 901. Do the heads still agree on a place?
#
#    <details><summary>Answer</summary>
#    Less: at that noise the film's signal is nearly gone, and queries carry little but position.
#    What is left is what the layer expects of any film.
#    </details>
# 2. **Predict, run, explain.** Average over *all* layers instead of the profile's:
#    `grounding.ground(model, image, example.phrase, **(options | {"layers": None}))`. Does the mask
#    grow or shrink?
#
#    <details><summary>Answer</summary>
#    It tends to grow: the encoder's half of the U-Net holds wider maps, and they smear the mean.
#    </details>
#
# ## With real data
# `profile = "open"` or `"paper"`. What changes: 16 layers in place of this U-Net's; maps up to
# 64 × 64; $T=65$ and $k=45$ (`grounding.timesteps`, `grounding.keep_last`); all layers
# (`grounding.layers` is not set); `batch_size` 8 or 16 rows a forward, for the GPU's memory.
#
# ## What we learned

# %%
best = scores["cnr"].idxmax()
whole, stream = held["everything (keep='all')"], held["running sums (keep='mean')"]
lines = [
    f"- What we computed by hand and what the recorder gives {'agree' if agree else 'differ'}.",
    f"- The best single layer of this pair, {best}, has CNR {scores.loc[best, 'cnr']:.2f}; the "
    f"profile's layers together {result.metrics['cnr']:.2f}, because errors of single layers that "
    "lie in different places average out.",
    f"- A mask may overshoot its box ({excess[over]:.0f} × at worst here), because the "
    "cut parts warm from cold, and not the finding from the rest.",
    f"- Running sums need {stream / whole:.1%} of the memory of keeping everything.",
]
Markdown("\n".join(lines))

# %% [markdown]
# ## Next
# - [05 · one map a word](05_token_maps.ipynb)
# - [06 · merging with image and text bias](06_bimodal_bias_merging.ipynb)
# - [08 · which layers, which timesteps, over many pairs](08_hyperparameters.ipynb)
