#!/usr/bin/env bash
# Install dist/'s wheel beside .venv's vLLM, where there is no compiler, and ask it
# something. Nothing is installed into .venv, whose own vllm_dllm is not looked at.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

try=$(mktemp -d)
trap 'rm -rf "$try"' EXIT
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -m venv --without-pip "$try/venv"
site=$("$try/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-index \
    --target "$site" dist/*.whl
echo "import site; site.addsitedir('$base')" >"$site/base.pth"
model=$PWD/models/tiny-llada2
cd "$try" # where no vllm_dllm lies
unset PYTHONPATH
mkdir bin
ln -s "$(command -v lscpu)" bin # vLLM's CPU build asks it
PATH=$try/bin VLLM_CPU_KVCACHE_SPACE=1 venv/bin/python - "$model" <<'PY'
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
import vllm_dllm
from vllm import LLM

from vllm_dllm.ops import extension

assert vllm_dllm.__file__.startswith(os.getcwd()), vllm_dllm.__file__
assert extension.load() is not None, "the wheel has no native kernels"
llm = LLM(sys.argv[1], enforce_eager=True, max_model_len=512)
question = [{"role": "user", "content": "Solve: 12 + 30."}]
[output] = llm.chat(question, llm.get_default_sampling_params(), use_tqdm=False)
print(f"try-wheel: {output.outputs[0].text}")
assert output.outputs[0].text == "12 + 30 = 42"
PY
