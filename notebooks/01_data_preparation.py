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
# # 01 · What does the model see, and what is it told?
#
# ## Question
# Grounding emerges from image–text pairs alone. So which images, which words, which boxes, and what
# could leak from training into test? And what is left of a film once the autoencoder has turned it
# into latents?
#
# ## You need
# - nothing but this repository; real data sets are described at the end
# - about 30 seconds on one CPU core (the first run also trains the autoencoder where none is
#   shipped)
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
shown: int = 1  # which test image is looked at closely

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import numpy as np
import pandas as pd
import torch

from g2g_utils import metrics, models, plots, text
from g2g_utils.data import check, folder, geometry, record, sources
from g2g_utils.experiment import products
from g2g_utils.methods import no_skill
from g2g_utils.plots import overlays
from g2g_utils.runs import places

plots.use_style()

# %% [markdown]
# ## One example
# An image comes with an *impression*, as a radiologist would end a report. The model is trained on
# the two alone. For evaluation the impression is also taken apart: each described abnormality is a
# *region* with its phrase, its class, the patient's side, its boxes and, for phantoms, its mask.

# %%
# NBVAL_CHECK_OUTPUT
test = sources.examples(config, "test")
example = test[shown]
print(f"image {example.array().shape} in [0, 1]; impression: {example.phrase!r}")
for region in example.regions:
    print(f"{region.finding}, side {region.side}: {region.phrase!r}, {len(region.boxes)} box(es)")

# %%
fig, axes = overlays.panels(len(example.regions) + 1)
overlays.show_image(axes[0, 0], example.array(), title="what training sees")
for ax, region in zip(axes[0, 1:], example.regions, strict=True):
    title = overlays.wrapped(region.phrase, 32)
    overlays.show_image(ax, example.array(), boxes=region.boxes, title=title)
    overlays.draw_mask(ax, region.mask, config.image_size)
overlays.legend(fig, mask=True)
fig.suptitle(overlays.wrapped(f"“{example.phrase}”", 110), x=0.01, ha="left")
plots.save_figure(config, fig, "01_data_example")

# %% [markdown]
# ## Eight findings
# The classes of MS-CXR, drawn procedurally: bands (atelectasis), a wide heart, dense and soft
# blobs, haze around the hila, a meniscus of fluid, clustered foci, air behind a pleural line.
# Anatomy, pose, exposure and devices vary; side, zone and size words are true. The patient's
# right is image left.

# %%
pairs = record.pairs(test)
first = {
    finding: next((p for p in pairs if p.finding == finding), None) for finding in record.FINDINGS
}
chosen = [p for p in first.values() if p is not None]
print(f"{len(pairs)} image–phrase pairs of {len(test)} test images; classes: {len(chosen)} of 8")

# %%
titles = [f"{p.finding}\n“{p.phrase}”" for p in chosen]
fig = overlays.image_grid([p.array() for p in chosen], titles, [p.boxes for p in chosen])
plots.save_figure(config, fig, "01_data_findings")

# %% [markdown]
# ## Words
# Impressions have synonyms, function words, hyphens, devices and *negations of what is absent*: a
# model that only spots the word "effusion" would draw one under "no effusion".

# %%
texts = products.training_texts(config)
for caption in texts.captions[:8]:
    print("-", caption)

# %%
counts = pd.Series([r["finding"] for r in texts.regions]).value_counts()
denied = np.mean([bool({"no", "without"} & set(c.lower().split())) for c in texts.captions])
print(
    f"{len(texts.captions)} training impressions, {len(texts.regions)} described regions, "
    f"{denied:.0%} of impressions deny something"
)
counts.to_frame("training regions")

# %% [markdown]
# ## What the splits share
# Patients belong to one split only, and so does the exact wording of the phrase of every region.
# (The published evaluation likewise removes MS-CXR's patients from MIMIC's training images.)
# Training reads *impressions*, though, which are made of the same words, so a test phrase can occur
# inside one: how many do is counted here, and notebook 07 scores them apart.

# %%
# NBVAL_CHECK_OUTPUT
splits = {name: sources.examples(config, name) for name in ("train", "validation", "test")}
subjects = {name: {e.subject_id for e in some} for name, some in splits.items()}
phrases = {name: {p.phrase.lower() for p in record.pairs(some)} for name, some in splits.items()}
for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
    both = len(subjects[one] & subjects[other]), len(phrases[one] & phrases[other])
    print(f"{one} and {other} share {both[0]} patients and {both[1]} phrases")

# %%
read = {
    name: text.occurring(sorted(phrases[name]), texts.captions) for name in ("validation", "test")
}
for name, found in read.items():
    print(f"{name}: {sum(found)} of {len(found)} phrases occur in a training impression")

