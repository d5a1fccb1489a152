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
# # 09 · Do the better grounders also draw the better images?
#
# ## Question
# The paper reports the opposite: the encoder that grounds best (frozen, domain) gives images that
# are *further* from real ones than a generic or a learnable encoder does. Is there such a trade-off
# here, over seeds and with intervals, and in whose eyes?
#
# ## You need
# - samples and features of every arm and seed, and their evaluations (made when missing: about 20
#   minutes on two CPU cores for the miniature); with them one minute on one core; no GPU
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
shown: int = 6  # samples shown of every arm
resamples: int = 200  # of the images, for the intervals of distances

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
from textwrap import shorten

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from g2g_utils import plots, runs
from g2g_utils.bench import claims, fidelity, statistics
from g2g_utils.data import sources
from g2g_utils.experiment import products
from g2g_utils.plots import charts, overlays

plots.use_style()
charts.use_colours(products.compared(config))

# %% [markdown]
# ## The samples
# Every arm draws the same impressions of the test split from the same noise: DDIM under
# classifier-free guidance. Look before you measure.

# %%
# NBVAL_CHECK_OUTPUT
arms, seeds = config.training.compared, list(config.training.seeds)
folders = {arm: products.ensure(config, f"fidelity/{arm}-s{seeds[0]}") for arm in arms}
samples = {arm: np.load(folder / "samples.npy") for arm, folder in folders.items()}
print({arm: images.shape for arm, images in samples.items()})

# %%
prompts = runs.read_json(folders[arms[0]] / "run.json")["prompts"]
real = [e.framed(config.image_size) for e in sources.examples(config, "test")[:shown]]
fig, axes = overlays.panels(shown, 1 + len(arms), size=1.55)
for k, example in enumerate(real):
    overlays.show_image(axes[0, k], example.array())
    axes[0, k].set_title(
        overlays.wrapped(shorten(prompts[k], 75, placeholder=" …"), 26), fontsize=6.5
    )
    for row, arm in enumerate(arms, start=1):
        overlays.show_image(axes[row, k], samples[arm][k] / 255, marker=False)
for row, name in enumerate(["real", *arms]):
    axes[row, 0].set_ylabel(name)
plots.save_figure(config, fig, "09_samples")

# %% [markdown]
# First row: the real image that belongs to the impression above it; below, what each arm draws for
# it (first seed). The question is not whether they look alike, but whether the *sets* have the same
# distribution.
#
# ## The distance
# Features of real and sampled images are each fitted by a normal distribution, and
#
# $$d^2=\lVert\mu_r-\mu_s\rVert^2
# +\mathrm{tr}\bigl(\Sigma_r+\Sigma_s-2(\Sigma_r\Sigma_s)^{1/2}\bigr).$$
#
# With Inception features that is FID; here the features are of two small networks, so values
# compare only with each other: an independent **classifier** of the findings, sensitive to what
# they change, and a **generic** network from the domain-agnostic task, which never saw a chest.

# %%
features = {
    (arm, seed): products.fidelity_features(config, arm, seed) for arm in arms for seed in seeds
}
networks = [name for name in ("classifier", "generic") if name in features[arms[0], seeds[0]]]
reference = {
    name: tuple(features[arms[0], seeds[0]][f"{name}_{part}"] for part in ("mean", "cov"))
    for name in networks
}
for name in networks:
    print(f"{name}: {features[arms[0], seeds[0]][name].shape} images × features an arm and seed")

# %% [markdown]
# ## How near could any arm get?
# Two rows that no diffusion is in: as many other images of the data set, and the same images after
# a pass through the autoencoder, whose blur every arm shares. What an arm lies above the second
# row is its own doing. The reference is made of the first training images, these rows of the last
# ones (the two overlap only where a profile has few).

# %%
count = config.fidelity.samples
held = np.array(products.training_images(config)[-count:])
images = torch.from_numpy(held)[:, None].float() / 255
model = products.model(config)
passed = torch.cat([model.decode(model.image_posterior(part)[0]) for part in images.split(64)])
floors = {"as many others": images, "after the autoencoder": passed}

# %%
eyes = products.feature_networks(config)
rows = [
    {"method": name, "seed": seeds[0], "network": n, "features": fidelity.extract(eyes[n], x)}
    for name, x in floors.items()
    for n in networks
]
rows += [
    {"method": arm, "seed": seed, "network": n, "features": found[n]}
    for (arm, seed), found in features.items()
    for n in networks
]

# %%
for row in rows:
    row["interval"] = fidelity.frechet_interval(
        row["features"], reference[row["network"]], resamples
    )
    row["frechet"] = row["interval"].value
table = pd.DataFrame(rows).drop(columns="features")

