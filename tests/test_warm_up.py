"""What a GPU worker does and a CPU worker does not, on CPU.

vLLM's warm-up makes requests of its own, of lengths that are no whole blocks, with
every sampling parameter. And a GPU computes the logits of whole blocks.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engines import Engine, uses
from tests.golden_cases import differences, golden_cases

pytestmark = pytest.mark.timeout(400)


def use_whole_blocks(worker: Any, wanted: bool) -> None:
    worker.model_runner.model_state.slots.canvas.whole_blocks = wanted


def warm_up(worker: Any) -> None:
    """What `Worker.compile_or_warm_up_model` does besides CUDA graphs."""
    import torch
    from vllm import SamplingParams
    from vllm.v1.worker.gpu import warmup

    run = (worker.model_runner, worker.execute_model, worker.sample_tokens)
    with pytest.MonkeyPatch.context() as patched:
        # There is nothing to wait for on CPU, and no kernel for prompt logprobs.
        patched.setattr(torch.accelerator, "synchronize", lambda: None)
        params = SamplingParams.for_sampler_warmup()
        params.prompt_logprobs = None
        patched.setattr(SamplingParams, "for_sampler_warmup", lambda: params)
        worker.model_runner.profile_run()
        assert warmup.run_mixed_prefill_decode_warmup(*run, num_tokens=16)
        warmup.warmup_kernels(*run)


@pytest.fixture
def like_a_gpu(engine: Engine) -> Iterator[Engine]:
    engine.llm.collective_rpc(use_whole_blocks, args=(True,))
    yield engine
    engine.llm.collective_rpc(use_whole_blocks, args=(False,))


@uses("llada8", "llada")
def test_a_warmed_up_engine_holds_nothing_and_answers_as_before(
    like_a_gpu: Engine,
) -> None:
    """A GPU server would not start, or start with slots and pages that are lost; its
    rows of logits are others than on CPU."""
    engine = like_a_gpu
    engine.llm.collective_rpc(warm_up)
    engine.check_idle()
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)
    assert differences(cases, engine.answers(cases)) == []
