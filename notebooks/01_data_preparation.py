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
# Paper: section 3.1 (data); MIMIC-CXR and MS-CXR stand behind every number there, and phantoms
# behind every number here. Terms: [glossary](../docs/glossary.md).
#
# ## You need
# - nothing but this repository; real data sets are described at the end
# - about 30 seconds on one CPU core (the first run also trains the autoencoder where none is
#   shipped)
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
shown: int = -1  # which test image is looked at closely; -1: the running example

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from g2g_utils import metrics, models, plots, text
from g2g_utils.bench import audit
from g2g_utils.data import folder, geometry, phantoms, record, sources
from g2g_utils.experiment import ground_file, products
from g2g_utils.methods import no_skill
from g2g_utils.plots import overlays
from g2g_utils.runs import places

plots.use_style()

# %% [markdown]
# ## One example
# An image comes with an *impression*, as a radiologist would end a report. The model is trained on
# the two alone. For evaluation the impression is also taken apart: each described abnormality is a
# *region* with its phrase, its class, the patient's side, its boxes and, for phantoms, its mask.
#
# The film below goes through all notebooks: a whole chest whose phrase has function words, a side
# and its finding's name. A rule chose it that knows nothing of how well it is grounded.

# %%
test = sources.examples(config, "test")
if shown < 0:
    shared = ground_file.running_example(config).image_id
    shown = next(i for i, one in enumerate(test) if one.image_id == shared)
example = test[shown]

# %% tags=["nbval-check-output"]
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
alt = "The film without marks, then with box and mask of each region."
plots.save_figure(config, fig, "01_data_example", alt=alt)

# %% [markdown]
# ## How a phantom is drawn
# A film shows how much tissue the rays met. So densities are added up (body, air in the lungs,
# heart and spine, ribs, findings), and then the film is exposed: contrast, blur, noise.

# %%
if config.data.source == "phantoms":
    drawn = phantoms.drawing(shown, config.data.seed, "test", **config.data.world)
    fig = overlays.image_grid(list(drawn.values()), list(drawn), columns=6, size=1.6)
    alt = "The running example as it is drawn: body, lungs, heart, ribs, findings, exposure."
    plots.save_figure(config, fig, "01_data_drawing", alt=alt)

# %% [markdown]
# ## Eight findings
# The classes of MS-CXR, drawn procedurally: atelectasis is a thin band, cardiomegaly a wide heart,
# consolidation a dense blob, lung opacity a soft one, edema a haze around the hilum, effusion a
# meniscus of fluid at the base, pneumonia clustered foci, pneumothorax air behind a pleural line.
# Anatomy, pose, exposure and devices vary; side, zone and size words are true. The patient's right
# is image left. **Predict** from the upper row where each finding is, before you look at the lower.

# %%
pairs = record.pairs(test)
side = config.image_size
whole = [
    p for p in pairs if all(min(x, y, side - x - w, side - y - h) > 0 for x, y, w, h in p.boxes)
]
first = {f: next((p for p in whole if p.finding == f), None) for f in record.FINDINGS}
chosen = [p for p in first.values() if p is not None]
print(f"{len(pairs)} image–phrase pairs of {len(test)} test images; classes: {len(chosen)} of 8")

# %%
fig, axes = overlays.panels(len(chosen), 2, 1.35)
for k, p in enumerate(chosen):
    overlays.show_image(axes[0, k], p.array(), title=overlays.wrapped(p.finding, 13), marker=False)
    title = overlays.wrapped(f"“{p.phrase}”", 20)
    overlays.show_image(axes[1, k], p.array(), boxes=p.boxes, marker=False)
    axes[1, k].set_xlabel(title, fontsize=7)
alt = "A phantom of each class, without its box above and with it below, with its phrase."
plots.save_figure(config, fig, "01_data_findings", alt=alt)

# %% [markdown]
# ## Words
# Impressions have synonyms, function words, hyphens, devices and *negations of what is absent*: a
# model that only spots the word "effusion" would draw one under "no effusion".

