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
# # 05 · Which words carry the map, and where does the rest of the attention go?
#
# ## Question
# At every place of the image attention spends exactly 1 on all tokens together. How much of it
# reaches the words that name something, which words point at the finding, and who takes the rest?
#
# Paper: section 2.2 and Figure 2 (a map a token), Appendix B (filters). Terms:
# [glossary](../docs/glossary.md).
#
# ## You need
# - notebook 04 (how a map is made, and its scores)
# - nothing but this repository (fine-tuned arms are made first where none are shipped)
# - about 1 minute on one CPU core
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
pair: int = -1  # number of a test pair; -1: the running example of all notebooks
mass_pairs: int = 24  # pairs over which attention is added up
filter_pairs: int = 48  # pairs on which filters are compared (validation split)
seed: int = 0

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
import pandas as pd
from IPython.display import Markdown

from g2g_utils import grounding, plots, tagger, text
from g2g_utils.bench import ablations, benchmark, claims, merging_probes, statistics, token_probes
from g2g_utils.experiment import ground_file, products
from g2g_utils.plots import charts, lessons, overlays

plots.use_style()

# %% [markdown]
# ## One map a word
# The recorder keeps every token's map apart. A word's map is the mean over *all* its pieces,
# found by the tokenizer's character offsets; hyphens and commas cut words, truncation is
# reported.

# %%
arm = next(iter(config.training.arms))
model = products.model(config, arm)
example = ground_file.chosen_example(config, "", "", pair)
words = text.tokenize(model.tokenizer, example.phrase, model.max_length)

# %% tags=["nbval-check-output"]
print(f"{example.phrase!r}: {len(words.words)} words, {len(words.inner)} tokens")
print("padding", len(words.padding), "of", model.max_length)

# %% [markdown]
# **Predict.** The phrase has a size, a finding's name, function words, a side and a place. Which
# of these words will point at the box, and will function words point anywhere?

# %%
options = ground_file.options_of(config) | {"seed": seed}
result = grounding.ground(model, example.array(), example.phrase, boxes=example.boxes, **options)
names = [*(word.text for word in words.words), "(start)", "(end)"]
maps = [result.word_map(word) for word in words.words]
maps += [result.token_maps[0], result.token_maps[-1]]
print("token maps", tuple(result.token_maps.shape), "tokens from start to end, H, W")

# %%
scaled = token_probes.stacked([grounding.bbm.minmax(m) for m in maps])
cnr = [row["cnr"] for row in benchmark.quick_scores(scaled, example.boxes, config.image_size)]
of_word = dict(zip(names, cnr, strict=True))
titles = [f"{name}\nCNR {score:.1f}" for name, score in of_word.items()]
fig = overlays.token_strip(
    example.array(), scaled, titles, boxes=example.boxes, label="each scaled to [0, 1]"
)
plots.save_figure(config, fig, "05_tokens_words", alt="One map a word of the running example")

# %% [markdown]
# Each map is scaled by itself, so compare *places*, not amounts. The number is each word's own
# contrast-to-noise ratio (CNR): mean heat inside the box less outside, over the square root of
# the sum of both variances.

# %%
best = max(of_word, key=lambda name: of_word[name])
function = {w: of_word[w] for w in names if w in ground_file.FUNCTION_WORDS}
weak = all(score < of_word[best] / 2 for score in function.values())
said = ", ".join(f"“{word}” {score:.2f}" for word, score in function.items()) or "none here"
Markdown(
    f"“{best}” points best (CNR {of_word[best]:.2f}). Function words have maps too, since every "
    f"token takes some attention, {'but not at the box' if weak else 'even at the box'} ({said}): "
    "their states say where a sentence goes on, not what a film shows. Averaged in, such maps "
    f"{'dilute' if weak else 'need not dilute'} the others, which is why words are filtered."
)

# %% [markdown]
# ## Which words may ground?
# - **lexical**: content words only (by part of speech where a scispaCy model is used, else by a
#   word list that imitates one);
# - **disease**: words that name the finding's class; a phrase without any falls back to all;
# - **all**: everything between start and end.

# %%
filters_of = ("lexical", "disease", "all")
chosen = {f: text.select_tokens(words, f, example.finding) for f in filters_of}
kept = {
    name: ", ".join(word.text for word in words.words if set(word.tokens) & set(some))
    for name, some in chosen.items()
}
pd.Series(kept).to_frame("words that ground")

