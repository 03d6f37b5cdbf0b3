"""Files of requests, through `vllm run-batch`."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm.entrypoints.launchers import run_batch

from tests.engines import OneAtATime
from tests.forked import forked_command
from tests.specs import CORE, SERVERS

CHAT = {"messages": [{"role": "user", "content": "reverse: a b c"}], "max_tokens": 8}
URL = "/v1/chat/completions"
LINES: dict[str, tuple[dict[str, Any], str | None]] = {
    "good": ({"url": URL, "body": CHAT}, None),
    "another route": (
        {"url": "/v1/completions", "body": {"prompt": "a"}},
        "URL /v1/completions was used",
    ),
    "no message": ({"url": URL, "body": {"max_tokens": 8}}, "body.messages: Field"),
    "a number for a text": (
        {"url": URL, "body": CHAT | {"messages": [{"role": "user", "content": 5}]}},
        "messages.0.content=5 cannot be read",
    ),
    "out of range": ({"url": URL, "body": CHAT | {"dllm_threshold": 7}}, "allowed: 0"),
    "no object": ({"url": URL, "body": [3]}, "body: Input should be"),
    "no route": ({"body": CHAT}, "url: Field required"),
    "embeddings": ({"url": "/v1/embeddings", "body": {"input": "a"}}, "not support"),
}
"""What stands in a line, and what its error says."""
CHECKS_FIRST = hasattr(run_batch, "validate_batch")
"""vLLM 0.33 reads all lines before it loads a model, and names one that it cannot."""


def is_read(line: dict[str, Any]) -> bool:
    """Whether vLLM itself can read a line."""
    try:
        run_batch.BatchRequestInput.model_validate(line)
    except (ValueError, KeyError):
        return False
    return True


@pytest.mark.server
@pytest.mark.timeout(300)
def test_a_line_that_cannot_be_read_ends_alone(
    running: OneAtATime, tmp_path: Path
) -> None:
    """vLLM ends the run, and with it the answers of all other lines."""
    running.close()
    spec = SERVERS["tiny-llada2"]
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    asked = set()
    with questions.open("w") as file:
        for name, (line, _) in LINES.items():
            body = line["body"]
            if isinstance(body, dict):
                line = line | {"body": {"model": spec.checkpoint} | body}
            line = {"custom_id": name, "method": "POST"} | line
            if is_read(line) or not CHECKS_FIRST:
                asked.add(name)
                print(json.dumps(line), file=file)
    vllm = Path(sys.executable).with_name("vllm")
    command = [vllm, "run-batch", "-i", questions, "-o", answers, "--model"]
    command += [spec.checkpoint, "--max-model-len", "512", "--enforce-eager"]
    environment, log = {"VLLM_CPU_OMP_THREADS_BIND": str(CORE)}, tmp_path / "log"
    done = forked_command([str(word) for word in command], environment, log)
    assert done.wait(200) == 0, log.read_text()[-3000:]
    told = {one["custom_id"]: one for one in map(json.loads, answers.open())}
    assert told.keys() == asked
    for name in asked:
        fault = LINES[name][1]
        status, error = told[name]["response"]["status_code"], told[name]["error"]
        assert status == (400 if fault else 200), name
        assert fault is None or fault in json.dumps(error), name
    assert told["good"]["response"]["body"]["usage"]["completion_tokens"] > 0
