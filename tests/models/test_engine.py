"""What vLLM is told about our architectures before an engine is built."""

import pytest

from tests.engine_config import engine_config, resolved
from vllm_dllm.config import DllmConfig
from vllm_dllm.models import engine


@pytest.mark.parametrize("block", [1, 4, 24, 32, 48])
def test_vllm_is_told_everything_it_needs(block: int) -> None:
    """Any of these left at vLLM's default gives wrong tokens or a crash."""
    config = engine_config(
        "sdar-pub0", additional_config={"dllm": {"block_size": block}}
    )
    assert config.scheduler_config.scheduler_cls == (
        "vllm_dllm.scheduler.BlockDiffusionScheduler"
    )
    assert config.parallel_config.worker_cls.startswith("vllm_dllm.compat.cpu_worker.")
    assert config.diffusion_config.canvas_length == block
    assert config.model_config.is_diffusion
    assert config.cache_config.block_size % block == 0
    assert config.use_v2_model_runner
    assert not config.scheduler_config.async_scheduling


@pytest.mark.parametrize("triton", [False, True])
def test_kernels_are_warmed_up_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, triton: bool
) -> None:
    """vLLM 0.33 warms up Triton kernels on CPU too: without Triton no engine starts."""
    monkeypatch.setattr(engine, "HAS_TRITON", triton)
    config = engine_config("sdar-pub0")
    assert config.kernel_config.enable_jit_warmup is triton


def test_a_worker_of_the_users_own_is_kept() -> None:
    """vLLM documents --worker-cls; a subclass of our worker is put in through it."""
    config = engine_config("sdar-pub0", worker_cls="my.module.Worker")
    assert config.parallel_config.worker_cls == "my.module.Worker"


def test_a_cache_of_a_block_causal_model_is_refused() -> None:
    """It would be ignored, and the operator would believe that it is there."""
    with pytest.raises(ValueError, match=r"dllm\.cache='dual' has no meaning"):
        resolved("sdar-pub0", cache="dual")
    assert resolved("sdar-pub0", cache="none").cache == "none"


@pytest.mark.parametrize("model", ["llada-pub0", "dream-pub0"])
@pytest.mark.parametrize("asked", [None, True, False])
def test_with_full_attention_no_prefix_is_shared(
    model: str, asked: bool | None
) -> None:
    """KV of a prompt depends on the answer: another request's would be wrong."""
    config = engine_config(model, enable_prefix_caching=asked)
    assert config.cache_config.enable_prefix_caching is False
    assert config.scheduler_config.scheduler_cls == (
        "vllm_dllm.scheduler.BlockDiffusionScheduler"
    )
    assert config.parallel_config.worker_cls.startswith("vllm_dllm.compat.cpu_worker.")
    assert config.model_config.is_diffusion
    assert config.use_v2_model_runner
    assert not config.scheduler_config.async_scheduling


@pytest.mark.parametrize("asked", [None, False, True])
def test_steps_are_planned_ahead_where_that_was_asked_for(asked: bool | None) -> None:
    """vLLM switches it off on a CPU without a word, and on elsewhere."""
    config = engine_config("sdar-pub0", async_scheduling=asked)
    assert config.scheduler_config.async_scheduling is bool(asked)
    assert DllmConfig.of(config.model_config).facts.plans_ahead is bool(asked)
    assert config.max_concurrent_batches == 1 + bool(asked)


def test_a_block_causal_model_keeps_its_prefix_cache() -> None:
    """What is right for one kind of attention costs the other its cache."""
    assert engine_config("sdar-pub0").cache_config.enable_prefix_caching
