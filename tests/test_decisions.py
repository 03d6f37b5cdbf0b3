"""Probabilities of labels, read from one forward."""

import math
from functools import cache
from typing import Any

import httpx
import pytest
import torch
from vllm.entrypoints.openai.completion.protocol import (
    CompletionLogProbs,
    CompletionResponse,
    CompletionResponseChoice,
)
from vllm.entrypoints.serve.engine.protocol import UsageInfo
from vllm.exceptions import VLLMValidationError

from tests.engines import uses_server
from tests.golden_cases import GOLDEN
from tests.reference.llada import LLaDA
from tests.reference.llada2_moe import LLaDA2Moe
from tests.servers import Server
from tests.wishes import FULL
from vllm_dllm.config import Facts
from vllm_dllm.serving.decisions import DecisionRequest, readings, tokens_of_labels

pytestmark = pytest.mark.timeout(400)

PROMPTS = [[40, 41, 42, 43, 44], [50, 51, 52]]
LABELS = [[60, 61], [62], [60, 63, 64]]
LONGEST = 3
ROUTE, COMPLETIONS = "/v1/decisions", "/v1/completions"


@cache
def reference_of(checkpoint: str) -> LLaDA | LLaDA2Moe:
    model = LLaDA if checkpoint == "llada-pub0" else LLaDA2Moe
    return model.from_pretrained(GOLDEN / checkpoint)


@torch.no_grad()
def logprobs_of(checkpoint: str, prompt: list[int], mask: int) -> torch.Tensor:
    """[positions, vocab]: what the reference says of a canvas of masks alone."""
    model = reference_of(checkpoint)
    masks = LONGEST if isinstance(model, LLaDA) else 32 - len(prompt)
    ids = torch.tensor([*prompt, *[mask] * masks])
    if isinstance(model, LLaDA):
        logits = model(ids)
    else:  # one block
        sees_all = torch.ones(len(ids), len(ids), dtype=torch.bool)
        logits = model(ids.unsqueeze(0), sees_all)[0]
    logits = logits.double()
    logits[:, mask] = -math.inf
    return logits[len(prompt) :].log_softmax(-1)


def decide(server: Server, **body: Any) -> httpx.Response:
    body = {"model": Server.MODEL, "prompt": PROMPTS, "labels": LABELS, **body}
    return httpx.post(server.url + ROUTE, json=body, timeout=60)


def mask_of(server: Server) -> int:
    text = "<|mask|>"
    body = {"prompt": text, "add_special_tokens": False}
    answer = httpx.post(f"{server.url}/tokenize", json=body, timeout=60)
    [mask] = answer.json()["tokens"]
    return mask


@uses_server("llada", "tiny-llada2")
def test_a_decision_is_what_the_references_first_forward_says(server: Server) -> None:
    """A position that is decided in a later step has seen the others."""
    mask = mask_of(server)
    decisions = decide(server).json()["decisions"]
    assert [decision["index"] for decision in decisions] == [0, 1]
    for prompt, decision in zip(PROMPTS, decisions, strict=True):
        expected = logprobs_of(server.spec.checkpoint, prompt, mask)
        sums = []
        for tokens, label in zip(LABELS, decision["labels"], strict=True):
            values = [float(expected[at, token]) for at, token in enumerate(tokens)]
            assert label["token_ids"] == tokens
            assert label["logprobs"] == pytest.approx(values, abs=1e-4)
            assert label["logprob"] == pytest.approx(sum(values), abs=1e-3)
            sums.append(math.exp(sum(values)))
        shares = [label["share"] for label in decision["labels"]]
        assert shares == pytest.approx([one / sum(sums) for one in sums], rel=1e-2)


@uses_server("llada", "tiny-llada2")
def test_a_decision_is_what_logprobs_say(server: Server) -> None:
    """Two routes that disagree are both worthless."""
    body = {"model": Server.MODEL, "prompt": PROMPTS[0], "max_tokens": LONGEST}
    body |= {"logprobs": 5, "dllm_algorithm": "low_confidence", "dllm_steps": 1}
    body |= {"ignore_eos": True, "temperature": 0, "return_token_ids": True}
    body |= {"return_tokens_as_token_ids": True}
    if server.spec.checkpoint == "llada-pub0":
        body["dllm_block_length"] = LONGEST
    with httpx.Client(base_url=server.url, timeout=60) as http:
        [choice] = http.post(COMPLETIONS, json=body).json()["choices"]
        named = {**body, "logprobs": 2, "logprob_token_ids": [60, 62]}
        [other] = http.post(COMPLETIONS, json=named).json()["choices"]
    best = choice["token_ids"]
    labels = [best, best[:2], [best[0]]]
    told = decide(server, prompt=PROMPTS[0], labels=labels).json()["decisions"][0]
    for label, reading in zip(labels, told["labels"], strict=True):
        values = choice["logprobs"]["token_logprobs"][: len(label)]
        assert reading["logprobs"] == pytest.approx(values, abs=1e-4)
    first = decide(server, prompt=PROMPTS[0]).json()["decisions"][0]["labels"]
    top = other["logprobs"]["top_logprobs"][0]
    assert top.keys() >= {"token_id:60", "token_id:62"}
    assert first[0]["logprobs"][0] == pytest.approx(top["token_id:60"], abs=1e-4)
    assert first[1]["logprobs"][0] == pytest.approx(top["token_id:62"], abs=1e-4)


