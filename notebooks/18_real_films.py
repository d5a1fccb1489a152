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
# # 18 · Does a model that was raised on phantoms ground findings on real films?
#
# ## Question
# The shipped phantom model has never seen a radiograph. Here it goes on learning from open ones:
# real films with the captions of their text-mined labels, and phantoms beside them. **No box of a
# real film is ever trained on.** Then it is asked about films of other patients. Does it beat
# *knowing where each finding usually lies*?
#
# ## You need
# - profile `radiographs`: shipped films and weights; scores are made when missing (minutes on two
#   CPU cores). No GPU, no account
#
# Films: NIH Clinical Center, ChestX-ray14; boxes: NIH, RSNA 2018, ChestX-Det
# (`data/radiographs/SOURCES.md`). For research and teaching, not for the care of patients.
#
# ## Parameters

# %% tags=["parameters"]
profile: str = "radiographs"
shown_ranks: str = "0 0.5 1"  # cases by rank of the CNR within a finding: best, middle, worst
column: str = "cnr"  # of the ranks

# %%
from g2g_utils.config import load

config = load(profile)

# %% [markdown]
# ## Imports

# %%
from dataclasses import replace

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from g2g_utils import plots, text
from g2g_utils.bench import benchmark, statistics
from g2g_utils.data import radiographs, sources
from g2g_utils.experiment import products, skill
from g2g_utils.plots import charts, overlays

# %%
plots.use_style()
charts.use_colours(products.compared(config))

# %% [markdown]
# ## What it learned from
# Captions of films name findings but no side, for no label does; the phantoms' sentences do.
# `repeats` says how often an epoch meets each film. Implants, phantoms' findings drawn into real
# normal films, can be mixed in (`data.implants`); on validation they hurt, so the shipped model had
# none ([the log](../docs/miniature_log.md)).

# %%
training = sources.examples(config, "train")
drawn = [k for k, example in enumerate(training) if example.image_id.startswith("phantom")]
films, phantoms = training[: drawn[0]], training[drawn[0] :]
implants = phantoms[: config.data.implants]
abnormal = [f for f in films if f.phrase != radiographs.NORMAL_CAPTION]
print(f"{len(films)} films ({config.data.repeats} times each), {len(implants)} implants, "
      f"{len(phantoms) - len(implants)} drawn phantoms")  # fmt: skip

# %%
chosen = [*abnormal[:4], *[x for x in phantoms if x.regions][:3]]
fig, axes = overlays.panels(len(chosen), size=2.0)
for ax, example in zip(axes[0], chosen, strict=True):
    title = overlays.wrapped(example.phrase, 30)
    overlays.show_image(ax, example.load(config.image_size), title=title, marker=False)
alt = "four films, then three phantoms, each under its caption"
fig.suptitle("Films with their labels' captions, and phantoms", x=0.01, ha="left")
plots.save_figure(config, fig, "18_real_films_training", alt=alt)

# %% [markdown]
# ## Whom it is asked about
# Test patients: never trained on, never chosen on. A phrase is the finding's name, with its side
# where all boxes lie on one. Both *priors* are mean boxes of training patients and see no film; the
# second also knows the side that the phrase names.

# %%
# NBVAL_CHECK_OUTPUT
pairs = products.evaluation_pairs(config)
patients = {pair.subject_id for pair in pairs}
print(f"test: {len(pairs)} pairs of {len({p.image_id for p in pairs})} films, "
      f"{len(patients)} patients")  # fmt: skip
assert not patients & {film.subject_id for film in films}

# %%
scores = products.scores(config)
n, rows = config.evaluation.bootstrap, list(dict.fromkeys(scores["method"]))
priors = [name for name in rows if name.startswith("mean box")]
own = products.compared(config)
print(f"methods: {', '.join(rows)}; seeds {sorted(scores['seed'].dropna().astype(int).unique())}")

# %% [markdown]
# ## Finding by finding
# Means over seeds and pairs with 95 % intervals over patients. CNR: contrast between box and rest.
# Specificity: what the CNR loses when another finding is asked for on the same film; a prior that
# knows the finding has some, too.

