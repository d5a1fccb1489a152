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
# # 02 · What do the text encoders know before grounding starts?
#
# ## Question
# The paper's claim is that a frozen text encoder *from the domain* grounds better than a generic
# one. What is different between them before any diffusion training: how they cut words into
# pieces, which phrases they hold for alike, and (of the domain encoder, which was trained with
# images) whether states match images?
#
# ## You need
# - nothing but this repository
# - about 30 seconds on one CPU core (the first run also pre-trains the two encoders where none are
#   shipped)
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
phrase: str = "small left pleural effusion"
images_shown: int = 3  # films with word–patch maps

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import pandas as pd
import torch

from g2g_utils import bbm, models, plots, text
from g2g_utils.bench import benchmark, encoder_probes, statistics
from g2g_utils.data import record, sources
from g2g_utils.experiment import products
from g2g_utils.methods import biovil
from g2g_utils.plots import overlays
from g2g_utils.training import fit

plots.use_style()

# %% [markdown]
# ## Two encoders
# - **domain**: a `BertModel`, pre-trained as CXR-BERT was: masked words, then also matching whole
#   images with texts (global) and image patches with words (local).
# - **generic**: a `CLIPTextModel`, pre-trained by contrast with pictures of coloured glyphs. It has
#   never met a medical word.
#
# They differ in domain, objective *and* tokenizer at once, so a gap between them is not the
# domain's doing alone; control encoders take that apart elsewhere.

# %%
names = [n for n in config.encoders if n in ("domain", "generic")]
encoders = {n: products.text_encoder(config, n) for n in names}

# %%
# NBVAL_CHECK_OUTPUT
for name, (_, encoder) in encoders.items():
    print(
        f"{name}: {type(encoder).__name__}, width {encoder.config.hidden_size}, "
        f"at most {config.text.max_length} tokens"
    )

# %% [markdown]
# ## Pieces of words
# Whole words for the one, byte pairs for the other. A word's map is the mean over *all* its pieces,
# found by the tokenizer's character offsets.

# %%
for name, (tokenizer, _) in encoders.items():
    tokens = text.tokenize(tokenizer, phrase, config.text.max_length)
    pieces = {w.text: [tokens.pieces[i] for i in w.tokens] for w in tokens.words}
    print(f"{name} ({len(tokens.inner)} tokens):", pieces)

# %%
# NBVAL_CHECK_OUTPUT
tokens = text.tokenize(encoders["domain"][0], "small left-sided effusion", config.text.max_length)
for word in tokens.words:
    print(word.text, word.start, word.end, [tokens.pieces[i] for i in word.tokens])
print("start", tokens.start, "end", tokens.end, "padding", len(tokens.padding))

# %%
pairs = record.pairs(sources.examples(config, "validation"))
rows = [
    {"encoder": name, "pieces a word": len(word.tokens)}
    for name, (tokenizer, _) in encoders.items()
    for pair in pairs
    for word in text.tokenize(tokenizer, pair.phrase, config.text.max_length).words
]
pieces = pd.DataFrame(rows).groupby("encoder")["pieces a word"].agg(["mean", "max"]).round(2)
pieces

# %% [markdown]
# ## States
# What the U-Net's cross-attention reads: one state a token, $[1, n, d]$. In the miniature the
# states of padding are set to zero in every arm, so that arms differ in words only.

# %%
tokenizer, encoder = encoders["domain"]
tokens = text.tokenize(tokenizer, phrase, config.text.max_length)
with torch.no_grad():
    states = models.text_states(
        encoder, tokens.input_ids, tokens.attention_mask, config.text.zero_padding
    )
print(
    "states",
    tuple(states.shape),
    "largest at padding",
    float(states[0, tokens.end + 1 :].abs().max()),
)

# %% [markdown]
# ## Which phrases are alike?
# Each validation phrase becomes one vector, the mean state of its content words. We ask whether
# phrases of the same *finding* (other words, other sides) are nearer than phrases of another
# finding, and the same for the *side*. The gap is a difference of mean cosines; zero means not
# told apart.

# %%
phrases = [p.phrase for p in pairs]
kinds = {"finding": [p.finding for p in pairs], "side": [text.side_of(t) for t in phrases]}
vectors = {
    n: encoder_probes.phrase_vectors(*e, phrases, config.text.max_length)
    for n, e in encoders.items()
}
gaps = {
    (n, kind): encoder_probes.nearness_gap(v, labels)
    for n, v in vectors.items()
    for kind, labels in kinds.items()
}
draws, patients = config.evaluation.bootstrap, [pair.subject_id for pair in pairs]
told = {key: statistics.bootstrap(gap, patients, n=draws) for key, gap in gaps.items()}
pd.Series({f"{n}, {kind}": str(interval) for (n, kind), interval in told.items()}, name="gap")

# %%
order = sorted(range(len(pairs)), key=lambda i: (kinds["finding"][i] or "", phrases[i]))
fig, axes = overlays.panels(2, size=3.2)
for ax, (name, vector) in zip(axes[0], vectors.items(), strict=True):
    cosines = encoder_probes.cosines(vector[order])
    title = f"{name}: same finding\nnearer by {told[name, 'finding'].value:.2f}"
    artist = overlays.show_map(ax, cosines, limits=(-1, 1), signed=True, title=title)
    encoder_probes.mark_groups(
        ax, [kinds["finding"][i] or "" for i in order], names=ax is axes[0, 0]
    )
fig.colorbar(artist, ax=axes, label="cosine, centred", fraction=0.04)
plots.save_figure(config, fig, "02_text_phrases")

