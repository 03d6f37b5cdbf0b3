"""Structured output: a grammar is obeyed, and within it the model has its way."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from vllm.sampling_params import StructuredOutputsParams

from tests.engines import (
    Engine,
    Request,
    sampling_params,
    tokens_of,
    uses,
    uses_server,
)
from tests.full_attention import CACHES
from tests.golden_cases import (
    EOS,
    MASK,
    Case,
    Model,
    golden_cases,
    reference_model,
)
from tests.reference import grammar_runs
from tests.reference.masks import block_causal
from tests.reference.nemotron_generate import causal_but_for
from tests.servers import Server
from vllm_dllm.plans.grid import round_up
from vllm_dllm.report import DEAD_END

pytestmark = pytest.mark.timeout(400)
WORDS = range(10, 20)
"""Tokens of which none is the beginning of another: there is no token w1."""
WHOLE = 32
"""The block of Nemotron-Labs-Diffusion."""
Words = list[list[int]]
"""For each position of an answer the tokens that may stand there."""


def some_words(rng: random.Random, positions: int) -> Words:
    return [rng.sample(WORDS, rng.randint(1, 6)) for _ in range(positions)]


def pattern(words: Words) -> str:
    """The grammar of these answers: token t of a golden checkpoint is the text wt."""
    return "".join(f"({'|'.join(f'w{token}' for token in some)})" for some in words)


ROOM = 24
"""Tokens that an answer may have."""
BLOCK = 7
"""Of models whose requests choose one."""


SHIFTED = ("dream", "diffullama", "fastdllm2")
"""Checkpoints whose row i predicts position i + 1."""
ONE_BY_ONE = ("sequential", "low_confidence", "random")
"""Rules that take one token a step of those that are a choice."""


def request_of(
    case: Case, words: Words, rule: str = "sequential", **sampling: Any
) -> Request:
    fields = {"dllm_block_length": BLOCK} if case.full_attention else {}
    return case, {
        "max_tokens": ROOM,
        "ignore_eos": False,
        "extra_args": {**fields, "dllm_algorithm": rule},
        "structured_outputs": StructuredOutputsParams(regex=pattern(words)),
        **sampling,
    }


def requests_of(
    engine: Engine, count: int, **sampling: Any
) -> list[tuple[Request, Words]]:
    rng = random.Random(count)
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)
    made = []
    for case in rng.sample(cases, count):
        words = some_words(rng, rng.randint(1, 20))
        rule = rng.choice(ONE_BY_ONE)
        made.append((request_of(case, words, rule, **sampling), words))
    return made


def best_answer(
    engine: Engine,
    prompt: list[int],
    words: Words,
    threshold: float = 1.0,
    model: Model | None = None,
) -> tuple[list[int], int]:
    """Tokens and forwards of the reference, or of another model. With the threshold 1,
    from left to right, at each position the best of its words; then the end."""
    model, block = model or reference_model(engine.spec.checkpoint), engine.spec.block
    shift = int(engine.spec.checkpoint.startswith(SHIFTED))
    is_nemotron = engine.spec.checkpoint.startswith("nemotron")
    length = WHOLE if is_nemotron else BLOCK

    def block_end(position: int) -> int:
        if block and not is_nemotron:
            return (position // block + 1) * block
        return len(prompt) + round_up(position - len(prompt) + 1, length)

    def predict(ids: list[int], end: int) -> torch.Tensor:
        whole, args = end, ()
        if is_nemotron:
            start = end - WHOLE
            if len(ids) == start:  # the row before it predicts the first of a block
                with torch.inference_mode():
                    logits = model(torch.tensor(ids), causal_but_for(start, start))
                last = logits.view(start, -1)[-1:]
                return torch.nn.functional.pad(last, (0, 0, 0, WHOLE - 1)).clone()
            args = (causal_but_for(start, end),)
        elif block:
            args = (block_causal(end, block),)
        else:
            whole = len(prompt) + round_up(ROOM, BLOCK)
        canvas = torch.tensor(ids + [MASK] * (whole - len(ids)))
        if engine.spec.checkpoint.startswith("llada2"):
            canvas = canvas.unsqueeze(0)
        with torch.inference_mode():
            logits = model(canvas, *args).view(whole, -1)
        logits = logits[len(ids) - shift : end - shift].clone()
        logits[:, list(WORDS)] += LIKES_WORDS
        return logits

    def is_sure(share: float) -> bool:
        return share > threshold

    return grammar_runs.answer(predict, prompt, words, EOS, MASK, block_end, is_sure)


LIKES_WORDS = 30.0
"""What is added to the words, so that random weights propose them before they must."""
BIAS = dict.fromkeys(WORDS, LIKES_WORDS)


@uses(
    *("sdar4", "sdar4-ahead", "sdar16", "llada32", "llada", "llada-ahead", "dream"),
    *("sdar16-tp2", "sdar16-pp2"),
)
def test_runs_are_those_of_the_reference(engine: Engine) -> None:
    """A token that its rows were not sent for would break a grammar sooner or later,
    one that is not taken costs a forward."""
    made = requests_of(engine, 12, logit_bias=BIAS)
    thresholds = [(0.0, 0.15, 0.3, 0.6)[number % 4] for number in range(len(made))]
    for ((_, sampling), _), threshold in zip(made, thresholds, strict=True):
        fields = {"dllm_algorithm": "threshold", "dllm_threshold": threshold}
        sampling["extra_args"] = sampling["extra_args"] | fields
    plain = golden_cases(engine.spec.checkpoint, engine.spec.block)[:4]
    outputs = engine.ask_each([r for r, _ in made] + [(case, {}) for case in plain])
    answered = [(tokens_of(output), engine.forwards(output)) for output in outputs]
    expected = [
        best_answer(engine, case.prompt, words, threshold)
        for ((case, _), words), threshold in zip(made, thresholds, strict=True)
    ]
    assert answered[: len(made)] == expected
    assert [tokens for tokens, _ in answered[len(made) :]] == [c.tokens for c in plain]
    tokens, forwards = map(sum, zip(*((len(t), f) for t, f in expected), strict=True))
    assert tokens > 1.2 * forwards


@uses(
    "sdar4",
    "sdar16",
    "fastdllm2",
    "nemotron",
    *("llada32", "moving8"),
    *("llada", "dream", "diffullama"),
    "sdar16-tp2",
)
def test_of_what_a_grammar_allows_the_best_is_answered(engine: Engine) -> None:
    """Bits of another request, or for another position, would exclude other tokens;
    and those without a grammar must not notice."""
    made = requests_of(engine, 8)
    plain = golden_cases(engine.spec.checkpoint, engine.spec.block)[:8]
    mixed: list[Request] = []
    for (request, _), case in zip(made, plain, strict=True):
        mixed += [request, (case, {})]
    answers = [tokens_of(output) for output in engine.ask_each(mixed)]
    expected = [best_answer(engine, case.prompt, words)[0] for (case, _), words in made]
    assert answers[::2] == expected
    assert answers[1::2] == [case.tokens for case in plain]


@uses("sdar16-few-pages", "sdar16-tight", "fastdllm2-tight", "llada", "dream")
def test_a_grammar_is_obeyed_after_preemption(engine: Engine) -> None:
    """A block that is begun again, or a step that decides nothing, has no bits of its
    own."""
    made = requests_of(engine, 12)
    outputs = engine.ask_preempting([request for request, _ in made], every=3)
    expected = [best_answer(engine, case.prompt, words)[0] for (case, _), words in made]
    assert [tokens_of(output) for output in outputs] == expected


@uses("sdar16-few-pages", "sdar16-tight", "llada", "dream", "sdar16-pp2")
def test_preemption_does_not_change_runs(engine: Engine) -> None:
    """What was proposed before it would be lost, and with it the order of an answer."""
    made = requests_of(engine, 12, logit_bias=BIAS, temperature=1.0, seed=5, logprobs=2)
    for (case, sampling), _ in made:
        rule = "threshold" if case.prompt[0] % 2 else "entropy_bounded"
        sampling["extra_args"] = sampling["extra_args"] | {"dllm_algorithm": rule}
    requests = [request for request, _ in made]
    whole, cut = engine.ask_each(requests), engine.ask_preempting(requests, every=2)
    for first, second, (_, words) in zip(whole, cut, made, strict=True):
        tokens = tokens_of(first)
        assert tokens_of(second) == tokens
        assert len(tokens) == len(words) + 1 and tokens[-1] == EOS
        logprobs = first.outputs[0].logprobs
        for token, some, said in zip(tokens, words, logprobs[:-1], strict=False):
            likely = {other for other, p in said.items() if p.logprob > -1e4}
            assert token in some and likely <= set(some)
            assert (said[token].logprob == 0) == (len(some) == 1)


@uses("sdar16")
def test_a_grammar_is_obeyed_behind_a_shared_prefix(engine: Engine) -> None:
    """A run of the first step would begin where the cached tokens end."""
    rule = {"dllm_algorithm": "threshold", "dllm_threshold": 0.15}
    made: list[tuple[Request, Words]] = []
    for (case, sampling), words in requests_of(engine, 8, logit_bias=BIAS):
        long = replace(case, prompt=(case.prompt * 70)[:70])
        made.append(((long, {**sampling, "extra_args": rule}), words))
    requests = [request for request, _ in made]
    first = [*map(tokens_of, engine.ask_each(requests))]
    hits = engine.counter("prefix_cache_hits")
    again = engine.ask_each(requests)
    assert engine.counter("prefix_cache_hits") > hits
    told = [(tokens_of(output), engine.forwards(output)) for output in again]
    expected = [best_answer(engine, c.prompt, words, 0.15) for (c, _), words in made]
    assert told == expected and first == [tokens for tokens, _ in expected]


@uses("llada", "dream")
@pytest.mark.parametrize("cache", CACHES)
def test_a_grammar_is_obeyed_with_every_cache(engine: Engine, cache: str) -> None:
    """Rows of logits lie elsewhere in a step that forwards a block alone."""
    fields = {"dllm_cache": cache, "dllm_block_length": 5, "dllm_cfg_scale": 0.5}
    made = requests_of(engine, 12, extra_args=fields, temperature=1.0)
    outputs = engine.ask_each([request for request, _ in made])
    for output, (_, words) in zip(outputs, made, strict=True):
        *answer, end = tokens_of(output)
        assert end == EOS and len(answer) == len(words)
        for token, some in zip(answer, words, strict=True):
            assert token in some


NOT_FROM_THE_LEFT = {
    "llada-pub0": ("d2f", "adablock", "d3llm"),
    "dream-pub0": ("d2f", "adablock", "d3llm"),
    "llada22-pub1": ("joint_threshold_indel",),
}
"""Rules that revise, or have blocks of their own."""


@uses("llada", "dream", "moving8")
def test_a_rule_that_cannot_go_from_the_left_obeys_a_grammar(engine: Engine) -> None:
    """What it would write behind a mask, or take back, the grammar has not seen."""
    names = ("threshold", *NOT_FROM_THE_LEFT[engine.spec.checkpoint])
    made = requests_of(engine, 6, logit_bias=BIAS, temperature=1.0, seed=3)
    requests = [
        request_of(case, words, rule, logit_bias=BIAS, temperature=1.0, seed=3)
        for (case, _), words in made
        for rule in names
    ]
    answers = [tokens_of(output) for output in engine.ask_each(requests)]
    for number, (_, words) in enumerate(made):
        first, *others = answers[number * len(names) :][: len(names)]
        assert len(first) == len(words) + 1 and first[-1] == EOS
        assert all(token in some for token, some in zip(first, words, strict=False))
        assert others == [first] * len(others)


@uses("sdar4", "llada")
@pytest.mark.parametrize(
    "bans",
    [
        {"min_tokens": 9},
        {"allowed_token_ids": [5, 6]},
        {"bad_words": [f"w{token}" for token in WORDS]},
        {"logit_bias": {EOS: -100.0}},
        {"min_tokens": 9, "allowed_token_ids": [5, 6], "temperature": 1.0},
    ],
)
def test_a_grammar_comes_before_bans(engine: Engine, bans: dict[str, Any]) -> None:
    """Where nothing is left to choose, what is chosen breaks the grammar or nothing is
    ever written."""
    case = golden_cases(engine.spec.checkpoint, engine.spec.block)[0]
    words = [[11], [12, 13], [14]]
    [output] = engine.ask_each([request_of(case, words, **bans)])
    assert tokens_of(output) in ([11, 12, 14, EOS], [11, 13, 14, EOS])


@uses("sdar4")
def test_bans_choose_among_what_a_grammar_allows(engine: Engine) -> None:
    """They are lifted only where they leave nothing."""
    case = golden_cases(engine.spec.checkpoint, engine.spec.block)[0]
    words = [[11, 12, 13]] * 6
    requests = [
        request_of(case, words, allowed_token_ids=[12, EOS]),
        request_of(case, words, logit_bias={13: 100.0}),
        request_of(case, words, bad_words=["w11", "w12"]),
    ]
    answers = [tokens_of(output) for output in engine.ask_each(requests)]
    assert answers == [[token] * 6 + [EOS] for token in (12, 13, 13)]


@uses("sdar4")
def test_only_a_grammar_without_an_answer_is_told_as_one(engine: Engine) -> None:
    """Whatever else ends a request with an error is no fault of the request."""
    [case, *_] = golden_cases(engine.spec.checkpoint, engine.spec.block)
    possible, hopeless = "(w11|w12){20}", "{}"
    params = [
        StructuredOutputsParams(**grammar)
        for grammar in ({"json": hopeless}, {"regex": possible}, {"regex": possible})
    ]
    core, ended = engine.llm.llm_engine, dict[str, Any]()
    scheduler = core.engine_core.engine_core.scheduler
    names = ["hopeless", "failed", "possible"]
    for name, grammar in zip(names, params, strict=True):
        sampling = {**request_of(case, [])[1], "structured_outputs": grammar}
        prompt = {"prompt_token_ids": case.prompt}
        core.add_request(name, prompt, sampling_params(case, sampling))
    while core.has_unfinished_requests():
        ended |= {o.request_id: o.outputs[0] for o in core.step() if o.finished}
        # As vLLM ends a request whose images it has lost.
        scheduler.encoder_cache_mismatch_reqs |= {
            request.request_id
            for request in scheduler.running
            if request.request_id.startswith("failed")
        }
    told = [(ended[name].finish_reason, ended[name].stop_reason) for name in names]
    assert told[:2] == [("error", DEAD_END), ("error", None)]
    assert told[2] == ("stop", None)


@uses_server("sdar16", "llada")
async def test_a_grammar_that_no_token_can_follow_ends_its_request_alone(
    server: Server,
) -> None:
    """The vocabulary has no brace. Without a token to choose the request would go on
    for ever, or take the engine with it; and the client would look for a fault of the
    server, when it is the schema's, or of stop tokens that the answer needs."""
    [case, *_] = golden_cases(server.spec.checkpoint, server.spec.block)
    plain = {
        "model": Server.MODEL,
        "prompt": case.prompt,
        "max_tokens": case.gen_length,
        "temperature": 0,
        "ignore_eos": case.ignore_eos,
        "return_token_ids": True,
        "vllm_xargs": case.fields,
    }
    hopeless = {
        "model": Server.MODEL,
        "prompt": [9],
        "structured_outputs": {"json": "{}"},
    }
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        needed = {"structured_outputs": {"regex": "w9w9"}, "stop_token_ids": [9]}
        bodies = [plain, hopeless, plain, {**hopeless, **needed}]
        answers = await asyncio.gather(
            *[http.post("/v1/completions", json=body) for body in bodies]
        )
        streamed = {"json": {**hopeless, "stream": True}}
        told = (await http.post("/v1/completions", **streamed)).text
    for answer in answers[1::2]:
        assert answer.status_code == 400
    for text in (answers[1].text, answers[3].text, told):
        assert "structured_outputs cannot be followed to an end" in text
    assert '"code": 400' in told
    for answer in answers[:3:2]:
        assert answer.json()["choices"][0]["token_ids"] == case.tokens
    assert not server.held()