# %%
words = {
    name: {w for p in some for w in p.replace("-", " ").split()} for name, some in phrases.items()
}
known = words["test"] & words["train"]
print(f"{len(known)} of {len(words['test'])} words in test phrases also occur in training phrases")

# %% [markdown]
# ## Where findings lie anyway
# Boxes are not uniform: hearts lie where hearts lie. The share of training boxes over each place
# is a map that has seen neither image nor phrase, and every result in this project stands beside
# it. (Reports come without boxes: where training images have none, these are the validation's.)

# %%
known_regions = products.prior_regions(config)
boxes = [r["boxes"] for r in known_regions]
size = (config.image_size, config.image_size)
by_finding = no_skill.mean_box_per_finding(boxes, [r["finding"] for r in known_regions], size, size)
priors = {"all findings": no_skill.mean_box(boxes, size, size), **by_finding}

# %%
fig, axes = overlays.panels(5, 2, 1.7)
for ax in axes.flat[len(priors) :]:
    ax.set_visible(False)
for ax, (name, prior) in zip(axes.flat, priors.items(), strict=False):
    peak = float(prior.max())
    artist = overlays.show_map(ax, prior / peak, title=f"{name}\npeak {peak:.0%} of boxes")
fig.colorbar(artist, ax=axes, label="share of boxes, relative to the peak", fraction=0.03)
plots.save_figure(config, fig, "01_data_priors")

# %% [markdown]
# ## Boxes go through the same map as pixels
# Shorter side to $S$, then the centre square: $(x, y) \mapsto \frac{S}{m}\,(x - x_0,\, y - y_0)$
# with $m$ the shorter side and $(x_0, y_0)$ the crop's corner. Boxes are moved **as numbers** and
# drawn afterwards. The published code resizes a drawn boolean picture instead, by which boxes
# seem to grow:

# %%
# NBVAL_CHECK_OUTPUT
box, height, width, side = (700.0, 300.0, 401.0, 251.0), 1000, 1400, 64
moved = geometry.transform_box(box, height, width, side)
print("box", box, "->", tuple(round(v, 3) for v in moved))
cropped = (box[0] - (width - height) / 2, *box[1:])  # in the centre square, before it is resized
ours = metrics.rasterise([cropped], side, source_size=height)
published = metrics.rasterise([cropped], side, source_size=height, compat="published")
print(f"{int(ours.sum())} pixels as numbers, {int(published.sum())} resized as a picture")

# %%
film = np.kron(example.array(), np.ones((10, 14), np.float32))  # a landscape film
drawn = [tuple(np.array(b) * (14, 10, 14, 10)) for b in example.boxes]
side = config.image_size
crop = geometry.crop_resize(film, side)
boxes_in_crop = geometry.transform_boxes(drawn, *film.shape, side)
fig, axes = overlays.plt.subplots(1, 2, figsize=(5.6, 2.6), width_ratios=(1.4, 1))
overlays.show_image(
    axes[0], film, boxes=drawn, title=f"the file, {film.shape[1]} × {film.shape[0]}"
)
high, wide = film.shape
overlays.draw_boxes(axes[0], [((wide - high) / 2, 0, high, high)], colour="white")
overlays.show_image(
    axes[1], crop, boxes=boxes_in_crop, title=f"what the model sees, {side} × {side}"
)
plots.save_figure(config, fig, "01_data_geometry")

# %% [markdown]
# ## The latents
# The diffusion model never sees pixels. A VAE turns an image into a posterior over latents; a
# sample is `mean + std · ε`, scaled to unit variance. What this step loses, no map can find.

# %%
vae = models.load_vae(config.vae.pretrained or products.ensure(config, "vae"), config.vae.revision)
images = torch.from_numpy(np.stack([e.load(config.image_size) for e in test]))[:, None]  # n 1 S S
with torch.no_grad():
    mean, std = models.image_posterior(vae, images)  # n c h w
    rebuilt = models.vae_output(vae, vae.decode(mean / vae.config.scaling_factor).sample)
print(
    f"images {tuple(images.shape)} -> latents {tuple(mean.shape)}, "
    f"standard deviation {float(mean.std()):.2f}, of the posterior {float(std.mean()):.3f}"
)

# %%
error = rebuilt[shown, 0] - images[shown, 0]
channels = mean[shown] / mean.abs().max()
fig, axes = overlays.panels(3 + len(channels), size=1.6)
overlays.show_image(axes[0, 0], images[shown], title="film", boxes=example.boxes)
for i, (ax, channel) in enumerate(zip(axes[0, 1:-2], channels, strict=True)):
    overlays.show_map(ax, channel, limits=(-1, 1), signed=True, title=f"latent {i}")