# %% [markdown]
# Blocks along the diagonal are findings. A domain encoder may well hold *left* and *right* for
# alike: masked-language modelling puts words together that occur in the same places. Now by word:
# the nearest neighbours of a word's mean state over the validation phrases.

# %%
words = ["effusion", "opacity", "left", "lower", "small", "heart"]
near = {
    n: encoder_probes.neighbours(*e, phrases, words, config.text.max_length)
    for n, e in encoders.items()
}
pd.DataFrame(
    {name: {w: ", ".join(found) for w, found in table.items()} for name, table in near.items()}
)

# %% [markdown]
# ## Does a text find its image?
# The domain encoder was pre-trained with an image branch, the miniature BioViL. Given the
# impression of a validation film, at which rank comes its own film among all? Chance is the
# middle. (The published BioViL is loaded for its patches only, so this is left out there.)

# %%
films, baseline = sources.examples(config, "validation"), products.method(config, "biovil")
n, ranks = len(films), None
if not config.encoders["domain"].pretrained:
    joint = biovil.load(products.ensure(config, "encoders/domain"), config.text.max_length)
    ranks = encoder_probes.retrieval_ranks(joint, films)
    first, five = (f"{(ranks <= k).float().mean():.0%} (chance {k / n:.0%})" for k in (1, 5))
    print(f"{n} films; rank 1: {first}, first 5: {five}; median rank {ranks.median():.0f}")

# %%
if ranks is not None:
    fig, ax = overlays.plt.subplots(figsize=(4.5, 2.8))
    found = [(ranks <= k).float().mean() for k in range(1, n + 1)]
    ax.plot(range(1, n + 1), found, label="domain encoder with its image branch", color="#b5367a")
    ax.plot([1, n], [1 / n, 1], ls="--", color="0.5", label="chance")
    ax.set(xlabel="first k films", ylabel="share of impressions", ylim=(0, 1.02))
    ax.set_title(f"The right film among the first five: {found[min(4, n - 1)]:.0%} of impressions")
    ax.legend(loc="center right")
    plots.save_figure(config, fig, "02_text_retrieval")

# %% [markdown]
# ## Words and patches
# The local contrast matches words with places. The mean cosine between a phrase's content words and
# the film's patches is a grounding of its own: the discriminative baseline of notebook 07.

# %%
chosen = ([p for p in pairs if text.side_of(p.phrase)] or pairs)[:images_shown]
if baseline is not None:
    fig, axes = overlays.panels(len(chosen))
    for ax, pair in zip(axes[0], (p.framed(config.image_size) for p in chosen), strict=True):
        title = overlays.wrapped(pair.phrase, 26)
        heat = bbm.minmax(benchmark.answer(baseline, pair).values)
        overlays.overlay(ax, pair.array(), heat, boxes=pair.boxes, title=title)
    overlays.colour_bar(fig, axes, "cosine, scaled to [0, 1]")
    overlays.legend(fig)
    plots.save_figure(config, fig, "02_text_patches")

# %% [markdown]
# A few films may be luck. Over all validation pairs, and with the side in the phrase swapped:

# %%
if baseline is not None:
    table = encoder_probes.side_costs(baseline, pairs)
    cost = statistics.bootstrap(table["cost"], table["subject_id"], n=draws)
    print(f"CNR {table['cnr'].mean():.2f} on {len(table)} pairs with a side; its swap costs {cost}")

# %% [markdown]
# ## How they were trained
# Masked-language modelling comes first and alone; then the losses of the joint space are added,
# which makes the domain curve jump. The two curves are sums of different losses: compare each
# with itself. (Published encoders come without a log.)

# %%
made = [n for n in names if not config.encoders[n].pretrained]
trained = {n: products.ensure(config, f"encoders/{n}") for n in made}
shape = {"ncols": max(1, len(trained)), "squeeze": False, "figsize": (7.5, 2.6)}
fig, axes = overlays.plt.subplots(**shape) if trained else (None, [[]])
for ax, (name, folder) in zip(axes[0], trained.items(), strict=True):
    log = pd.DataFrame(fit.read_log(folder))
    ax.plot(log["step"], log["loss"], color="#b5367a", lw=1)
    alone = config.encoders[name].mlm_steps
    title = "masked words alone, then all losses" if alone else "contrast with pictures"
    ax.set(title=f"{name}: {title}", xlabel="step")
    if alone:
        ax.axvline(alone, color="0.5", ls="--", lw=1)
if trained:
    axes[0][0].set_ylabel("training loss")
    plots.save_figure(config, fig, "02_text_training")

# %% [markdown]
# ## What we learned

# %%
for kind in kinds:
    gap = statistics.paired(gaps["domain", kind], gaps["generic", kind], patients, n=draws)
    better = "yes" if gap.low > 0 else "reversed" if gap.high < 0 else "not shown"
    print(f"{kind}: domain tells phrases apart better than generic: {better}, difference {gap}")
print(
    f"pieces a word: domain {pieces.loc['domain', 'mean']}, generic {pieces.loc['generic', 'mean']}"
)
if ranks is not None:
    hits = statistics.bootstrap((ranks <= 5).float(), [film.subject_id for film in films], n=draws)
    print(f"impressions find their film among five better than chance: {hits.low > 5 / n}, {hits}")

# %% [markdown]
# What an encoder *holds apart* it need not hold apart in a way that cross-attention can use; that
# is what training decides.
#
# ## Next
# - [03 · fine-tuning under a frozen encoder](03_fine_tuning.ipynb)
# - [07 · which encoder grounds better?](07_grounding_benchmark.ipynb)
