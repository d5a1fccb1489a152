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

# %% [markdown] tags=["notebook-only"]
# # 10 · Which token, layer and timestep puts the heat where?
#
# ## Question
# A heat map is a mean over words, layers and timesteps (§2.1 and §2.2 of [Generate to
# Ground](https://openreview.net/forum?id=yTjotBI30L)). Which of them carry it, and which only blur
# it? Here you take the mean apart by hand, on any image and phrase, and every choice answers at
# once.
#
# ## You need
# - nothing but this repository; or a PNG, JPEG or DICOM of your own to upload
# - seconds on one CPU core; no GPU. `./run_all.sh explore` opens the same widget alone in a browser
#
# **For research, not a medical device.**
#
# ## Parameters
# `memory_mib` bounds the maps that are remembered; the least recently used go first.

# %% tags=["parameters"]
profile: str = "miniature"
memory_mib: int = 256  # maps kept in memory
picture: int = -1  # test image to start with; -1: the running example of all notebooks

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown] tags=["notebook-only"]
# ## Imports

# %%
from IPython.display import Image, Markdown, display

from g2g_utils import explorer
from g2g_utils.explorer import study
from g2g_utils.plots import charts
from g2g_utils.runs import places

# %% [markdown] tags=["notebook-only"]
# ## The explorer
# One pass of the model gives *every* map: timesteps × layers × tokens, in the resolution of its
# layer. They are kept, so that a control only asks for another mean. With $c$ the chosen words,
# $l$ layers and $t$ timesteps, the activation map is
# $A = \operatorname{minmax}\big(\operatorname{mean}_{t,l,c}\,P_{t,l,c}\big)$.
# Click words, narrow the ranges, choose a curve, swap the side. *Method* changes the question: not
# where the model looks, but where the words tell it what the image is (below).

# %%
session = explorer.Session(config, memory=memory_mib * 2**20)
start = study.starting_state(session, picture)
explorer.Explorer(session, start)

# %% [markdown] tags=["notebook-only"]
# The widget needs a running kernel. Its first view, as a picture for pages without one:

# %% tags=["notebook-only"]
paths = explorer.static_views(session, start, places.figures(config))
shown = {path.stem.removeprefix("explorer_"): path for path in paths}


def show(name: str, alt: str) -> None:
    """Show a pre-rendered view, if this phrase has it."""
    if name in shown:
        display(Image(filename=str(shown[name]), alt=alt))


show("view", "The film under the heat map of the phrase, with its boxes and the mask's outline")

# %% [markdown] tags=["notebook-only"]
# The widget draws what three functions give, and they work without it: a `State` says what the
# controls say, `Session.view` computes, `render` draws. So what you find by clicking can be
# repeated in code — *Copy as code* writes it for you.

# %% tags=["notebook-only", "nbval-check-output"]
view = session.view(start)
panel = view.panels[0]
print(view.state.phrase, "|", view.picture.title)
print("one layer's maps", tuple(panel.capture.maps[panel.capture.layers[0]].shape), "t n h w")
print("heat map", tuple(panel.heatmap.shape), "|", len(panel.capture.layers), "layers")

# %% [markdown] tags=["notebook-only"]
# ## Every token
# All maps on one colour scale, the widget's and every notebook's. **Predict**: which words put
# their heat into the box, and do the function words? (Notebook [05](05_token_maps.ipynb) counts.)

# %% tags=["notebook-only"]
show("tokens", "One small map for every token from start to end and one for the padding")

# %% [markdown] tags=["notebook-only"]
# How much attention each takes, as a mean over pixels. The columns add up to 1, for a softmax has
# to give its attention to something: the padding takes what no word claims.

# %% tags=["notebook-only", "nbval-check-output"]
attention = study.token_table(panel)
print(f"{len(attention)} columns, attention sums to {study.total_attention(panel):.2f}")

# %% tags=["notebook-only"]
attention

# %% [markdown] tags=["notebook-only"]
# ## Every layer and timestep
# The same words, nothing averaged away: rows are layers in forward order, columns go from noise to
# image.

# %% tags=["notebook-only"]
show("layers_timesteps", "A map for every layer, one a row, from noise on the left to the image")

# %% [markdown] tags=["notebook-only"]
# Which layers would ground this one phrase by themselves? *CNR*, *AUC*, *Top-1* and the IoUs are
# defined in notebooks [07](07_grounding_benchmark.ipynb) and [11](11_metric_audit.ipynb).
# *Specificity* is the CNR lost when a phrase of another finding is asked for on the same image: 0
# for a map that does not read. One image decides nothing (notebook
# [08](08_hyperparameters.ipynb) has the whole validation set), but it shows how to look.

