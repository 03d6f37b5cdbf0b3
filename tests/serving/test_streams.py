"""Streams of the OpenAI routes: what they add disturbs nobody who did not ask."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from tests.engines import uses_server
from tests.servers import Server
from tools.tiny import tokenizer
from vllm_dllm.serving.streams import Results, event, opened, with_more

ROUTES = ("chat/completions", "completions")
TEXT = "Solve: 12 + 30."
SLOW = {"dllm_algorithm": "low_confidence"}


def body_of(route: str, **fields: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"input": TEXT}
    if route == ROUTES[0]:
        asked = {"messages": [{"role": "user", "content": TEXT}]}
    elif route == ROUTES[1]:
        asked = {"prompt": tokenizer.render([(TEXT, "")])}
    common = {"model": Server.MODEL, "temperature": 0, "max_tokens": 40}
    return {**common, **asked, **SLOW, **fields}


async def chunks_of(server: Server, route: str, **fields: Any) -> list[dict[str, Any]]:
    found = []
    body = body_of(route, stream=True, **fields)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        answer = await http.post(f"/v1/{route}", json=body)
    assert answer.status_code == 200, answer.text
    *events, done, last = answer.text.split("\n\n")
    assert (done, last) == ("data: [DONE]", "")
    for one in events:
        found.append(json.loads(one.removeprefix("data: ")))
    return found


def text_of(chunk: dict[str, Any]) -> str:
    [choice] = chunk["choices"]
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


@uses_server("tiny-llada2")
@pytest.mark.parametrize("route", ROUTES)
async def test_every_step_is_shown_and_the_text_is_the_same(
    server: Server, route: str
) -> None:
    """A field that is accepted and ignored shows an empty page; one that changes the
    stable text breaks all others."""
    plain = await chunks_of(server, route)
    shown = await chunks_of(server, route, stream_mode="denoise")
    drafts = [chunk["dllm_draft"] for chunk in shown if "dllm_draft" in chunk]
    assert not any("dllm_draft" in chunk for chunk in plain)
    assert "".join(map(text_of, shown)) == "".join(map(text_of, plain)) == TEXT_OF_SUM
    assert [d["nfe"] for d in drafts] == [*range(1, len(drafts) + 1)]
    assert len(drafts) >= len(TEXT_OF_SUM) - 2
    assert drafts[0]["text"].count("░") > 8
    before = ""
    for chunk in shown:
        if draft := chunk.get("dllm_draft"):
            assert text_of(chunk) == "" and draft["offset"] >= len(before) - 4
            assert chunk["id"] == shown[-1]["id"] and chunk["model"] == Server.MODEL
        before += text_of(chunk)


TEXT_OF_SUM = "12 + 30 = 42"


@uses_server("tiny-llada2")
async def test_the_official_client_reads_the_same_answer(server: Server) -> None:
    """It makes objects of all chunks, and takes the first choice of each."""
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-")
    fields = {**SLOW, "stream_mode": "denoise", "return_step_maps": True}
    stream = await client.chat.completions.create(
        model=Server.MODEL,
        messages=[{"role": "user", "content": TEXT}],
        temperature=0,
        stream=True,
        extra_body=fields,
    )
    text, drafts, last = "", 0, None
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        drafts += getattr(chunk, "dllm_draft", None) is not None
        last = chunk
    assert text == TEXT_OF_SUM and drafts > 5
    steps = last.kv_transfer_params["step_maps"]
    assert len(steps) == 9 and min(steps) == 1


@uses_server("tiny-llada2")
@pytest.mark.parametrize("route", ROUTES)
async def test_traces_end_a_stream_as_they_do_an_answer(
    server: Server, route: str
) -> None:
    """Whoever streams would have to ask twice."""
    names = ("dllm_return_trajectory", "return_step_maps", "dllm_return_rest")
    fields = dict.fromkeys(names, True)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        whole = await http.post(f"/v1/{route}", json=body_of(route, **fields))
    expected = whole.json()["kv_transfer_params"]
    assert expected.keys() == {"dllm_trajectory", "step_maps", "dllm_rest"}
    chunks = await chunks_of(server, route, **fields)
    told = [chunk.get("kv_transfer_params") for chunk in chunks]
    assert told[-1] == expected and not any(told[:-1])


@uses_server("tiny-llada2")
@pytest.mark.parametrize("mode", ["block_append", "denoise"])
@pytest.mark.parametrize("route", ROUTES)
async def test_an_answer_without_a_token_has_an_end(
    server: Server, route: str, mode: str
) -> None:
    """vLLM has no chunk for it: a client would not know that the forwards were used up,
    and a chunk with `finish_reason` is what it waits for."""
    # The lot does not fall on the first position. To the trained model many of them are
    # as sure as float32 can tell, and which is the surest is rounding.
    fields: dict[str, Any] = {"dllm_algorithm": "random", "seed": 1}
    fields |= {"dllm_max_nfe": 1, "dllm_return_rest": True}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        whole = await http.post(f"/v1/{route}", json=body_of(route, **fields))
    chunks = await chunks_of(server, route, stream_mode=mode, **fields)
    assert "".join(map(text_of, chunks)) == ""
    [end] = chunks[-1]["choices"]
    assert end["finish_reason"] == "length" and end["index"] == 0
    assert chunks[-1]["kv_transfer_params"] == whole.json()["kv_transfer_params"]
    assert chunks[-1]["model"] == Server.MODEL
    said = [c["choices"][0]["finish_reason"] for c in chunks]
    assert said.count("length") == 1


@uses_server("tiny-llada2")
async def test_each_answer_has_one_end(server: Server) -> None:
    """An end too many, or of another answer, breaks clients that are told it."""
    fields: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 3}
    prompts = ["12 + 30 = ", "Copy: a"]
    for echo, most in ((False, 1), (False, 12), (True, 1)):
        fields |= {"echo": echo, "dllm_max_nfe": most}
        chunks = await chunks_of(server, "completions", prompt=prompts, **fields)
        ends = [choice for c in chunks for choice in c["choices"]]
        ended = [e["index"] for e in ends if e["finish_reason"]]
        assert sorted(ended) == [*range(6)]


@uses_server("tiny-llada2")
async def test_an_empty_answer_of_the_anthropic_api_is_cut(server: Server) -> None:
    """It reads the chunks of a chat, and would say that the model was done."""
    body = body_of(ROUTES[0], stream=True) | {"vllm_xargs": {"dllm_max_nfe": 1, **SLOW}}
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        answer = await http.post("/v1/messages", json=body)
    assert '"stop_reason":"max_tokens"' in answer.text


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "whole chat": ("chat/completions", {}, "needs stream=true"),
    "whole completion": ("completions", {}, "needs stream=true"),
    "n": ("completions", {"stream": True, "n": 2, "temperature": 1}, "n=2"),
    "prompts": ("completions", {"stream": True, "prompt": ["a", "b"]}, "2 prompts"),
    "responses": ("responses", {"stream": True}, "/v1/responses"),
    "unknown": ("completions", {"stream": True, "stream_mode": "all"}, "block_append"),
}


@uses_server("tiny-llada2")
@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_shown_is_refused_by_name(
    server: Server, case: str
) -> None:
    """Ignored, a client waits for drafts that never come."""
    route, fields, reason = REFUSED[case]
    body = body_of(route, **{"stream_mode": "denoise", **fields})
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        answer = await http.post(f"/v1/{route}", json=body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "stream_mode" in message and reason in message


def result(index: int, draft: dict[str, Any] | None, finished: bool = False) -> Any:
    params = {"dllm_draft": draft, "step_maps": [1]} if draft else None
    return SimpleNamespace(
        outputs=[SimpleNamespace(index=index)],
        finished=finished,
        kv_transfer_params=params,
    )


def test_a_choice_has_the_index_of_its_stream() -> None:
    """Of several prompts, the steps and the end of one answer were another's."""
    answer = result(1, None)
    [output] = answer.outputs
    assert opened((2, answer), 3) == (answer, [(7, output)])
    assert opened(answer, 3) == (answer, [(1, output)])


async def test_an_error_of_vllms_is_the_clients() -> None:
    """A stream that waits for a chunk after it would hang for ever."""

    async def results() -> Results:
        yield result(0, {"step": 0})
        raise RuntimeError("the engine is gone")

    async def chunks(found: Results) -> AsyncGenerator[str, None]:
        async for _ in found:
            yield event({"choices": []})

    told = []
    with pytest.raises(RuntimeError, match="the engine is gone"):
        async for chunk in with_more(chunks, results(), str, 1):
            told.append(chunk)
    assert told == [event({"choices": []}), "{'step': 0}"]


async def test_whoever_stops_reading_stops_the_request() -> None:
    """It would be decoded to its end for nobody."""
    ended = []

    async def results() -> Results:
        try:
            while True:
                yield result(0, {"step": 0})
        finally:
            ended.append(True)

    async def chunks(found: Results) -> AsyncGenerator[str, None]:
        async for _ in found:
            yield event({"choices": []})

    stream = with_more(chunks, results(), str, 1)
    async for _ in stream:
        break
    await stream.aclose()
    for _ in range(5):
        await asyncio.sleep(0)
    assert ended
