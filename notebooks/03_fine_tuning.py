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
# Training shows the U-Net noisy latents with their impressions and asks for the noise. What exactly
# is the loss, which parts of the recipe really act, how does the trained model draw a film, and
# where does the miniature depart from the paper?
#
# The paper *fine-tunes* Stable Diffusion; the miniature has no such start and trains its small
# U-Net from random weights, with the same loss. Paper: section 3.1 (training). Terms:
# [glossary](../docs/glossary.md); DDIM and guidance at length:
# [derivations](../docs/derivations.md).
#
# ## You need
# - notebooks 01 (latents) and 02 (text states)
# - nothing but this repository (VAE latents and text encoders are made first where none are
#   shipped)
# - about 2 minutes on one CPU core, most of it a short live training
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
arm: str = ""  # which arm is trained live; empty: the profile's first
seed: int = 0
drawing_steps: int = 12  # of DDIM, where films are drawn
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
from IPython.display import Markdown

from g2g_utils import models, plots, sampling
from g2g_utils.bench import claims, statistics
from g2g_utils.experiment import ground_file, products
from g2g_utils.plots import charts, lessons, overlays
from g2g_utils.runs import places
from g2g_utils.training import diagnostics, finetune, fit

# %%
plots.use_style()

# %% [markdown]
# ## The material
# Latents are encoded once and kept as posteriors; each step draws a fresh sample of them.
# Captions are whole impressions: no phrase, no box, no class is ever shown.

# %%
arm = arm or next(iter(config.training.arms))
captions = products.training_texts(config).captions
pairs = finetune.load_pairs(products.ensure(config, "latents"), captions)

# %% tags=["nbval-check-output"]
print(f"{len(pairs)} pairs, latents {tuple(pairs.mean.shape[1:])}, arm {arm}")
print("the first caption:", repr(pairs.captions[0]))

# %% [markdown]
# ## One training step
# A latent $z$ is mixed with noise $\varepsilon$ to a timestep $t$, where $\bar\alpha_t$ falls from
# nearly 1 to nearly 0; the U-Net $f_\theta$ sees the mixture, the time and the text states
# $\tau(\text{text})$, and is asked for what it cannot see:
#
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
plots.save_figure(
    config, fig, "03_training_noised", alt="One training film noised to six timesteps"
)

# %% [markdown]
# **Predict.** At which of these six would a change of the caption change the U-Net's answer most?
#
# <details><summary>Answer</summary>
#
# Towards the right. At low noise the film itself tells nearly everything, and the text has little
# to add. “What did these steps buy?” measures at which timestep a wrong caption costs most.
# </details>
#
# The miniature therefore draws noisy timesteps more often (`timestep_density: linear`), so that few
# steps teach it to read; the paper draws them uniformly.

# %%
drawn = diagnostics.drawn_noise(config, pairs, batches=64, seed=seed)
fig, ax = overlays.plt.subplots(figsize=(4.5, 2.4))
ax.hist(drawn["timestep"], bins=20, range=(0, count), color=charts.BLUE, density=True)
ax.axhline(1 / count, color="0.5", ls="--", label="uniform, as published")
ax.set(xlabel="timestep t", ylabel="density")
ax.set_title(f"Drawn timesteps: mean {drawn['timestep'].mean():.0f} of {count}")
ax.legend()
plots.save_figure(config, fig, "03_training_timesteps", alt="Histogram of drawn timesteps")

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

# %% tags=["nbval-check-output"]
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
    seen_as = "the empty prompt" if same else "its caption"
    print(f"row {row}: {'dropped' if drop else 'kept'}; the U-Net sees {seen_as}")

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
# ## The recipe, and where the miniature departs from it
# What the three profiles set, side by side; the rows that differ most have their reason below.