# %%
columns = ["cnr", "auc_roc", "pointing", "threshold_iou", "specificity"]
for finding, part in scores.groupby("finding"):
    table = statistics.summary(part, "method", columns, n)
    display(Markdown(f"**{finding}**"), charts.readable(table))

# %% [markdown]
# The question of this notebook in one picture: CNR less that of the prior, per finding. A bar right
# of zero whose interval does not touch it beats knowing where the finding usually lies.


# %%
def gaps(over: str, measure: str = "cnr") -> pd.DataFrame:
    """Paired differences to a row of the table, per finding."""
    found = {}
    for finding, part in scores.groupby("finding"):
        base = part[part["method"] == over]
        found[finding] = {m: statistics.difference(part[part["method"] == m], base, measure, n)
                          for m in own}  # fmt: skip
    return pd.DataFrame(found).T


# %%
for prior in priors:
    fig = charts.bars(gaps(prior), own, title=f"CNR less that of “{prior}”, by finding")
    name = f"18_real_films_over_{'side' if 'side' in prior else 'finding'}"
    plots.save_figure(config, fig, name, alt="one bar a finding with its interval, by method")

# %%
table = gaps(skill.PRIOR)[own[0]]
above = [finding for finding, gap in table.items() if gap.low > 0]
below = [finding for finding, gap in table.items() if gap.high < 0]
print(f"{own[0]} beats the prior for: {', '.join(above) or 'no finding'}")
print(f"it is worse than the prior for: {', '.join(below) or 'no finding'}")

# %% [markdown]
# ## What came from the phantoms, and what from the films
# The same U-Net before any film, on the same films and phrases.

# %%
before = "attention, phantoms only"
changes = {
    finding: {
        f"{c}, {when}": statistics.interval(part[part["method"] == name], c, n)
        for c in ("cnr", "specificity")
        for when, name in (("before", before), ("after", own[0]))
    }
    for finding, part in scores.groupby("finding")
}
charts.readable(pd.DataFrame(changes).T)

# %%
learned = {
    finding: statistics.difference(
        part[part["method"] == own[0]], part[part["method"] == before], "cnr", n
    )
    for finding, part in scores.groupby("finding")
}
fig = charts.bars(pd.DataFrame({"CNR": learned}), ["CNR"], title="CNR that the films added")
plots.save_figure(config, fig, "18_real_films_learned", alt="one bar a finding with its interval")

# %% [markdown]
# ## Best, middle and worst
# Chosen by rank of the first seed's CNR within each finding, by nothing else. Yellow: the boxes of
# radiologists (drawn over the map); title: the phrase and the CNR.

# %%
name, seed = next(iter(config.methods)), config.training.seeds[0]
method = products.method(config, name, seed)
first = scores[(scores["method"] == own[0]) & (scores["seed"] == seed)]
shares = [float(share) for share in shown_ranks.split()]
cases = {
    finding: statistics.ranked(part, column, shares) for finding, part in first.groupby("finding")
}


# %%
def draw(ax, row: pd.Series) -> None:
    """One case: the film, its boxes and the heat map."""
    pair = statistics.pair_of(row, pairs)
    heat, framed = benchmark.answer(method, pair).values, pair.framed(config.image_size)
    image = pair.framed(128).array()
    boxes = np.asarray(framed.boxes) * 128 / config.image_size
    title = overlays.wrapped(f"{pair.phrase}: {row[column]:.2f}", 30)
    overlays.overlay(ax, image, heat, boxes=boxes, title=title, marker=False)


