"""Tokens that a tokenizer knows and the model does not: refused on every way in."""

from typing import Any

import httpx
import pytest

from tests.engines import Server
from tests.serving.conftest import UNKNOWN

pytestmark = [pytest.mark.timeout(300), pytest.mark.server]

TOKEN = 288
"""Its id; the model has 0 to 287."""
USER = [{"role": "user", "content": f"Copy: {UNKNOWN}"}]
SHORT = {"model": Server.MODEL, "max_tokens": 4}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("/v1/completions", {"prompt": f"Copy: {UNKNOWN}"}),
    "ids": ("/v1/completions", {"prompt": [5, TOKEN, 6]}),
    "second of two": ("/v1/completions", {"prompt": ["Copy: a", UNKNOWN]}),
    "a huge id": ("/v1/completions", {"prompt": [5, 2**63]}),
    "a negative id": ("/v1/completions", {"prompt": [5, -1]}),
    "chat": ("/v1/chat/completions", {"messages": USER}),
    "batch": ("/v1/chat/completions/batch", {"messages": [USER, USER]}),
    "responses": ("/v1/responses", {"input": UNKNOWN, "max_output_tokens": 4}),
    "messages": ("/v1/messages", {"messages": USER}),
    "stop": ("/v1/completions", {"prompt": "Copy: a", "stop_token_ids": [TOKEN]}),
    "bias": ("/v1/completions", {"prompt": "Copy: a", "logit_bias": {f"{TOKEN}": 1}}),
    "allowed": ("/v1/completions", {"prompt": "Copy", "allowed_token_ids": [5, TOKEN]}),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", REFUSED)
async def test_a_token_without_an_embedding_is_a_400(
    added: Server, case: str, stream: bool
) -> None:
    """The look-up of one request would end the engine for everybody."""
    path, body = REFUSED[case]
    if stream and path.endswith("/batch"):
        pytest.skip("has no streams")
    async with httpx.AsyncClient(base_url=added.url, timeout=60) as http:
        answer = await http.post(path, json={**SHORT, **body, "stream": stream})
        assert answer.status_code == 400, answer.text
        assert ("greater_than" if case == "a negative id" else "vocab") in answer.text
        prompt = {"prompt": "Copy: abc", "max_tokens": 8, "model": Server.MODEL}
        after = await http.post("/v1/completions", json=prompt)
    assert after.status_code == 200, "the engine is gone"


async def test_such_a_token_may_be_a_bad_word(added: Server) -> None:
    """It is never answered anyway."""
    body = {**SHORT, "prompt": "Copy: a", "bad_words": [UNKNOWN, "b"]}
    async with httpx.AsyncClient(base_url=added.url, timeout=60) as http:
        answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text


async def test_such_a_token_can_be_looked_up(added: Server) -> None:
    """It is the tokenizer's, whatever the model knows."""
    async with httpx.AsyncClient(base_url=added.url, timeout=60) as http:
        answer = await http.post("/tokenize", json={"prompt": UNKNOWN})
    assert TOKEN in answer.json()["tokens"]
