"""Requests with anything in them, and the way of a request into the engine.

Values are mostly those that somebody may mean, and otherwise at the ends of what a
number, a list or a text can be.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from random import Random
from typing import Any

from vllm.entrypoints.openai.completion import serving
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.serve.exception_handling.error_response import (
    create_error_response,
)
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tests.engine_config import engine_config
from vllm_dllm import plugin
from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.registry import ALIASES, NAMES, RULES, get_rule
from vllm_dllm.params import BUFFER_FIELDS, NUMERIC_FIELDS

MAX_LEN, VOCAB = 64, 256

INFINITY, NAN = float("inf"), float("nan")
ODD_NUMBERS = [0.0, -0.0, 1.0, 1e-45, 1e-40, 5e-324, 1e-6, 1e6, 1e39, 1e308, -1.0]
ODD_NUMBERS += [INFINITY, -INFINITY, NAN, 2.0, 100.0, -1e39, 10**30]
ODD_COUNTS = [0, 1, -1, 64, 4096, 4097, 10**6, 10**6 + 1, 2**31, 2**63 - 1, 2**63]
ODD_COUNTS += [2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30]
ODD_VALUES = [None, True, False, "", "0.5", "x" * 1000, [], [1], {}, {"a": 1}]

Value = Callable[[Random], Any]
"""Makes a value."""


def one_of(*values: Any) -> Value:
    return lambda rng: rng.choice(values)


def integer(low: int, high: int) -> Value:
    return lambda rng: rng.randint(low, high)


def number(low: float, high: float) -> Value:
    """Of a range that ends are as likely as all that is between."""
    return lambda rng: rng.choice([rng.uniform(low, high), rng.choice(ODD_NUMBERS)])


def several(value: Value, most: int, least: int = 0) -> Value:
    return lambda rng: [value(rng) for _ in range(rng.randint(least, most))]


def mostly(usual: Value, odd: list[Any], others: list[Any] = ODD_VALUES) -> Value:
    odds = [*odd, *others]

    def value(rng: Random) -> Any:
        return rng.choice(odds) if odds and rng.random() < 0.1 else usual(rng)

    return value


count = mostly(integer(1, 70), ODD_COUNTS)
flag = mostly(one_of(True, False, 0, 1), [2, -1])
token = integer(0, VOCAB - 1)


def a_canvas(rng: Random) -> list[int]:
    return [rng.choice((-1, 3)) for _ in range(rng.randint(1, 20))]


tokens = several(token, 3)

OF_ALL_MODELS = [rule for rule in RULES if "moves" not in get_rule(rule).needs]
OF_RULES: dict[str, Value] = {
    name: count if kind is int else number(0, 1)
    for name, kind in NUMERIC_FIELDS.items()
}
OF_FULL_ATTENTION: dict[str, Value] = {
    "cache": mostly(one_of("none", "prefix", "dual"), ["both"]),
    "cfg_scale": number(0, 3),
    "logits_eos_inf": flag,
    "confidence_eos_eot_inf": flag,
    "suffix_token_ids": mostly(several(token, 20), [[0] * 70, [-1], [256], [2**63]]),
    "canvas_token_ids": mostly(a_canvas, [[0], [-1] * 70, [-2], [256, -1], [2**63]]),
    "delimiter_ids": mostly(several(token, 4), [[0] * 300, [-1], [256], [2**63]]),
    "block_length": count,
}
OF_ALL: dict[str, Value] = {
    "max_nfe": count,
    "adaptive": flag,
    "return_trajectory": flag,
    "return_step_maps": flag,
    "return_rest": flag,
    "stream_drafts": flag,
}
OF_OTHERS: dict[str, Value] = {
    "steps": count,
    "num_denoising_steps": count,
    "threshold": number(0, 1),
    "accept_threshold": number(0, 1),
    "factor": number(0, 1),
    "block_length": count,
    "alg_temp": number(0, 1),
    "cfg_scale": number(0, 1),
    "remasking": mostly(one_of("low_confidence", "random"), ["x"]),
    "use_local_leap": flag,
    "use_cache": flag,
    "use_dual_cache": flag,
    "suffix": one_of("", "a", "b" * 70),
}


def of_vllm(others: list[Any]) -> dict[str, Value]:
    """vLLM's own fields, whose values may also be `others`."""
    usual: dict[str, tuple[Value, list[Any]]] = {
        "temperature": (number(0, 2), []),
        "top_p": (number(0.01, 1), []),
        "top_k": (integer(-1, 300), ODD_COUNTS),
        "min_p": (number(0, 1), []),
        "seed": (integer(0, 70), ODD_COUNTS),
        "n": (integer(1, 3), ODD_COUNTS),
        "presence_penalty": (number(-2, 2), []),
        "frequency_penalty": (number(-2, 2), []),
        "repetition_penalty": (number(0.1, 3), []),
        "bad_words": (several(one_of("a", "b c", " ab", "c"), 4), [[""]]),
        "allowed_token_ids": (several(token, 4, 1), [[256], [], [255]]),
        "stop_token_ids": (tokens, [[256], [-1], [*range(VOCAB)], [*range(VOCAB)]]),
        "min_tokens": (integer(0, 20), ODD_COUNTS),
        "max_tokens": (integer(1, 40), ODD_COUNTS),
        "logprobs": (integer(0, 20), ODD_COUNTS),
        "ignore_eos": (one_of(True, False), []),
        "prompt_logprobs": (one_of(None), [0, 1, -1]),
    }
    return {name: mostly(value, odd, others) for name, (value, odd) in usual.items()}


