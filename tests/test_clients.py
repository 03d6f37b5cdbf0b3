"""Clients that turn a schema into an object, against a real server."""

import subprocess
import venv
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.engines import uses_server
from tests.servers import Server

pytestmark = pytest.mark.timeout(400)

INSTRUCTOR = "instructor==1.17.0"
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


@uses_server("tiny-llada2")
async def test_pydantic_ai_makes_structured_output(server: Server) -> None:
    """It sends a schema with strict and reads usage fields that it does not know."""
    pytest.importorskip("pydantic_ai")
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    model = OpenAIChatModel(Server.MODEL, provider=provider)
    agent = Agent(model, output_type=NativeOutput(Answer))
    settings = {"temperature": 0, "max_tokens": 64}
    answer = await agent.run(PROMPT, model_settings=settings)
    assert answer.output == Answer(result=42)


ASK_INSTRUCTOR = """
import sys
import instructor
from openai import OpenAI
from pydantic import BaseModel

class Answer(BaseModel):
    result: int

client = instructor.from_openai(
    OpenAI(base_url=sys.argv[1], api_key="none"), mode=instructor.Mode.JSON_SCHEMA
)
print(client.chat.completions.create(
    model=sys.argv[2],
    messages=[{"role": "user", "content": sys.argv[3]}],
    response_model=Answer,
    max_tokens=64,
    temperature=0,
))
"""


@pytest.mark.on_demand
@uses_server("tiny-llada2")
def test_instructor_makes_structured_output(server: Server, tmp_path: Path) -> None:
    """Its pins (jiter, rich) are not vLLM's: it gets an environment of its own."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", INSTRUCTOR], check=True)
    url = f"{server.url}/v1"
    command = [python, "-c", ASK_INSTRUCTOR, url, Server.MODEL, PROMPT]
    assert subprocess.check_output(command, text=True) == "result=42\n"
