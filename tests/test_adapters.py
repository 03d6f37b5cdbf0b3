"""LoRA adapters: each request is answered by its own, or by none."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests import test_structured_outputs as structured
from tests.adapters import Adapter, make_adapter
from tests.engines import Engine, OneAtATime, tokens_of, uses
from tests.full_attention import guided_cases
from tests.golden_cases import Case, differences, golden_cases, too_many_forwards
from tests.servers import Server
from tests.specs import EngineSpec

pytestmark = pytest.mark.timeout(400)

HEADS = {
    "sdar-pub1": "lm_head",
    "fastdllm2-pub0": "o_proj",
    "nemotron-pub0": "o_proj",
    "llada-pub0": "ff_out",
    "dream-pub0": "o_proj",
    "wedlm-pub0": "lm_head",
    "diffullama-pub0": "lm_head",
    "adablock-llada-pub0": "ff_out",
    "adablock-dream-pub0": "o_proj",
}
"""The head of a base; vLLM's Qwen2 and Mistral take no adapter of it."""
Asked = tuple[Case, Adapter | None]


class Adapters(dict[str, list[Adapter]]):
    """Three for each base, which is one more than a batch may have; made when asked
    for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, base: str) -> list[Adapter]:
        of_layers = (("q_proj", "v_proj"), ("layers", "blocks"))
        self[base] = [
            make_adapter(self.folder / f"{base}-{number}", base, number, layers)
            for number, layers in enumerate((*of_layers, ("up_proj", HEADS[base])), 1)
        ]
        return self[base]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    return Adapters(tmp_path_factory.mktemp("adapters"))


def dealt(cases: list[Case], adapters: list[Adapter]) -> list[Asked]:
    """The cases with their references' answers: one without an adapter, one with the
    first, and so on; without the few that hang on rounding."""
    hands = [None, *adapters]
    asked = [
        (case.answered(adapter.model if adapter else None), adapter)
        for case, adapter in zip(cases, hands * len(cases), strict=False)
    ]
    settled = [(case, a) for case, a in asked if a is None or a.settles(case)]
    assert len(settled) > 0.8 * len(asked), "rounding decides too much"
    return settled


def requests_of(asked: list[Asked]) -> tuple[list, list]:
    """What engines are asked with: requests, and their adapters."""
    adapters = [adapter.request if adapter else None for _, adapter in asked]
    return [(case, {}) for case, _ in asked], adapters


def ask(engine: Engine, asked: list[Asked]) -> list[str]:
    """What one batch answers other than the references, or in more forwards."""
    requests, adapters = requests_of(asked)
    outputs = engine.ask_each(requests, adapters)
    cases = [case for case, _ in asked]
    wrong = differences(cases, [tokens_of(output) for output in outputs])
    return wrong + too_many_forwards(cases, [engine.forwards(o) for o in outputs])


@uses(
    *("sdar16", "fastdllm2", "nemotron", "llada", "dream", "llada-tp2", "wedlm"),
    *("diffullama", "adablock-llada", "adablock-dream"),
)
def test_a_batch_of_several_adapters(engine: Engine, adapters: Adapters) -> None:
    """An adapter that reaches rows of others, or misses rows of its own."""
    base = engine.spec.checkpoint
    cases = golden_cases(base, engine.spec.block)[::3]
    asked = dealt(cases, adapters[base])
    assert ask(engine, asked) == []
    for one in asked[:8]:
        assert ask(engine, [one]) == []
    plain = {tuple(case.answered().tokens) for case in cases}
    adapted = {tuple(case.tokens) for case, adapter in asked if adapter}
    assert len(adapted & plain) < len(adapted) / 4, "the adapters do too little"


@uses("llada", "dream")
def test_guidance_with_adapters(engine: Engine, adapters: Adapters) -> None:
    """The unconditional branch is rows of the same adapter."""
    asked = dealt(guided_cases(engine), adapters[engine.spec.checkpoint])
    assert ask(engine, asked) == []


@uses("sdar16", "llada")
def test_a_grammar_with_adapters(engine: Engine, adapters: Adapters) -> None:
    """Of what it allows the best would be that of the base, or of a neighbour."""
    made = structured.requests_of(engine, 8)
    hands = [None, *adapters[engine.spec.checkpoint][:2]] * 3
    dealt = [adapter for adapter, _ in zip(hands, made, strict=False)]
    lora = [adapter.request if adapter else None for adapter in dealt]
    outputs = engine.ask_each([request for request, _ in made], lora)
    best = [
        [
            structured.best_answer(engine, case.prompt, words, model=model)[0]
            for ((case, _), words) in made
        ]
        for model in (None, *(adapter.model for adapter in hands[1:3] if adapter))
    ]
    expected = [best[number % 3][number] for number in range(len(made))]
    assert [*map(tokens_of, outputs)] == expected
    assert best[0] != best[1] != best[2]


@uses("sdar16")
def test_pages_of_an_adapter_are_its_own(engine: Engine, adapters: Adapters) -> None:
    """Keys of a prompt depend on the adapter that they were computed with."""
    [case, *_] = golden_cases("sdar-pub1", 16)
    case = replace(case, prompt=(case.prompt * 200)[:200])
    asked = dealt([case] * 4, adapters["sdar-pub1"])
    assert len({tuple(case.tokens) for case, _ in asked}) == 4
    for _ in range(2):
        hits = engine.counter("prefix_cache_hits")
        for one in asked:
            assert ask(engine, [one]) == []
    assert engine.counter("prefix_cache_hits") == hits + 4 * 192
    assert ask(engine, asked) == []


@uses("sdar16", "llada")
def test_preempted_requests_keep_their_adapters(
    engine: Engine, adapters: Adapters
) -> None:
    """A request comes back to another slot, which another adapter had."""
    base = engine.spec.checkpoint
    asked = dealt(golden_cases(base, engine.spec.block)[1::3], adapters[base][:2])
    requests, lora = requests_of(asked)
    outputs = engine.ask_preempting(requests, every=3, adapters=lora)
    cases = [case for case, _ in asked]
    assert differences(cases, [tokens_of(output) for output in outputs]) == []


@pytest.fixture
def adapter_server(
    adapters: Adapters,
    running: OneAtATime,
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    modules = [
        json.dumps({"name": a.request.lora_name, "path": a.request.lora_path})
        for a in adapters["llada-pub0"]
    ]
    options = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
    spec = EngineSpec("llada-pub0", options={**options, "lora_modules": modules})
    return running.server(spec, tmp_path_factory.mktemp("server"))


@pytest.mark.server
async def test_an_adapter_is_a_model_of_the_server(
    adapter_server: Server, adapters: Adapters
) -> None:
    """Clients choose an adapter by its name, as with any model of vLLM."""
    asked = dealt(golden_cases("llada-pub0")[::4], adapters["llada-pub0"])

    async with httpx.AsyncClient(base_url=adapter_server.url, timeout=120) as client:

        async def answer(case: Case, adapter: Adapter | None) -> list[int]:
            body = {
                "model": adapter.request.lora_name if adapter else Server.MODEL,
                "prompt": case.prompt,
                "max_tokens": case.gen_length,
                "temperature": 0,
                "ignore_eos": case.ignore_eos,
                "return_token_ids": True,
                **case.fields,
            }
            response = await client.post("/v1/completions", json=body)
            [choice] = response.raise_for_status().json()["choices"]
            return choice["token_ids"]

        answers = await asyncio.gather(*(answer(*one) for one in asked))
        assert differences([case for case, _ in asked], answers) == []
        listed = (await client.get("/v1/models")).json()["data"]
        names = [a.request.lora_name for a in adapters["llada-pub0"]]
        assert {model["id"] for model in listed} == {Server.MODEL, *names}
        unknown = {"model": "adapter-9", "prompt": "w1", "dllm_steps": 4}
        response = await client.post("/v1/completions", json=unknown)
        assert response.status_code == 404 and "adapter-9" in response.text
    assert adapter_server.held() == {}
