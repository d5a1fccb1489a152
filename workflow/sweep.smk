# A sweep: the products its points need, one papermill run a point, a table and a figure of them.
# Run by ../run_all.sh sweep. As in Snakefile, keys among the parameters tell what changed.

import json
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(workflow.basedir).parent
sys.path[:0] = [str(ROOT), str(ROOT / "workflow")]

import launch
import damage
import fingerprints
import sweeps
from g2g_utils import config as profiles
from g2g_utils.experiment import products
from g2g_utils import runs
from g2g_utils.runs import places

launch.become_own_array_task(sys.argv[1:])

PROFILE = config.get("profile", "miniature")
SWEEP = sweeps.read(config["sweep"])
SETTINGS = profiles.load(PROFILE)
BUILD = places.build(SETTINGS).resolve() / "sweeps"
HERE = BUILD / SWEEP.name
POINTS = {point.id: point for point in SWEEP.points}
CODE = fingerprints.fingerprint(SWEEP.notebook, "")
SUMMARY = ("summary.csv", "summary.png", "summary.run.json")
PYTHON = sys.executable


@cache
def settings(overrides):
    """The profile with a point's settings (written as JSON, so that points share the result)."""
    return profiles.load(PROFILE, **json.loads(overrides))


@cache
def key_of(name, overrides):
    """Key of a product under a point's settings."""
    return products.key(settings(overrides), name)


MADE = {}  # product with its key -> its name and the settings that make it


def register(name, overrides):
    """Note a product and all that it needs; returns it with its key."""
    keyed = f"{name}-{key_of(name, overrides)}"
    if keyed not in MADE:
        MADE[keyed] = (name, overrides)
        for need in products.needs(settings(overrides), name):
            register(need, overrides)
    return keyed


def waits(point):
    """The products of a point, with their keys."""
    overrides = json.dumps(point.settings)
    plan = products.plan(settings(overrides))
    return [register(name, overrides) for name in SWEEP.products(point, plan)]


WAITS = {id: waits(point) for id, point in POINTS.items()}


def made(names):
    """The record of each product."""
    return [BUILD / "products" / f"{name}.json" for name in names]


def prerequisites(wildcards):
    """Records of the products that a product needs."""
    name, overrides = MADE[wildcards.product]
    needed = products.needs(settings(overrides), name)
    return made(f"{n}-{key_of(n, overrides)}" for n in needed)


def overrides_of(wildcards):
    """--set KEY VALUE … of a product or a point."""
    if "point" in wildcards.keys():
        given = POINTS[wildcards.point].settings
    else:
        given = json.loads(MADE[wildcards.product][1])
    return [word for name, value in given.items() for word in ("--set", name, json.dumps(value))]


def parameters_of(wildcards):
    """-p NAME VALUE … of a point."""
    given = POINTS[wildcards.point].parameters
    return [word for name, value in given.items() for word in ("-p", name, json.dumps(value))]


def key_of_point(point):
    """What decides whether a point runs again: the notebook's code and the point's settings."""
    given = settings(json.dumps(point.settings)).model_dump()
    return damage.key(runs.digest([CODE, given]), [HERE / point.id / "run.json"])


def lost():
    """Records that a crash or a full disk left without what they name, and why."""
    executed = [*(HERE / id / "run.json" for id in POINTS), HERE / "summary.run.json"]
    found = {record: damage.found(record) for record in filter(Path.exists, executed)}
    for record in filter(Path.exists, made(MADE)):
        found[record] = "" if runs.leads_to_product(record) else "its product is gone or damaged"
    return {record: why for record, why in found.items() if why}


if workflow.is_main_process:
    damage.forget(lost())


