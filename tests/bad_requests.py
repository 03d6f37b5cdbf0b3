"""Requests that a server refuses, and what its refusal must say."""

from typing import Any

from tests.servers import Server
from tests.specs import SERVER_BUDGET


def with_xargs(**fields: Any) -> dict[str, Any]:
    return {"vllm_xargs": fields}


BAD_REQUESTS = [
    (with_xargs(dllm_threshold=1.5), ["dllm_threshold", "1.5"]),
    (with_xargs(dllm_threshold=-0.5), ["dllm_threshold", "-0.5"]),
    (with_xargs(dllm_threshold="high"), ["dllm_threshold", "high"]),
    (with_xargs(dllm_steps=0), ["dllm_steps", "0"]),
    (with_xargs(dllm_steps=2.5), ["dllm_steps", "2.5"]),
    (with_xargs(dllm_steps="x"), ["dllm_steps", "'x'"]),
    (with_xargs(dllm_algorithm="nope"), ["dllm_algorithm", "'nope'", "threshold"]),
    (with_xargs(dllm_foo=3), ["dllm_foo", "dllm_steps"]),
    (
        with_xargs(dllm_algorithm="sequential", dllm_threshold=0.5),
        ["dllm_threshold", "sequential"],
    ),
    (with_xargs(diffusion_max_steps=3), ["diffusion_max_steps", "dllm_steps"]),
    ({"logprobs": 1, "logprob_token_ids": [300]}, ["logprob_token_ids", "300"]),
    (with_xargs(dllm_block_length=32), ["dllm_block_length", "32", "16"]),
    ({"threshold": 2}, ["dllm_threshold", "2"]),
    ({"cfg_scale": 1.5}, ["cfg_scale", "1.5"]),
    ({"steps": 4, "vllm_xargs": {"dllm_steps": 8}}, ["steps", "4", "8"]),
    ({"temperature": -1}, ["temperature", "-1"]),
    ({"top_p": 0}, ["top_p", "0"]),
    ({"prompt_logprobs": 2}, ["prompt_logprobs", "2"]),
    ({"structured_outputs": {"regex": "("}}, ["structured_outputs", "regex", "("]),
    ({"structured_outputs": {"grammar": "auto"}}, ["structured_outputs", "auto"]),
    ({"prompt": [9] * 1025}, ["1025", "1024"]),
]

TOO_LONG = [
    # Prompt, canvas, max_tokens, block, their sum.
    (
        {"prompt": [9] * 300, "max_tokens": 209, **with_xargs(dllm_block_length=16)},
        ["300", "224", "209", "16", "524", str(SERVER_BUDGET)],
    ),
    # Both branches, and what lies between them.
    (
        {"prompt": [9] * 250, "max_tokens": 8, "cfg_scale": 0.5},
        ["250", "0.5", str(SERVER_BUDGET), "max_num_batched_tokens"],
    ),
    ({"prompt": [9] * 520, "max_tokens": 1}, ["520", str(SERVER_BUDGET)]),
]
"""For servers whose forward is shorter than their model length."""
FULL_ATTENTION_BAD_REQUESTS = [
    (with_xargs(dllm_cache="both"), ["dllm_cache", "'both'", "'dual'"]),
    (with_xargs(dllm_cache=1), ["dllm_cache", "1", "'dual'"]),
    (with_xargs(dllm_block_length=0), ["dllm_block_length", "0", "1"]),
    (with_xargs(dllm_block_length="8"), ["dllm_block_length", "'8'"]),
    (with_xargs(dllm_cfg_scale=-0.5), ["dllm_cfg_scale", "-0.5", "0"]),
    ({"cfg_scale": "much"}, ["dllm_cfg_scale", "'much'"]),
    (with_xargs(dllm_logits_eos_inf=2), ["dllm_logits_eos_inf", "2"]),
    ({"logits_eos_inf": "maybe"}, ["logits_eos_inf", "'maybe'"]),
    (with_xargs(dllm_confidence_eos_eot_inf=2), ["dllm_confidence_eos_eot_inf", "2"]),
    (with_xargs(dllm_algorithm="factor", dllm_factor=0), ["dllm_factor", "0"]),
    (with_xargs(dllm_algorithm="maskgit_plus", dllm_eps=1.0), ["dllm_eps", "1"]),
    (with_xargs(dllm_algorithm="origin", dllm_eps=0.0), ["dllm_eps", "0"]),
    (
        with_xargs(dllm_algorithm="topk_margin", dllm_alg_temp=-1.0),
        ["dllm_alg_temp", "-1"],
    ),
    (
        with_xargs(dllm_algorithm="origin", dllm_alg_temp=0.5),
        ["dllm_alg_temp", "origin"],
    ),
    (with_xargs(dllm_algorithm="threshold", dllm_eps=0.5), ["dllm_eps", "threshold"]),
    (
        with_xargs(dllm_algorithm="credit", dllm_block_length=300)
        | {"max_tokens": 300},
        ["dllm_block_length", "300", "credit", "256"],
    ),
    ({"use_cache": "yes"}, ["use_cache", "'yes'"]),
    ({"use_cache": True, **with_xargs(dllm_cache="none")}, ["use_cache", "'none'"]),
    (with_xargs(dllm_threshold=1.5), ["dllm_threshold", "1.5"]),
    (with_xargs(dllm_steps=0), ["dllm_steps", "0"]),
    ({"prompt": [9] * 1025}, ["1025", "1024"]),
    *TOO_LONG,
]


def bad_requests(server: Server) -> list[tuple[dict[str, Any], list[str]]]:
    return BAD_REQUESTS if server.spec.block else FULL_ATTENTION_BAD_REQUESTS