# %%
recipes = {name: load(name) for name in ("paper", "open")} | {config.profile: config}
rows = {}
for name, one in recipes.items():
    t, u = one.training, one.unet
    rows[name] = {
        "start": (u.pretrained or "random weights").split("/")[-1],
        "target of the loss": "noise" if u.prediction == "epsilon" else "velocity",
        "pairs a step": t.batch_size * t.accumulate,
        "steps": t.steps,
        "learning rate": t.learning_rate,
        "of the text projections": f"× {t.attention_lr_scale:g}",
    }

# %%
for name, one in recipes.items():
    t, u = one.training, one.unet
    rows[name] |= {
        "of a learnable encoder": t.text_learning_rate,
        "warm-up steps": t.warmup,
        "captions dropped": f"{t.dropout:.0%}",
        "timesteps drawn": t.timestep_density,
        "decay of the average": t.ema,
        "query and key gain": "as Stable Diffusion" if u.pretrained else f"{u.query_key_gain:g}",
        "seeds": ", ".join(str(s) for s in t.seeds),
    }
pd.DataFrame(rows).astype(str)

# %% [markdown]
# Why the miniature departs (measured on validation, [log](../docs/miniature_log.md)):
# - *velocity instead of noise*: at high noise, where text matters, noise is trivial to guess;
# - *linear density, text projections × 3, query and key gain 2.5*: a few thousand steps must teach
#   what Stable Diffusion learned from millions of captions, to look sharply at words at all;
# - *no cross-attention at 4 × 4*: maps there became priors, the same whatever was asked (Stable
#   Diffusion has none at its deepest level either, but for the middle block);
# - *10 % dropout*: with so few steps each caption counts. In the paper it is 30 %, on eight A100s
#   with 16 pairs on each and 2 accumulated, which makes 256.
#
# ## A short training, live
# The recipe (AdamW, warm-up and cosine, gradient clipping, EMA), only shorter. By hand the cell
# shows a bar; the same numbers go to `log.jsonl` and TensorBoard.

# %%
folder = places.build(config) / "live" / f"{arm}-s{seed}"
shutil.rmtree(folder, ignore_errors=True)
begin = time.time()
products.fine_tune(config, arm, seed, folder, steps=config.training.live_steps)
seconds = time.time() - begin
print(f"{config.training.live_steps} steps, {config.training.live_steps / seconds:.1f} a second")

# %% [markdown]
# ## What did these steps buy?
# The loss on held-out validation pairs, at the same noise for the start, the live and the finished
# U-Net of this seed, with the own caption and with *another image's*. Only a U-Net that reads the
# text loses when the caption is wrong.

# %%
finished = products.model(config, arm, seed)
unets = {
    "at the start": start,
    f"after {config.training.live_steps} steps": models.load_unet(folder),
    f"after all {config.training.steps} steps": finished.unet,
}
losses = diagnostics.validation_losses(config, finished, unets, seed)
losses.mean().unstack().loc[list(unets)].round(4)

# %%
levels = diagnostics.caption_penalty(config, finished, seed)
told = ", ".join(f"{cost:.3f} at t = {t}" for t, cost in levels.mean().items())
Markdown(
    f"The finished U-Net pays for a wrong caption, by noise: {told}. "
    f"The text matters most at t = {levels.mean().idxmax()}."
)

# %%
log = pd.DataFrame(fit.read_log(folder)).set_index("step")["loss"]
full = pd.DataFrame(fit.read_log(products.ensure(config, f"ldm/{arm}-s{seed}")))
begin_of = full.drop_duplicates("step").set_index("step")["loss"].reindex(log.index)
fig, axes = overlays.plt.subplots(1, 2, figsize=(7.5, 2.6))
axes[0].plot(log.index, log, color=charts.ORANGE, marker=".", label="live")
axes[0].plot(begin_of.index, begin_of, color=charts.BLUE, label="finished run")
axes[0].set(title=f"Loss: {log.iloc[0]:.2f} → {log.iloc[-1]:.2f}", xlabel="step")
axes[1].plot(log.index, log - begin_of, color=charts.ORANGE)
axes[1].set(title="live less finished: they part late", xlabel="step")
axes[0].legend()
plots.save_figure(config, fig, "03_training_live", alt="Losses of the live and the finished run")

