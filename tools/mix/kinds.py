"""The kinds of request of the mixed load, each drawn from a number."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """What a server is, and what it said that it can do."""

    texts: Callable[[random.Random], str]
    """Questions in words that its tokenizer has."""
    words: tuple[str, ...]
    """For grammars and labels: whatever part of one a token is, others go on."""
    models: tuple[str, ...]
    """Its own name, then those of its adapters."""
    rules: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """Of `KINDS`, those that it does not refuse."""


@dataclass(frozen=True)
class Asked:
    kind: str
    path: str
    body: Body
    repeats: bool = True
    """Whether the answer is the same each time."""
    streams: bool = True
    """Whether it may be streamed."""


CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/v1/generate"
RULES: dict[str, tuple[str, tuple[float, ...]]] = {
    "threshold": ("threshold", (0.3, 0.6, 0.95)),
    "low_confidence": ("steps", (8, 16, 32)),
    "random": ("steps", (16, 32)),
    "factor": ("factor", (0.5, 1.0)),
    "entropy_bounded": ("entropy_bound", (0.1, 0.5)),
    "entropy_threshold": ("entropy_threshold", (0.1, 0.5)),
    "joint_threshold": ("edit_threshold", (0.5, 0.9)),
    "local_leap": ("local_leap_radius", (2, 6)),
    "maskgit_plus": ("alg_temp", (0, 0.5)),
}
"""A parameter of some rules, and its values."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "result": {"type": "integer"},
        "kind": {"enum": ["sum", "list"]},
    },
    "required": ["name", "result", "kind"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}


def common(rng: random.Random, served: Served, rules: bool = True) -> Body:
    """Model, length, sampling and rule of any request."""
    body: Body = {"model": rng.choice(served.models), "temperature": 0}
    body |= {"max_tokens": rng.randint(1, 48), "ignore_eos": rng.random() < 0.4}
    # Some rules draw positions, whatever the temperature.
    body["seed"] = rng.randint(0, 9)
    if rng.random() < 0.4:
        body["temperature"] = rng.choice((0.5, 1.0))
        body |= {"top_p": rng.choice((0.7, 1.0)), "top_k": rng.choice((-1, 20))}
    if rules and rng.random() < 0.8:
        rule = rng.choice(served.rules)
        body["dllm_algorithm"] = rule
        if rule in RULES and rng.random() < 0.7:
            name, values = RULES[rule]
            body[f"dllm_{name}"] = rng.choice(values)
    return body


def text(rng: random.Random, served: Served) -> str:
    """A question behind one of few beginnings, so that prompts share prefixes."""
    shared = random.Random(rng.randint(0, 3))
    beginning = [served.texts(shared) for _ in range(shared.choice((0, 2, 4, 8)))]
    return " ".join([*beginning, served.texts(rng)])


def completion(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served) | {"prompt": text(rng, served)}
    if body["temperature"] and rng.random() < 0.3:
        body["n"] = 2
    more: list[Body] = [{"logprobs": 3}, {"stop": ["4"]}, {"presence_penalty": 0.5}]
    more += [{"repetition_penalty": 1.1}, {"min_tokens": 1}, {}, {}, {}]
    return Asked("completion", COMPLETIONS, body | rng.choice(more))


def chat(rng: random.Random, served: Served) -> Asked:
    return Asked("chat", CHAT, common(rng, served) | messages(rng, served))


def messages(rng: random.Random, served: Served) -> Body:
    return {"messages": [{"role": "user", "content": text(rng, served)}]}


def effort(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False) | messages(rng, served)
    body["reasoning_effort"] = rng.choice(("none", "low", "medium", "high"))
    return Asked("effort", CHAT, body)


def generate(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served) | {"prompt": text(rng, served)}
    return Asked("generate", GENERATE, body | {"return_step_maps": rng.random() < 0.3})


def drafts(rng: random.Random, served: Served) -> Asked:
    asked = rng.choice((completion, chat, generate))(rng, served)
    body = {**asked.body, "stream": True, "stream_mode": "denoise"}
    body.pop("n", None)
    return Asked("drafts", asked.path, body)


def grammar(rng: random.Random, served: Served) -> Asked:
    words = rng.sample(served.words, 4)
    grammars: list[Body] = [{"choice": words}, {"regex": f"({'|'.join(words)})+"}]
    body = common(rng, served, rules=rng.random() < 0.3)
    body |= {"prompt": text(rng, served), "structured_outputs": rng.choice(grammars)}
    return Asked("grammar", COMPLETIONS, body)


def schema(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False) | messages(rng, served)
    json_schema = {"name": "answer", "schema": SCHEMA}
    body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return Asked("schema", CHAT, body)


def tools(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False) | messages(rng, served)
    body |= {"tools": [TOOL], "tool_choice": rng.choice(("auto", "required"))}
    # vLLM's parsers cut a stream elsewhere than a whole answer.
    return Asked("tools", CHAT, body, streams=False)


def decisions(rng: random.Random, served: Served) -> Asked:
    body = {"prompt": text(rng, served), "model": rng.choice(served.models)}
    body["labels"] = rng.sample(served.words, 4)
    return Asked("decisions", "/v1/decisions", body, streams=False)


def gaps(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False)
    body |= {"prompt": [served.texts(rng) for _ in range(3)], "dllm_gaps": [4, 7]}
    body.pop("max_tokens")
    path = rng.choice((COMPLETIONS, GENERATE))
    return Asked("gaps", path, body, streams=False)


def caches(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False) | {"prompt": text(rng, served)}
    body |= {"dllm_cache": rng.choice(("prefix", "dual")), "dllm_block_length": 8}
    return Asked("caches", COMPLETIONS, body)


def guided(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False) | {"prompt": served.texts(rng)}
    return Asked("guided", COMPLETIONS, body | {"dllm_cfg_scale": 1.0})


def infilled(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False) | {"prompt": text(rng, served)}
    return Asked("infilled", COMPLETIONS, body | {"suffix": served.texts(rng)})


def blocks(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False) | {"prompt": text(rng, served)}
    body |= {"dllm_algorithm": "threshold", "dllm_buffer_size": rng.choice((2, 4))}
    return Asked("blocks", COMPLETIONS, body)


def adaptive(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served, rules=False) | {"prompt": text(rng, served)}
    body |= {"dllm_algorithm": "threshold", "dllm_adaptive": True}
    return Asked("adaptive", COMPLETIONS, body, repeats=False)


def unseeded(rng: random.Random, served: Served) -> Asked:
    body = common(rng, served) | {"prompt": text(rng, served), "temperature": 1.0}
    del body["seed"]
    return Asked("unseeded", COMPLETIONS, body, repeats=False)


STRIDE = 7
"""Rules between those that two kinds begin with."""
KINDS: dict[str, Callable[[random.Random, Served], Asked]] = {
    kind.__name__: kind
    for kind in (
        *(completion, chat, effort, generate, drafts, grammar, schema, tools),
        *(decisions, gaps, caches, guided, infilled, blocks, adaptive, unseeded),
    )
}


def drawn(number: int, served: Served) -> Asked:
    """The request of this number. Kinds come in turn, and in each of them the rules,
    from another one on in each: all of them come up early."""
    rng = random.Random(number)
    turn, kind = divmod(number, len(served.kinds))
    rule = served.rules[(turn + STRIDE * kind) % len(served.rules)]
    return KINDS[served.kinds[kind]](rng, replace(served, rules=(rule,)))