def biases(rng: Random) -> dict[int, float]:
    return {rng.randint(0, VOCAB - 1): number(-100, 100)(rng) for _ in range(2)}


def biases_over_http(rng: Random) -> dict[str, float]:
    return {str(token): bias for token, bias in biases(rng).items()}


OVER_HTTP = of_vllm(ODD_VALUES) | {
    "echo": flag,
    "logit_bias": mostly(biases_over_http, [{"a": 1.0}, {"256": 1.0}]),
}
OFFLINE = of_vllm([]) | {"logit_bias": biases}
"""Of the right types: Python's callers have no validator for them but their own."""


def some(rng: Random, fields: dict[str, Value], most: int) -> dict[str, Any]:
    """A few of the fields, each with a value."""
    names = rng.sample([*fields], min(rng.randint(0, most), len(fields)))
    return {name: fields[name](rng) for name in names}


def own_fields(rng: Random, full_attention: bool) -> dict[str, Any]:
    """`dllm_*` fields, mostly those that the rule uses."""
    rules = [*(NAMES if full_attention else RULES), *ALIASES]
    if full_attention:
        rules.remove("dmax")
    rule = rng.choice(rules)
    fields: dict[str, Any] = {"algorithm": rule}
    used = sorted(get_rule(ALIASES.get(rule, rule)).parameters)
    known = OF_RULES | OF_FULL_ATTENTION
    fields |= some(rng, {name: known[name] for name in used}, 3)
    fields |= some(rng, OF_ALL, 1)
    if full_attention:
        fields |= some(rng, OF_FULL_ATTENTION, 3)
    if rng.random() < 0.05:
        fields |= some(rng, OF_RULES | OF_FULL_ATTENTION, 1)
    return {f"dllm_{name}": value for name, value in fields.items()}


def a_body(rng: Random, full_attention: bool) -> dict[str, Any]:
    """That of a request to `/v1/completions`."""
    body = some(rng, OVER_HTTP, 4)
    kind = rng.choice(["plain", "body", "xargs", "others"])
    if kind == "body":
        body |= own_fields(rng, full_attention)
    elif kind == "xargs":
        body["vllm_xargs"] = own_fields(rng, full_attention)
    elif kind == "others":
        body |= some(rng, OF_OTHERS, 3)
    return body


def params_fields(rng: Random, full_attention: bool) -> dict[str, Any]:
    """Those of `SamplingParams`."""
    return some(rng, OFFLINE, 4) | {"extra_args": own_fields(rng, full_attention)}


