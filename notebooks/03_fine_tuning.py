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
# # 03 · How does a U-Net learn to read under a frozen text encoder?
#
# ## Question
# Fine-tuning shows the U-Net noisy latents with their impressions and asks for the noise. What
# exactly is the loss, which parts of the recipe really act, and does an interrupted run end where
# an uninterrupted one does?
#
# ## You need
# - nothing but this repository (VAE latents and text encoders are made first where none are
#   shipped)
# - about 2 minutes on one CPU core, most of it a short live training
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
arm: str = ""  # which arm is trained live; empty: the profile's first
seed: int = 0
resume_steps: int = 4  # length of the two runs that are compared bit by bit

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import shutil
import time

import pandas as pd
import torch
from diffusers.training_utils import EMAModel

from g2g_utils import models, plots
from g2g_utils.bench import statistics
from g2g_utils.experiment import products
from g2g_utils.plots import charts, overlays
from g2g_utils.runs import places
from g2g_utils.training import diagnostics, finetune, fit

plots.use_style()

# %% [markdown]
# ## The material
# Latents are encoded once and kept as posteriors; each step draws a fresh sample of them.
# Captions are whole impressions: no phrase, no box, no class is ever shown.

# %%
arm = arm or next(iter(config.training.arms))
captions = products.training_texts(config).captions
pairs = finetune.load_pairs(products.ensure(config, "latents"), captions)

# %%
# NBVAL_CHECK_OUTPUT
print(f"{len(pairs)} pairs, latents {tuple(pairs.mean.shape[1:])}, arm {arm}")
print("the first caption:", repr(pairs.captions[0]))

# %% [markdown]
# ## One training step
# $$L=\mathbb{E}_{z,\varepsilon,t}\,\lVert\,y_t-f_\theta(z_t,t,\tau(\text{text}))\rVert^2,\qquad
# z_t=\sqrt{\bar\alpha_t}\,z+\sqrt{1-\bar\alpha_t}\,\varepsilon$$
#
# with $y_t=\varepsilon$ (paper) or the velocity $\sqrt{\bar\alpha_t}\,\varepsilon-
# \sqrt{1-\bar\alpha_t}\,z$ (miniature). All randomness of a step comes from generators made for
# (seed, step, sample): no global state, the same numbers on one process or four.

# %%
ids = finetune.batch_indices(0, config.training.batch_size, len(pairs), seed)
scheduler = models.build_scheduler(config.unet)
count = scheduler.config.num_train_timesteps
noise = finetune.draw(ids, 0, pairs.mean.shape[1:], count, config.training, seed)
latents = pairs.mean[ids] + pairs.std[ids] * noise.posterior  # b c h w
print("batch", tuple(latents.shape), "timesteps", noise.timesteps[:6].tolist(), "…")
print("captions replaced by the empty prompt:", int(noise.dropped.sum()), "of", len(ids))

# %%
vae = models.load_vae(config.vae.pretrained or products.ensure(config, "vae"), config.vae.revision)
steps = torch.tensor([1, 200, 400, 600, 800, 999])
noised = scheduler.add_noise(latents[:1].expand(6, -1, -1, -1), noise.noise[:1], steps)
with torch.no_grad():
    seen = models.vae_output(vae, vae.decode(noised / vae.config.scaling_factor).sample)
titles = [f"t = {t}, signal {scheduler.alphas_cumprod[t].sqrt():.2f}" for t in steps.tolist()]
fig = overlays.image_grid(list(seen[:, 0]), titles, columns=6, size=1.6)
plots.save_figure(config, fig, "03_training_noised")

# %% [markdown]
# Where a finding lies is decided early in drawing, at high noise; the profile may draw such
# timesteps more often (`timestep_density: linear`).

# %%
drawn = diagnostics.drawn_noise(config, pairs, batches=64, seed=seed)
fig, ax = overlays.plt.subplots(figsize=(4.5, 2.4))
ax.hist(drawn["timestep"], bins=20, range=(0, count), color="#b5367a", density=True)
ax.axhline(1 / count, color="0.5", ls="--", label="uniform, as published")
ax.set(xlabel="timestep t", ylabel="density")
ax.set_title(f"Drawn timesteps: mean {drawn['timestep'].mean():.0f} of {count}")
ax.legend()
plots.save_figure(config, fig, "03_training_timesteps")

