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
# Paper: Appendix A compares six encoders. Terms:
# [glossary](../docs/glossary.md).
#
# ## You need
# - nothing but this repository
# - about 30 seconds on one CPU core (the first run also pre-trains the two encoders where none are
#   shipped)
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
phrase: str = "small effusion at the left base"  # the running example
images_shown: int = 3  # films with word–patch maps

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import pandas as pd
import torch
from IPython.display import Markdown

from g2g_utils import bbm, models, plots, text
from g2g_utils.bench import benchmark, claims, encoder_probes, statistics
from g2g_utils.data import record, sources
from g2g_utils.experiment import products
from g2g_utils.methods import biovil
from g2g_utils.plots import charts, lessons, overlays
from g2g_utils.training import fit

plots.use_style()

# %% [markdown]
# ## Two encoders, and what they were trained for
# - **domain**: a `BertModel`, pre-trained as CXR-BERT was, with three losses (below);
# - **generic**: a `CLIPTextModel`, pre-trained by the global loss alone, with pictures of coloured
#   glyphs. It has never met a medical word, so it is a weaker start than the real CLIP, which has:
#   a gap between the two is easier to get here than in the paper.
#
# With token states $s_i$, and image patches $v_p$ of the image branch:
#
# 1. **Masked language**: hide some words $m$ and recover them from the rest,
#    $L_{mlm}=-\sum_{i\in m}\log p(w_i\mid w_{\setminus m})$. It needs text alone.
# 2. **Global contrast**: in a batch of $n$ pairs the sentence vector $t_j$ must find its own image
#    $u_j$, $L_{glob}=-\sum_j\log\frac{e^{\cos(t_j,u_j)/\tau}}{\sum_k e^{\cos(t_j,u_k)/\tau}}$ (and
#    the image its text). Here the sentence vector is BERT's start token, CLIP's end token.
# 3. **Local contrast**: each *word* gathers the patches it resembles,
#    $c_i=\sum_p \mathrm{softmax}_p(\cos(s_i,v_p)/\tau')\,v_p$, and $\cos(s_i,c_i)$ replaces
#    $\cos(t,u)$ in the same contrast. It is the only loss that asks *where* a word is.
#
# The profile's controls leave losses out, and so stand for encoders of the paper's Appendix A:
#
# | here | losses | tokenizer | nearest in Appendix A |
# |---|---|---|---|
# | `domain` | masked + global + local | whole words | CXR-BERT |
# | `global` | masked + global | whole words | CXR-CLIP (a contrast of whole texts and films) |
# | `mlm` | masked | whole words | RadBERT (radiology text alone) |
# | `random` | none | whole words | – |
# | `generic` | global, on glyphs | byte pairs | CLIP |
#
# `domain` and `generic` differ in domain, objective *and* tokenizer at once, so a gap between them
# is not the domain's doing alone: [notebook 07](07_grounding_benchmark.ipynb) grounds with all of
# them.

# %%
names = [n for n in config.encoders if n in ("domain", "generic")]
encoders = {n: products.text_encoder(config, n) for n in names}

# %% tags=["nbval-check-output"]
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
    cut = "  ".join("|".join(p.replace("</w>", "") for p in found) for found in pieces.values())
    print(f"{name} ({len(tokens.inner)} tokens): {cut}")

# %% tags=["nbval-check-output"]
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
#
# **Predict.** The state of “effusion” in “small effusion at the left base”: does it know that the
# effusion is on the left? In a BERT? In a causal CLIP?

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
pd.Series({f"{n}, same {kind}": str(gap) for (n, kind), gap in told.items()}).to_frame("nearer by")

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
alt = "Cosines between validation phrases, ordered by finding, under both encoders."
plots.save_figure(config, fig, "02_text_phrases", alt=alt)

# %% [markdown]
# Blocks along the diagonal are findings. Now by word: the nearest neighbours of a word's mean state
# over the validation phrases.

# %%
words = ["effusion", "opacity", "left", "lower", "small"]
near = {
    n: encoder_probes.neighbours(*e, phrases, words, config.text.max_length)
    for n, e in encoders.items()
}
pd.DataFrame(
    {name: {w: ", ".join(found) for w, found in table.items()} for name, table in near.items()}
)

# %% [markdown]
# ## Where is the side?
# The nearest neighbour of *left* may well be *right*, and yet whole phrases with other sides are
# told apart. Both can be true: swap the side in a phrase and see **which words' states change**.
# Cosine 1 means that a word's state does not notice the swap.

# %%
every = [n for n, one in config.encoders.items() if n in encoders or not one.pretrained]
swaps = {
    n: encoder_probes.swap_cosines(
        *products.text_encoder(config, n), phrase, config.text.max_length
    )
    for n in every
}
table = pd.DataFrame(swaps)
said = ", ".join(f"“{word}” {value:.2f}" for word, value in swaps["domain"].items())
fig = lessons.similarity_bars(table, "cosine of a word's state before and after the swap", "")
fig.suptitle(f"domain: {overlays.wrapped(said, 90)}", x=0.01, ha="left", fontsize=9)
alt = "For each word of the running example and each encoder, how alike its states are."
plots.save_figure(config, fig, "02_text_sides", alt=alt)