# %% [markdown]
# Which filter is better is a question for the validation split; notebook 08 asks it again on the
# test split. Start and end token stand beside, as the maps that a filter leaves out. *AUC* is the
# probability that a pixel inside the box is hotter than one outside; *Top-1* is the share of pairs
# whose hottest pixel lies inside a box; *specificity* is the CNR lost when another phrase is asked
# for on the same image: a map with contrast and no specificity has not read its words.

# %%
pairs = products.evaluation_pairs(config, "validation")[:filter_pairs]
filters = ablations.filters(model, pairs, **options)
columns, draws = ["cnr", "auc_roc", "pointing", "specificity"], config.evaluation.bootstrap
charts.readable(statistics.summary(filters, "filter", columns, draws))


# %%
def gap_of(rows: pd.DataFrame, first: str, second: str) -> statistics.Interval:
    """Paired difference in CNR of two token groups."""
    return statistics.difference(
        *(rows[rows["filter"] == name] for name in (first, second)), "cnr", draws
    )


# %%
by_filter = {other: gap_of(filters, "lexical", other) for other in ("all", "disease")}
lines = [
    f"- lexical better than {other}: {claims.outcome(gap)} in CNR"
    for other, gap in by_filter.items()
]
paper = merging_probes.appendix_b()["cnr"]
told = ", ".join(f"{name} {paper[f'{name} filter']:.2f}" for name in ("lexical", "disease"))
Markdown(
    "\n".join([*lines, "", f"The paper, on MS-CXR: {told} (Appendix B): hardly a difference."])
)

# %% [markdown]
# ## Pieces of words
# A generic tokenizer cuts medical words into pieces. The published code appears to take only the
# first piece of each word, at indices counted without punctuation. What that loses under such an
# encoder:

# %%
arms = config.training.compared
generic = next((a for a in arms if config.training.arms[a].encoder == "generic"), None)
if generic:
    other = products.model(config, generic)
    pieces = text.tokenize(other.tokenizer, example.phrase, other.max_length)
    first = text.select_tokens(pieces, "lexical", compat="published")
    print(f"{generic}: {len(pieces.content())} content tokens; first pieces only: {len(first)}")
    print(" ".join(pieces.pieces[i].replace("</w>", " ") for i in pieces.content()))

# %% [markdown]
# ## Where attention goes
# Summed over tokens, attention is 1 at every place. Its mean over places, layers, timesteps and
# pairs tells who holds how much: the words that ground, other words, start, end, and all padding
# together.

# %%
test = products.evaluation_pairs(config)[:mass_pairs]
loaded = {name: products.model(config, name) for name in arms}
mass = pd.concat(
    [token_probes.attention_mass(m, test, **options).assign(arm=a) for a, m in loaded.items()]
)
shares = mass.groupby("arm", sort=False)[[*token_probes.GROUPS, token_probes.UNIFORM]].mean()
first = shares.iloc[0]

# %%
title = (
    f"{arm}: padding takes {first['padding']:.0%}; {first[token_probes.UNIFORM]:.0%} if even (tick)"
)
fig = lessons.attention_shares(shares, title)
alt = (
    "Stacked bars of attention by token group, one bar an arm, ticks where padding begins if even."
)
plots.save_figure(config, fig, "05_tokens_mass", alt=alt)

# %% [markdown]
# Where the U-Net gets no mask (as in the published runs), a place has to spend its 1 on all
# positions, and most of them are padding: evenly spread attention would already give padding the
# share right of the tick. An arm beyond its tick uses padding as an *attention sink*. Token maps
# are therefore compared by *where*, after scaling, and padding must be alike in all arms.
#
# ## Do start and end token ground?
# The filters leave both out. **Predict**, from how the encoders are built: BERT's tokens see all
# others; CLIP is causal, so its start token sees nothing and its end token everything. Under
# which arm can the start token's map know what was asked, under which the end token's?

# %%
rows = [filters.assign(arm=arm)]
rows += [ablations.filters(loaded[name], pairs, **options).assign(arm=name) for name in arms[1:]]
by_arm = pd.concat(rows)
kinds = ("lexical", "start token", "end token")


# %%
def of_tokens(column: str) -> pd.DataFrame:
    """Mean and interval of a column, arms by token groups."""
    groups = {k: by_arm[by_arm["filter"] == k] for k in kinds}
    summaries = {
        k: statistics.summary(part, "arm", [column], draws)[column] for k, part in groups.items()
    }
    return pd.DataFrame(summaries)


