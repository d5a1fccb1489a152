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
# ## You need
# - nothing but this repository (fine-tuned arms are made first where none are shipped)
# - about 1 minute on one CPU core
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "miniature"
pair: int = -1  # number of a test pair; -1: the first large finding on a named side
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

from g2g_utils import grounding, plots, text
from g2g_utils.bench import ablations, benchmark, statistics, token_probes
from g2g_utils.experiment import ground_file, products
from g2g_utils.plots import overlays

plots.use_style()

# %% [markdown]
# ## One map a word
# The recorder keeps every token's map apart. A word's map is the mean over *all* its pieces,
# found by the tokenizer's character offsets; hyphens and commas cut words, truncation is
# reported.

# %%
arm = next(iter(config.training.arms))
model = products.model(config, arm)

# %%
# NBVAL_CHECK_OUTPUT
example = ground_file.chosen_example(config, "", "", pair)
words = text.tokenize(model.tokenizer, example.phrase, model.max_length)
print(f"{example.phrase!r}: {len(words.words)} words, {len(words.inner)} tokens")
print("padding", len(words.padding), "of", model.max_length)

# %%
options = ground_file.options_of(config) | {"seed": seed}
result = grounding.ground(model, example.array(), example.phrase, boxes=example.boxes, **options)
print("token maps", tuple(result.token_maps.shape), "tokens from start to end, H, W")

# %%
names = [word.text for word in words.words]
maps = [result.word_map(i) for i in range(len(names))]
fig = overlays.token_strip(example.array(), token_probes.stacked(maps), names, boxes=example.boxes)
plots.save_figure(config, fig, "05_tokens_words")

# %% [markdown]
# All words share one colour scale, so a pale map is a word that gets little attention anywhere.
# Scaled each by itself, weak maps show their shape too. The number is each word's own contrast
# (CNR):

# %%
scaled = [grounding.bbm.minmax(m) for m in [*maps, result.token_maps[0], result.token_maps[-1]]]
labels = [*names, "(start)", "(end)"]
rows = benchmark.quick_scores(scaled, example.boxes, config.image_size)
cnr = [row["cnr"] for row in rows]
titles = [f"{name} {score:.1f}" for name, score in zip(labels, cnr, strict=True)]
fig = overlays.token_strip(
    example.array(),
    token_probes.stacked(scaled),
    titles,
    boxes=example.boxes,
    label="each scaled to [0, 1]",
)
plots.save_figure(config, fig, "05_tokens_scaled")

# %% [markdown]
# ## Which words may ground?
# - **lexical**: content words only (by part of speech where a scispaCy model is installed, else
#   by a stop-word list);
# - **disease**: words that name the finding's class; a phrase without any falls back to all;
# - **all**: everything between start and end.

# %%
chosen = {f: text.select_tokens(words, f, example.finding) for f in ("lexical", "disease", "all")}
for name, some in chosen.items():
    print(f"{name:8}", [word.text for word in words.words if set(word.tokens) & set(some)])

# %% [markdown]
# Which filter is better is a question for the validation split. Start and end token stand beside,
# as the maps that a filter leaves out. *Specificity* is the contrast (CNR) lost when another phrase
# is asked for on the same image: a map with contrast and no specificity has not read its words.

# %%
pairs = products.evaluation_pairs(config, "validation")[:filter_pairs]
filters = ablations.filters(model, pairs, **options)
columns = ["cnr", "auc_roc", "pointing", "specificity"]
table = statistics.summary(filters, "filter", columns, config.evaluation.bootstrap)
table.map(str)

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
    print([pieces.pieces[i] for i in pieces.content()])

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
shares.round(3)

# %%
fig, ax = overlays.plt.subplots(figsize=(7.5, 1 + 0.5 * len(arms)))
token_probes.draw_shares(ax, shares)
sink, even = shares["padding"].mean(), shares[token_probes.UNIFORM].mean()
ax.set_title(f"Padding takes {sink:.0%} of all attention; {even:.0%} if it were even (ticks)")
plots.save_figure(config, fig, "05_tokens_mass")

# %% [markdown]
# Where the U-Net gets no mask (as in the published runs), a place has to spend its 1 on all
# positions, and most of them are padding: evenly spread attention would already give padding the
# share of the tick. An arm beyond its tick uses padding as an *attention sink*, one below it
# prefers words. Token maps are therefore compared by *where*, after scaling, and padding must be
# alike in all arms.
#
# ## Does the end token ground?
# A text encoder that is *learned along* may put its knowledge anywhere, for instance into the end
# token, which the filters leave out. So ask every token group of every arm for its own contrast.

# %%
rows = [filters.assign(arm=arm)]
for name in arms[1:]:
    rows.append(ablations.filters(loaded[name], pairs, **options).assign(arm=name))
by_arm = pd.concat(rows)
kinds = ("lexical", "start token", "end token")


# %%
def of_tokens(column: str) -> pd.DataFrame:
    """Mean and interval of a column, arms by token groups."""
    groups = {k: by_arm[by_arm["filter"] == k] for k in kinds}
    summaries = {
        k: statistics.summary(part, "arm", [column], config.evaluation.bootstrap)[column]
        for k, part in groups.items()
    }
    return pd.DataFrame(summaries)


# %%
both = {name: of_tokens(name) for name in ("cnr", "specificity")}
pd.concat(both, axis=1).map(str)

# %%
fig, ax = overlays.plt.subplots(figsize=(7, 3))
token_probes.draw_intervals(ax, both["cnr"].T.to_dict())
ax.set(ylabel="CNR", title="Contrast of content words, start and end token (validation)")
plots.save_figure(config, fig, "05_tokens_end")

# %% [markdown]
# ## The side word
# Does the map of *left* lie on the left? Own map of the side word, over pairs that name one side:

# %%
sided = token_probes.side_word_shares(
    model, products.evaluation_pairs(config)[:mass_pairs], **options
)
share = statistics.bootstrap(sided["share"], sided["subject_id"], n=config.evaluation.bootstrap)
print(f"share of the side word's attention on that side: {share}, {len(sided)} pairs; 0.5 is blind")

# %% [markdown]
# ## What we learned

# %%
lexical, everything = (filters[filters["filter"] == f] for f in ("lexical", "all"))
gain = statistics.difference(lexical, everything, "cnr", config.evaluation.bootstrap)
print(f"lexical filter better than all tokens: {gain.low > 0}, CNR {gain} ({arm}, one seed)")
for name in arms:
    part = by_arm[by_arm["arm"] == name]
    gap = statistics.difference(
        *(part[part["filter"] == f] for f in ("end token", "lexical")),
        "cnr",
        config.evaluation.bootstrap,
    )
    print(f"{name}: end token beats content words: {gap.low > 0}, CNR {gap}")
print(f"side word looks at its side: {share.low > 0.5}, {share}")

# %% [markdown]
# ## Next
# - [06 · what start token and text bias are good for](06_bimodal_bias_merging.ipynb)
# - [07 · arms and seeds compared](07_grounding_benchmark.ipynb)
# - [10 · click on words](10_explorer.ipynb)