# %% [markdown]
# ## Conditioning dropout that acts
# With probability $p$ a caption gives way to the empty prompt, so that the U-Net also learns to
# draw without text, which classifier-free guidance and the text bias of notebook 06 rely on. In
# the published code, as far as we can read it, the replacement happens *after* the optimiser
# step, so it would never act. Here token ids are replaced before the text encoder runs, and we
# look at what the U-Net gets:

# %%
spec = config.training.arms[arm]
tokenizer, encoder = products.text_encoder(config, spec.encoder)
tokens = models.tokenize(tokenizer, [pairs.captions[i] for i in ids[:4]], config.text.max_length)
nothing = models.tokenize(tokenizer, [""], config.text.max_length)
empty = nothing["input_ids"], nothing["attention_mask"]

# %%
# NBVAL_CHECK_OUTPUT
marked = torch.arange(len(tokens["input_ids"])) % 2 == 1
rows, mask = finetune.drop_conditioning(
    tokens["input_ids"], tokens["attention_mask"], empty, marked
)
zero = config.text.zero_padding
with torch.no_grad():
    states = models.text_states(encoder, rows, mask, zero)
    unconditional = models.text_states(encoder, *empty, zero)[0]
for row, (drop, state) in enumerate(zip(marked.tolist(), states, strict=True)):
    same = torch.allclose(state, unconditional, atol=1e-5)
    print(f"row {row}: dropped {drop}, the U-Net sees the empty prompt {same}")

# %%
share = float(drawn["dropped"].mean())
print(
    f"over {len(drawn)} draws {share:.3f} of captions are dropped, asked: {config.training.dropout}"
)

# %% [markdown]
# ## The start
# The paper starts from Stable Diffusion, which has seen millions of images. The miniature starts
# from random weights, or, with `unet.foundation_steps`, from a *foundation*: a U-Net of the same
# shape that learned to denoise these films without any text, of which every arm and seed takes all
# but the projections that read the text ($W_Q, W_K, W_V$ of the cross-attention).

# %%
start = products.start_unet(config, seed, encoder.config.hidden_size)
reading = [n for n, _ in start.named_parameters() if any(f".attn2.to_{p}." in n for p in "qkv")]
count_of = {n: w.numel() for n, w in start.named_parameters()}
new = reading if config.unet.foundation_steps else list(count_of)
total, fresh = sum(count_of.values()), sum(count_of[n] for n in new)
print(f"{total} weights, {fresh / total:.0%} of them new in this arm")

# %% [markdown]
# ## A short training, live
# The real recipe (AdamW, warm-up and cosine, gradient clipping, EMA), only shorter. Watch the
# bar; the same numbers go to `log.jsonl` and TensorBoard.

# %%
folder = places.build(config) / "live" / f"{arm}-s{seed}"
shutil.rmtree(folder, ignore_errors=True)
begin = time.time()
products.fine_tune(config, arm, seed, folder, steps=config.training.live_steps)
seconds = time.time() - begin
print(f"{config.training.live_steps} steps, {config.training.live_steps / seconds:.1f} a second")

# %% [markdown]
# What did these steps buy? The loss on held-out validation pairs, at the same noise for the
# start, the live and the finished U-Net of this seed, with the own caption and with a
# *another image's*. Only a U-Net that reads the text loses when the caption is wrong.

# %%
finished = products.model(config, arm, seed)
unets = {
    "start": start,
    f"live, {config.training.live_steps} steps": models.load_unet(folder),
    f"finished, {config.training.steps} steps": finished.unet,
}
losses = diagnostics.validation_losses(config, finished, unets, seed)
losses.mean().unstack().loc[list(unets)].round(4)

# %%
log = pd.DataFrame(fit.read_log(folder))
name = f"ldm/{arm}-s{seed}"
full = pd.DataFrame(fit.read_log(products.ensure(config, name)))
fig, axes = overlays.plt.subplots(1, 2, figsize=(7.5, 2.6))
axes[0].plot(log["step"], log["loss"], color="#fb8761", marker=".", label="live")
begin_of = full[full["step"] <= log["step"].max()]
axes[0].plot(begin_of["step"], begin_of["loss"], color="#b5367a", alpha=0.6, label="finished run")
axes[0].set(title=f"Live: {log['loss'].iloc[0]:.2f} → {log['loss'].iloc[-1]:.2f}", xlabel="step")
axes[1].plot(log["step"], log["lr"], color="#51127c")
axes[1].set(title="Warm-up, then cosine", xlabel="step", ylabel="learning rate")
axes[0].set_ylabel("training loss")
axes[0].legend()
plots.save_figure(config, fig, "03_training_live")

