"""What a step allocates does not grow with what a request has behind it."""

from random import Random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.engines import Engine, sampling_params, uses
from tests.golden_cases import Case
from tests.watchdog import watched

pytestmark = pytest.mark.timeout(120)
SHORT, LONG = 40, 800
TOKENS = 24
ASKED = [
    {},
    {"presence_penalty": 0.5, "repetition_penalty": 1.1, "logprobs": 5},
    {"temperature": 0.8, "top_p": 0.9, "seed": 1, "min_tokens": 8},
]
"""Requests that take different ways through the sampler."""


class Allocations(TorchDispatchMode):
    """Keeps the bytes of the largest storage that is made within; what a custom kernel
    takes for itself is not seen."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {storage_of(t) for t in tree_leaves((args, kwargs)) if is_tensor(t)}
        for made in filter(is_tensor, tree_leaves(result)):
            if storage_of(made) not in known:
                size = made.untyped_storage().nbytes()
                self.largest = max(self.largest, size)
        return result


def is_tensor(each: Any) -> bool:
    return isinstance(each, torch.Tensor) and each.device.type == "cpu"


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def largest_of_steps(engine: Engine, length: int) -> tuple[int, int]:
    """Bytes of the largest allocation of steps with a prompt of this length in them,
    and of those after."""
    draw, core = Random(length), engine.llm.llm_engine
    for number, asked in enumerate(ASKED):
        ids = [draw.randrange(5, 250) for _ in range(length)]
        case = Case(engine.spec.checkpoint, ids, TOKENS, engine.spec.block, "threshold")
        params = sampling_params(case, {"ignore_eos": True, **asked})
        core.add_request(f"{length}-{number}", {"prompt_token_ids": ids}, params)
    largest, begun = [0, 0], set[str]()
    with watched(core):
        while core.has_unfinished_requests():
            is_later = len(begun) == len(ASKED)
            with Allocations() as found:
                begun |= {each.request_id for each in core.step()}
            largest[is_later] = max(largest[is_later], found.largest)
    return largest[0], largest[1]


@uses("sdar4", "llada8")
def test_a_step_takes_no_more_behind_a_long_prompt(engine: Engine) -> None:
    """A table of requests, positions and vocabulary, or one of `max_model_len` squared,
    is gone before anybody sees it, and ends a server with long prompts."""
    _, short = largest_of_steps(engine, SHORT)
    with_prompts, later = largest_of_steps(engine, LONG)
    assert 0 < later <= 2 * short
    assert with_prompts < 4 * engine.llm.llm_engine.model_config.max_model_len**2
