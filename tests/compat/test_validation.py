"""Checks of vLLM's that ours go around, and what is checked besides."""

import json
from collections.abc import AsyncGenerator
from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import StructuredOutputsConfig
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.exceptions import GenerationError, VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.tokenizers import get_tokenizer

from tests.specs import MODELS
from vllm_dllm import plugin
from vllm_dllm.compat.validation import explain_dead_ends
from vllm_dllm.report import DEAD_END


@pytest.mark.parametrize("backend", ["xgrammar", "outlines", "lm-format-enforcer"])
def test_a_backend_that_cannot_be_loaded_is_refused_by_name(backend: str) -> None:
    """lm-format-enforcer imports a module that vLLM no longer has, and would do so in
    the engine, at the first request with a grammar."""
    plugin.register()
    tokenizer = get_tokenizer(str(MODELS / "tiny-llada2"))
    params = SamplingParams(structured_outputs=StructuredOutputsParams(regex="a|b"))
    model_config: Any = SimpleNamespace(architectures=["LLaDA2MoeModelLM"])
    is_there = find_spec("vllm.transformers_utils.tokenizer") is not None
    refused = pytest.raises(VLLMValidationError, match=f"by '{backend}'.*'guidance'")
    works = backend != "lm-format-enforcer" or is_there
    with nullcontext() if works else refused:
        params._validate_structured_outputs(
            model_config, StructuredOutputsConfig(backend=backend), tokenizer
        )


def test_tools_that_guidance_cannot_enforce_are_refused_in_words() -> None:
    """The library says `'triggers'`, to a client that sent tools."""
    plugin.register()
    tokenizer = get_tokenizer(str(MODELS / "tiny-llada2"))
    form = {"type": "triggered_tags", "triggers": ["<"], "tags": []}
    tag = json.dumps({"type": "structural_tag", "format": form})
    grammar = StructuredOutputsParams(structural_tag=tag)
    model_config: Any = SimpleNamespace(architectures=["LLaDA2MoeModelLM"])
    with pytest.raises(VLLMValidationError, match=r"tools that are .* 'xgrammar' does"):
        SamplingParams(structured_outputs=grammar)._validate_structured_outputs(
            model_config, StructuredOutputsConfig(backend="guidance"), tokenizer
        )


@pytest.mark.parametrize("backend", ["outlines", "xgrammar"])
def test_a_kind_of_grammar_that_a_backend_does_not_know_is_refused(
    backend: str,
) -> None:
    """vLLM 0.32 would find out in the engine, and answer with a 500."""
    plugin.register()
    tokenizer = get_tokenizer(str(MODELS / "tiny-llada2"))
    form = {"type": "regex", "pattern": "a|b"}
    tag = json.dumps({"type": "structural_tag", "format": form})
    grammar = StructuredOutputsParams(structural_tag=tag)
    model_config: Any = SimpleNamespace(architectures=["LLaDA2MoeModelLM"])
    refused = pytest.raises(VLLMValidationError, match=r"(?i)structural_tag.*outlines")
    with refused if backend == "outlines" else nullcontext():
        SamplingParams(structured_outputs=grammar)._validate_structured_outputs(
            model_config, StructuredOutputsConfig(backend=backend), tokenizer
        )


@pytest.mark.parametrize("reason", [None, DEAD_END])
async def test_only_a_dead_end_of_a_grammar_is_the_fault_of_its_request(
    reason: str | None,
) -> None:
    """What an engine cannot do for other reasons was told as one, also to requests
    without a grammar."""
    plugin.register()
    end = CompletionOutput(0, "", [], None, None, None, "error", reason)

    async def generate(_: Any) -> AsyncGenerator[RequestOutput, None]:
        yield RequestOutput("one", None, [2], None, [end], True)

    server: Any = SimpleNamespace(
        model_config=SimpleNamespace(architectures=["LLaDA2MoeModelLM"])
    )
    kind = GenerationError if reason is None else VLLMValidationError
    with pytest.raises(kind) as failure:
        async for result in explain_dead_ends.wrapper(generate)(server):
            ended = result.outputs[0].finish_reason
            GenerateBaseServing._raise_if_error(server, ended, "one")
    assert reason is None or str(reason) in str(failure.value)
