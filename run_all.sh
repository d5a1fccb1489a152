#!/usr/bin/env bash
# One entry point: set-up, every profile, the checks, one's own image. See ./run_all.sh --help
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
CALLED_FROM="$PWD"

absolute() { # a path as seen from where this was called: jobs run elsewhere
    case "$1" in
    /*) echo "$1" ;;
    *) echo "$CALLED_FROM/${1#./}" ;;
    esac
}

G2G_BUILD="$(absolute "${G2G_BUILD:-$ROOT/build}")"
export G2G_BUILD
if [[ -n "${G2G_BACKGROUNDS:-}" ]]; then
    G2G_BACKGROUNDS="$(absolute "$G2G_BACKGROUNDS")"
    export G2G_BACKGROUNDS
fi

usage() {
    cat <<'TEXT'
Generate to Ground: phrase grounding in chest X-rays from the cross-attention of a diffusion model.

  ./run_all.sh [PROFILE] [--retrain] [--dry-run] [-j N] [--profile local|slurm]
        run every notebook of a profile and what it needs; what is done is skipped
          smoke      a few steps of everything on phantoms; for tests
          miniature  the whole paper in small on phantoms (default): 2 CPU cores, no data, no GPU
          radiographs  the method on 1,282 open real films (notebook 18): 2 CPU cores, no GPU
          open       Stable Diffusion 1.5 + CXR-BERT on data anyone can download; a GPU
          paper      the real experiment on MIMIC-CXR and MS-CXR; credentialed data, GPU(s)
        --retrain    train everything here instead of using shipped weights
        --dry-run    only say what would run, what it costs and what is missing on disk
        -j N         jobs at once (default: the number of cores, at most 8)
        --profile    where jobs run: local (default) or slurm (also --slurm); for Slurm
        --partition P, --account A    where yours wants them; what a job takes: configs/PROFILE.yaml
                     more, such as slurm_extra: workflow/profiles/slurm/config.yaml
  ./run_all.sh sweep NAME [PROFILE] [the same options]
        run a notebook at every point of workflow/sweeps/NAME.yaml; then a table and a figure in
        build/PROFILE/sweeps/NAME. Finished points stay; failed ones run again
  ./run_all.sh fetch PROFILE       on a login node: bring the models, check the data; then jobs on
                                   nodes without internet find both
  ./run_all.sh survival [--kills N] [--seed S]   kill the smoke run N times, compare its results
  ./run_all.sh ground IMAGE "PHRASE" [OPTIONS]   where in IMAGE is PHRASE? (PNG, JPEG, DICOM); the
                                   model of real films answers, --profile miniature that of phantoms
  ./run_all.sh ground PAIRS.csv [OPTIONS]        the same for every row of a table (image, phrase)
  ./run_all.sh explore [PROFILE] [VOILA OPTIONS] tokens, layers and timesteps in the browser;
                                   PROFILE: radiographs (default), miniature, …
  ./run_all.sh lab [OPTIONS]       the notebooks in JupyterLab, to step through; works on copies
  ./run_all.sh test [--fast | --update]          all checks; --fast: those of the sources and the
                                   quick tests; --update renews the notebooks' reference outputs
  ./run_all.sh publish                           put executed notebooks into notebooks/
  ./run_all.sh site                              build the site into build/site/html; no network
  ./run_all.sh setup                             only make or check the environment
  ./run_all.sh --help

The first call makes .venv from requirements.lock (2-5 minutes and a download), unless the active
conda or virtual environment already satisfies it. Results lie in build/PROFILE (or in
$G2G_BUILD/PROFILE), those of miniature and radiographs in figures/. Further settings, all optional:
  G2G_PYTHON       a Python 3.11 or 3.12 to make .venv with
  G2G_TORCH_INDEX  package index of the torch build, such as https://download.pytorch.org/whl/cpu
  G2G_BACKGROUNDS  folder of normal radiographs: notebook 07 then also shows its table on phantoms
                   drawn into them
For research only; not a medical device.
TEXT
}

fail() {
    echo "run_all.sh: $*" >&2
    exit 2
}

say() { echo "[g2g] $*"; }

# --- the environment -------------------------------------------------------------------------

find_python() { # a Python 3.11 or 3.12, or one clear line
    local candidate
    for candidate in ${G2G_PYTHON:+"$G2G_PYTHON"} python3.11 python3.12 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 13))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 (3.11.5 or later) or 3.12 and found neither: install one (conda create" \
        "-n g2g python=3.12, pyenv install 3.12, apt install python3.12) or set G2G_PYTHON to its path"
}

prepare() { # sets PYTHON; quick when nothing is to do
    local starter
    PYTHON="$ROOT/.venv/bin/python"
    if [[ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" && -x "$PYTHON" ]] &&
        cmp -s "$ROOT/requirements.lock" "$ROOT/.venv/installed.lock"; then
        return
    fi
    starter="$(find_python)"
    PYTHON="$("$starter" "$ROOT/tools/setup_env.py")"
}

# --- commands --------------------------------------------------------------------------------

locked() { # one run at a time on one build folder; the lock goes with the process
    exec "$PYTHON" "$ROOT/workflow/locked.py" "$G2G_BUILD" "$@"
}

options() { # of everything that runs jobs; sets JOBS, RETRAIN, EXTRA; $1 is what they belong to
    local of="$1" executor=local asked=""
    unset G2G_SLURM_PARTITION G2G_SLURM_ACCOUNT
    shift
    JOBS="" RETRAIN=0 EXTRA=()
    while (($#)); do
        case "$1" in
        --retrain) RETRAIN=1 ;;
        --dry-run | -n) EXTRA+=(--dry-run) ;;
        --slurm) executor=slurm ;;
        --profile)
            [[ "${2:-}" == local || "${2:-}" == slurm ]] ||
                fail "--profile is local or slurm, not '${2:-}'"
            executor="$2"
            shift
            ;;
        --partition | --account)
            [[ -n "${2:-}" && "$2" != -* ]] || fail "$1 needs a name"
            asked="$1"
            case "$1" in
            --partition) export G2G_SLURM_PARTITION="$2" ;; # see workflow/launch.py
            --account) export G2G_SLURM_ACCOUNT="$2" ;;
            esac
            shift
            ;;
        -j | --jobs)
            [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || fail "-j needs a number of jobs, not '${2:-}'"
            JOBS="$2"
            shift
            ;;
        *) fail "unknown option '$1' of $of: --retrain, --dry-run, -j N, --profile local|slurm," \
            "--partition P, --account A" ;;
        esac
        shift
    done
    EXTRA+=(--profile "$ROOT/workflow/profiles/$executor")
    [[ "$executor" == local && -n "$asked" ]] &&
        fail "--partition and --account go with --profile slurm"
    if [[ "$executor" == slurm ]]; then
        command -v sbatch >/dev/null || fail "--profile slurm: there is no sbatch on this machine"
        export HF_HUB_OFFLINE=1 # nodes often have no internet; ./run_all.sh fetch brings the models
        [[ -n "${G2G_SLURM_ACCOUNT:-}" ]] ||
            grep -q "^[^#]*slurm_account" "$ROOT/workflow/profiles/slurm/config.yaml" ||
            EXTRA+=(--slurm-no-account)
        accounting || EXTRA+=(--slurm-status-command squeue)
        # Jobs are named by their build folder: what a killed run left is found and cancelled.
        G2G_SLURM_PREFIX="g2g-$(printf %s "$G2G_BUILD" | cksum | cut -d" " -f1)"
        export G2G_SLURM_PREFIX
        EXTRA+=(--slurm-jobname-prefix "$G2G_SLURM_PREFIX")
    fi
    return 0
}

accounting() { # does this Slurm keep accounts?
    local told
    told="$(scontrol show config 2>/dev/null)" || fail "--profile slurm: scontrol cannot reach Slurm"
    [[ ! "$told" =~ AccountingStorageType\ *=\ *accounting_storage/none ]]
}

cores() {
    "$PYTHON" -c 'import os
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
print(min(8, cores or 1))'
}

snakemake() { # Snakefile, then what Snakemake takes
    local file="$1"
    shift
    [[ " ${EXTRA[*]} " == *profiles/slurm* && -z "$JOBS" ]] || EXTRA+=(--jobs "${JOBS:-$(cores)}")
    locked "$PYTHON" "$ROOT/workflow/engine.py" --snakefile "$ROOT/workflow/$file" \
        --directory "$G2G_BUILD" "${EXTRA[@]}" "$@"
}

known_profile() {
    [[ "$1" =~ ^[a-z]+$ && -f "$ROOT/configs/$1.yaml" ]] ||
        fail "unknown profile '$1': choose smoke, miniature, radiographs, open or paper"
    case "$1" in # what is shipped needs no hub, and must not wait for one
    smoke | miniature | radiographs) export HF_HUB_OFFLINE=1 ;;
    esac
}

run_profile() {
    local profile="$1"
    shift
    options "profile $profile" "$@"
    prepare
    known_profile "$profile"
    say "profile $profile, into $G2G_BUILD/$profile"
    if [[ " ${EXTRA[*]} " == *" --dry-run "* ]]; then
        "$PYTHON" -m g2g_utils costs --profile "$profile"
    fi
    snakemake Snakefile --config "profile=$profile" "retrain=$RETRAIN"
}

sweep() {
    (($#)) || fail "sweep needs a name: ./run_all.sh sweep NAME [PROFILE]; see workflow/sweeps/"
    local name="$1" profile=miniature
    shift
    if (($#)) && [[ "$1" != -* ]]; then
        profile="$1"
        shift
    fi
    [[ "$name" != *.yaml || ! -f "$name" ]] || name="$(absolute "$name")"
    known_profile "$profile"
    options "sweep $name" "$@"
    ((RETRAIN)) && fail "sweep knows no --retrain"
    prepare
    "$PYTHON" "$ROOT/workflow/sweeps.py" "$name" "$profile" || exit 2
    EXTRA+=(--retries 1) # a failed point is tried once more
    snakemake sweep.smk --config "profile=$profile" "sweep=$name"
}

ground() {
    [[ $# -ge 2 || "${1:-}" == *.[cC][sS][vV] ]] ||
        fail 'ground needs an image and a phrase: ./run_all.sh ground IMAGE "PHRASE"'
    [[ -f "$1" ]] || fail "ground: there is no file '$1' (seen from $CALLED_FROM)"
    [[ "$1" == *.[cC][sS][vV] || -n "${2//[[:space:]]/}" ]] ||
        fail "ground: the phrase is empty; say what to look for"
    prepare
    exec "$PYTHON" -m g2g_utils ground "$@"
}

# What Jupyter, torch and the hub should know, whichever job they run in.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" JUPYTER_PREFER_ENV_PATH=1
export TOKENIZERS_PARALLELISM=false HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}" # idle threads of small models sleep, not spin

command="${1:-miniature}"
case "$command" in -j | --jobs | --retrain | --dry-run | -n | --slurm | --profile) set -- miniature "$@" ;; esac
command="${1:-miniature}"
(($# == 0)) || shift
case "$command" in
-h | --help | help) usage ;;
smoke | miniature | radiographs | open | paper)
    [[ -f "$ROOT/configs/$command.yaml" ]] || fail "configs/$command.yaml does not exist (yet)"
    run_profile "$command" "$@"
    ;;
sweep) sweep "$@" ;;
fetch)
    (($# == 1)) || fail "fetch takes one profile: ./run_all.sh fetch PROFILE"
    known_profile "$1"
    prepare
    exec "$PYTHON" "$ROOT/workflow/fetch.py" "$1"
    ;;
survival)
    prepare
    exec "$PYTHON" "$ROOT/workflow/survival.py" "$@"
    ;;
ground) ground "$@" ;;
lab)
    prepare
    exec "$PYTHON" "$ROOT/workflow/lab.py" "$@"
    ;;
explore)
    prepare
    exec "$PYTHON" "$ROOT/workflow/explore.py" "$@"
    ;;
test)
    [[ $# -eq 0 || "$*" == --update || "$*" == --fast ]] ||
        fail "unknown option '$*' of test: --fast or --update"
    prepare
    exec "$PYTHON" "$ROOT/tools/check.py" "$@"
    ;;
publish)
    (($# == 0)) || fail "publish takes no options, not '$*'"
    prepare
    exec "$PYTHON" "$ROOT/tools/notebooks.py" publish
    ;;
site)
    (($# == 0)) || fail "site takes no options, not '$*'"
    prepare
    exec "$PYTHON" "$ROOT/tools/site.py"
    ;;
setup)
    (($# == 0)) || fail "setup takes no options, not '$*'"
    prepare
    say "ready: $PYTHON"
    ;;
*)
    fail "unknown profile or command '$command': choose a profile (smoke, miniature, radiographs, open, paper)" \
        "or a command (sweep, fetch, survival, ground, explore, lab, test, publish, site, setup, --help)"
    ;;
esac