# %%
both = {name: of_tokens(name) for name in ("cnr", "specificity")}
reads = both["specificity"]["start token"]
title = (
    f"The start token's specificity: {', '.join(f'{a} {g.value:.2f}' for a, g in reads.items())}"
)
fig = lessons.grouped_intervals(both["specificity"].T.to_dict(), "specificity", title)
alt = "Specificity of content words, start and end token in each arm, with 95 % intervals."
plots.save_figure(config, fig, "05_tokens_end", alt=alt)

# %%
charts.readable(both["cnr"]).rename(columns={"lexical": "content words, CNR"})

# %%
ends = {name: gap_of(by_arm[by_arm["arm"] == name], "end token", "lexical") for name in arms}
lines = [
    f"- The start token reads the phrase under {a}: {claims.outcome(g)}." for a, g in reads.items()
]
lines += [
    f"- The end token grounds better than content words under {a}: {claims.outcome(g)} in CNR."
    for a, g in ends.items()
]
because = (
    "BERT's start token has attended to the whole phrase and is trained to stand for it; CLIP's "
    "has attended to nothing but itself. A CLIP that learns along is free to put what the U-Net "
    "needs into its end token, which alone has seen every word."
)
Markdown("\n".join([*lines, "", f"*Because*: {because}"]))

# %% [markdown]
# ## Which word carries the side?
# The map of *left* need not lie on the left: what a word's state *means* is up to the encoder.
# A share of heat in one half of the image would also depend on how the film is placed. So we swap:
# ground the phrase and its mirror image (*left* ↔ *right*) on the **same** film, and ask by how
# much the share of a word's heat on the named side grows. The pose drops out; a word that does not
# know the side moves by 0.
#
# **Predict.** Which moves more: the map of the side word itself, or that of the finding's name,
# which is the same word in both phrases?

# %%
moved = token_probes.side_word_shifts(model, test, **options)
shift = {
    word: statistics.bootstrap(part["shift"], part["subject_id"], n=draws)
    for word, part in moved.groupby("word")
}
pd.Series(shift).map(str).to_frame("shift of heat to the named side")

# %%
lines = [
    f"- The map of the {word} moves to the named side: {claims.outcome(gap)}."
    for word, gap in shift.items()
]
because = (
    "masked-language training lets *left* and *right* stand in the same places, so their own "
    "states stay alike, while “effusion” is encoded differently beside each of them: the local "
    "contrast asks it to match other patches (notebook 02 shows the states)."
)
Markdown("\n".join([*lines, "", f"*Because*, where the finding's name moves more: {because}"]))

# %% [markdown]
# ## Exercises
# 1. **Predict, run, explain.** Ground “effusion” alone, without side and place:
#    `grounding.ground(model, example.array(), "effusion", **options)`. Where is its peak?
#
#    <details><summary>Answer</summary>
#    Still at a fluid level if the model has read the film, but without a side it has to look at
#    both bases: the map widens, and the CNR falls.
#    </details>
# 2. **Predict, run, explain.** Give tokens explicitly: `tokens=["left"]`, and then the same with
#    *right* in the phrase. Does the map of the side word change sides?
#
#    <details><summary>Answer</summary>
#    Hardly: the last section measured it. The side that was asked for is in the state of the
#    finding's name, whose map does change sides.
#    </details>
#
# ## With real data
# `profile = "open"` or `"paper"` with Stable Diffusion 1.5 and CXR-BERT. What changes: parts of
# speech come from scispaCy; padding keeps its states (`zero_padding: false`), so the sink may
# differ between arms; maps have 64 × 64 places, and phrases of MS-CXR are longer.
#
# ## What we learned

# %%
tagging = "a word list" if tagger.load(None).meta.get("g2g_fallback") else "part of speech"
lines = [
    f"- Content words (chosen by {tagging}) ground better than all tokens: "
    f"{claims.outcome(by_filter['all'])}, because function words dilute the mean.",
    f"- The start token of {arm} reads the phrase: {claims.outcome(reads[arm])}, because a "
    "bidirectional encoder writes the phrase into it. It is no pure *image* bias (notebook 06).",
]
lines += [
    f"- The map of the {word} follows the side that is named: {claims.outcome(gap)}."
    for word, gap in shift.items()
]
lines[-1] += " A word's map shows what its *state* means, which need not be what the word means."
Markdown("\n".join(lines))

# %% [markdown]
# ## Next
# - [06 · what start token and text bias are good for](06_bimodal_bias_merging.ipynb)
# - [07 · arms and seeds compared](07_grounding_benchmark.ipynb)
# - [10 · click on words](10_explorer.ipynb)