# %%
shown_table = table.pivot(index=["method", "seed"], columns="network", values="interval")
charts.readable(shown_table.loc[[*floors, *arms]])

# %% [markdown]
# ## The distance of every arm
# Bars: mean over seeds of the distance, whiskers the mean ends of the seeds' intervals (over
# images); dots: seeds. Left is better.

# %%
means = table.groupby(["method", "network"], sort=False)["interval"].agg(charts.mean_interval)
bars = means.unstack("network").loc[[*floors, *arms], networks]
dots = table.pivot(index=["method", "seed"], columns="network", values="frechet").reset_index()
fig = charts.bars(
    bars, networks, dots, title=f"Fréchet distance of {count} images, two networks' features"
)
plots.save_figure(config, fig, "09_frechet")

# %% [markdown]
# ## Do the images differ from each other?
# A generator may draw good images and always the same ones. Multi-scale structural similarity
# (MS-SSIM) of neighbouring images of a set, which belong to different impressions: 1 would be one
# image for all; the data set's own images say what is normal.

# %%
alike = {(arm, seed): found["ms_ssim"] for (arm, seed), found in features.items()}
neighbours = {"the data set": fidelity.alikeness(images)}
neighbours |= {arm: np.mean([alike[arm, seed] for seed in seeds], 0) for arm in arms}
similar = {name: statistics.bootstrap(values, n=resamples) for name, values in neighbours.items()}
charts.readable(pd.DataFrame({"MS-SSIM of neighbours": similar}))

# %% [markdown]
# ## Grounding against fidelity
# If there is a trade-off, better grounders lie higher. Points of one arm that scatter as widely as
# the arms differ mean that the seed matters as much as the encoder.

# %%
evaluated = products.scores(config)
grounding = evaluated.groupby(["arm", "seed"])[["cnr", "specificity"]].mean()
points = table[(table["network"] == networks[0]) & table["method"].isin(arms)].rename(
    columns={"method": "arm"}
)
points = points.join(grounding, on=["arm", "seed"])
points[["low", "high"]] = [tuple(cell)[1:] for cell in points["interval"]]
related = points[["cnr", "frechet"]].corr().iloc[0, 1]
title = f"{len(points)} trainings: r = {related:+.2f} (a trade-off would be positive)"
fig = charts.fidelity_scatter(points, title)
plots.save_figure(config, fig, "09_tradeoff")

# %%
shown_points = points.set_index(["arm", "seed"])[["frechet", "cnr", "specificity"]]
print(f"correlation of specificity and distance: "
      f"{points[['specificity', 'frechet']].corr().iloc[0, 1]:+.2f}")  # fmt: skip
shown_points.round(2)

# %% [markdown]
# ## F2: is the order reversed in fidelity?
# The paper's order would be: the learnable generic encoder nearest to the data set's images, then
# the frozen generic one, the frozen domain encoder last. Each difference of distances is a mean
# over seeds, its interval over resampled images of both arms.


# %%
def gap(worse: str, better: str, network: str) -> claims.Claim:
    """The claim that `better` draws nearer to the data's images than `worse`."""
    sides = [[features[arm, seed][network] for seed in seeds] for arm in (worse, better)]
    distance = fidelity.frechet_gap(*sides, reference[network], resamples)
    text = f"{better} draws nearer to the data's images than {worse} ({network} features)"
    return claims.claim(config, f"F2-{better}-{worse}-{network}", text, distance, seeds)


# %%
order = [
    ("domain-frozen", "generic-frozen"),
    ("generic-frozen", "generic-learnable"),
    ("domain-frozen", "generic-learnable"),
]
all_claims = [gap(a, b, n) for n in networks for a, b in order if {a, b} <= set(arms)]
print(*all_claims, sep="\n")

# %% [markdown]
# ## What we learned
# Written by the run:

# %%
held = sum(made.holds for made in all_claims)
verdict = "is reproduced" if held == len(all_claims) else "is **not** reproduced as a whole"
Markdown(
    f"The reversed order {verdict}: {held} of {len(all_claims)} differences lie above zero.\n\n"
    + claims.verdicts(all_claims)
)

# %% [markdown]
# Read with care:
#
# - The networks are small and know this world only; another network may order the arms differently,
#   which is why there are two.
# - Arms are compared at equal steps; that does not make them equally far from convergence.
# - The distance is biased upwards for few images. All rows use the same number.
# - Intervals are over images, at these seeds; the dots show how far another training lands.
# - Guidance and sampler steps are the same for every arm, but need not suit each equally.
#
# ## Next
# - [07 · the grounding of the same arms](07_grounding_benchmark.ipynb)
# - [03 · fine-tuning, where the arms come from](03_fine_tuning.ipynb)
