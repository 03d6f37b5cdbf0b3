"""A prompt's length on its way to the checks that a stream would answer too late."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion import serving as chat
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion import serving as completion
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError

from vllm_dllm import plugin
from vllm_dllm.compat.lengths import take_prompt_len
from vllm_dllm.config import DllmConfig
from vllm_dllm.models.registry import FAMILIES

ROUTES = pytest.mark.parametrize(
    ("route", "request_of"),
    [
        (chat, lambda: ChatCompletionRequest(messages=[])),
        (completion, lambda: CompletionRequest(prompt="a")),
    ],
)


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    plugin.register()


def defaults() -> dict[str, Any]:
    """What a handler passes along for LLaDA where a forward holds 64 tokens."""
    facts = FAMILIES["LLaDAModelLM"].facts
    facts = facts.model_copy(update={"max_num_batched_tokens": 64})
    model_config: Any = SimpleNamespace(
        architectures=["LLaDAModelLM"],
        generation_config="vllm",
        override_generation_config={},
        max_logprobs=20,
        hf_config=SimpleNamespace(),
    )
    fields = {"block_size": 8, "mask_token_id": 255, "algorithm": "low_confidence"}
    DllmConfig.build(fields, facts=facts).attach(model_config)
    return ModelConfig.get_diff_sampling_param(model_config)


def settle(route: Any, request: Any, prompt_len: int, given: dict[str, Any]) -> Any:
    """As vLLM's handlers do for each prompt."""
    limit = route.get_max_tokens(2048, 16, prompt_len, given)
    return request.to_sampling_params(limit, given)


@ROUTES
def test_a_request_that_no_forward_holds_is_refused_before_it_streams(
    route: Any, request_of: Any
) -> None:
    """The engine would refuse it when status 200 has been sent."""
    request, given = request_of(), defaults()
    assert settle(route, request, 48, given).max_tokens == 16
    with pytest.raises(VLLMValidationError, match=r"the prompt \(49 tokens\)"):
        settle(route, request, 49, given)


@ROUTES
async def test_requests_side_by_side_keep_their_own_lengths(
    route: Any, request_of: Any
) -> None:
    """One would be refused for the prompt of another."""

    async def handle(prompt_len: int) -> int | None:
        route.get_max_tokens(2048, 16, prompt_len, {})
        await asyncio.sleep(0)
        return take_prompt_len()

    lengths = await asyncio.gather(*(handle(length) for length in range(1, 20)))
    assert list(lengths) == list(range(1, 20))


@ROUTES
def test_a_length_is_for_one_prompt(route: Any, request_of: Any) -> None:
    """Sampling parameters that nobody computed a limit for have no prompt yet."""
    settle(route, request_of(), 48, defaults())
    assert take_prompt_len() is None
    route.get_max_tokens(2048, 16, 2000, {})
    request_of().to_sampling_params(16, {})  # of another model
    request_of().to_sampling_params(16, defaults())
