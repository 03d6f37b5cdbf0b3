"""Clients that turn a schema into an object, against a real server."""

import pytest
from pydantic import BaseModel

from tests.engines import uses_server
from tests.servers import Server

pytestmark = pytest.mark.timeout(400)

PROMPT = "Solve: 12 + 30. Answer in JSON."


class Answer(BaseModel):
    """What the bundled model answers such a prompt with."""

    result: int


@uses_server("tiny-llada2")
def test_the_openai_client_parses_an_answer(server: Server) -> None:
    """`.parse()` sends a strict schema and reads the answer as an object of it."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    answer = client.chat.completions.parse(
        model=Server.MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        response_format=Answer,
        max_tokens=64,
        temperature=0,
    )
    assert answer.choices[0].message.parsed == Answer(result=42)


@uses_server("tiny-llada2")
def test_langchain_makes_structured_output(server: Server) -> None:
    """Its default method is the client's `.parse()`, with fields of its own."""
    pytest.importorskip("langchain_openai")
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key=SecretStr("none"),
        model=Server.MODEL,
        temperature=0,
        max_completion_tokens=64,
    )
    answer = model.with_structured_output(Answer).invoke(PROMPT)
    assert answer == Answer(result=42)
