"""With what is decoded behind the end of an answer each step can be taken again: a
logprob is what the model says of the tokens that the step saw.
"""

import asyncio
from typing import Any

import httpx
import pytest
import torch

from tests.engines import Engine, tokens_of, uses, uses_server
from tests.golden_cases import MASK, Case, golden_cases, reference_model
from tests.reference.masks import block_causal
from tests.servers import Server
from tests.specs import EngineSpec
from vllm_dllm.plans.grid import round_up

pytestmark = pytest.mark.timeout(400)
BLOCK = 16
TRACE = {"dllm_return_trajectory": True, "dllm_return_rest": True}


def recomputed(
    spec: EngineSpec,
    prompt: list[int],
    answer: list[int],
    told: dict[str, Any],
    max_tokens: int,
) -> list[float]:
    """Logprobs of the answer's tokens, by the reference.

    `told`: what an engine says of them besides.
    """
    model, rest = reference_model(spec.checkpoint), told["dllm_rest"]
    tokens = [*prompt, *answer, *rest["token_ids"]]
    steps = [*told["dllm_trajectory"], *rest["steps"]]
    origin = 0 if spec.block else len(prompt)
    whole = len(prompt) + round_up(max_tokens, BLOCK)
    found = []
    for place, step in enumerate(steps[: len(answer)], len(prompt)):
        start = origin + (place - origin) // BLOCK * BLOCK
        end = start + BLOCK if spec.block else whole
        seen = [
            position < len(prompt)
            or position < start
            or (position < start + BLOCK and 0 <= steps[position - len(prompt)] < step)
            for position in range(min(end, len(tokens)))
        ]
        ids = [t if s else MASK for t, s in zip(tokens, seen, strict=False)]
        ids += [MASK] * (end - len(ids))
        args = (block_causal(end, BLOCK),) if spec.block else ()
        with torch.inference_mode():
            logits = model(torch.tensor(ids), *args).view(end, -1)[place].double()
            logits[MASK] = -torch.inf
        found.append(float(logits.log_softmax(0)[tokens[place]]))
    return found


@uses("sdar16", "llada")
def test_every_logprob_can_be_computed_from_what_is_returned(engine: Engine) -> None:
    """Tokens behind the end are context of those before it. Without them it differs by
    up to two nats."""
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)[:6]
    length = {} if engine.spec.block else {"dllm_block_length": BLOCK}
    requests = []
    for number, case in enumerate(cases):
        fields = {"dllm_algorithm": "threshold", "dllm_threshold": 0.02, **length}
        sampling = {"extra_args": {**fields, **TRACE}, "logprobs": 0, "max_tokens": 21}
        if number % 2:
            sampling |= {"temperature": 1.0, "seed": number}
        if number == 4:
            sampling["stop_token_ids"] = [case.tokens[5]]
        requests.append((case, sampling))
    behind = []
    for (case, _), output in zip(requests, engine.ask_each(requests), strict=True):
        answer = tokens_of(output)
        logprobs = zip(answer, output.outputs[0].logprobs, strict=True)
        said = [position[token].logprob for token, position in logprobs]
        told = output.kv_transfer_params
        expected = recomputed(engine.spec, case.prompt, answer, told, 21)
        assert torch.allclose(torch.tensor(said), torch.tensor(expected), atol=1e-4)
        behind += told["dllm_rest"]["token_ids"]
    assert len(behind) > 12 and -1 in behind and set(behind) != {-1}


@uses_server("sdar16")
async def test_a_roll_out_over_http_has_all_that_a_trainer_needs(
    server: Server,
) -> None:
    """Tokens, logprobs, steps and versions that come from several requests are not of
    one answer."""
    cases = golden_cases(server.spec.checkpoint, server.spec.block)[:6]
    fields = {"dllm_algorithm": "threshold", "dllm_threshold": 0.02, **TRACE}
    sampling = {"max_tokens": 21, "temperature": 1.0, "logprobs": 0, "seed": 3}
    sampling |= {"ignore_eos": True, "extra_args": fields}

    async def ask(case: Case) -> Any:
        body = {"token_ids": case.prompt, "sampling_params": sampling}
        response = await http.post("/inference/v1/generate", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        answers = await asyncio.gather(*map(ask, cases))
        bad = {"token_ids": [9], "sampling_params": {"extra_args": {"dllm_steps": 0}}}
        refused = await http.post("/inference/v1/generate", json=bad)
    assert refused.status_code == 400 and "dllm_steps=0" in refused.text
    for case, answer in zip(cases, answers, strict=True):
        [choice] = answer["choices"]
        tokens, told = choice["token_ids"], answer["kv_transfer_params"]
        said = [position["logprob"] for position in choice["logprobs"]["content"]]
        expected = recomputed(server.spec, case.prompt, tokens, told, 21)
        assert torch.allclose(torch.tensor(said), torch.tensor(expected), atol=1e-4)
        spans = [{"version": "default", "start": 0, "end": 21}]
        assert choice["weight_versions"] == spans
        assert 1 <= answer["usage"]["nfe"] <= 40 and answer["metrics"] is None


@uses("sdar16")
def test_step_maps_count_from_one(engine: Engine) -> None:
    """Clients of another server read them so."""
    case = golden_cases(engine.spec.checkpoint, engine.spec.block)[0]
    fields = {**case.fields, "dllm_return_step_maps": True}
    both = fields | {"dllm_return_trajectory": True}
    alone, two = engine.ask_each(
        [(case, {"extra_args": fields}), (case, {"extra_args": both})]
    )
    trajectory = two.kv_transfer_params["dllm_trajectory"]
    assert two.kv_transfer_params["step_maps"] == [step + 1 for step in trajectory]
    assert alone.kv_transfer_params == {
        "step_maps": two.kv_transfer_params["step_maps"]
    }
