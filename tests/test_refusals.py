"""What is refused when the server starts, each with one clear message.

Only the configuration is built, no engine: everything is refused before one starts.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from vllm.config.compilation import CUDAGraphMode
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins

from tests.golden_cases import GOLDEN
from vllm_dllm.config import DllmConfig
from vllm_dllm.models.engine import BlockDiffusionConfig, captures_any_batch
from vllm_dllm.params import RuleParams

pytestmark = pytest.mark.timeout(120)

SDAR, LLADA = GOLDEN / "sdar-pub1", GOLDEN / "llada20-pub0"


def configure(model: Path, dllm: dict[str, Any] | None = None, **options: Any) -> Any:
    """What `vllm.LLM` and `vllm serve` do with their arguments."""
    load_general_plugins()
    args = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True, **options}
    if dllm is not None:
        args["additional_config"] = {"dllm": dllm}
    return EngineArgs(model=str(model), **args).create_engine_config()


def changed_copy(model: Path, folder: Path, **fields: Any) -> Path:
    """The checkpoint with other fields in config.json; None removes a field."""
    copy = shutil.copytree(model, folder / "model")
    config = json.loads((copy / "config.json").read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def without_mask_token(model: Path) -> None:
    """Call the mask something else in the tokenizer, and not a mask."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        file = model / name
        if file.exists():
            text = file.read_text().replace("<|mask|>", "<|other|>")
            file.write_text(text.replace('"mask_token"', '"other_token"'))


