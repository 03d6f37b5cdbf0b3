#!/usr/bin/env bash
# Make dist/: the source distribution, and from it the wheel, checked.
#
# The wheel is for every Python from 3.11 on (abi3) and every Linux whose C library is not
# older than its tag says. It brings no OpenMP: that of the machine, which vLLM's CPU build
# needs too, is the only one in the process; without one our kernels are torch's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

[ -x .venv-dist/bin/twine ] || {
    .venv/bin/python -m venv .venv-dist
    .venv-dist/bin/python -m pip --disable-pip-version-check install -qq \
        -r requirements/dist.txt
}
export PATH="$PWD/.venv-dist/bin:$PATH"
rm -rf dist build/wheel
python -m build --outdir build/wheel . >/dev/null
mkdir dist
mv build/wheel/*.tar.gz dist
auditwheel repair --exclude 'libgomp.so.*' --wheel-dir dist build/wheel/*-abi3-*.whl
auditwheel show dist/*.whl
twine check --strict dist/*
