#!/usr/bin/env python
"""Whether a checkpoint fits a device, and what to turn down, by its config.json alone.

python tools/fit.py CONFIG_OR_FOLDER --memory 24GiB --len 4096 --seqs 16
python tools/fit.py inclusionAI/LLaDA2.0-mini --memory 40GiB --dtype fp8

Weights and pages are counted as vLLM makes them. What a step needs besides is an
estimate: vLLM measures it when it starts. Exit status: 0 if it fits, 1 if not.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.footprint import BITS, Footprint, footprint_of  # noqa: E402
from tools.recipes import shape_of  # noqa: E402

UNITS = {"": 1, "GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}
DTYPES = ("auto", "bfloat16", "float16", "float32", *BITS)
SHARE = 0.92
"""Of the memory, which vLLM takes: the default of --gpu-memory-utilization."""


@dataclass(frozen=True)
class Fit:
    """A model on devices of `memory` bytes, for requests of the longest length."""

    footprint: Footprint
    memory: int
    quantization: str | None = None
    devices: int = 1

    @property
    def weights(self) -> int:
        """Of one device; norms, which each has, are nothing beside the rest."""
        return self.footprint.weights(self.quantization) // self.devices

    @property
    def working(self) -> int:
        return self.footprint.logits + self.footprint.activations

    @property
    def page(self) -> int:
        """Of one device: heads of keys are shared out, and at least one is kept."""
        heads = self.footprint.kv_heads
        return self.footprint.page * max(1, heads // self.devices) // heads

    @property
    def pages(self) -> int:
        room = int(self.memory * SHARE) - self.weights - self.working
        return max(0, room // self.page - 1)  # vLLM gives one page to nobody

    @property
    def requests(self) -> int:
        """Those that run at a time."""
        return self.pages // self.footprint.pages_of(self.footprint.longest)


def bytes_of(text: str) -> int:
    """24GiB, 24 GB or 25769803776 as a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip(), re.IGNORECASE)
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 24GiB or 24GB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def in_words(size: int) -> str:
    """A number of bytes as people read it."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def numbers(fit: Fit, seqs: int) -> list[str]:
    """What the memory is taken by, a line for each."""
    one = fit.footprint
    dtype = fit.quantization or one.dtype
    every = one.pages_of(one.longest) * fit.page
    return [
        f"{one.architecture}, {one.parameters / 1e6:,.0f} million parameters, {dtype}",
        f"  weights         {in_words(fit.weights)}",
        f"  working memory  {in_words(fit.working)}, about",
        f"  KV cache        {in_words(every)} a request of {one.longest} tokens "
        f"({one.kv_per_token:,} bytes a token, pages of {one.page_size}); "
        f"{in_words(every * seqs)} for {seqs}",
        f"  of {in_words(fit.memory)} vLLM uses {in_words(int(fit.memory * SHARE))} "
        f"(--gpu-memory-utilization {SHARE})",
    ]


def verdict(fit: Fit, seqs: int) -> list[str]:
    if fit.requests >= seqs:
        return [f"It fits: {fit.requests} requests of that length at a time."]
    one = fit.footprint
    if fit.requests:
        lines = [
            f"It fits, with {fit.requests} requests of that length at a time and not "
            f"{seqs}; others wait or are preempted. For more:"
        ]
    else:
        lines = ["It does not fit. What would:"]
    if not fit.requests and fit.pages:
        lines.append(f"  --max-model-len {fit.pages * one.page_size} or less")
    for quantization in BITS:
        other = Fit(one, fit.memory, quantization)
        if fit.quantization is None and other.requests > fit.requests:
            lines.append(
                f"  weights in {quantization} ({in_words(other.weights)}): "
                f"{other.requests} requests"
            )
    for devices in (2, 4, 8):
        other = Fit(one, fit.memory, fit.quantization, devices)
        if other.requests > fit.requests:
            lines.append(
                f"  --tensor-parallel-size {devices}: {other.requests} requests"
            )
        if other.requests >= seqs:
            break
    half = Fit(one, fit.memory + fit.pages * fit.page, fit.quantization)
    if fit.requests and half.requests > fit.requests:
        lines.append(f"  --kv-cache-dtype fp8: about {half.requests} requests")
    if len(lines) == 1:
        lines.append("  nothing that is known here: take a device with more memory")
    return lines


def main() -> int:
    description, *more = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog="\n\n".join(more),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="config.json, its folder, or a released name")
    parser.add_argument("--memory", type=bytes_of, default="24GiB")
    parser.add_argument("--len", type=int, default=4096, help="as --max-model-len")
    parser.add_argument("--seqs", type=int, default=16, help="as --max-num-seqs")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of weights")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    quantization = args.dtype if args.dtype in BITS else None
    with tempfile.TemporaryDirectory() as folder:
        config = Path(args.config)
        if not config.exists():
            shape = shape_of(args.config)
            if shape is None:
                parser.error(f"{args.config}: no such file, and no released name")
            config = Path(folder, "config.json")
            config.write_text(json.dumps(shape))
        try:
            footprint = footprint_of(
                config,
                dtype="auto" if quantization else args.dtype,
                max_model_len=args.len,
                max_num_seqs=args.seqs,
            )
        except ValidationError as error:  # of vLLM's own configs
            parser.error("; ".join(one["msg"] for one in error.errors()))
        except ValueError as error:
            parser.error(str(error))
    fit = Fit(footprint, args.memory, quantization)
    print("\n".join([*numbers(fit, args.seqs), *verdict(fit, args.seqs)]))
    return 0 if fit.requests else 1


if __name__ == "__main__":
    sys.exit(main())
