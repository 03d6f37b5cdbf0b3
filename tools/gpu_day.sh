#!/usr/bin/env bash
# Everything that is to be run on an NVIDIA GPU, in order, within 25 minutes, without a
# network. What a cut-off run has written by then stands in OUT.
#
#   tools/gpu_day.sh                     all parts: fit, check, serve, bench, llada, fp8,
#                                        kernels
#   tools/gpu_day.sh bench kernels       some of them, again
#   PARTS=FOLDER tools/gpu_day.sh        with vLLM's CUDA build out of FOLDER/part*.tar.xz
#   DRY=1 tools/gpu_day.sh               says what it would run
#
#   OUT=gpu-day      where logs and tables go
#   SITE=~/gpu-day-site   where PARTS are laid; each holds files for there, or wheels/*.whl
#   LIMIT=60         seconds of each part, instead of its own
#
# `fit` says within seconds whether this torch and vLLM's build go together; nothing is
# run on a machine where they do not.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

OUT=${OUT:-gpu-day} SITE=${SITE:-$HOME/gpu-day-site} PARTS=${PARTS:-} DRY=${DRY:-}
PYTHON=${PYTHON:-python3}
ALL=(fit check serve bench llada fp8 kernels)
declare -A LIMITS=([fit]=120 [check]=360 [serve]=150 [bench]=360 [llada]=180 [fp8]=150
    [kernels]=150)

say() { echo "gpu-day: $*"; }
die() { echo "gpu-day: error: $*" >&2; exit 2; }
# run COMMAND...: what a part does, or its words
run() { if [ -n "$DRY" ]; then echo "  $*"; else "$@"; fi; }

fit() {
    run "$PYTHON" tools/gpu_fit.py torch || return
    if [ -n "$PARTS" ]; then
        local part packed=("$PARTS"/part*.tar.xz) unpacking=()
        [ -e "${packed[0]}" ] || { say "no part*.tar.xz in $PARTS"; return 1; }
        run mkdir -p "$SITE"
        for part in "${packed[@]}"; do
            run tar -xf "$part" -C "$SITE" &
            unpacking+=($!)
        done
        for part in "${unpacking[@]}"; do wait "$part" || return; done
        # Else each of the first processes compiles all of it.
        run "$PYTHON" -m compileall -q -j 0 "$SITE" >/dev/null
        run "$PYTHON" tools/gpu_fit.py build || return
        if [ -n "$DRY" ] || compgen -G "$SITE/wheels/*.whl" >/dev/null; then
            run "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
                --upgrade --target "$SITE" "$SITE"/wheels/*.whl || return
        fi
        # vLLM finds a plugin by the metadata of its package.
        run env DLLM_SKIP_NATIVE=1 "$PYTHON" -m pip install -q --no-index --no-deps \
            --no-build-isolation --upgrade --target "$SITE" . || return
    fi
    run "$PYTHON" tools/gpu_fit.py vllm
}

check() {
    run "$PYTHON" tools/gpu_check.py --jobs "$(nproc)" --every 4 --out "$OUT/check.json"
}

# A fresh server's memory may double in a minute.
serve() {
    run env TRITON_F32_DEFAULT=ieee "$PYTHON" tools/soak.py --servers tiny-llada2 \
        --minutes 1 --growth 1 --out "$OUT/serve.json"
}

bench() { measure bench --trace "$OUT/trace"; }
llada() { measure llada --config llada; }
fp8() { measure fp8 --quantization fp8 --prompts 128; }
# measure PART OPTION...
measure() { run "$PYTHON" benchmarks/gpu.py --out "$OUT/$1.json" "${@:2}"; }

kernels() {
    # Without the fixtures of tests of engines, whose packages may not be here.
    run "$PYTHON" -m pytest -q --noconftest -o addopts= -p no:cacheprovider \
        tests/ops/test_candidate.py tests/ops/test_mixture.py \
        tests/ops/test_sample.py tests/ops/test_noise.py
}

# table NAME STATUS SECONDS: one more line, at once
table() {
    local word=ok
    case $2 in 0) ;; 124) word="cut off" ;; *) word="failed ($2)" ;; esac
    printf '%-8s %-12s %5d s\n' "$1" "$word" "$3" | tee -a "$OUT/table.txt"
}

if [ "${1:-}" = --part ]; then # in a process of its own, so that it can be ended
    "$2"
    exit
fi
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=("${ALL[@]}")
for part in "${parts[@]}"; do
    [ -n "${LIMITS[$part]:-}" ] || die "$part is no part; known: ${ALL[*]}"
done
export OUT SITE PARTS DRY PYTHON HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
export PYTHONPATH="$PWD${PARTS:+:$SITE}${PYTHONPATH:+:$PYTHONPATH}"
[ -z "$PARTS" ] || export VLLM_USE_FLASHINFER_SAMPLER=0 # its package is not packed
mkdir -p "$OUT"
failed=0
for part in "${parts[@]}"; do
    limit=${LIMIT:-${LIMITS[$part]}}
    say "$part, at most $limit s; log in $OUT/$part.log"
    start=$SECONDS
    timeout --kill-after=10 "$limit" "$0" --part "$part" 2>&1 |
        tee "$OUT/$part.log"
    status=${PIPESTATUS[0]}
    table "$part" "$status" $((SECONDS - start))
    [ "$status" = 0 ] || failed=1
    if [ "$part" = fit ] && [ "$status" != 0 ]; then
        say "nothing else is run: see above"
        break
    fi
done
exit "$failed"
