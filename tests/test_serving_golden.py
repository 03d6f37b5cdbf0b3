"""The OpenAI server: golden tokens for many clients, streams, aborts, errors."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.bad_requests import TOO_LONG, bad_requests, with_xargs
from tests.engines import uses_server
from tests.golden_cases import Case, differences, golden_cases
from tests.servers import Server
from tests.specs import SERVER_BUDGET

pytestmark = pytest.mark.timeout(400)
FULL_ATTENTION = ("llada", "dream")
ON_DEMAND = (
    *("fastdllm2", "nemotron", "moving8"),
    *("diffullama", "adablock-llada", "adablock-dream"),
)
ALL = ("sdar16", "editing32", "moving32", *FULL_ATTENTION, "wedlm", *ON_DEMAND)
CLIENTS = 16


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    """A client that tells errors as they are, without trying again."""
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


def cases_of(server: Server) -> list[Case]:
    return golden_cases(server.spec.checkpoint, server.spec.block)


def request_of(case: Case, **changes: Any) -> dict[str, Any]:
    """Arguments of `completions.create`."""
    return {
        "model": Server.MODEL,
        "prompt": case.prompt,
        "max_tokens": case.gen_length,
        "temperature": 0,
        "extra_body": {
            "vllm_xargs": case.fields,
            "ignore_eos": case.ignore_eos,
            "return_token_ids": True,
        },
        **changes,
    }


async def answer(client: AsyncOpenAI, case: Case) -> list[int]:
    response = await client.completions.create(**request_of(case))
    return response.choices[0].token_ids


async def pieces(
    client: AsyncOpenAI, case: Case, stop_after: int | None = None
) -> list[tuple[list[int], str]]:
    """Token ids and text of each piece of a stream, left after `stop_after` of them."""
    got: list[tuple[list[int], str]] = []
    stream = await client.completions.create(**request_of(case), stream=True)
    async with stream:
        if stop_after == 0:
            return got
        async for chunk in stream:
            for choice in chunk.choices:
                if choice.token_ids or choice.text:
                    got.append((choice.token_ids or [], choice.text))
            if stop_after is not None and len(got) >= stop_after:
                break
    return got


async def streamed_answer(client: AsyncOpenAI, case: Case) -> list[int]:
    return [token for tokens, _ in await pieces(client, case) for token in tokens]


async def by_clients(work: list[Any]) -> list[Any]:
    """Results of coroutines, `CLIENTS` of them running at any time."""
    free = asyncio.Semaphore(CLIENTS)

    async def one(job: Any) -> Any:
        async with free:
            return await job

    return await asyncio.gather(*map(one, work))


# Tokens


@uses_server(*ALL)
async def test_16_clients_get_golden_tokens(
    server: Server, client: AsyncOpenAI
) -> None:
    """Requests that come and go in a running batch must not touch each other."""
    cases = cases_of(server)
    answers = await by_clients([answer(client, case) for case in cases])
    assert differences(cases, answers) == []


@uses_server(*ALL)
async def test_16_streams_add_up_to_golden_tokens(
    server: Server, client: AsyncOpenAI
) -> None:
    """A piece that is lost, doubled or out of order changes what the reader sees."""
    cases = cases_of(server)
    answers = await by_clients([streamed_answer(client, case) for case in cases])
    assert differences(cases, answers) == []


@uses_server("sdar16")
async def test_a_stream_is_finer_than_blocks(
    server: Server, client: AsyncOpenAI
) -> None:
    """Waiting for whole blocks would show a reader nothing for many steps."""
    block = server.spec.block
    for case in cases_of(server):
        response = await client.completions.create(**request_of(case))
        end = len(case.prompt) + case.gen_length
        blocks = -(-end // block) - len(case.prompt) // block
        least = (3 if case.algorithm == "sequential" else 1) * blocks
        most = 0
        # On a busy machine pieces wait for a late reader, and are joined by then.
        for _ in range(5):
            got = await pieces(client, case)
            assert [t for tokens, _ in got for t in tokens] == case.tokens
            assert "".join(text for _, text in got) == response.choices[0].text
            most = max(most, len(got))
            if most > least:
                break
        assert most > least, str(case)


@uses_server("llada")
async def test_an_answer_may_be_longer_than_the_authors_default(
    server: Server, client: AsyncOpenAI
) -> None:
    """A default that vLLM takes for a limit would shorten answers without a word."""
    case = replace(cases_of(server)[0], gen_length=200, steps=200)
    response = await client.completions.create(**request_of(case))
    assert len(response.choices[0].token_ids) == 200


@uses_server("sdar16")
async def test_chat_works_as_with_any_model(
    server: Server, client: AsyncOpenAI
) -> None:
    """Chat clients send no fields of ours, and their temperature is not 0."""
    messages = [
        {"role": "user", "content": "w12 w13 w14"},
        {"role": "assistant", "content": "w15"},
        {"role": "user", "content": "w16"},
    ]
    chat = {"model": Server.MODEL, "messages": messages, "max_tokens": 30}
    extra = {"ignore_eos": True, "return_token_ids": True, "seed": 3}
    whole = await client.chat.completions.create(**chat, extra_body=extra)
    assert whole.usage.completion_tokens == 30
    assert whole.choices[0].finish_reason == "length"
    stream = await client.chat.completions.create(
        **chat, extra_body=extra, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 30
    # The same prompt as a completion: the text of the template.
    plain = await client.completions.create(
        model=Server.MODEL,
        prompt=whole.prompt_token_ids,
        max_tokens=30,
        extra_body=extra,
    )
    assert plain.choices[0].token_ids == whole.choices[0].token_ids
    assert plain.choices[0].text.split() == text.split()


# Errors


async def refusal_problem(
    http: httpx.AsyncClient, body: dict[str, Any], said: list[str]
) -> str | None:
    """What is wrong with the server's refusal of a bad request, if anything."""
    good = {"model": Server.MODEL, "prompt": [9, 10], "max_tokens": 4, "temperature": 0}
    response = await http.post("/v1/completions", json=good | body)
    if response.status_code != 400:
        return f"{body}: status {response.status_code}, {response.text}"
    message = response.json()["error"]["message"]
    missing = [word for word in said if word not in message]
    return f"{body}: {missing} not in {message!r}" if missing else None


