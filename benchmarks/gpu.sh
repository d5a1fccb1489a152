#!/usr/bin/env bash
# Everything that only a GPU can show, in pieces of at most nine minutes. Call it again until it says
# that nothing is left: a piece with a result is skipped, a piece that fails is told and left out.
#
#   benchmarks/gpu.sh [--tiny] [PIECE ...]    results: benchmarks/gpu/PIECE.json
#   G2G_PYTHON  the interpreter (default: .venv/bin/python);  OUT  the folder of the results
set -uo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="${G2G_PYTHON:-$ROOT/.venv/bin/python}"
OUT="${OUT:-$ROOT/benchmarks/gpu}"
LIMIT=540 # seconds a piece
TIMES=10  # the miniature's budget of fine-tuning, times this
ARMS=(domain-frozen generic-frozen generic-learnable)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

TINY=()
if [[ "${1:-}" == --tiny ]]; then
    TINY=(--tiny)
    shift
fi
mkdir -p "$OUT"

miniature() { # the miniature at ten times its budget: weights resume from checkpoints, scores by parts
    local steps arm name
    steps="$("$PYTHON" -c 'import sys; from g2g_utils import config
print(int(sys.argv[1]) * config.load("miniature").training.steps)' "$TIMES")"
    for arm in "${ARMS[@]}"; do
        for name in "ldm/$arm-s0" "scores/$arm-s0"; do
            echo "[gpu] $name with $steps steps"
            timeout "$LIMIT" "$PYTHON" -m g2g_utils make "$name" \
                --set "training.steps=$steps" || return 1
        done
    done
    "$PYTHON" "$ROOT/benchmarks/gpu.py" --out "$OUT" --miniature "$steps" "${ARMS[@]}"
}

left=0
if (($#)); then pieces=("$@"); else
    mapfile -t pieces < <("$PYTHON" "$ROOT/benchmarks/gpu.py" --list)
    [[ ${#TINY[@]} -gt 0 ]] || pieces+=("miniature")
fi
for piece in "${pieces[@]}"; do
    if [[ "$piece" == miniature ]]; then
        [[ -s "$OUT/miniature.json" ]] || miniature || left=$((left + 1))
        continue
    fi
    [[ -s "$OUT/$piece.json" ]] && continue
    echo "[gpu] $piece"
    timeout "$LIMIT" "$PYTHON" "$ROOT/benchmarks/gpu.py" ${TINY[@]+"${TINY[@]}"} --out "$OUT" "$piece" ||
        left=$((left + 1))
done
if ((left)); then
    echo "[gpu] $left pieces are left: call this again" >&2
    exit 1
fi
echo "[gpu] nothing is left; results: $OUT"