# %%
moved = {}
for n in every:
    own = products.text_encoder(config, n)
    moved[n] = encoder_probes.mean_swap_cosines(
        *own, phrases, kinds["finding"], config.text.max_length
    )
side, named = moved["domain"]
where = "finding's words" if named < side else "side word"
pd.DataFrame(moved, index=["side word", "finding's words"]).T.round(2)

# %%
rivals = {n: cosines[1] for n, cosines in moved.items() if n != "domain"}
nearest = min(rivals, key=lambda n: rivals[n])
Markdown(
    f"Over all validation phrases with a side, the domain encoder carries the side in the {where} "
    f"({named:.2f}; side word {side:.2f}); the next best encoder there, {nearest}, has "
    f"{rivals[nearest]:.2f}. *Because*: the local contrast asks “effusion” to find *its* patches, "
    "while *left* and *right* stand in the same places of a sentence and get alike states from "
    "masked language. In a causal encoder words before the side cannot change at all."
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

# %% [markdown]
# ## Words and patches
# The local contrast matches words with places. The mean cosine between a phrase's content words and
# the film's patches is a grounding of its own: the discriminative baseline of notebook 07, as
# BioViL's authors ground.

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
    alt = "Validation films with the cosine map of their phrase and the ground-truth boxes."
    plots.save_figure(config, fig, "02_text_patches", alt=alt)

# %% [markdown]
# A few films may be luck. Over all validation pairs, and with the side in the phrase swapped. The
# score is the **contrast-to-noise ratio** (CNR): mean heat inside the box less the mean outside,
# over the square root of the sum of both variances; 0 is chance
# ([glossary](../docs/glossary.md), notebook 04).

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
    ax.plot(log["step"], log["loss"], color=charts.BLUE, lw=1)
    alone = config.encoders[name].mlm_steps
    title = "masked words alone, then all losses" if alone else "contrast with pictures"
    ax.set(title=f"{name}: {title}", xlabel="step")
    if alone:
        ax.axvline(alone, color="0.5", ls="--", lw=1)
if trained:
    axes[0][0].set_ylabel("training loss")
    plots.save_figure(config, fig, "02_text_training", alt="Training losses of both encoders")

# %% [markdown]
# ## Exercises
# 1. **Predict, run, explain.** Set `phrase = "left pleural effusion, small"`. Under the causal
#    encoder, which words' states change with the side now?
#
#    <details><summary>Answer</summary>
#    All after “left”: a causal state holds what stands before it. Word order decides what a CLIP
#    state can know; a BERT does not care.
#    </details>
# 2. **Predict, run, explain.** Which encoder of the figure “Where is the side?” should give maps
#    that follow the side? Check with notebook 07's specificity of the controls.
#
#    <details><summary>Answer</summary>
#    The one whose states differ most between the sides on words that also point at the finding. A
#    U-Net cannot read what its encoder does not tell apart.
#    </details>
#
# ## With real data
# `profile = "open"` or `"paper"` load CXR-BERT (`microsoft/BiomedVLP-CXR-BERT-specialized`) and the
# text encoder of Stable Diffusion 1.5 (`openai/clip-vit-large-patch14`). What changes: width 768;
# nothing is pre-trained here, so there are no training curves and no retrieval; padding keeps its
# states; `paper` also names RadBERT, Med-KEBERT, CXR-CLIP, BioViL-T and OpenCLIP under `encoders:`.
#
# ## What we learned

# %%
lines = []
for kind in kinds:
    gap = statistics.paired(gaps["domain", kind], gaps["generic", kind], patients, n=draws)
    lines.append(
        f"- Domain tells the {kind} of phrases apart better than generic: {claims.outcome(gap)}."
    )
mean = pieces["mean"]
lines[0] += (
    f" The tokenizer may help: {mean['domain']:.1f} against {mean['generic']:.1f} pieces a word."
)
lines[1] += (
    f" The side lives in the {where}: cosine {named:.2f} across a swap, against {side:.2f} for the "
    "side word itself."
)

# %%
if ranks is not None:
    hits = statistics.bootstrap((ranks <= 5).float(), [film.subject_id for film in films], n=draws)
    above = statistics.Interval(*(value - 5 / n for value in hits))
    lines.append(f"- Impressions find their film among five: {claims.outcome(above)} above chance.")
Markdown("\n".join(lines))

# %% [markdown]
# What an encoder *holds apart* it need not hold apart in a way that cross-attention can use; that
# is what training decides.
#
# ## Next
# - [03 · fine-tuning under a frozen encoder](03_fine_tuning.ipynb)
# - [07 · which encoder grounds better?](07_grounding_benchmark.ipynb)
