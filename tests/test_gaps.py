"""Several gaps between given tokens, filled in one canvas."""

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.engines import Engine, tokens_of, uses, uses_server
from tests.full_attention import BOTH, CACHES, failures, gap_cases
from tests.golden_cases import MASK, Case, differences
from tests.servers import Server

pytestmark = pytest.mark.timeout(400)


@uses(*BOTH, "llada-tp2")
def test_gaps_are_filled_as_by_the_reference(engine: Engine) -> None:
    """Each step must find the given tokens of its block and of all others, guided or
    not; a neighbour without gaps must not."""
    assert failures(engine, gap_cases(engine)) == []


@uses(*BOTH)
def test_gaps_depend_on_what_is_given_behind_them(engine: Engine) -> None:
    """The test above would pass with a reference that reads none of it either."""
    cases = [case for case in gap_cases(engine) if case.canvas]
    open_ended = [replace(case, canvas=[-1] * case.gen_length) for case in cases]
    changed = set()
    for case, filled, free in zip(
        cases, engine.answers(cases), engine.answers(open_ended), strict=True
    ):
        gaps = [i for i, token in enumerate(case.canvas) if token < 0]
        if any(filled[i] != free[i] for i in gaps):
            changed.add((case.cache, bool(case.cfg_scale)))
    assert changed == {(cache, guided) for cache in CACHES for guided in (True, False)}


@uses(*BOTH)
def test_gaps_are_filled_alike_after_preemptions(engine: Engine) -> None:
    """What was given of a canvas is not among the tokens that vLLM keeps."""
    cases = [case.answered() for case in gap_cases(engine)]
    outputs = engine.ask_preempting([(case, {}) for case in cases], every=2)
    preempted = [
        bool(case.canvas)
        for case, output in zip(cases, outputs, strict=True)
        if output.metrics.num_preemptions > 1
    ]
    assert set(preempted) == {True, False}
    assert differences(cases, [tokens_of(output) for output in outputs]) == []


# Over HTTP

PIECES, GAPS = ["w12 w13", " w14 w15", " w16"], [4, 3]
HEAD, MIDDLE, TAIL = [12, 13], [14, 15], [16]
CANVAS = [-1] * 4 + MIDDLE + [-1] * 3 + TAIL
COMPLETIONS = "/v1/completions"


def body_of(**fields: Any) -> dict[str, Any]:
    return {"model": Server.MODEL, "temperature": 0, **fields}


def marked(*pieces: str) -> str:
    """The pieces with gaps marked between them."""
    gaps = ["<|mask|>" * length for length in GAPS]
    return pieces[0] + gaps[0] + pieces[1] + gaps[1] + pieces[2]


def reference_of(server: Server) -> tuple[Case, list[list[int]]]:
    """A request to the server and what fills its gaps."""
    case = Case(
        server.spec.checkpoint, HEAD, 9, None, "maskgit_plus", steps=7, canvas=CANVAS
    )
    if server.spec.checkpoint == "llada-pub0":
        case = replace(case, algorithm="low_confidence", block_length=4, steps=None)
    tokens = case.answered().tokens
    assert tokens is not None
    return case, [tokens[:4], tokens[6:]]