# %%
texts = products.training_texts(config)
for caption in texts.captions[:8]:
    print("-", caption)

# %%
denied = np.mean([bool({"no", "without"} & set(c.lower().split())) for c in texts.captions])
print(
    f"{len(texts.captions)} training impressions, {len(texts.regions)} described regions, "
    f"{denied:.0%} of impressions deny something"
)

# %% [markdown]
# Is this world like the real one? Classes here are nearly even; in MS-CXR cardiomegaly and
# pneumothorax make up half of the pairs, which is why notebook 11 asks how classes are averaged.

# %%
here = pd.Series([p.finding for p in pairs]).value_counts(normalize=True)
there = audit.MS_CXR_COUNTS / audit.MS_CXR_COUNTS.sum()
shares = pd.DataFrame({"phantoms, test": here, "MS-CXR": there}).reindex(record.FINDINGS)
shares["mean area of its boxes"] = [
    np.mean(
        [sum(w * h for *_, w, h in p.boxes) / side**2 for p in pairs if p.finding == f] or [np.nan]
    )
    for f in shares.index
]
shares.map("{:.1%}".format).replace("nan%", "–")

# %% [markdown]
# ## What the splits share
# Patients belong to one split only, and so does the exact wording of the phrase of every region.
# (The published evaluation likewise removes MS-CXR's patients from MIMIC's training images.)
# Training reads *impressions*, though, which are made of the same words, so a test phrase can occur
# inside one: how many do is counted here, and notebook 07 scores them apart.

# %% tags=["nbval-check-output"]
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
alt = "Share of training boxes over each place, for all findings and for each class."
plots.save_figure(config, fig, "01_data_priors", alt=alt)

# %% [markdown]
# ## Boxes go through the same map as pixels
# Shorter side to $S$, then the centre square: $(x, y) \mapsto \frac{S}{m}\,(x - x_0,\, y - y_0)$
# with $m$ the shorter side and $(x_0, y_0)$ the crop's corner. Boxes are moved **as numbers** and
# drawn afterwards. The published code resizes a drawn boolean picture instead, by which every pixel
# that a box touches becomes part of it. **Predict.** Does that matter more at 64² or at 512²?

# %% tags=["nbval-check-output"]
box, height, width = (700.0, 300.0, 401.0, 251.0), 1000, 1400
cropped = (box[0] - (width - height) / 2, *box[1:])  # in the centre square, before it is resized
grown = {}
for size in (64, 512):
    ours = int(metrics.rasterise([cropped], size, source_size=height).sum())
    theirs = int(metrics.rasterise([cropped], size, source_size=height, compat="published").sum())
    grown[size] = theirs / ours - 1
    print(
        f"at {size}²: {ours} pixels as numbers, {theirs} resized as a picture ({grown[size]:+.1%})"
    )

# %% [markdown]
# The rim is one pixel wide at any size, so its share falls as the frame grows; notebook 11 measures
# it over a data set. Below, a landscape film and the square that is cut from it. What lies outside
# the square is lost; a box that straddles its edge is clipped.

# %%
edge = round(0.2 * side)
film = np.kron(np.pad(example.array(), ((0, 0), (edge, edge)), mode="edge"), np.ones((10, 10)))
high, wide = film.shape
drawn = [tuple(10 * np.array(b) + (10 * edge, 0, 0, 0)) for b in example.boxes]
crop = geometry.crop_resize(film.astype(np.float32), side)
boxes_in_crop = geometry.transform_boxes(drawn, high, wide, side)

