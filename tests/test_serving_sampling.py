"""Sampling fields of the OpenAI API, as a client sends and reads them."""

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.engines import uses_server
from tests.golden_cases import EOS, Case, golden_cases
from tests.servers import Server

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        yield client


def case_of(server: Server, algorithm: str) -> Case:
    cases = golden_cases(server.spec.checkpoint, server.spec.block)
    return next(case for case in cases if case.algorithm == algorithm)


async def complete(
    client: AsyncOpenAI, case: Case, extra: dict[str, Any], **fields: Any
) -> Any:
    return await client.completions.create(
        model=Server.MODEL,
        prompt=case.prompt,
        max_tokens=case.gen_length,
        temperature=fields.pop("temperature", 0),
        extra_body={"ignore_eos": True, "return_token_ids": True, **extra},
        **fields,
    )


@uses_server("sdar16")
async def test_fields_of_other_servers_are_obeyed(
    server: Server, client: AsyncOpenAI
) -> None:
    """A field that vLLM does not know is ignored without a word."""
    case = case_of(server, "low_confidence_dynamic")
    theirs = {"threshold": case.threshold, "num_denoising_steps": case.steps}
    answer = await complete(client, case, theirs)
    assert answer.choices[0].token_ids == case.tokens
    case = case_of(server, "low_confidence_static")
    theirs = {"remasking": "low_confidence", "steps": case.steps}
    answer = await complete(client, case, theirs)
    assert answer.choices[0].token_ids == case.tokens


@uses_server("llada")
async def test_fields_of_fast_dllm_are_obeyed(
    server: Server, client: AsyncOpenAI
) -> None:
    """Its switches of caches name none of ours, and its steps yield to a threshold."""
    switches: dict[str, dict[str, Any]] = {
        "none": {"use_cache": False},
        "prefix": {"use_cache": True},
        "dual": {"use_cache": True, "use_dual_cache": True},
    }
    cases = golden_cases(server.spec.checkpoint)[::3]
    assert {(c.algorithm, c.cache) for c in cases} == {
        (rule, cache) for rule in ("low_confidence", "threshold") for cache in switches
    }
    for case in cases:
        theirs = {"block_length": case.block_length, **switches[case.cache]}
        if case.algorithm == "threshold":
            theirs |= {"threshold": case.threshold, "steps": case.gen_length}
        else:
            theirs |= {"remasking": "low_confidence", "steps": case.steps}
        answer = await complete(client, case, theirs)
        assert answer.choices[0].token_ids == case.tokens, str(case)


@uses_server("dream")
async def test_fields_of_dream_are_obeyed(server: Server, client: AsyncOpenAI) -> None:
    """A name that is not known would leave the server's own rule, or its 32 steps."""
    for case in golden_cases(server.spec.checkpoint):
        theirs = {"alg": case.algorithm, "steps": case.steps, "eps": case.eps}
        answer = await complete(client, case, theirs)
        assert answer.choices[0].token_ids == case.tokens, str(case)


@uses_server("llada")
async def test_fields_of_llada_are_obeyed(server: Server, client: AsyncOpenAI) -> None:
    """Guidance and bans of end tokens change the answer; vLLM would ignore them."""
    case = golden_cases(server.spec.checkpoint)[0]
    theirs = {"block_length": case.block_length, "steps": case.steps}
    guided = replace(case, cfg_scale=1.5).answered()
    assert guided.tokens != case.tokens
    answer = await complete(client, case, {**theirs, "cfg_scale": 1.5})
    assert answer.choices[0].token_ids == guided.tokens
    cases = golden_cases(server.spec.checkpoint)
    case = next(c for c in cases if EOS in c.tokens and c.algorithm != "threshold")
    for field in ("logits_eos_inf", "confidence_eos_eot_inf"):
        fields = {"vllm_xargs": case.fields, field: True}
        changed = replace(case, **{field: True}).answered()
        answer = await complete(client, case, fields)
        assert answer.choices[0].token_ids == changed.tokens, field


@uses_server("sdar16")
async def test_a_seed_repeats_and_another_does_not(
    server: Server, client: AsyncOpenAI
) -> None:
    """A seed that is dropped on its way gives another answer each time."""
    case = case_of(server, "low_confidence_static")
    answers = [
        (await complete(client, case, {}, temperature=1.0, seed=seed)).choices[0].text
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


@uses_server("sdar16")
async def test_logprobs_reach_the_client(server: Server, client: AsyncOpenAI) -> None:
    """Several tokens leave in one step: a row too few or too many shifts the rest."""
    case = case_of(server, "low_confidence_dynamic")
    fields = {"vllm_xargs": case.fields}
    answer = await complete(client, case, fields, logprobs=2)
    assert answer.choices[0].token_ids == case.tokens
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.token_logprobs) == case.gen_length
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert value <= 0
        assert math.isclose(max(top.values()), value, abs_tol=1e-6)
    stream = await complete(client, case, fields, logprobs=2, stream=True)
    pieces = [chunk.choices[0].logprobs async for chunk in stream if chunk.choices]
    values = [value for piece in pieces if piece for value in piece.token_logprobs]
    assert values == pytest.approx(logprobs.token_logprobs)


@uses_server("sdar16")
async def test_stop_strings_cut_the_answer(server: Server, client: AsyncOpenAI) -> None:
    """A step emits several tokens: the text after a stop string must not leave."""
    case = case_of(server, "sequential")
    fields = {"vllm_xargs": case.fields}
    whole = (await complete(client, case, fields)).choices[0].text
    word = whole.split()[5]
    cut = (await complete(client, case, fields, stop=[word])).choices[0]
    assert cut.text == whole[: whole.index(word)]
    assert cut.finish_reason == "stop"
    kept = await complete(
        client, case, fields | {"include_stop_str_in_output": True}, stop=[word]
    )
    assert kept.choices[0].text == whole[: whole.index(word) + len(word)]


@uses_server("sdar16")
async def test_a_trajectory_reaches_the_client(
    server: Server, client: AsyncOpenAI
) -> None:
    """It travels outside of vLLM's own fields, and could be lost in any process."""
    case = case_of(server, "sequential")
    fields = {"vllm_xargs": {**case.fields, "dllm_return_trajectory": True}}
    answer = await complete(client, case, fields)
    trajectory = answer.kv_transfer_params["dllm_trajectory"]
    assert len(trajectory) == case.gen_length
    first = server.spec.block - len(case.prompt) % server.spec.block
    assert trajectory[:first] == list(range(first))


@uses_server("sdar16")
async def test_a_trajectory_ends_a_stream(server: Server, client: AsyncOpenAI) -> None:
    """What docs/openai.md says, and no chunk before the last has one."""
    case = case_of(server, "sequential")
    fields = {"vllm_xargs": {**case.fields, "dllm_return_trajectory": True}}
    stream = await complete(client, case, fields, stream=True)
    told = [getattr(chunk, "kv_transfer_params", None) async for chunk in stream]
    assert len(told) > 1
    assert not any(told[:-1])
    assert len(told[-1]["dllm_trajectory"]) == case.gen_length


@uses_server("sdar16")
async def test_n_answers_come_with_one_request(
    server: Server, client: AsyncOpenAI
) -> None:
    """Children of a request share its prompt, not its noise."""
    case = case_of(server, "low_confidence_static")
    answer = await complete(client, case, {}, temperature=1.0, seed=4, n=3)
    assert len({choice.text for choice in answer.choices}) == 3