# %%
fig, axes = overlays.panels(len(shares) * 2, (len(cases) + 1) // 2, size=2.1)
for place, chosen in enumerate(cases.values()):
    line, start = place // 2, place % 2 * len(shares)
    for k, (_, row) in enumerate(chosen.iterrows()):
        draw(axes[line, start + k], row)
for ax in axes.flat:
    ax.set_axis_off()
fig.suptitle("Best, middle and worst case of each finding", x=0.01, ha="left")
plots.save_figure(config, fig, "18_real_films_cases", alt="heat maps over films, three a finding")

# %% [markdown]
# ## Where it fails
# Portable films (AP) show sicker patients with lines and leads, and a pneumothorax is often drained
# already when the film is taken. Does the view decide?

# %%
views = {film.image_id: film.view for film in radiographs.films(
    sources.resolve(config.data.root)).values()}  # fmt: skip
viewed = scores[scores["method"].isin([own[0], skill.PRIOR])]
viewed = viewed.assign(view=viewed["image_id"].map(views))
by_view = {
    (view, method): {"pairs": len(part.groupby(statistics.PAIR)),
                     **{c: statistics.interval(part, c, n) for c in ("cnr", "specificity")}}
    for (view, method), part in viewed.groupby(["view", "method"])
}  # fmt: skip
charts.readable(pd.DataFrame(by_view).T)

# %% [markdown]
# The worst cases of three findings, to look for what drew the map: leads, tubes, markers, the
# stomach's air, the film's edge.

# %%
worst = {f: statistics.ranked(first[first["finding"] == f], column, (0.85, 0.95, 1.0))
         for f in ("Airspace Opacity", "Pleural Effusion", "Pneumothorax")}  # fmt: skip
fig, axes = overlays.panels(9, size=2.0)
for ax, (_, row) in zip(axes[0], pd.concat(worst.values()).iterrows(), strict=True):
    draw(ax, row)
fig.suptitle("Among the worst: opacity, effusion, pneumothorax", x=0.01, ha="left")
plots.save_figure(
    config, fig, "18_real_films_failures", alt="heat maps over films, three a finding"
)

# %% [markdown]
# Does it read the side? The same film, asked for the other side.

# %%
sided = [p for p in pairs if text.side_of(p.phrase)][:4]
fig, axes = overlays.panels(2 * len(sided), size=2.0)
for k, pair in enumerate(sided):
    image, boxes = pair.framed(128).array(), pair.framed(128).boxes
    asked = (pair.phrase, text.swap_sides(pair.phrase))
    for ax, phrase in zip(axes[0, 2 * k : 2 * k + 2], asked, strict=True):
        heat = benchmark.answer(method, replace(pair, phrase=phrase)).values
        overlays.overlay(ax, image, heat, boxes=boxes, title=phrase, marker=False)
fig.suptitle("Each film with its phrase, then with the other side", x=0.01, ha="left")
plots.save_figure(config, fig, "18_real_films_sides", alt="heat maps over films, two a pair")

# %% [markdown]
# ## What a newcomer is told
# `./run_all.sh ground film.png "…"` answers with this model and says with every map how good it was
# on test films at the finding that was asked for.

# %%
for phrase in ("right lung opacity", "left pleural effusion", "lung nodule", "scoliosis"):
    model = f"{config.profile}/ldm/{name}-s{seed}"
    print(skill.statement(config, model, phrase, "attention")["skill"]["said"], "\n")

# %% [markdown]
# ## Exercises
# 1. *Predict*: the side-aware prior knows the phrase's side. For which findings does that help it
#    most, and for which not at all? *Run* the table by finding again with both priors alone.
# 2. *Predict*: which is the larger gap, before and after the films, in CNR or in specificity?
#
# <details><summary>Answers</summary>
#
# 1. It helps where a finding lies on one side (effusion, pneumothorax, atelectasis) and not for the
#    heart, whose phrase names none.
# 2. See the table of what came from the phantoms: a model can learn where findings lie on real
#    films (CNR) without telling them apart any better (specificity).
#
# </details>
#
# ## What we learned

# %%
specific = {f: statistics.interval(part, "specificity", n)
            for f, part in scores[scores["method"] == own[0]].groupby("finding")}  # fmt: skip
told = [finding for finding, gap in specific.items() if gap.low > 0]
gain = [finding for finding, gap in learned.items() if gap.low > 0]
print(f"findings told from others on the same film: {len(told)} of {len(specific)}")
print(f"findings that films taught it to ground better: {', '.join(gain) or 'none'}")
print(f"findings grounded better than by their usual place: {', '.join(above) or 'none'}")

# %% [markdown]
# ## Next
# - [13 · information maps](13_information_maps.ipynb), where they work: on phantoms
# - [10 · the explorer](10_explorer.ipynb): `./run_all.sh explore radiographs` with your own film