@uses_server("tiny-llada2")
def test_only_the_first_canvas_is_read(server: Server) -> None:
    """The next block is another forward, which has seen what this one decided."""
    prompt, labels = [40] * 30, [[60, 61, 62, 63], [64]]
    answer = decide(server, prompt=prompt, labels=labels).json()
    first, second = answer["decisions"][0]["labels"]
    assert (len(first["logprobs"]), len(second["logprobs"])) == (2, 1)
    assert answer["usage"] == {
        "prompt_tokens": 30,
        "completion_tokens": 0,
        "total_tokens": 30,
    }


@uses_server("tiny-llada2")
def test_labels_are_text_too(server: Server) -> None:
    """A client has no tokenizer."""
    told = decide(server, prompt="Solve: 12 + 30.", labels=["42", "7"])
    body = {"prompt": "42", "add_special_tokens": False}
    tokens = httpx.post(f"{server.url}/tokenize", json=body, timeout=60).json()
    [decision] = told.json()["decisions"]
    assert decision["labels"][0]["token_ids"] == tokens["tokens"]
    assert sum(label["share"] for label in decision["labels"]) == pytest.approx(1)


@uses_server("llada")
def test_vllms_own_route_of_labels_works(server: Server) -> None:
    """It asks for logprobs of labels alone."""
    body = {"model": Server.MODEL, "query": PROMPTS[0], "items": [[40], [41]]}
    body |= {"label_token_ids": [60, 62], "apply_softmax": False}
    url = f"{server.url}/generative_scoring"
    answer = httpx.post(url, json=body, timeout=60)
    assert answer.is_success, answer.text
    assert len(answer.json()["data"]) == 2


@uses_server("llada")
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": [[5]]}, ["labels=[[5]]", "2 to 64"]),
        ({"labels": [[5]] * 65}, ["65", "2 to 64"]),
        ({"labels": [[5], []]}, ["no token"]),
        ({"labels": ["w5", ""]}, ["''", "no token"]),
        ({"labels": [[5], [256]]}, ["256", "0 to 255"]),
        ({"labels": [[5], [-1]]}, ["-1", "0 to 255"]),
        ({"labels": [[*range(100)], [*range(100, 200)]]}, ["200", "128"]),
        ({"labels": "w5"}, ["labels"]),
        ({"prompt": [[5], [300]]}, ["300"]),
        ({"stream": True}, ["stream"]),
        ({"labels": [[5] * 1024, [6]]}, ["1024 tokens", "less than 1024"]),
        ({"priority": 2**70}, [f"priority={2**70}", "allowed: -9,223,372"]),
    ],
)
def test_bad_labels_are_refused_by_name(
    server: Server, fields: dict[str, Any], said: list[str]
) -> None:
    """A label without a token is as likely as nothing, which is sure."""
    answer = decide(server, **fields)
    assert answer.status_code == 400, answer.text
    assert [word for word in said if word not in answer.text] == [], answer.text


def test_a_label_without_room_is_no_shorter_one() -> None:
    """With full attention it would be compared by its first tokens alone."""
    column = {"token_id:5": -1.0, "token_id:6": -2.0}
    logprobs = CompletionLogProbs(top_logprobs=[column])
    choice = CompletionResponseChoice(
        index=0, text="", logprobs=logprobs, prompt_token_ids=[7] * 199
    )
    usage = UsageInfo(prompt_tokens=199)
    answer = CompletionResponse(model="m", choices=[choice], usage=usage)
    told = readings(answer, [[5], [6]], FULL).decisions[0]
    assert [label.logprobs for label in told.labels] == [[-1.0], [-2.0]]
    said = r"longest has 2 tokens, .* 199 .* room for 1; .* at most 200"
    with pytest.raises(VLLMValidationError, match=said):
        readings(answer, [[5, 5], [6]], FULL)


@pytest.mark.parametrize("attention", ["seeded", "seeded_causal", "window"])
def test_a_model_without_a_first_step_of_masks_decides_nothing(attention: Any) -> None:
    """It would be read where it has not seen the prompt, or no canvas."""
    config = FULL.with_facts(Facts(attention=attention, vocab_size=100))
    request = DecisionRequest(prompt=[1], labels=[[5], [6]])
    with pytest.raises(ValueError, match="/v1/decisions"):
        tokens_of_labels(request, config, None)