@pytest.mark.parametrize(
    ("dllm", "options", "said"),
    [
        ({"algorithm": "nope"}, {}, ["algorithm", "'nope'", "threshold, sequential"]),
        ({"threshold": 1.5}, {}, ["threshold", "1.5", "less than or equal to 1"]),
        ({"threshold": -0.1}, {}, ["threshold", "-0.1", "greater than or equal to 0"]),
        ({"threshold": "high"}, {}, ["threshold", "'high'", "number"]),
        ({"steps": 0}, {}, ["steps", "0", "greater than or equal to 1"]),
        ({"block_size": 0}, {}, ["block_size", "0", "greater than or equal to 1"]),
        ({"mask_token_id": 256}, {}, ["mask_token_id=256", "256 tokens"]),
        ({"mask_token_id": -1}, {}, ["mask_token_id", "-1", "greater than or equal"]),
        ({"treshold": 0.5}, {}, ["treshold", "0.5"]),
        ({"block_size": 32}, {"block_size": 48}, ["48", "32", "use 64"]),
        ({}, {"enable_dbo": True}, ["--enable-dbo"]),
        ({}, {"ubatch_size": 2}, ["--ubatch-size"]),
        (
            {},
            {
                "speculative_config": {
                    "method": "ngram",
                    "num_speculative_tokens": 2,
                    "prompt_lookup_max": 2,
                }
            },
            ["speculative decoding"],
        ),
        ({}, {"max_num_batched_tokens": 31}, ["max_num_batched_tokens=31", "32"]),
        (
            {},
            {"async_scheduling": True, "pipeline_parallel_size": 2},
            ["--async-scheduling", "pipeline parallelism"],
        ),
        (
            {},
            {"enforce_eager": False, "compilation_config": {"cudagraph_mode": "FULL"}},
            ["cudagraph_mode FULL", "FULL_AND_PIECEWISE"],
        ),
        ({}, {"enable_prompt_embeds": True}, ["--enable-prompt-embeds"]),
        (
            {},
            {
                "kv_transfer_config": {
                    "kv_connector": "ExampleConnector",
                    "kv_role": "kv_both",
                }
            },
            ["--kv-transfer-config"],
        ),
        ({}, {"logits_processors": ["a.module:Class"]}, ["--logits-processors"]),
        ({}, {"scheduler_cls": "a.module.Scheduler"}, ["--scheduler-cls"]),
        (
            {},
            {"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"},
            ["--scheduler-cls"],
        ),
        *(
            ({}, {"logprobs_mode": mode}, [f"--logprobs-mode {mode} is not supported"])
            for mode in ("processed_logprobs", "raw_logits", "processed_logits")
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named(
    dllm: dict[str, Any], options: dict[str, Any], said: list[str]
) -> None:
    """An option that cannot work would give wrong tokens, or a crash later on."""
    with pytest.raises(ValueError) as error:
        configure(SDAR, dllm, **options)
    message = str(error.value)
    assert [word for word in said if word not in message] == [], message


def test_lora_on_cpu_is_refused_for_experts_alone() -> None:
    """vLLM would choose a kernel for the experts that a CPU does not have."""
    configure(SDAR, enable_lora=True)
    for model in (LLADA, GOLDEN / "llada22-pub1"):
        with pytest.raises(ValueError, match=r"LoRA on CPU .* experts"):
            configure(model, enable_lora=True)


def test_data_parallelism_on_cpu_is_refused_for_experts_alone() -> None:
    """The first request would end the engine: vLLM's CPU build cannot send tokens to
    the experts of another rank."""
    configure(SDAR, data_parallel_size=2)
    with pytest.raises(ValueError, match=r"data parallelism on CPU .* experts"):
        configure(LLADA, data_parallel_size=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data_parallel_rank": 0}, "do not support external data parallel mode"),
        (
            {"data_parallel_hybrid_lb": True, "data_parallel_size_local": 1},
            r"external load balancing \(--data-parallel-hybrid-lb .* is not supported",
        ),
    ],
)
def test_a_balancer_in_front_of_ranks_is_refused_without_experts(
    options: dict[str, Any], said: str
) -> None:
    """vLLM would end with an assertion after the model was loaded."""
    with pytest.raises(ValueError, match=said):
        configure(SDAR, data_parallel_size=2, **options)
    configure(
        SDAR,
        data_parallel_size=4,
        data_parallel_size_local=2,
        data_parallel_hybrid_lb=True,
    )


def test_what_we_would_choose_ourselves_is_accepted() -> None:
    """A deployment that spells the defaults out would not start."""
    options = {"logits_processors": [], "logprobs_mode": "raw_logprobs"}
    scheduler = "vllm_dllm.scheduler.BlockDiffusionScheduler"
    config = configure(SDAR, scheduler_cls=scheduler, async_scheduling=False, **options)
    assert config.scheduler_config.scheduler_cls == scheduler


@pytest.mark.parametrize("mode", ["NONE", "PIECEWISE", "FULL_AND_PIECEWISE"])
def test_other_cuda_graphs_are_accepted(mode: str) -> None:
    """The default of a GPU would be refused, or taken back in silence."""
    config = configure(SDAR, enforce_eager=False)
    # A CPU has no graphs and put the mode aside, so it is set as it is on a GPU.
    config.compilation_config.cudagraph_mode = CUDAGraphMode[mode]
    BlockDiffusionConfig.verify_and_update_config(config)
    assert config.compilation_config.cudagraph_mode == CUDAGraphMode[mode]
    config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL
    with pytest.raises(ValueError, match="cudagraph_mode FULL"):
        BlockDiffusionConfig.verify_and_update_config(config)


def test_without_graphs_none_of_them_is_refused() -> None:
    """vLLM keeps the mode of a server that captures nothing (--enforce-eager)."""
    config = configure(SDAR, compilation_config={"cudagraph_mode": "FULL"})
    assert config.model_config.enforce_eager
    assert not captures_any_batch(config)


def test_a_checkpoint_without_a_mask_id_is_refused(tmp_path: Path) -> None:
    """Without a mask id nothing could be decoded."""
    model = changed_copy(SDAR, tmp_path, mask_token_id=None)
    without_mask_token(model)
    with pytest.raises(ValueError, match="mask_token_id"):
        configure(model)
    config = configure(model, {"mask_token_id": 255})
    assert DllmConfig.of(config.model_config).mask_token_id == 255


def test_the_old_model_runner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's first runner knows nothing of canvases."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(ValueError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        configure(SDAR)


def test_an_unsupported_architecture_is_refused(tmp_path: Path) -> None:
    """A model type that nobody serves must not be taken for a similar one."""
    model = changed_copy(SDAR, tmp_path, architectures=["SDARWithASurprise"])
    with pytest.raises(ValueError, match="SDARWithASurprise"):
        configure(model)


def test_a_server_option_wins_over_the_checkpoint() -> None:
    """The tests above would pass with options that nobody reads."""
    config = configure(SDAR, {"block_size": 8, "threshold": 0.25, "steps": 3})
    resolved = DllmConfig.of(config.model_config).model_dump()
    said = {
        "block_size": 8,
        "mask_token_id": 255,
        "algorithm": "threshold",
        "threshold": 0.25,
        "steps": 3,
        "cap_steps": False,
        "cache": "none",
        "soft_tokens": None,
        "efforts": None,
        "busy_threshold": None,
        "busy_requests": None,
    }
    unsaid = RuleParams.model_fields.keys() - said.keys()
    assert resolved == said | {f: RuleParams.model_fields[f].default for f in unsaid}
    assert config.cache_config.block_size % 8 == 0
