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
# # 00 · Where in this radiograph is what the phrase describes?
#
# ## Question
# A latent diffusion model that was trained to *draw* chest films from impressions may have learned
# which word belongs where. Can we read that from its cross-attention and turn it into a heat map
# for any phrase, without ever training on a box?
#
# ## You need
# - nothing but this repository: the image is a computed phantom; or a PNG, JPEG or DICOM of your
#   own
# - about 1 minute on one CPU core; no GPU
#
# **For research, not a medical device.**
#
# ## Parameters
# Leave `image_path` empty for a phantom of the test split, or name a file (absolute, or relative to
# the repository) and say in `phrase` what to look for.

# %% tags=["parameters"]
profile: str = "miniature"
image_path: str = ""  # PNG, JPEG or DICOM; empty: a phantom
phrase: str = ""  # what to look for; empty: the phantom's own phrase
pair: int = -1  # number of a test pair; -1: the running example, if no file
seed: int = 0  # of the sampling noise
checked_pairs: int = 40  # test pairs on which the same is asked, beside this one

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import numpy as np
import pandas as pd

from g2g_utils import bench, grounding, plots
from g2g_utils.bench import sanity, statistics
from g2g_utils.experiment import ground_file, products
from g2g_utils.methods.g2g import G2G
from g2g_utils.plots import overlays

plots.use_style()

# %% [markdown]
# ## The image and the phrase
# Both are checked before anything is loaded: an empty phrase, one of function words only or a file
# that is no image stops here with one line. The centre square of the image is scaled to the side
# that the model was trained on.

# %%
# NBVAL_CHECK_OUTPUT
example = ground_file.chosen_example(config, image_path, phrase, pair)
image = example.array()
print(f"image {image.shape}, phrase {example.phrase!r}, {len(example.boxes)} ground-truth box(es)")

# %% [markdown]
# ## The model
# A tokenizer, a text encoder pre-trained on chest X-ray text and *frozen*, a VAE, and a U-Net that
# was fine-tuned on image–impression pairs. Made here in small, or loaded where the profile names
# published weights; the code is the same.

# %%
model = products.model(config)
folder = ground_file.figures_folder(
    config, image_path
)  # your own image's figures stay below build/
millions = {
    n: sum(p.numel() for p in getattr(model, n).parameters()) / 1e6
    for n in ("text_encoder", "vae", "unet")
}
print(model.name, {name: f"{count:.2f} M parameters" for name, count in millions.items()})

# %% [markdown]
# ## One call
# The image's latent is noised to $T$ timesteps; at each, the U-Net predicts the noise (or the
# velocity, notebook 03) under the phrase, and its cross-attention maps are recorded. The
# activation map $A$ is their mean over timesteps, layers and content words, scaled to [0, 1].

# %%
options = ground_file.options_of(config) | {"seed": seed}
result = grounding.ground(model, image, example.phrase, boxes=example.boxes or None, **options)
print(f"{len(result.layers)} layers × {result.keep_last} of {len(result.timesteps)} timesteps")
print(f"content words averaged: {', '.join(result.words)}; heat map {tuple(result.heatmap.shape)}")

# %%
fig = overlays.grounding_panels(
    image, result.heatmap, result.mask, phrase=example.phrase, boxes=example.boxes
)
plots.save_figure(config, fig, "00_quickstart_grounding", folder)

# %% [markdown]
# The mask comes from a mixture of two Gaussians over the map's values: how much of the image it
# covers is decided by the map alone.

# %%
found = ground_file.peak_and_box(result, *image.shape)
print(f"mask: {float(result.mask.float().mean()):.0%} of the image, its box {found['mask_box']}")
print(f"peak at (x, y) = {tuple(found['peak'])} of {image.shape[1]} × {image.shape[0]} pixels")

# %% [markdown]
# ## Is that better than knowing nothing?
# Lungs lie where lungs lie: a map that has never seen this image or phrase can score well. So every
# number stands beside maps without skill. *Likeness* is the correlation of each map with the
# model's; *specificity* the contrast (CNR) that is lost when a phrase of another finding is asked
# for on the same image: 0 for a map that does not read. Scores need a box, so your own image shows
# likeness only.

# %%
other = ground_file.other_phrase(config, example)
asked = grounding.ground(model, image, other, **options) if other else None
print(f"the other phrase: {other!r}" if other else "no other phrase: no specificity")
baselines = products.no_skill_methods(config, ["random", "centre prior", "brightness", "mean box"])
sanity.compare(example, result, baselines, asked)

# %% [markdown]
# The phantom shown by default is the first test pair whose finding covers a tenth of the
# film and lies on a named side: a rule that knows nothing of the map. How usual is what it
# shows? The same over many test pairs, with 95 % intervals (bootstrap over patients), and how this
# pair ranks among them:

