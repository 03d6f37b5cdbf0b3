"""A server whose tokenizer knows a token that its model does not; and tools."""

import json
import shutil
from pathlib import Path

import pytest

from tests.engines import MODELS, EngineSpec, OneAtATime, Server

UNKNOWN = "<|added|>"
"""A token of the tokenizer whose id is the size of the model's vocabulary."""
NAME = "tiny-llada2-added"


def tokenizer_with_added_token(folder: Path) -> Path:
    """The tokenizer of tiny-llada2 with tokens up to that one."""
    shutil.copytree(MODELS / "tiny-llada2", folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    file = folder / "tokenizer.json"
    fields = json.loads(file.read_text())
    first = 1 + max(token["id"] for token in fields["added_tokens"])
    like = {**fields["added_tokens"][-1], "special": True}
    for token in range(first, config["vocab_size"] + 1):
        name = UNKNOWN if token == config["vocab_size"] else f"<|spare{token}|>"
        fields["added_tokens"].append({**like, "id": token, "content": name})
    file.write_text(json.dumps(fields))
    return folder


@pytest.fixture
def added(running: OneAtATime, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """tiny-llada2 with that tokenizer, and hermes' tool calls."""
    if running.key != (Server, NAME):
        running.close()
        folder = tmp_path_factory.mktemp(NAME)
        options = {
            "tokenizer": str(tokenizer_with_added_token(folder / "tokenizer")),
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
        }
        spec = EngineSpec(str(MODELS / "tiny-llada2"), 32, options)
        server = Server(spec, folder / "server.log")
        running.current, running.key = server, (Server, NAME)
    assert isinstance(running.current, Server)
    return running.current
