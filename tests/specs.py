"""What the engines and servers of the tests are started with."""

import os
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

MODELS = Path(__file__).parents[1] / "models"
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
CORE = int(os.environ.get("DLLM_TEST_CORE", WORKER % (os.cpu_count() or 1)))
"""The core that a worker of one rank gets; test processes side by side take others."""


@dataclass(frozen=True)
class EngineSpec:
    checkpoint: str
    """A folder of tests/golden, or any other by its full path."""
    block: int | None = None
    """The server's own diffusion block size; None if requests choose theirs."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of `vllm.LLM`, over `COMMON`; of `vllm serve`, as flags."""
    dllm: dict[str, Any] = field(default_factory=dict)
    """Choices of the server besides its block size."""
    routes: bool = False
    """Whether a server has ours too, as with VLLM_PLUGINS=dllm."""
    on_demand: bool = False
    """Whether it is started with `--on-demand` alone: it computes what others do."""
    spawned: bool = False
    """Whether its processes are a user's, which import vLLM; else tests/forked.py. The
    metrics of several API servers need it: prometheus_client asks when it is imported
    whether there are several."""

    @property
    def choices(self) -> dict[str, Any]:
        """Of a server, as `--dllm-config` has them."""
        return {"block_size": self.block, **self.dllm} if self.block else self.dllm

    @property
    def plans_ahead(self) -> bool:
        """Whether some forwards of requests are for nothing."""
        return bool(self.options.get("async_scheduling"))

    @property
    def ranks(self) -> int:
        kinds = ("tensor", "pipeline", "data")
        return prod(self.options.get(f"{kind}_parallel_size", 1) for kind in kinds)

    @property
    def cores(self) -> str:
        """The cores of the ranks, as VLLM_CPU_OMP_THREADS_BIND has them."""
        if "node_rank" in self.options:
            return str(self.options["node_rank"])
        return str(CORE) if self.ranks == 1 else "|".join("01" * (self.ranks // 2))


PAGES = 4096
"""More than the requests of any test fill. Making a GiB of them takes seconds."""
COMMON = {
    "dtype": "float32",
    "max_model_len": 1024,
    "max_num_seqs": 32,
    "enforce_eager": True,
    "disable_log_stats": False,
    "max_logprobs": 256,
    "num_gpu_blocks_override": PAGES,
}
TIGHT_MODEL_LEN = 203
"""Ends inside a block of 16."""
TIGHT_BUDGET = 160
"""Tokens in a forward of `llada-tight`: less than its longest request."""
SERVER_BUDGET = 512
"""The same of the servers `llada` and `dream`."""
LORA = {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 8, "max_lora_rank": 8}
"""Fewer adapters in a batch than tests/test_adapters.py has. Requests without one do
not feel it: the golden tests hold with it (`sdar16`, `llada`, `dream`) and without
(`sdar4`, the servers)."""
TWO_RANKS = {"tensor_parallel_size": 2}
BUSY = {"busy_threshold": 0.0, "busy_requests": 2}
"""What only requests with `dllm_adaptive` feel."""
DIFFULLAMA = {"hf_overrides": {"architectures": ["DiffuLlamaModel"]}}
"""Its checkpoints call themselves a Llama."""

OFFLINE = {
    "sdar4": EngineSpec("sdar-pub0", 4, dllm=BUSY),
    "sdar16": EngineSpec("sdar-pub1", 16, LORA),
    "fastdllm2": EngineSpec("fastdllm2-pub0", 32, LORA),
    "llada8": EngineSpec("llada20-pub0", 8),
    "llada32": EngineSpec("llada20-pub0", 32),
    "dmax8": EngineSpec("llada20-dmax-pub0", 8),
    "dmax32": EngineSpec("llada20-dmax-pub0", 32),
    "editing8": EngineSpec("llada21-pub0", 8),
    "editing32": EngineSpec("llada21-pub0", 32),
    "moving8": EngineSpec("llada22-pub1", 8),
    "moving32": EngineSpec("llada22-pub0", 32),
    "moving8-small-steps": EngineSpec(
        "llada22-pub1", 8, {"max_num_batched_tokens": 64}
    ),
    "moving8-tp2": EngineSpec("llada22-pub1", 8, TWO_RANKS),
    "sdar16-tight": EngineSpec(
        "sdar-pub1",
        16,
        {"max_model_len": TIGHT_MODEL_LEN, "max_num_batched_tokens": 64},
    ),
    "llada32-small-steps": EngineSpec(
        "llada20-pub0", 32, {"max_num_batched_tokens": 64}
    ),
    # A request of 110 tokens takes 4 pages, and one page is never given out.
    # Requests of one priority are preempted as without a policy: the youngest first.
    "sdar16-few-pages": EngineSpec(
        "sdar-pub1",
        16,
        {
            "max_model_len": 256,
            "num_gpu_blocks_override": 14,
            "scheduling_policy": "priority",
        },
    ),
    # Neither all prompts fit a step, nor all answers the pages.
    "fastdllm2-tight": EngineSpec(
        "fastdllm2-pub0",
        32,
        {
            "max_model_len": 256,
            "max_num_batched_tokens": 64,
            "num_gpu_blocks_override": 10,
        },
    ),
    "fastdllm2-tp2": EngineSpec("fastdllm2-pub0", 32, TWO_RANKS),
    "nemotron": EngineSpec("nemotron-pub0", options=LORA),
    # Prompts come in parts, and blocks wait for one another.
    "nemotron-tight": EngineSpec(
        "nemotron-pub0",
        options={
            "max_model_len": TIGHT_MODEL_LEN,
            "max_num_batched_tokens": 48,
        },
    ),
    "nemotron-few-pages": EngineSpec(
        "nemotron-pub0",
        options={"max_model_len": TIGHT_MODEL_LEN, "num_gpu_blocks_override": 12},
    ),
    "nemotron-tp2": EngineSpec("nemotron-pub0", options=TWO_RANKS),
    "sdar16-tp2": EngineSpec("sdar-pub1", 16, TWO_RANKS),
    "llada32-tp2": EngineSpec("llada20-pub0", 32, TWO_RANKS),
    # Full attention: requests choose their block length.
    "llada": EngineSpec("llada-pub0", options=LORA),
    "dream": EngineSpec("dream-pub0", options=LORA),
    "adablock-llada": EngineSpec("adablock-llada-pub0", options=LORA),
    "adablock-dream": EngineSpec("adablock-dream-pub0", options=LORA),
    "diffullama": EngineSpec("diffullama-pub0", options={**LORA, **DIFFULLAMA}),
    # Requests choose the length of their window.
    "wedlm": EngineSpec("wedlm-pub0", options=LORA),
    # Prompts go in parts, and the pages are not enough for all requests.
    "wedlm-tight": EngineSpec(
        "wedlm-pub0",
        options={
            "max_model_len": 231,
            "max_num_batched_tokens": 64,
            "num_gpu_blocks_override": 14,
        },
    ),
    # JSON without spaces, of which there may be any number.
    "tiny-llada": EngineSpec(
        str(MODELS / "tiny-llada"),
        options={
            "structured_outputs_config": {
                "backend": "xgrammar",
                "disable_any_whitespace": True,
            }
        },
    ),
    "tiny-llada2-guidance": EngineSpec(
        str(MODELS / "tiny-llada2"),
        options={
            "structured_outputs_config": {
                "backend": "guidance",
                "disable_any_whitespace": True,
            }
        },
    ),
    # Neither the budget nor the pages are enough for all requests that have a slot.
    "llada-tight": EngineSpec(
        "llada-pub0",
        options={
            "max_model_len": TIGHT_MODEL_LEN,
            "max_num_batched_tokens": TIGHT_BUDGET,
            "num_gpu_blocks_override": 14,
        },
    ),
    "llada-tp2": EngineSpec("llada-pub0", options={**LORA, **TWO_RANKS}),
    "dream-tp2": EngineSpec("dream-pub0", options=TWO_RANKS),
    "wedlm-tp2": EngineSpec("wedlm-pub0", options=TWO_RANKS),
    "moving32-small-steps": EngineSpec(
        "llada22-pub0", 32, {"max_num_batched_tokens": 64}, on_demand=True
    ),
    "moving32-tp2": EngineSpec("llada22-pub0", 32, TWO_RANKS, on_demand=True),
    "adablock-llada-tp2": EngineSpec(
        "adablock-llada-pub0", options=TWO_RANKS, on_demand=True
    ),
    "adablock-dream-tp2": EngineSpec(
        "adablock-dream-pub0", options=TWO_RANKS, on_demand=True
    ),
    "diffullama-tp2": EngineSpec(
        "diffullama-pub0",
        options={**TWO_RANKS, **DIFFULLAMA},
        on_demand=True,
        spawned=True,
    ),
    "sdar16-pp2": EngineSpec(
        "sdar-pub1",
        16,
        {
            "pipeline_parallel_size": 2,
            "max_model_len": 256,
            "num_gpu_blocks_override": 14,
        },
    ),
    "llada32-pp2": EngineSpec("llada20-pub0", 32, {"pipeline_parallel_size": 2}),
    "llada-pp2": EngineSpec("llada-pub0", options={"pipeline_parallel_size": 2}),
    "dream-pp2": EngineSpec("dream-pub0", options={"pipeline_parallel_size": 2}),
}
OFFLINE["tiny-llada-tp2"] = replace(
    OFFLINE["tiny-llada"],
    options={**OFFLINE["tiny-llada"].options, **TWO_RANKS},
    on_demand=True,
)
AHEAD = ("sdar4", "sdar16-few-pages", "editing8", "llada", "dream")
AHEAD_ON_DEMAND = (
    *("fastdllm2", "fastdllm2-tight", "llada32", "moving8", "sdar16-tight"),
    *("llada-tight", "adablock-llada", "wedlm", "nemotron", "sdar16-tp2"),
)
OFFLINE |= {
    f"{name}-ahead": replace(
        OFFLINE[name],
        options={**OFFLINE[name].options, "async_scheduling": True},
        on_demand=name in AHEAD_ON_DEMAND,
    )
    for name in AHEAD + AHEAD_ON_DEMAND
}
"""With steps that are planned before the last one is back."""
SERVERS = {
    "sdar16": EngineSpec("sdar-pub1", 16, {"enable_scale_out": True}),
    "sdar16-dp2": EngineSpec(
        "sdar-pub1",
        16,
        {"data_parallel_size": 2, "api_server_count": 2},
        routes=True,
        spawned=True,
    ),
    "editing32": EngineSpec("llada21-pub0", 32),
    "moving32": EngineSpec("llada22-pub0", 32),
    "moving8": EngineSpec("llada22-pub1", 8, on_demand=True),
    "llada": EngineSpec(
        "llada-pub0", options={"max_num_batched_tokens": SERVER_BUDGET}, routes=True
    ),
    "dream": EngineSpec(
        "dream-pub0", options={"max_num_batched_tokens": SERVER_BUDGET}
    ),
    "wedlm": EngineSpec("wedlm-pub0"),
    "fastdllm2": EngineSpec("fastdllm2-pub0", 32, on_demand=True),
    "nemotron": EngineSpec("nemotron-pub0", on_demand=True),
    "diffullama": EngineSpec("diffullama-pub0", options=DIFFULLAMA, on_demand=True),
    "adablock-llada": EngineSpec("adablock-llada-pub0", on_demand=True),
    "adablock-dream": EngineSpec("adablock-dream-pub0", on_demand=True),
    **{
        f"tiny-llada2-{backend}": EngineSpec(
            str(MODELS / "tiny-llada2"),
            32,
            {
                "structured_outputs_config": {"backend": backend},
                "enable_auto_tool_choice": True,
                "tool_call_parser": "hermes",
            },
            on_demand=True,
        )
        for backend in ("outlines", "lm-format-enforcer")
    },
    # The page, the examples and the docs are about this one.
    "tiny-llada2": EngineSpec(
        str(MODELS / "tiny-llada2"),
        32,
        {"max_model_len": 2048},
        routes=True,
        spawned=True,
    ),
}