# %% tags=["notebook-only"]
other = study.other_phrase(session, start)
print(f"the other phrase: {other!r}" if other else "no other phrase: no specificity")
scores = study.by_resolution(session, start, other)
charts.readable(scores.astype({"layers": int}))

# %% [markdown] tags=["notebook-only"]
# ## What the words tell the model
# *Method: information* shows where the chosen words lower the error of the predicted noise, given
# the other words; all words together, against the empty prompt and a normal impression.
# *Attention × information* multiplies both. The maps of information don't depend on the ranges, and
# need a few more passes, once a phrase (notebook [13](13_information_maps.ipynb)).

# %% tags=["notebook-only"]
show("information", "The film under the product of attention and information")

# %% [markdown] tags=["notebook-only"]
# Every word, given the rest. Orange: without it the model explains the film worse. **Predict**
# which word carries most, and what the side does on the other side of the film.

# %% tags=["notebook-only"]
show("words", "Signed information of every word given the rest, orange where it explains the film")

# %% [markdown] tags=["notebook-only"]
# Summed over the film, the gain says whether the phrase is *supported by this film* at all. Where
# its scale was calibrated (on phantoms, as many true as false phrases), that is a probability with
# a known error rate. It reads finding and side, neither zone nor denial, and is no statement about
# a patient.

# %% tags=["notebook-only"]
informed = session.view(explorer.pick_method(explorer.swap(start), "both"))
for one in informed.panels:
    print(f"{one.phrase!r}: {one.presence['said']}")

# %% [markdown] tags=["notebook-only"]
# ## The side, swapped
# The button rewrites the phrase and puts both maps on one scale. A model that reads the side moves
# the heat; one that does not shows a pale difference. The two half-film numbers need not cancel:
# each map is scaled by its own minimum and maximum, so a map that spreads has a higher mean than
# one that is a spot. Look at where the difference is orange (more heat now) and purple (less).

# %% tags=["notebook-only"]
show("swapped", "The film under both phrases' maps, and below them the difference")

# %% tags=["notebook-only"]
both = session.view(explorer.swap(start))
print(f"{both.panels[0].phrase!r} against {both.panels[1].phrase!r}")
print(f"mean change {float(both.difference.abs().mean()):.2f} of a scale from 0 to 1")

# %% [markdown] tags=["notebook-only"]
# ## What we learned

# %% tags=["notebook-only"]
capture, most = panel.capture, attention["share"].argmax()
left, right = (float(half.mean()) for half in both.difference.chunk(2, dim=1))
Markdown(
    f"1. One pass is enough: {capture.nbytes / 2**20:.2f} MiB hold all {capture.columns} columns, "
    f"layers and timesteps, because every control only takes another mean.\n"
    f"2. **{attention.index[most]}** takes {attention['share'].iloc[most]:.0%} of the attention: "
    f"a map of chosen words shows *where*, never *how much*.\n"
    f"3. On this image the highest CNR comes from **{study.best(scores, 'cnr')}**; swapping the "
    f"side moves the mean heat by {left:+.2f} in the image's left half and by {right:+.2f} in its "
    f"right one."
)

# %% [markdown] tags=["notebook-only"]
# ## Exercises
# *Predict, click, explain.* Everything works in the widget above, or in `./run_all.sh explore`.
#
# 1. Switch off the finding's name and keep the side. What is left of the map? Now the other way
#    round.
# 2. Choose *start* alone (tick *start, end, padding*), then swap the side. Does a token without a
#    word move?
# 3. Narrow the layers to one at a time. Which layer alone comes closest to the whole, and is it one
#    with fine or with coarse maps?
# 4. Pick a generic arm under *Model* and repeat 2.
#
# <details><summary>Answers</summary>
#
# 1. The side alone finds its half of the film, hardly the box; the name alone keeps nearly all of
#    the map, the side included, for its state has read the rest of the phrase (notebook
#    [02](02_text_encoders.ipynb)).
# 2. It does under the domain encoder: a BERT's start state has read the whole phrase.
# 3. Compare with the table above; notebook 08 says which group wins over many images.
# 4. Nothing moves: a causal encoder's start state comes before every word.
#
# </details>
#
# ## Next
# - [08 settles by measurement, on many images, what was only looked at
#   here](08_hyperparameters.ipynb)
# - [06 · the curves and their confidence](06_bimodal_bias_merging.ipynb)
# - `explorer.code(session, view)` gives any view as three lines
