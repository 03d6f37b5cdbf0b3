"""Random bodies over HTTP: whatever a client sends, the server lives and says why not.

Each body is a good one with some fields more, or other ones: ours, vLLM's and those of
other servers, with values of every kind and size. One seed draws them all.
"""

import asyncio
import json
import math
import random
import re
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest

from tests.engines import uses_server
from tests.servers import Server
from vllm_dllm.params import PREFIX, DllmParams
from vllm_dllm.serving.decisions import DecisionRequest
from vllm_dllm.serving.gaps import LENGTHS, MARKED
from vllm_dllm.serving.generate import GRAMMARS
from vllm_dllm.serving.lift import NAMES, SWITCHES

pytestmark = pytest.mark.timeout(600)

SEED, BODIES, CLIENTS = 12, 2000, 16
OURS = [f"{PREFIX}{name}" for name in DllmParams.model_fields]
THEIRS = [*NAMES, *SWITCHES, "remasking", "stream_mode", *GRAMMARS, "max_new_tokens"]
THEIRS += [LENGTHS, MARKED]
ROUTES: dict[str, list[str]] = {
    "/v1/completions": list(CompletionRequest.model_fields),
    "/v1/chat/completions": list(ChatCompletionRequest.model_fields),
    "/v1/generate": [*CompletionRequest.model_fields, "text", "input_ids"],
    "/v1/decisions": list(DecisionRequest.model_fields),
}
"""What vLLM reads of a body, besides what we do."""
NUMBERS = [
    *(0, 1, 2, 3, 7, 16, 257, 1000, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 10**40),
    *(0.5, 0.9, 1.5, 1e-9, 1e-45, 5e-324, 1e38, 1e39, 1e308, math.inf, math.nan),
]
WORDS = [
    *("", "w12", "threshold", "low_confidence", "origin", "dual", "prefix", "none"),
    *("json", "auto", "true", "1", "(", "\0", "é" * 9, "x" * 5000, "a\ud800"),
]
READ = ("structured_outputs", "kv_transfer_params", "ec_transfer_params", "messages")
"""Fields that vLLM reads before, or without, asking what they are."""
CALLED = {
    "vllm_xargs": "extra_args",
    "kv_transfer_params": "extra_args",
    "ec_transfer_params": "extra_args",
    "structured_outputs": "structured outputs",
    "chat_template": "Chat template",
}
"""What vLLM calls a field in some of its messages."""


def some_value(rng: random.Random, depth: int = 0) -> Any:
    """Numbers more often than the rest; lists and objects of the same."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice((1, 1, 1, -1)) * rng.choice(NUMBERS)
    if kind < 0.6:
        return rng.choice((True, False, None))
    if kind < 0.8 or depth == 3:
        return rng.choice(WORDS)
    inner = [some_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 0.9:
        return inner
    names = [*WORDS, "type", "json", "regex", "schema", "5", "-1"]
    return {rng.choice(names): value for value in inner}


@dataclass(frozen=True)
class Asked:
    route: str
    body: dict[str, Any]

    @property
    def sent(self) -> bytes:
        return json.dumps(self.body).encode()

    def is_named_in(self, said: str) -> bool:
        """Whether a refusal names a field of the body: as it stands, or as ours."""
        inner = [self.body.get(name) for name in ("vllm_xargs", "sampling_params")]
        parts = [part for part in (self.body, *inner) if isinstance(part, dict)]
        names = {name for part in parts for name in part}
        names |= {NAMES.get(name, f"{PREFIX}{name}") for name in names}
        names |= {CALLED[name] for name in names if name in CALLED}
        names |= {"structured_outputs"} if names & GRAMMARS.keys() else set()
        return any(re.search(rf"\b{re.escape(name)}\b", said) for name in names)


def some_body(rng: random.Random) -> Asked:
    route = rng.choice(list(ROUTES))
    body: dict[str, Any] = {"max_tokens": rng.randrange(1, 9)}
    if route == "/v1/chat/completions":
        body |= {"messages": [{"role": "user", "content": "w12 w13"}]}
    else:
        body |= {"prompt": rng.choice(("w12 w13", [12, 13, 14]))}
    if route == "/v1/decisions":
        body = {"prompt": body["prompt"], "labels": ["w12", "w13 w14"]}
    elif rng.random() < 0.3:
        body["stream"] = True
    for _ in range(rng.randint(1, 3)):
        names = rng.choice((OURS, OURS, OURS, THEIRS, THEIRS, ROUTES[route], READ))
        name = rng.choice(names)
        place = rng.choice(("vllm_xargs", "sampling_params", None, None, None, None))
        target = body if place is None else body.setdefault(place, {})
        value = some_value(rng)
        if isinstance(target, dict):
            target[name] = value
    return Asked(route, body)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """The status of an answer and what it says; an error in a stream has one too."""
    if answer.status_code == 200 and answer.text.startswith("data: "):
        for event in answer.text.split("\n\n"):
            said = event.removeprefix("data: ")
            if '"error"' in said and said != "[DONE]":
                error = json.loads(said).get("error")
                if error:
                    return int(error["code"]), said
    return answer.status_code, answer.text


async def answer_to(http: httpx.AsyncClient, asked: Asked) -> tuple[int, str | None]:
    """The status of the server's answer, and what is wrong with it, if anything."""
    headers = {"content-type": "application/json"}
    try:
        answer = await http.post(asked.route, content=asked.sent, headers=headers)
        status, said = refusal(answer)
    except httpx.TransportError as error:
        status, said = 0, repr(error)
    said = said.replace("\\n", " ")  # as JSON has a new line
    if status == 200 or (400 <= status < 500 and asked.is_named_in(said)):
        return status, None
    body = asked.sent.decode()
    return status, f"{asked.route} {body[:600]}\n  {status}: {said[:600]}"


@uses_server("tiny-llada2", "llada")
async def test_a_server_outlives_random_bodies(server: Server) -> None:
    """One value that nobody thought of would end the engine for everyone."""
    plain = {"prompt": "w12 w13 w14", "max_tokens": 12, "temperature": 0}
    rng, free = random.Random(SEED), asyncio.Semaphore(CLIENTS)
    print(f"seed {SEED}")  # shown where it fails
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:

        async def known() -> str:
            answer = await http.post("/v1/completions", json=plain)
            return answer.json()["choices"][0]["text"]

        async def one(asked: Asked) -> tuple[int, str | None]:
            async with free:
                return await answer_to(http, asked)

        before = await known()
        work = [one(some_body(rng)) for _ in range(BODIES)]
        answers = await asyncio.gather(*work)
        assert not server.held()
        assert await known() == before
    problems = [problem for _, problem in answers if problem]
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:40]])
    answered = [status for status, _ in answers].count(200)
    assert BODIES / 20 < answered < BODIES * 0.9, "nearly all are good, or bad"