# %%
pairs = products.evaluation_pairs(config)[:checked_pairs]
methods = [G2G("model", model, options), *products.no_skill_methods(config)]
rows = pd.concat([bench.score(method, pairs) for method in methods])
columns = ["cnr", "auc_roc", "pointing", "specificity"]
statistics.summary(rows, "method", columns, config.evaluation.bootstrap).map(str)

# %%
of_model = rows[rows["method"] == "model"]
if example.boxes:
    rank = (of_model["cnr"] < result.metrics["cnr"]).mean()
    score, count = result.metrics["cnr"], len(of_model)
    print(f"this pair: CNR {score:.2f}, better than {rank:.0%} of {count} test pairs")

# %% [markdown]
# ## Does it read the side?
# The sharper test costs no box: swap *left* and *right* in the phrase. A model that reads moves its
# heat to the other side of the *image*; one that only knows where findings usually are does not.
# Where the phrase names no side, another finding is asked for instead.

# %%
other = grounding.ground(model, image, sanity.contrary(example.phrase), **options)
print(f"{other.phrase!r}: correlation {sanity.correlation(result.heatmap, other.heatmap):.2f}")

# %%
fig, axes = overlays.panels(3)
overlays.overlay(axes[0, 0], image, result.heatmap, boxes=example.boxes, title="own phrase")
title = overlays.wrapped(f"“{other.phrase}”", 30)
overlays.overlay(axes[0, 1], image, other.heatmap, title=title)
gap = overlays.show_map(
    axes[0, 2],
    result.heatmap - other.heatmap,
    limits=(-1, 1),
    signed=True,
    title="difference: own − other",
)
fig.colorbar(gap, ax=axes, label="difference of heat", fraction=0.05, pad=0.02)
overlays.legend(fig, boxes=bool(example.boxes))
plots.save_figure(config, fig, "00_quickstart_swapped", folder)

# %% [markdown]
# One image may be luck. The same swap on the test pairs that name a side: by how much does the
# share of heat on the named side grow against the swapped phrase? Zero means that the word is not
# read; less than 0.05 we call *hardly*.

# %%
sided = sanity.one_sided(pairs)
shifts = sanity.side_shift(model, sided, **options)
shift = statistics.bootstrap(shifts["shift"], shifts["subject_id"], n=config.evaluation.bootstrap)
print(
    f"share of heat on the named side: {shifts['own'].mean():.2f}, "
    f"swapped {shifts['swapped'].mean():.2f}; shift {shift}, {len(shifts)} pairs"
)

# %% [markdown]
# ## What this model can and cannot tell about a real radiograph
# The miniature has seen computed phantoms of 64 × 64 pixels and their template impressions,
# nothing else. On a real film it **can** show that the whole chain runs on your file: reading,
# cropping, attention, mask. It **cannot** tell whether or where a real abnormality is: ribs,
# devices, breasts, rotation and burned-in text look like nothing it knows; words outside its few
# hundred fall into letters; a map always has a maximum, also where nothing is found. Whether the
# R marker is right depends on the film not being mirrored.
#
# One sign of how foreign an image is: how badly the autoencoder, which knows phantoms only,
# reconstructs it.

# %%
phantoms = [p.framed(config.image_size).array() for p in products.evaluation_pairs(config)[:64]]
usual = sanity.reconstruction_psnr(model, np.stack(phantoms)).numpy()
psnr = float(sanity.reconstruction_psnr(model, image[None])[0])
low, high = np.quantile(usual, [0.025, 0.975])
print(
    f"this image {psnr:.1f} dB; test images {low:.1f} to {high:.1f} dB; "
    f"foreign by this test: {psnr < low}"
)

# %% [markdown]
# `True` warns; `False` proves nothing: a smooth film is rebuilt well and not thereby understood.
# For real films use the profiles `open` or `paper`, with Stable Diffusion and CXR-BERT, and judge
# them by notebook 07's numbers.
#
# ## What we learned

# %%
table = sanity.compare(example, result, baselines)
prior = rows[rows["method"] == "mean box"]
if len(prior):
    gain = statistics.difference(of_model, prior, "cnr", config.evaluation.bootstrap)
    print(f"CNR above the mean training box on {len(of_model)} pairs: {gain.low > 0}, {gain}")
likest = table["likeness"].drop("model")
print(f"likest map without skill here: {likest.idxmax()}, correlation {likest.max():.2f}")
reads = "yes" if shift.low > 0.05 else "hardly" if shift.low > 0 else "not shown"
print(f"reads the side on {len(shifts)} pairs: {reads}, shift {shift}")

# %% [markdown]
# ## Next
# - from the command line, with bias merging and files to keep: `./run_all.sh ground IMAGE "PHRASE"`
# - [01 · what the model sees and is told](01_data_preparation.ipynb)
# - [04 · how the maps are taken](04_attention_extraction.ipynb)
# - [10 · the same with sliders](10_explorer.ipynb)
