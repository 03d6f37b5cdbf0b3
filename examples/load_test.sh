#!/usr/bin/env bash
# `vllm bench serve` against a running server.
#
#   make serve                                   # in another terminal
#   examples/load_test.sh random                 # random tokens: speed alone
#   examples/load_test.sh questions              # examples/questions.txt, as chats
#   examples/load_test.sh questions --max-concurrency 4 --extra-body '{"dllm_threshold": 0.8}'
#
# TOKENIZER is a local folder, so that nothing is downloaded. Further arguments go to
# `vllm bench serve`. Read the last line rather than its section "Diffusion Decoding",
# which leaves out a forward per canvas that made KV final and that we do not need.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

URL=${URL:-http://localhost:8000}
TOKENIZER=${TOKENIZER:-$repo/models/tiny-llada2}
REQUESTS=${REQUESTS:-32}
QUESTIONS=${QUESTIONS:-$repo/examples/questions.txt}
kind=${1:-random}
shift || true

files=$(mktemp -d)
trap 'rm -r "$files"' EXIT

case $kind in
random)
    options=(--backend openai --endpoint /v1/completions --dataset-name random
        --random-input-len 128 --random-output-len 64 --ignore-eos)
    ;;
questions)
    # The ShareGPT format is the one that vLLM reads without further packages. Half of
    # it is an answer, of which only the length counts, and we set that.
    python3 - "$QUESTIONS" >"$files/questions.json" <<'PY'
import json, sys
with open(sys.argv[1]) as lines:
    asked = [line.strip() for line in lines if line.strip()]
chats = [{"conversations": [{"value": each}, {"value": "-"}]} for each in asked]
json.dump(chats, sys.stdout)
PY
    options=(--backend openai-chat --endpoint /v1/chat/completions
        --dataset-name sharegpt --dataset-path "$files/questions.json"
        --sharegpt-output-len 64)
    ;;
*)
    echo "load_test: $kind is none of: random, questions" >&2
    exit 2
    ;;
esac

# The sum of a metric over its labels.
metric() {
    curl -sS "$URL/metrics" |
        awk -v name="$1{" 'index($1, name) == 1 { sum += $NF } END { print sum + 0 }'
}

tokens=$(metric vllm:generation_tokens_total)
forwards=$(metric vllm_dllm:request_forwards_sum)

HF_HUB_OFFLINE=1 vllm bench serve --base-url "$URL" --tokenizer "$TOKENIZER" \
    --num-prompts "$REQUESTS" --max-concurrency 8 --temperature 0 \
    --percentile-metrics ttft,e2el --metric-percentiles 50,95 "${options[@]}" "$@"

tokens=$(($(metric vllm:generation_tokens_total) - tokens))
forwards=$(($(metric vllm_dllm:request_forwards_sum) - forwards))
awk "BEGIN { printf \"\\ntokens %d, forwards of requests %d, tokens per forward %.2f\\n\", \
    $tokens, $forwards, $forwards ? $tokens / $forwards : 0 }"
