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
# A heat map is a mean over words, layers and timesteps. Which of them carry it, and which only
# blur it? Here you take the mean apart by hand, on any image and phrase, and every choice answers
# at once.
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
picture: int = -1  # test image to start with; -1: the first with a large finding on one side

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown] tags=["notebook-only"]
# ## Imports

# %%
from IPython.display import Image, display

from g2g_utils import explorer
from g2g_utils.explorer import study
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
# The widget draws what three functions give, and they work without it: a `State` says what the
# controls say, `Session.view` computes, `render` draws. So what you find by clicking can be
# repeated in code — *Copy as code* writes it for you.

# %% tags=["notebook-only"]
# NBVAL_CHECK_OUTPUT
view = session.view(start)
panel = view.panels[0]
print(view.state.phrase, "|", view.picture.title)
print("one layer's maps", tuple(panel.capture.maps[panel.capture.layers[0]].shape), "t n h w")
print("heat map", tuple(panel.heatmap.shape), "|", len(panel.capture.layers), "layers")

# %% [markdown] tags=["notebook-only"]
# ## Every token
# All maps on one colour scale. Expect words that name a finding or a place to differ from *start*
# and from the padding, which takes what no word claims.

# %% tags=["notebook-only"]
paths = explorer.static_views(session, start, places.figures(config))
display(Image(filename=str(paths[1])))

# %% [markdown] tags=["notebook-only"]
# How much attention each takes, as a mean over pixels:

# %% tags=["notebook-only"]
# NBVAL_CHECK_OUTPUT
attention = study.token_table(panel)
print(f"{len(attention)} columns, attention sums to {study.total_attention(panel):.2f}")

# %% tags=["notebook-only"]
attention

# %% [markdown] tags=["notebook-only"]
# ## Every layer and timestep
# The same words, nothing averaged away: rows are layers in forward order, columns go from noise to
# image.

# %% tags=["notebook-only"]
display(Image(filename=str(paths[2])))

# %% [markdown] tags=["notebook-only"]
# Which layers would ground this one phrase by themselves? *Specificity* is the contrast (CNR) lost
# when a phrase of another finding is asked for on the same image: 0 for a map that does not read.
# One image decides nothing (notebook 08 has the whole validation set), but it shows how to look.

# %% tags=["notebook-only"]
other = study.other_phrase(session, start)
print(f"the other phrase: {other!r}" if other else "no other phrase: no specificity")
scores = study.by_resolution(session, start, other)
scores

# %% [markdown] tags=["notebook-only"]
# ## What the words tell the model
# *Method: information* shows where the chosen words lower the error of the predicted noise, given
# the other words; all words together, against the empty prompt and a normal impression.
# *Attention × information* multiplies both. The maps of information don't depend on the ranges, and
# need a few more passes, once a phrase (`g2g_utils.information`).

# %% tags=["notebook-only"]
display(Image(filename=str(paths[3])))

# %% [markdown] tags=["notebook-only"]
# Every word, given the rest. Red: without it the model explains the film worse. Expect the finding
# to carry most, and the side to be red where it is and blue on the other side, if anything.

# %% tags=["notebook-only"]
display(Image(filename=str(paths[4])))

# %% [markdown] tags=["notebook-only"]
# Summed over the film, the gain says whether the phrase is *supported by this film* at all. Where
# its scale was calibrated (on phantoms, as many true as false phrases), that is a probability with
# a known error rate. It reads finding and side, neither zone nor denial, and is no statement about
# a patient.

# %% tags=["notebook-only"]
informed = session.view(explorer.pick_method(explorer.swap(start), "both"))
for shown in informed.panels:
    print(f"{shown.phrase!r}: {shown.presence['said']}")

# %% [markdown] tags=["notebook-only"]
# ## The side, swapped
# The button rewrites the phrase and puts both maps on one scale. A model that reads the side moves
# the heat; one that does not shows a pale difference.

# %% tags=["notebook-only"]
display(Image(filename=str(paths[-1])))

# %% tags=["notebook-only"]
both = session.view(explorer.swap(start))
print(f"{both.panels[0].phrase!r} against {both.panels[1].phrase!r}")
print(f"mean change {float(both.difference.abs().mean()):.2f} of a scale from 0 to 1")

# %% [markdown] tags=["notebook-only"]
# ## What we learned

# %% tags=["notebook-only"]
capture = panel.capture
print(f"{capture.nbytes / 2**20:.2f} MiB hold all {capture.columns} columns, layers and timesteps")
print(f"largest share of attention: {attention.index[attention['share'].argmax()]}")
print(f"layers with the highest CNR on this image: {study.best(scores, 'cnr')}")

# %% [markdown] tags=["notebook-only"]
# ## Next
# - 08 settles by measurement, on many images, what was only looked at here.
# - 06 explains the curves and their confidence.
# - `explorer.code(session, view)` gives any view as three lines.