# %% [markdown]
# Same start, same batches, same noise: the live run repeats the finished one until its shorter
# schedule lowers the learning rate.
#
# ## How it draws: DDIM and guidance
# Notebooks 06 and 09 rest on sampling, so here it is. From a noisy $z_t$ the U-Net's answer gives
# an estimate of noise $\hat\varepsilon$ and hence of the clean latent
# $\hat z=(z_t-\sqrt{1-\bar\alpha_t}\,\hat\varepsilon)/\sqrt{\bar\alpha_t}$. **DDIM** (without fresh
# noise, $\eta=0$) puts both together again with less noise:
#
# $$z_{t'}=\sqrt{\bar\alpha_{t'}}\,\hat z+\sqrt{1-\bar\alpha_{t'}}\,\hat\varepsilon .$$
#
# **Classifier-free guidance** asks twice at each step, with the caption $c$ and with the empty
# prompt $\varnothing$ (which dropout taught), and goes further in the direction of the difference:
#
# $$\hat f=f(z_t,\varnothing)+g\,\bigl(f(z_t,c)-f(z_t,\varnothing)\bigr).$$
#
# $g=1$ is the model itself. **Predict.** All rows start from the same noise and have the same
# caption. What does $g=4$ change, and what $g=16$, which the paper uses for the text bias?

# %%
example = ground_file.running_example(config).framed(config.image_size)
drawn_as = {}
for guidance in (1.0, 4.0, 16.0):
    strip = sampling.drawing(finished, example.phrase, drawing_steps, guidance, seed)
    drawn_as[f"guidance {guidance:g}"] = finished.decode(strip)[:, 0].clamp(0, 1)
times = sampling.timesteps(finished, drawing_steps)
print("latents at each step and at the end:", tuple(strip.shape))

# %%
title = f"From noise to a film of “{example.phrase}”"
fig = lessons.film_strips(drawn_as, [*times, 0], title)
alt = "Decoded latents from noise to film, a row each for guidance 1, 4 and 16."
plots.save_figure(config, fig, "03_drawing", alt=alt)

# %%
contrast = {name: float(films[-1].std()) for name, films in drawn_as.items()}
said = ", ".join(f"{value:.3f} at {name}" for name, value in contrast.items())
Markdown(
    f"The last films' contrast (standard deviation of the pixels): {said}. Guidance exaggerates: "
    "the difference that the caption makes is multiplied, so the finding stands out more than in "
    "any training film. A film at 16 is no likely film, but it says clearly where the words "
    "belong, which is all that the text bias of notebook 06 asks."
)

# %% [markdown]
# ## The finished runs
# Every arm of the comparison trains from the same start, on the same pairs in the same order with
# the same noise; only the text states differ (a shuffled control has the captions of other
# images, and the stand-in for an off-the-shelf model never saw a film). **Predict.** Will the
# arm that grounds best have the lowest loss?

# %%
logs = {k: v for k, v in products.training_logs(config).items() if not k.startswith("foundation")}
last = pd.Series({name: log["loss"].tail(60).mean() for name, log in logs.items()})
by_arm = last.groupby([name.rpartition("-s")[0] for name in logs]).mean().sort_values()
spread = by_arm.max() / by_arm.min() - 1
title = f"{len(logs)} finished runs: last losses of the arms within {spread:.1%}"
alt = "Smoothed training losses by arm; right: each arm's loss less the mean of all."
if logs:  # released weights come without
    fig = lessons.arm_losses(logs, title=title)
    plots.save_figure(config, fig, "03_training_logs", alt=alt)