# %%
fig, axes = overlays.plt.subplots(1, 2, figsize=(5.8, 2.6), width_ratios=(1.4, 1))
overlays.show_image(axes[0], film, boxes=drawn, title=f"the file, {wide} × {high}")
overlays.draw_boxes(axes[0], [((wide - high) / 2, 0, high, high)], colour="white")
overlays.show_image(axes[1], crop, boxes=boxes_in_crop, title=f"the model's frame, {side} × {side}")
alt = "A landscape film with its boxes and the centre square; the square, resized, with its boxes."
plots.save_figure(config, fig, "01_data_geometry", alt=alt)

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
channels = mean[shown] / mean[shown].abs().amax((1, 2), keepdim=True)
fig, axes = overlays.panels(3 + len(channels), size=1.6)
overlays.show_image(axes[0, 0], images[shown], title="film", boxes=example.boxes)
for i, (ax, channel) in enumerate(zip(axes[0, 1:-2], channels, strict=True)):
    overlays.show_map(ax, channel, limits=(-1, 1), signed=True, title=f"latent {i}")
overlays.show_image(axes[0, -2], rebuilt[shown], title="rebuilt", boxes=example.boxes)
shade = overlays.show_map(
    axes[0, -1], error, limits=(-0.2, 0.2), signed=True, title="rebuilt − film"
)
fig.colorbar(shade, ax=axes[0, -1], fraction=0.05)
alt = "The film, the channels of its latent each scaled by itself, the rebuilt film, the error."
plots.save_figure(config, fig, "01_data_latents", alt=alt)

# %% [markdown]
# Is what matters kept? Peak signal-to-noise ratio (PSNR) inside the boxes of each finding, and
# everywhere. **Predict.** Which finding loses most in the autoencoder?

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

# %% tags=["nbval-check-output"]
mine = folder.load(place / "good.csv")[0].framed(config.image_size)
print(mine.phrase, mine.finding, mine.array().shape, [round(v, 1) for v in mine.boxes[0]])
try:
    folder.load(place / "bad.csv")
except ValueError as problem:
    print(str(problem).split("bad.csv, ")[-1])

# %% [markdown]
# A whole profile is checked before a long run by `python -m g2g_utils.data.check PROFILE`: columns,
# counts beside the published ones, damaged files, boxes, ids, and patients that two splits share.
#
# Images of credentialed sources, and whatever is made from them, are written below `build/` only;
# committed figures come from phantoms.
#
# **With real data**: `profile = "open"` (OpenI and ChestX-ray14) or `"paper"` (MIMIC-CXR-JPG and
# MS-CXR); `data.root` names the folder. What changes: 512² pixels, latents of 4 × 64 × 64 from
# Stable Diffusion's autoencoder, reports written by people, boxes drawn by people, and no masks.
#
# ## Exercises
# 1. **Predict, run, explain.** Set `shown = 1`: part of the chest lies outside the frame. Which of
#    the figures change in kind, and which only in place?
#
#    <details><summary>Answer</summary>
#    None in kind: boxes, latents and priors live in the frame of the image. The priors stay exactly
#    as they are, for they are of training boxes, and that is why shifted films make them weak.
#    </details>
# 2. **Predict, run, explain.** Which is the better guess for “effusion”: the mean box of all
#    findings or of effusions? And does either know the side?
#
#    <details><summary>Answer</summary>
#    That of effusions, since fluid lies at the bases. Neither knows the side: the map has two
#    hills, and half of its heat lies in the wrong lung.
#    </details>
#
# ## What we learned

# %%
shared = sum(len(phrases["train"] & phrases[name]) for name in read)
inside = psnr.drop("whole image")
lines = [
    f"- Validation and test share {shared} phrases of regions with training, but "
    f"{np.mean(read['test']):.0%} of test phrases occur inside a training *impression*, because "
    "short phrases are built from few words. Notebook 07 scores those apart.",
    f"- Resizing drawn boxes enlarges this one by {grown[64]:.0%} at 64² and {grown[512]:.1%} at "
    "512², because the rim that is added is a pixel wide at any size.",
    f"- The autoencoder keeps whole images at {psnr['whole image']:.1f} dB and the worst finding, "
    f"{inside.idxmin()}, at {inside.min():.1f} dB, because it loses fine edges first.",
]
Markdown("\n".join(lines))

# %% [markdown]
# ## Next
# - [02 · what do the text encoders know?](02_text_encoders.ipynb)
# - [07 · results beside these priors](07_grounding_benchmark.ipynb)
