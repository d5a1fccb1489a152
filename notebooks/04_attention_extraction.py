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
# token. Which of these numbers make the activation map $A$, in what order are they averaged, and
# what does it cost to keep them?
#
# ## You need
# - nothing but this repository
# - about 30 seconds on one CPU core
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
pair: int = -1  # number of a test pair; -1: the first large finding on a named side
layer_index: int = -3  # which layer is looked at by hand
timestep: int = 401  # at which noise level
seed: int = 0

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import pandas as pd
import torch

from g2g_utils import attention, bbm, grounding, plots, text
from g2g_utils.bench import benchmark
from g2g_utils.experiment import ground_file, products
from g2g_utils.plots import overlays

plots.use_style()

# %% [markdown]
# ## The layers
# Most blocks of the U-Net ask the text: queries $Q$ are places of the latent, keys $K$ and
# values $V$ are tokens. Stable Diffusion has 16 such layers (6 down, 1 middle, 9 up) and none in
# its deepest down and up blocks; a profile's own, smaller U-Net has fewer.

# %%
model = products.model(config)

# %%
# NBVAL_CHECK_OUTPUT
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

# %%
# NBVAL_CHECK_OUTPUT
with torch.no_grad():
    query = layer.head_to_batch_dim(layer.to_q(caught[0]))  # heads hw d
    key = layer.head_to_batch_dim(layer.to_k(states))  # heads tokens d
    scores = query @ key.transpose(1, 2) * layer.scale
    by_hand = scores.softmax(-1)  # heads hw tokens
print("Q", tuple(query.shape), "K", tuple(key.shape), "P", tuple(by_hand.shape))
print("every place spends exactly 1:", bool(torch.allclose(by_hand.sum(-1), torch.ones(()))))

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
titles = [*(f"head {i}" for i in range(len(heads))), "head mean", "enlarged"]
for ax, one, title in zip(axes[0], [*heads, heads.mean(0), enlarged], titles, strict=True):
    artist = overlays.show_map(ax, one, limits=span, title=title)
fig.colorbar(artist, ax=axes, label="attention on content words", fraction=0.03)
plots.save_figure(config, fig, "04_attention_heads")

# %% [markdown]
# ## The recorder does the same, everywhere
# `CrossAttentionRecorder` stands in for the attention processors inside a `with` block and puts the
# originals back afterwards, also after an error. Its numbers are ours:

# %%
# NBVAL_CHECK_OUTPUT
with attention.CrossAttentionRecorder(model.unet, keep="layers") as recorder, torch.no_grad():
    model.unet(noised, torch.tensor([timestep]), states)
recorded = recorder.sample()[name][0]  # tokens h w
ours = by_hand.mean(0).T.unflatten(1, grid)
print(tuple(recorded.shape), "equal to ours:", bool(torch.allclose(recorded, ours, atol=1e-5)))
print("a map of every kept axis:", tuple(recorder.maps().shape), "batch, layers, tokens, H, W")

# %% [markdown]
# ## Ground-truth sampling
# Where does the noised latent come from? Not from sampling: at **every** timestep the U-Net is
# shown the *real image*, noised afresh:
# $z_t=\sqrt{\bar\alpha_t}\,z+\sqrt{1-\bar\alpha_t}\,\varepsilon$. Its prediction is never used,
# so the steps do not depend on each other and go through the U-Net as one batch, and
# classifier-free guidance would only double the cost. (The published code appears to run it all
# the same, and its seeds do not seem to reach this noise. Where it noises the image once and then
# samples, ready-made latents seem to miss the VAE's scaling factor; and it assumes a CUDA device.
# Here latents are scaled whatever is sampled, and everything runs on the model's device.)

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
plots.save_figure(config, fig, "04_attention_noised")

# %% [markdown]
# ## Which layer, which timestep?
# All maps of the content words: rows are layers in forward order, columns go from noise to image.
# Each map is scaled by itself, so compare *places*, not strengths.

# %%
labels = overlays.layer_labels(full.sizes)
maps = list(full.by_step(content).values())  # each T h w
fig = overlays.layer_step_grid(maps, labels, times, boxes=example.boxes, frame=config.image_size)
fig.suptitle(overlays.literal(f"“{example.phrase}”"), x=0.01, ha="left")
plots.save_figure(config, fig, "04_attention_layers")

# %% [markdown]
# Do coarse or fine layers point at the box? The contrast-to-noise ratio (CNR) of each layer's mean
# over timesteps, and how much of it is lost when a phrase of another finding is asked for
# (*specificity*: 0 for a map that does not read). For this pair only; notebook 08 asks the same of
# a whole data set.


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
scores.round(2)

# %% [markdown]
# ## The activation map
# $A=\mathrm{minmax}\bigl(\text{mean over timesteps, layers, content tokens}\bigr)$, all at latent
# resolution; layers as the profile says (all in the paper), timesteps restricted to the $k$ least
# noisy of $T$. Averaging ourselves gives what `ground` returns:

# %%
# NBVAL_CHECK_OUTPUT
last = range(len(times) - config.grounding.keep_last, len(times))
average = full.mean(content, layers=config.grounding.layers, steps=last)
result = grounding.ground(model, image, example.phrase, boxes=example.boxes, **options)
same = torch.allclose(bbm.minmax(average), result.activation, atol=5e-3)
print("activation", tuple(result.activation.shape), "equal to ours:", same)

# %%
fig = overlays.grounding_panels(
    image, result.heatmap, result.mask, phrase=example.phrase, boxes=example.boxes
)
plots.save_figure(config, fig, "04_attention_activation")

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

# %%
# NBVAL_CHECK_OUTPUT
sides, n, steps = [64] * 5 + [32] * 5 + [16] * 5 + [8], 77, 50  # Stable Diffusion 1.5 at 512²
stored = len(sides) * 64**2 * n * steps * 2  # float16, every map enlarged to the latent
streamed = sum(side**2 for side in set(sides)) * n * 4  # float32, one sum a resolution
print(
    f"{len(sides)} layers: stored {stored / 2**20:.0f} MiB, streamed {streamed / 2**20:.1f} MiB, "
    f"{stored // streamed} times less"
)

# %% [markdown]
# ## What we learned

# %%
best = scores["cnr"].idxmax()
print(f"by hand and recorded agree: {torch.allclose(recorded, ours, atol=1e-5)}")
print(
    f"best single layer here: {best}, CNR {scores.loc[best, 'cnr']:.2f}; "
    f"the profile's layers together {result.metrics['cnr']:.2f}"
)
whole, stream = held["everything (keep='all')"], held["running sums (keep='mean')"]
print(f"running sums need {stream / whole:.1%} of the memory of keeping everything")

# %% [markdown]
# ## Next
# - [05 · one map a word](05_token_maps.ipynb)
# - [06 · merging with image and text bias](06_bimodal_bias_merging.ipynb)
# - [08 · which layers, which timesteps, over many pairs](08_hyperparameters.ipynb)