# %%
order = ", ".join(f"{name} {loss:.4f}" for name, loss in by_arm.items())
Markdown(
    f"Last losses: {order}. All lie within {spread:.1%}, because a loss is nearly all about "
    "drawing: a finding is a small part of a film, and the words that place it a small part of the "
    "caption. So differences in the third decimal are all that reading makes of a loss, and how "
    "well an arm grounds cannot be seen from its curve at the left. Notebook 07 measures it."
)

# %% [markdown]
# ## Engineering that must hold
# Three properties decide whether a run can be repeated. They are checked here and have no part in
# the story.
#
# **Interrupted and resumed.** A cluster may kill a job at any time. Since all randomness hangs on
# the step's number, a resumed run needs no generator state and repeats the uninterrupted one *to
# the bit*. We run a few steps through, then start again from the checkpoint in the middle.

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

# %% tags=["nbval-check-output"]
one, other = (models.load_unet(place).state_dict() for place in (through, resumed))
started = fit.read_checkpoint(through)["step"]
print(f"resumed at step {started} of {resume_steps}")
same = all(torch.equal(one[key], other[key]) for key in one)
print("weights equal to the bit" if same else "weights differ")

# %% [markdown]
# **The average of the weights.** What is saved is not the last weights but their exponential
# moving average (EMA),
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
# ## What the published code seems to do differently
# Read at commit 699364a:
# - conditioning dropout follows the optimiser step, so it appears never to act;
# - the data loader is not handed to accelerate, so several processes seem to see the same batches.
#
# Here every process takes its own share of one global batch:

# %% tags=["nbval-check-output"]
from types import SimpleNamespace

shares = [finetune.share(ids, SimpleNamespace(num_processes=2, process_index=i)) for i in (0, 1)]
print(
    "two processes:",
    [len(s) for s in shares],
    "samples, common:",
    len(set(shares[0].tolist()) & set(shares[1].tolist())),
)

# %% [markdown]
# ## Exercises
# 1. **Predict, run, explain.** Set `arm = "domain-shuffled"`: captions of other images. Does the
#    live loss fall as fast as with the right ones?
#
#    <details><summary>Answer</summary>
#    Almost: what falls first is the error of drawing chests. Only the last row of the penalty table
#    differs, because nothing can be learned from a caption that does not belong to its image.
#    </details>
# 2. **Predict, run, explain.** Draw with the empty prompt: replace `example.phrase` by `""` in the
#    drawing cell. What does guidance change now?
#
#    <details><summary>Answer</summary>
#    Nothing but rounding: the two answers whose difference is multiplied are the same.
#    </details>
#
# ## With real data
# `profile = "open"` (OpenI, one GPU) or `"paper"` (MIMIC-CXR, eight GPUs in the paper). What
# changes is the table above. `live_steps` is 20 there, so that this notebook stays short; a whole
# run is `./run_all.sh paper`, and [scale](../docs/scale.md) says what it costs.
#
# ## What we learned

# %%
lines = []
for unet in unets:
    own, another = (losses[unet][caption] for caption in diagnostics.CAPTIONS)
    penalty = statistics.paired(another, own, groups=losses.index, n=config.evaluation.bootstrap)
    lines.append(f"- The U-Net reads the text {unet}: {claims.outcome(penalty)} in the loss.")
lines[-1] = lines[-1][:-1] + ", because only the words can tell it what the noise hides."
acts = abs(share - config.training.dropout) < 0.05
lines.append(
    f"- Dropout {'acts' if acts else 'does not act'}: {share:.1%} of captions are dropped."
)
lines.append(f"- A resumed run {'equals' if same else 'differs from'} an uninterrupted one.")
lines.append(f"- The arms' last losses lie within {spread:.1%}: reading is a small part of a loss.")
Markdown("\n".join(lines))

# %% [markdown]
# ## Next
# - [04 · reading the trained U-Net's attention](04_attention_extraction.ipynb)
# - [07 · which arm grounds](07_grounding_benchmark.ipynb)
# - train an arm yourself: `./run_all.sh miniature --retrain`
