"""Bodies that every server must refuse, naming what is wrong."""

from typing import Any

from tools.mix.kinds import CHAT, COMPLETIONS, GENERATE

PROMPT = {"prompt": "a", "max_tokens": 4}
BAD: tuple[tuple[str, dict[str, Any], str], ...] = (
    (COMPLETIONS, PROMPT | {"dllm_threshold": 7}, "dllm_threshold"),
    (COMPLETIONS, PROMPT | {"dllm_algorithm": "nobody's"}, "nobody's"),
    (COMPLETIONS, PROMPT | {"dllm_unknown": 1}, "dllm_unknown"),
    (COMPLETIONS, PROMPT | {"steps": 0}, "dllm_steps"),
    (COMPLETIONS, PROMPT | {"max_tokens": -1}, "max_tokens"),
    (COMPLETIONS, PROMPT | {"temperature": -1}, "temperature"),
    (COMPLETIONS, PROMPT | {"prompt_logprobs": 1}, "prompt_logprobs"),
    (COMPLETIONS, PROMPT | {"structured_outputs": {"regex": "("}}, "regex"),
    (CHAT, {"messages": [], "max_tokens": 4}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "content"),
    (GENERATE, {"text": "a", "prompt": "b"}, "prompt, text and input_ids"),
    (GENERATE, PROMPT | {"stream_mode": "denoise"}, "stream_mode"),
    (GENERATE, PROMPT | {"n": 2}, "n=2"),
    ("/v1/decisions", {"prompt": "a", "labels": ["b"]}, "/v1/decisions|labels|stream"),
)
"""Route, body, and a part of the answer (or another one, behind a bar)."""


def is_refused(status: int, said: str, part: str) -> bool:
    """Whether it is a 400. vLLM reads a grammar when a stream has begun."""
    is_400 = status == 400 or (status == 200 and '"code": 400' in said)
    return is_400 and any(word in said for word in part.split("|"))