class Refused(Exception):
    """The request was refused, in a way that a client is told of."""


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the server answers with a 400 into `Refused`."""
    try:
        yield
    except Exception as error:
        if create_error_response(error).error.code != 400:
            raise
        raise Refused(str(error)) from error


class Door:
    """The way of a request into the engine, up to what the engine core is sent."""

    def __init__(self, model: str) -> None:
        plugin.register()
        vllm_config = engine_config(model, max_model_len=MAX_LEN, max_num_seqs=8)
        self.config = DllmConfig.of(vllm_config.model_config)
        self.defaults = vllm_config.model_config.get_diff_sampling_param()
        self.processor = InputProcessor(vllm_config)

    def over_http(self, body: dict[str, Any], prompt: list[int]) -> SamplingParams:
        """As vLLM's completion handler does it. Raises Refused."""
        with refusals():
            request = CompletionRequest(prompt=prompt, **body)
            max_tokens = serving.get_max_tokens(
                MAX_LEN, request.max_tokens, len(prompt), self.defaults
            )
            params = request.to_sampling_params(max_tokens, self.defaults)
        return self._enter(params, prompt)

    def offline(self, fields: dict[str, Any], prompt: list[int]) -> SamplingParams:
        """As `LLM.generate` does it. Raises Refused."""
        with refusals():
            params = SamplingParams(**fields)
        return self._enter(params, prompt)

    def _enter(self, params: SamplingParams, prompt: list[int]) -> SamplingParams:
        """What the worker gets; of several children the last, whose seed is the
        largest."""
        with refusals():
            request = self.processor.process_inputs(
                "a", {"prompt_token_ids": prompt}, params, ("generate",)
            )
            self.processor.assign_request_id(request)
            assert request.sampling_params is not None
            if (n := request.sampling_params.n) > 1:
                parent = ParentRequest(request)
                request.sampling_params = parent.get_child_info(n - 1)[1]
            sent = MsgpackEncoder().encode(request)
        arrived = MsgpackDecoder(EngineCoreRequest).decode(sent)
        return arrived.sampling_params


@cache
def door(model: str) -> Door:
    return Door(model)


def one_oddity_each(full_attention: bool) -> list[dict[str, Any]]:
    """`SamplingParams` with a single value at an end of what it can be."""
    asked: list[dict[str, Any]] = []
    for name, kind in NUMERIC_FIELDS.items():
        # Of several rules the last is one of Dream's, whose steps are a table.
        rules = [rule for rule in OF_ALL_MODELS if name in get_rule(rule).parameters]
        rule = rules[-1] if rules else "threshold"
        for value in ODD_COUNTS if kind is int else ODD_NUMBERS:
            own = {"dllm_algorithm": rule, f"dllm_{name}": value}
            if name in BUFFER_FIELDS:
                own["dllm_buffer_size"] = 4
            asked.append({"extra_args": own})
    if full_attention:
        odds = {"cfg_scale": ODD_NUMBERS, "block_length": ODD_COUNTS}
        odds |= {"suffix_token_ids": [[0] * n for n in (1, 20, 70)]}
        for name, values in odds.items():
            asked += [{"extra_args": {f"dllm_{name}": value}} for value in values]
    drawn = ("temperature", "top_p", "min_p", "repetition_penalty")
    counted = ("top_k", "seed", "n", "min_tokens", "max_tokens", "logprobs")
    for name in (*drawn, "presence_penalty", "frequency_penalty"):
        asked += [{"temperature": 1.0, name: value} for value in ODD_NUMBERS]
    for name in counted:
        asked += [{"max_tokens": None, name: value} for value in ODD_COUNTS]
    asked += [{"logit_bias": {3: value}} for value in ODD_NUMBERS]
    ends = {"stop_token_ids": [*range(VOCAB)], "max_tokens": None}
    asked += [{**ends, "min_tokens": tokens} for tokens in (1, 10**6, 2**63)]
    return asked


def ask(way_in: Door, rng: Random, prompt: list[int]) -> SamplingParams:
    """A request by one of the two ways. Raises Refused."""
    full_attention = way_in.config.facts.full_attention
    if rng.random() < 0.5:
        return way_in.over_http(a_body(rng, full_attention), prompt)
    return way_in.offline(params_fields(rng, full_attention), prompt)