def any_of(names):
    """A pattern that matches exactly these names (or nothing)."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    point=any_of(POINTS),


localrules:
    all,
    summary,


rule all:
    input:
        [HERE / id / name for id in POINTS for name in ("metrics.json", "run.json")],
        [HERE / name for name in SUMMARY],


rule product:
    input:
        prerequisites,
    output:
        BUILD / "products" / "{product}.json",
    params:
        name=lambda wc: MADE[wc.product][0],
        key=lambda wc: damage.key(wc.product, made([wc.product])),
        overrides=overrides_of,
        python=launch.prefix(PYTHON, SETTINGS.job("product")),
    log:
        BUILD / "logs" / "product" / "{product}.log",
    wildcard_constraints:
        product=any_of(n for n in MADE if not n.startswith("ldm/")),
    threads: 1
    resources:
        **launch.resources(SETTINGS.job("product")),
    message:
        "{wildcards.product}"
    shell:
        "OMP_NUM_THREADS={threads} {params.python:q} {ROOT:q}/workflow/make_product.py {params.name:q}"
        " {output:q} --profile {PROFILE:q} {params.overrides:q} > {log:q} 2>&1"


rule training:
    input:
        prerequisites,
    output:
        BUILD / "products" / "{product}.json",
    params:
        name=lambda wc: MADE[wc.product][0],
        key=lambda wc: damage.key(wc.product, made([wc.product])),
        overrides=overrides_of,
        python=launch.prefix(PYTHON, SETTINGS.job("training")),
    log:
        BUILD / "logs" / "training" / "{product}.log",
    wildcard_constraints:
        product=any_of(n for n in MADE if n.startswith("ldm/")),
    priority: 10
    threads: 1
    resources:
        **launch.resources(SETTINGS.job("training")),
    message:
        "{wildcards.product}"
    shell:
        "OMP_NUM_THREADS={threads} {params.python:q} {ROOT:q}/workflow/make_product.py {params.name:q}"
        " {output:q} --profile {PROFILE:q} {params.overrides:q} > {log:q} 2>&1"


rule point:
    input:
        lambda wc: made(WAITS[wc.point]),
    output:
        metrics=HERE / "{point}" / "metrics.json",
        record=HERE / "{point}" / "run.json",
    params:
        key=lambda wc: key_of_point(POINTS[wc.point]),
        given=parameters_of,
        overrides=overrides_of,
    log:
        executed=HERE / "{point}" / SWEEP.notebook.name,
        text=HERE / "logs" / "{point}.log",
    threads: 1
    resources:
        **launch.resources(SETTINGS.job("point")),
    message:
        "point {wildcards.point}"
    shell:
        "OMP_NUM_THREADS={threads} {PYTHON:q} {ROOT:q}/workflow/run_notebook.py {SWEEP.notebook:q}"
        " --profile {PROFILE:q} --folder {HERE:q}/{wildcards.point} {params.given:q}"
        " {params.overrides:q} --inputs {input:q} > {log.text:q} 2>&1"


rule summary:
    input:
        [HERE / id / "metrics.json" for id in POINTS],
    output:
        [HERE / name for name in SUMMARY],
    params:
        points=damage.key(list(POINTS), [HERE / "summary.run.json"]),
        figure=SWEEP.figure,
    message:
        "summary"
    shell:
        "{PYTHON:q} {ROOT:q}/workflow/summarise_sweep.py {config[sweep]:q} {PROFILE:q} {HERE:q}"


onsuccess:
    print(f"[g2g] done: {len(POINTS)} points; table and figure: {HERE}/summary.csv, summary.png")


onerror:
    lost = [id for id in POINTS if not (HERE / id / "run.json").exists()]
    print(f"[g2g] {len(lost)} of {len(POINTS)} points of {SWEEP.name} are not finished; the same command runs them again")
    for problem in sorted(filter(Path.exists, (HERE / id / f"{SWEEP.notebook.stem}.error" for id in lost))):
        print(problem.read_text().rstrip())
    for keyed, record in zip(MADE, made(MADE), strict=True):
        kind = "training" if keyed.startswith("ldm/") else "product"
        if not record.exists() and (said := runs.last_line(BUILD / "logs" / kind / f"{keyed}.log")):
            print(f"{keyed}: {said}")