# %% [markdown]
# Same start, same batches, same noise: the live run repeats the finished one until its shorter
# schedule lowers the learning rate.
#
# ## Interrupted and resumed
# A cluster may kill a job at any time. Since all randomness hangs on the step's number, a resumed
# run needs no generator state and repeats the uninterrupted one **to the bit**. We run a few
# steps through, then start again from the checkpoint in the middle, as if the job had been killed
# there.

# %%
half = resume_steps // 2
small = load(profile, **{"training.checkpoint_every": half, "training.warmup": 1})
through, resumed = (places.build(config) / "live" / n for n in ("through", "resumed"))
for place in (through, resumed):
    shutil.rmtree(place, ignore_errors=True)
products.fine_tune(small, arm, seed, through, steps=resume_steps)
resumed.mkdir()
shutil.copy(through / "checkpoint.pt", resumed)
products.fine_tune(small, arm, seed, resumed, steps=resume_steps)

# %%
# NBVAL_CHECK_OUTPUT
one, other = (models.load_unet(place).state_dict() for place in (through, resumed))
started = fit.read_checkpoint(through)["step"]
print(f"resumed at step {started} of {resume_steps}")
print("weights equal to the bit:", all(torch.equal(one[key], other[key]) for key in one))

# %% [markdown]
# ## The average of the weights
# What is saved is not the last weights but their exponential moving average (EMA),
# $\bar\theta\leftarrow d\,\bar\theta+(1-d)\,\theta$, with a decay $d$ that rises from 0 so that the
# random start is forgotten.

# %%
average = EMAModel([], decay=config.training.ema)
decay = [average.get_decay(step) for step in range(1, max(config.training.steps, 10) + 1)]
state = fit.read_checkpoint(through)
gap = diagnostics.distance(state["ema"]["shadow_params"], state["modules"]["denoising"])
print(
    f"decay at step 10: {decay[9]:.2f}, at the last: {decay[-1]:.4f}, "
    f"a window of about {1 / (1 - decay[-1]):.0f} steps"
)
print(f"after {started} steps EMA and raw weights differ by {gap:.2%}")

# %% [markdown]
# ## The finished runs
# Every arm of the comparison trains from the same start, on the same pairs in the same order with
# the same noise; only the text states differ (a shuffled control has the captions of other
# images). A U-Net can draw well without reading well, so the loss need not tell which arm
# grounds: the figure's title says how far apart the last losses are, notebook 07 how far apart
# the groundings.

# %%
logs = products.training_logs(config)
print(f"finished: {', '.join(logs)}")
fig, ax = overlays.plt.subplots(figsize=(7.5, 3))
charts.training_curves(ax, logs)
last = pd.Series({name: log["loss"].tail(15).mean() for name, log in logs.items()})
ax.set(xlabel="step", ylabel="training loss, smoothed")
ax.set_title(f"{len(logs)} finished runs: last losses within {last.max() / last.min() - 1:.1%}")
plots.save_figure(config, fig, "03_training_logs")

# %% [markdown]
# ## What the published code seems to do differently
# Read at commit 699364a; said as carefully as we know it:
# - conditioning dropout follows the optimiser step, so it appears never to act;
# - the data loader is not handed to accelerate, so several processes seem to see the same batches.
#
# Here every process takes its own share of one global batch:

# %%
# NBVAL_CHECK_OUTPUT
from types import SimpleNamespace

shares = [finetune.share(ids, SimpleNamespace(num_processes=2, process_index=i)) for i in (0, 1)]
print(
    "two processes:",
    [len(s) for s in shares],
    "samples, common:",
    len(set(shares[0].tolist()) & set(shares[1].tolist())),
)

# %% [markdown]
# ## What we learned

# %%
for unet in unets:
    own, another = (losses[unet][caption] for caption in diagnostics.CAPTIONS)
    penalty = statistics.paired(another, own, groups=losses.index, n=config.evaluation.bootstrap)
    print(f"{unet}: reads the text: {penalty.low > 0}; another image's caption costs {penalty}")
print("resumed equals uninterrupted:", all(torch.equal(one[key], other[key]) for key in one))
print(f"dropout acts: {abs(share - config.training.dropout) < 0.05}, {share:.3f}")

# %% [markdown]
# ## Next
# - [04 · reading the trained U-Net's attention](04_attention_extraction.ipynb)
# - [07 · which arm grounds](07_grounding_benchmark.ipynb)
# - train an arm yourself: `./run_all.sh miniature --retrain`