@uses_server("sdar16", *FULL_ATTENTION)
async def test_a_bad_request_is_refused_by_name(server: Server) -> None:
    """A field that is ignored, or refused without its name, cannot be put right."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        problems = [await refusal_problem(http, *bad) for bad in bad_requests(server)]
    assert [problem for problem in problems if problem] == []


@uses_server("sdar16", *FULL_ATTENTION)
async def test_a_bad_stream_is_refused_by_name(server: Server) -> None:
    """vLLM may have begun the stream by then: its first event must tell the error."""
    good = {"model": Server.MODEL, "prompt": [9, 10], "max_tokens": 4, "stream": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for body, said in bad_requests(server):
            response = await http.post("/v1/completions", json=good | body)
            event = response.text.removeprefix("data: ").split("\n")[0]
            error = json.loads(event)["error"]
            assert error["code"] == 400, f"{body}: {response.text}"
            # vLLM refuses some fields of streams itself, and does not tell the value.
            said = said if (body, said) in TOO_LONG else said[:1]
            missing = [word for word in said if word not in error["message"]]
            assert not missing, f"{body}: {error}"


@uses_server("llada")
@pytest.mark.parametrize("stream", [False, True])
async def test_a_chat_that_no_forward_can_hold_is_refused(
    server: Server, stream: bool
) -> None:
    """The length of a chat's prompt is known only when its template was applied."""
    message = {"role": "user", "content": "w12 " * 400}
    body = {"model": Server.MODEL, "messages": [message], "max_tokens": 200}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        url = "/v1/chat/completions"
        response = await http.post(url, json={**body, "stream": stream})
        assert response.status_code == 400, response.text
        said = response.json()["error"]["message"]
        assert "max_tokens=200" in said and str(SERVER_BUDGET) in said, said
        response = await http.post(
            url, json={**body, "stream": stream, "max_tokens": 9}
        )
        assert response.status_code == 200


@uses_server("sdar16", *FULL_ATTENTION)
async def test_bad_requests_do_not_disturb_running_streams(
    server: Server, client: AsyncOpenAI
) -> None:
    """An exception past the API process would end the engine for everyone."""
    cases = cases_of(server) * 2
    streams = asyncio.gather(*[streamed_answer(client, case) for case in cases])
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        # All of them meet the streams: they are sent at once, right after these.
        refusals = await asyncio.gather(
            *[refusal_problem(http, *bad) for bad in bad_requests(server)]
        )
    assert [problem for problem in refusals if problem] == []
    assert differences(cases, await streams) == []


# Aborts


def long_and_slow(case: Case) -> Case:
    """One that takes so many forwards that a reader can leave it midway."""
    full = case.full_attention
    return Case(
        case.checkpoint,
        case.prompt,
        gen_length=400 if full else 850,
        block_length=case.block_length,
        algorithm="sequential",
        steps=None if full else case.block_length,
        cache=case.cache,
        cfg_scale=case.cfg_scale,
        suffix=case.suffix,
    )


@uses_server(*ALL)
async def test_aborted_streams_leave_nothing_behind(
    server: Server, client: AsyncOpenAI
) -> None:
    """Slots and pages of readers who left would be missing for those who stay."""
    cases = (cases_of(server) * 4)[: 3 * (CLIENTS + 2)]
    numbers, left = range(len(cases)), 0
    # A late client finds its request finished: more leave midway than there are slots.
    while left <= CLIENTS:
        finished = server.metric("request_success_total")
        work = [
            streamed_answer(client, cases[number])
            if number % 3
            else pieces(client, long_and_slow(cases[number]), number // 3 % 4)
            for number in numbers
        ]
        results = dict(zip(numbers, await by_clients(work), strict=True))
        stayed = [number for number in numbers if number % 3]
        wrong = differences([cases[i] for i in stayed], [results[i] for i in stayed])
        assert wrong == []
        assert not server.held()
        finished = server.metric("request_success_total") - finished
        left += len(numbers) - int(finished)
        numbers = range(0, len(cases), 3)

    answers = await by_clients([answer(client, case) for case in cases[:CLIENTS]])
    assert differences(cases[:CLIENTS], answers) == []


# Last of its server, which it would end.
@uses_server("sdar16")
async def test_numbers_beyond_64_bits_are_refused(server: Server) -> None:
    """A number that no tensor holds would raise in the worker and end the engine."""
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for steps in (2**63, 2**64 - 1):
            bad = (with_xargs(dllm_steps=steps), ["dllm_steps", str(steps)])
            assert await refusal_problem(http, *bad) is None
        good = {"model": Server.MODEL, "prompt": [9, 10], "max_tokens": 4}
        response = await http.post("/v1/completions", json=good)
        assert response.status_code == 200
