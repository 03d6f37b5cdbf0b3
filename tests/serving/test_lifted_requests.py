"""Decoding parameters on their way from a body to the engine."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import ModelConfig
from vllm.entrypoints.openai.chat_completion.protocol import (
    BatchChatCompletionRequest,
    ChatCompletionRequest,
)
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.serve.exception_handling.error_response import (
    create_error_response,
)
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from vllm_dllm import plugin
from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.serving.generate import GenerateRequest


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    plugin.register()


BLOCK_CAUSAL = DllmConfig.build({"block_size": 8, "mask_token_id": 255})


FULL = DllmConfig.build(
    {"block_size": 8, "mask_token_id": 255, "algorithm": "low_confidence"},
    facts=Facts(attention="full", rule_names={"threshold": "confidence_threshold"}),
)


def chat(**body: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[{"role": "user", "content": "a"}], **body)


def completion(**body: Any) -> CompletionRequest:
    return CompletionRequest(prompt="a", **body)


REQUESTS = pytest.mark.parametrize("request_of", [chat, completion])


def defaults_of(architecture: str) -> dict[str, Any]:
    """What a handler passes to `to_sampling_params` for a model."""
    model_config: Any = SimpleNamespace(
        architectures=[architecture],
        generation_config="vllm",
        override_generation_config={"temperature": 0.0},
        max_logprobs=20,
        hf_config=SimpleNamespace(),
    )
    BLOCK_CAUSAL.attach(model_config)
    return ModelConfig.get_diff_sampling_param(model_config)


def to_params(request: Any, architecture: str = "LLaDA2MoeModelLM") -> SamplingParams:
    return request.to_sampling_params(16, defaults_of(architecture))


@REQUESTS
def test_a_requests_fields_reach_its_sampling_params(
    request_of: Callable[..., Any],
) -> None:
    """vLLM accepts fields that it does not know, and drops them."""
    params = to_params(request_of(steps=4, threshold=0.5, vllm_xargs={"other": 1}))
    assert params.extra_args == {"other": 1, "dllm_steps": 4, "dllm_threshold": 0.5}
    assert params.temperature == 0.0


@pytest.mark.parametrize(
    "request_",
    [
        chat(reasoning_effort="low"),
        completion(reasoning_effort="low"),
        GenerateRequest(prompt="a", reasoning_effort="low").to_completion(),
        ResponsesRequest(input="a", reasoning={"effort": "low"}),
    ],
    ids=["chat", "completion", "generate", "responses"],
)
def test_an_effort_reaches_the_sampling_params(request_: Any) -> None:
    """Each route has it in another place, and most know nothing of it."""
    params = to_params(request_)
    assert params.extra_args is not None
    assert params.extra_args["dllm_threshold"] == 0.5


@REQUESTS
def test_a_request_without_such_fields_is_as_before(
    request_of: Callable[..., Any],
) -> None:
    """An empty dict in place of None would travel with every request."""
    assert to_params(request_of()).extra_args is None


@REQUESTS
def test_defaults_may_be_passed_by_name(request_of: Callable[..., Any]) -> None:
    """Fields would be ignored for the one handler that does."""
    params = request_of(steps=4).to_sampling_params(
        max_tokens=16, default_sampling_params=defaults_of("SDARForCausalLM")
    )
    assert params.extra_args == {"dllm_steps": 4}


def test_two_prompts_of_one_request_get_the_same_fields() -> None:
    """vLLM converts a request once per prompt; the second must not be a conflict."""
    request = completion(
        factor=1.5, vllm_xargs={"other": 1}, kv_transfer_params={"a": 1}
    )
    first, second = to_params(request), to_params(request)
    assert first.extra_args == second.extra_args
    assert request.vllm_xargs == {"other": 1, "kv_transfer_params": {"a": 1}}


def test_a_batch_of_conversations_keeps_its_fields() -> None:
    """vLLM makes single requests of it, which must not lose what it does not know."""
    conversation = [{"role": "user", "content": "a"}]
    batch = BatchChatCompletionRequest(messages=[conversation], steps=4)
    request = batch.to_chat_completion_request(conversation)
    assert to_params(request).extra_args == {"dllm_steps": 4}


@REQUESTS
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"steps": 4, "num_denoising_steps": 8}, "steps=4"),
        ({"use_cache": False}, "use_cache=False"),
        ({"steps": 4, "vllm_xargs": {"dllm_steps": 8}}, "vllm_xargs.dllm_steps=8"),
        ({"steps": 0}, "dllm_steps=0"),
        ({"cfg_scale": 1.5}, "dllm_cfg_scale=1.5 has no meaning for a block-causal"),
        ({"cfg_scale": "0"}, "dllm_cfg_scale='0'"),
        ({"logits_eos_inf": True}, "dllm_logits_eos_inf=True has no meaning"),
        ({"threshold": "0.5"}, "dllm_threshold='0.5'"),
        ({"dllm_treshold": 0.5}, "unknown field dllm_treshold=0.5"),
        ({"remasking": "random", "threshold": 0.5}, "dllm_threshold=0.5 has no"),
        ({"vllm_xargs": {"dllm_steps": 0}}, "dllm_steps=0"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_value_is_a_400_before_the_response_starts(
    request_of: Callable[..., Any], body: dict[str, Any], message: str, stream: bool
) -> None:
    """A 500 blames the server; in a stream, an error after the start is a 200."""
    request = request_of(stream=stream, **body)
    with pytest.raises(VLLMValidationError) as failure:
        to_params(request)
    answer = create_error_response(failure.value).error
    assert answer.code == 400
    assert message in answer.message


@REQUESTS
def test_other_models_keep_vllms_behaviour(request_of: Callable[..., Any]) -> None:
    """`use_cache` may mean something to another plugin's model."""
    request = request_of(steps=4, use_cache=False, dllm_x=1)
    assert to_params(request, "LlamaForCausalLM").extra_args is None
    assert type(defaults_of("LlamaForCausalLM")) is dict
    assert request.to_sampling_params(16, {}).extra_args is None