@uses_server(*BOTH)
def test_gaps_are_told_in_several_ways(server: Server) -> None:
    """However they are marked, they mean the same, and the answer has each of them and
    the whole text."""
    case, expected = reference_of(server)
    rule = {"algorithm": case.algorithm, "block_length": case.block_length}
    ids = [*HEAD, *[MASK] * 4, *MIDDLE, *[MASK] * 3, *TAIL]
    whole = [*HEAD, *expected[0], *MIDDLE, *expected[1], *TAIL]
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for fields in (
            {"prompt": PIECES, "dllm_gaps": GAPS},
            {"prompt": [HEAD, MIDDLE, TAIL], "dllm_gaps": GAPS, "max_tokens": 7},
            {"prompt": marked(*PIECES), "dllm_fill_masks": True, "echo": True},
            {"prompt": ids, "vllm_xargs": {"dllm_fill_masks": True}},
        ):
            body = body_of(**fields, **rule, return_token_ids=True)
            answer = http.post(COMPLETIONS, json=body).json()
            [choice] = answer["choices"]
            gaps = choice["dllm_gaps"]
            assert [gap["token_ids"] for gap in gaps] == expected
            assert choice["token_ids"] == whole
            assert choice["text"].split() == [f"w{token}" for token in whole]
            assert all(gap["text"].strip() in choice["text"] for gap in gaps)
            usage = answer["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 7)
            assert usage["tokens_per_forward"] == round(7 / usage["nfe"], 3)


@uses_server(*BOTH)
def test_an_ending_gap_needs_no_piece_behind_it(server: Server) -> None:
    """Every prompt would have to end with text."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        body = body_of(prompt=PIECES[:2], dllm_gaps=GAPS)
        short = http.post(COMPLETIONS, json=body).json()["choices"]
        body = body_of(prompt=[*PIECES[:2], ""], dllm_gaps=GAPS)
        empty = http.post(COMPLETIONS, json=body).json()["choices"]
    assert short == empty
    assert [len(gap["token_ids"]) for gap in short[0]["dllm_gaps"]] == GAPS


@uses_server("llada")
def test_gaps_side_by_side_are_told_one_by_one(server: Server) -> None:
    """A client that asked for two would read the wrong one, or none."""
    with httpx.Client(base_url=server.url, timeout=60) as http:

        def filled(pieces: list[str], lengths: list[int]) -> Any:
            fields = {"prompt": pieces, "dllm_gaps": lengths, "logprobs": 1}
            answer = http.post(COMPLETIONS, json=body_of(**fields)).json()
            return answer["choices"][0]

        one = filled(["w12", "w13"], [5])
        two = filled(["w12", "", "w13"], [2, 3])
        off = body_of(prompt="w12", max_tokens=2, dllm_fill_masks=False)
        assert http.post(COMPLETIONS, json=off).is_success
    assert two["text"] == one["text"]
    tokens = [gap["token_ids"] for gap in two["dllm_gaps"]]
    assert [len(ids) for ids in tokens] == [2, 3]
    assert [*tokens[0], *tokens[1]] == one["dllm_gaps"][0]["token_ids"]
    first, second = (gap["logprobs"]["token_logprobs"] for gap in two["dllm_gaps"])
    assert first + second == one["dllm_gaps"][0]["logprobs"]["token_logprobs"]


@uses_server("llada")
def test_gaps_are_drawn_by_seed_and_told_with_logprobs_and_steps(
    server: Server,
) -> None:
    """Choices are of one seed each, and given tokens have no part in what is told of
    the gaps."""
    fields = {"prompt": PIECES, "dllm_gaps": GAPS, "n": 2, "seed": 5, "logprobs": 2}
    fields |= {"temperature": 1.0, "dllm_block_length": 4}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        first, again, other = (
            http.post(COMPLETIONS, json=body_of(**{**fields, **more})).json()["choices"]
            for more in ({}, {}, {"seed": 6})
        )
        steps = {"n": 1, "return_step_maps": True}
        traced = http.post(COMPLETIONS, json=body_of(**{**fields, **steps})).json()
    assert first == again != other
    assert first[0]["dllm_gaps"] != first[1]["dllm_gaps"]
    for choice in first:
        assert choice["logprobs"] is None
        for gap, length in zip(choice["dllm_gaps"], GAPS, strict=True):
            lists = [gap["token_ids"], *gap["logprobs"].values()]
            assert {len(values) for values in lists} == {length}
            assert all(value < 0 for value in gap["logprobs"]["token_logprobs"])
    step_maps = traced["kv_transfer_params"]["step_maps"]
    assert len(step_maps) == sum(GAPS) and min(step_maps) == 1


@uses_server("llada")
def test_our_own_route_fills_gaps_too(server: Server) -> None:
    """Its answers have another shape, and its prompts other names."""
    case, expected = reference_of(server)
    rule = {"algorithm": case.algorithm, "block_length": case.block_length}
    for fields in (
        {"prompt": PIECES, "sampling_params": {"dllm_gaps": GAPS}},
        {"text": marked(*PIECES), "dllm_fill_masks": True},
    ):
        body = body_of(**fields, **rule, dllm_return_trajectory=True)
        answer = httpx.post(f"{server.url}/v1/generate", json=body, timeout=60).json()
        assert [gap["token_ids"] for gap in answer["dllm_gaps"]] == expected
        assert answer["text"] == answer["full_text"]
        assert len(answer["token_ids"]) == 12
        assert len(answer["dllm_trajectory"]) == 7
        assert answer["usage"]["completion_tokens"] == 7


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"dllm_gaps": 4}, ["dllm_gaps=4", "list"]),
    ({"dllm_gaps": []}, ["dllm_gaps=[]"]),
    ({"dllm_gaps": [4, 0]}, ["dllm_gaps=[4, 0]", "at least 1"]),
    ({"dllm_gaps": [4, True]}, ["True", "at least 1"]),
    ({"dllm_gaps": [4, 1.5]}, ["1.5"]),
    ({"dllm_gaps": [4, 2**70]}, [str(2**70), "1024"]),
    ({"dllm_gaps": [1000, 1000]}, ["1000", "1024"]),
    ({"dllm_gaps": [400, 400], "max_tokens": 800}, ["max_num_batched_tokens", "512"]),
    ({"dllm_gaps": [4]}, ["1 gaps", "3 pieces"]),
    ({"dllm_gaps": [4, 3], "prompt": ["", "w12"]}, ["begins with a gap"]),
    ({"dllm_gaps": [4, 3], "prompt": [[12], [300]]}, ["300", "vocabulary"]),
    ({"dllm_gaps": [4, 3], "dllm_fill_masks": True}, ["dllm_fill_masks", "one of"]),
    ({"dllm_fill_masks": True}, ["3", "allowed: 1"]),
    ({"dllm_fill_masks": True, "prompt": "w12"}, ["no mask", "255"]),
    ({"dllm_fill_masks": "yes", "prompt": "w12"}, ["dllm_fill_masks='yes'"]),
    ({"dllm_gaps": GAPS, "max_tokens": 6}, ["max_tokens=6", "at least 7"]),
    ({"dllm_gaps": GAPS, "stream": True}, ["stream=True", "dllm_gaps"]),
    ({"dllm_gaps": GAPS, "stream": True, "stream_mode": "denoise"}, ["stream=True"]),
    ({"dllm_fill_masks": True, "prompt": "w12<|mask|>", "stream": True}, ["stream="]),
    ({"dllm_gaps": GAPS, "suffix": "w12"}, ["suffix='w12'"]),
    ({"dllm_gaps": GAPS, "dllm_suffix_token_ids": [5]}, ["dllm_suffix_token_ids"]),
    ({"dllm_gaps": GAPS, "stop": ["x"]}, ["stop=['x']"]),
    ({"dllm_gaps": GAPS, "response_format": {"type": "json_object"}}, ["grammar"]),
    ({"dllm_gaps": GAPS, "dllm_algorithm": "adablock"}, ["'adablock'"]),
    ({"dllm_gaps": GAPS, "dllm_algorithm": "d2f"}, ["'d2f'"]),
    ({"dllm_canvas_token_ids": [5, -1, 7], "prompt": "w12"}, ["position 2", "16"]),
    ({"dllm_canvas_token_ids": [5, 7], "prompt": "w12"}, ["no -1"]),
    ({"dllm_canvas_token_ids": [-1, 256], "prompt": "w12"}, ["256", "0 to 255"]),
    ({"dllm_canvas_token_ids": [-2, -1], "prompt": "w12"}, ["dllm_canvas_token_ids"]),
]


@uses_server("llada")
@pytest.mark.parametrize(("fields", "said"), BAD)
def test_bad_gaps_are_refused_by_name(
    server: Server, fields: dict[str, Any], said: list[str]
) -> None:
    """A gap that is misread fills another text, or ends the engine for everyone."""
    for route in (COMPLETIONS, "/v1/generate"):
        body = body_of(**{"prompt": PIECES, "max_tokens": 16, **fields})
        answer = httpx.post(server.url + route, json=body, timeout=60)
        assert answer.status_code == 400, answer.text
        told = json.loads(answer.text)["error"]["message"]
        assert [word for word in said if word not in told] == [], told
    plain = body_of(prompt="w12", max_tokens=2)
    assert httpx.post(server.url + COMPLETIONS, json=plain, timeout=60).is_success


@uses_server("llada")
def test_a_chat_has_no_gaps_of_its_own(server: Server) -> None:
    """A field that is ignored is worse than one that is refused."""
    messages = [{"role": "user", "content": "w12"}]
    body = body_of(messages=messages, dllm_gaps=GAPS)
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400 and "dllm_gaps" in answer.text


@uses_server("sdar16")
def test_a_block_causal_model_fills_no_gaps(server: Server) -> None:
    """Its blocks see nothing of what follows, and an answer would ignore it."""
    for fields in (
        {"prompt": PIECES, "dllm_gaps": GAPS},
        {"prompt": marked(*PIECES), "dllm_fill_masks": True},
        {"prompt": "w12", "dllm_canvas_token_ids": [-1, 5]},
    ):
        answer = httpx.post(
            server.url + COMPLETIONS, json=body_of(**fields), timeout=60
        )
        assert answer.status_code == 400
        assert "block-causal" in answer.text
        assert any(name in answer.text for name in fields if "dllm" in name)
