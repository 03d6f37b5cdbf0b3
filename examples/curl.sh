#!/usr/bin/env bash
# The routes of the server, from the command line.
#
#   make serve                                   # in another terminal
#   examples/curl.sh                             # or: URL=http://host:8000 examples/curl.sh
set -euo pipefail

URL=${URL:-http://localhost:8000}
MODEL=${MODEL:-tiny-llada2}
# The same question with the model's chat template around it, for the raw routes.
PROMPT='<role>HUMAN</role>Sort: 77 12 30 45 20.<|role_end|><role>ASSISTANT</role>'

# post ROUTE BODY: what the server answers, as it comes
post() {
    echo "# POST $1"
    curl -sS --fail-with-body --no-buffer "$URL$1" \
        -H 'Content-Type: application/json' \
        ${API_KEY:+-H "Authorization: Bearer $API_KEY"} -d "$2"
    echo
}

post /v1/chat/completions '{
  "model": "'"$MODEL"'",
  "messages": [{"role": "user", "content": "Solve: 12 + 30."}],
  "max_tokens": 64,
  "dllm_algorithm": "threshold",
  "dllm_threshold": 0.9
}'

post /v1/completions '{
  "model": "'"$MODEL"'",
  "prompt": "'"$PROMPT"'",
  "max_tokens": 64,
  "vllm_xargs": {"dllm_algorithm": "factor", "dllm_factor": 1.0}
}'

# Every step's draft: masks are -1 in "token_ids" and a shade in "text".
post /v1/generate '{
  "prompt": "'"$PROMPT"'",
  "max_tokens": 32,
  "stream": true,
  "stream_mode": "denoise",
  "dllm_algorithm": "low_confidence",
  "dllm_steps": 8
}'