overlays.show_image(axes[0, -2], rebuilt[shown], title="rebuilt", boxes=example.boxes)
shade = overlays.show_map(
    axes[0, -1], error, limits=(-0.2, 0.2), signed=True, title="rebuilt − film"
)
fig.colorbar(shade, ax=axes[0, -1], fraction=0.05)
plots.save_figure(config, fig, "01_data_latents")

# %% [markdown]
# Is what matters kept? Peak signal-to-noise ratio (PSNR) inside the boxes of each finding, and
# everywhere; the whole image is easier, for much of it is flat background:

# %%
rows = [{"finding": "whole image", "mse": float((rebuilt - images).square().mean())}]
for example, before, after in zip(test, images[:, 0], rebuilt[:, 0], strict=True):
    for pair in record.pairs([example]):
        inside = metrics.rasterise(pair.framed(config.image_size).boxes, config.image_size)
        mse = float((after - before)[inside].square().mean())
        rows.append({"finding": pair.finding, "mse": mse})
psnr = -10 * np.log10(pd.DataFrame(rows).groupby("finding", sort=False)["mse"].mean())
psnr.round(1).to_frame("PSNR, dB")

# %% [markdown]
# ## Your own data, and the real data sets
# Every source yields the same record: `image, phrase, finding, boxes, image_id, subject_id, split`.
#
# | source | images and text | boxes | who may | profile |
# |---|---|---|---|---|
# | phantoms | computed | computed | anyone | `smoke`, `miniature` |
# | OpenI | 3 955 reports (3 851 in the Kaggle edition) | – | anyone | `open` |
# | ChestX-ray14 | class names | 984 on 880 images | anyone | `open` |
# | MIMIC-CXR-JPG | 162 651 pairs as published | – | credentialed | `paper` |
# | MS-CXR | 1 162 pairs | 1 448 on 1 047 images | credentialed | `paper` |
# | a folder | CSV with `image, phrase[, finding, x, y, w, h]` | the CSV's | you | any |
#
# `data/README.md` says where each file goes. A folder takes PNG, JPEG or DICOM; rows of one
# image, phrase and finding are one pair with several boxes. What is wrong with a table is said in
# one line:

# %%
place = places.build(config) / "examples" / "folder"
place.mkdir(parents=True, exist_ok=True)
pixels = (np.kron(test[shown].array(), np.ones((6, 4))) * 255).astype(np.uint8)  # an odd size
overlays.plt.imsave(place / "film.png", pixels, cmap="gray", vmin=0, vmax=255)
header = "image,phrase,finding,x,y,w,h\n"
good = 'film.png,"small effusion, left",Pleural Effusion,150,200,60,90\n'
_ = (place / "good.csv").write_text(header + good)
_ = (place / "bad.csv").write_text(header + good.replace("Pleural Effusion", "Pleural Efusion"))

# %%
# NBVAL_CHECK_OUTPUT
mine = folder.load(place / "good.csv")[0].framed(config.image_size)
print(mine.phrase, mine.finding, mine.array().shape, [round(v, 1) for v in mine.boxes[0]])
try:
    folder.load(place / "bad.csv")
except ValueError as problem:
    print(str(problem).split("bad.csv, ")[-1])

# %% [markdown]
# A whole profile is checked before a long run: columns, counts beside the published ones, damaged
# files, boxes, ids, and patients that two splits share. In a shell that is
# `python -m g2g_utils.data.check PROFILE`; here this profile, then the two tables above:

# %%
for table in (None, "good.csv", "bad.csv"):
    files = (
        {"data.source": "folder", "data.root": place / table, "data.images": None} if table else {}
    )
    print(f"-- {table or profile}")
    print(str(check.check(load(profile, **files))).replace(f"{place}/", ""), "\n")

# %% [markdown]
# Images of credentialed sources, and whatever is made from them, are written below `build/` only;
# committed figures come from phantoms.
#
# ## What we learned

# %%
shared = sum(len(phrases["train"] & phrases[name]) for name in read)
print(f"phrases of validation and test that describe a training region: {shared}")
print(f"test phrases that occur inside a training impression: {np.mean(read['test']):.0%}")
print(f"published box drawing grows this box by {int(published.sum()) / int(ours.sum()) - 1:.0%}")
inside = psnr.drop("whole image")
print(
    f"rebuilt whole images: {psnr['whole image']:.1f} dB; worst inside boxes: "
    f"{inside.idxmin()}, {inside.min():.1f} dB"
)

# %% [markdown]
# ## Next
# - [02 · what do the text encoders know?](02_text_encoders.ipynb)
# - [07 · results beside these priors](07_grounding_benchmark.ipynb)
