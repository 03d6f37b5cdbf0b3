"""Runs: several tokens of structured output in one forward.

What a grammar allows at a position is known when all tokens before it are. So some are
assumed: those that it forces, and candidates of the last step as far as it allows them.
vLLM's walk along draft tokens gives a row of bits for each position that they reach;
the worker takes, from the left, what turns out to be as assumed (worker/grammar.py).
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import GuidanceGrammar
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from vllm_dllm.free_text import free_tokens
from vllm_dllm.spelling import forced_spelling

TAKES_BACK = (XgrammarGrammar, GuidanceGrammar)
"""Grammars that can take back tokens. vLLM makes those of outlines and of
lm-format-enforcer without it where no other model drafts."""


@dataclass(frozen=True)
class Run:
    """What is assumed of the first positions of a canvas."""

    tokens: tuple[int, ...] = ()
    """One for each of them, from the left."""
    forced: int = 0
    """How many of these, from the left, the grammar leaves no choice of."""
    spelled: frozenset[int] = frozenset()
    """Which of them, by their place, are of a text that it forces, though it allows
    tokens that end elsewhere in it (spelling.py)."""
    free: npt.NDArray[np.uint8] | None = field(default=None, compare=False)
    """Bits of the tokens behind which the grammar is where it was, so that nothing has
    to be assumed; None where text is not free (free_text.py)."""


PADDING = -1
"""vLLM's draft token that stands for none."""


def up_to_padding(drafts: list[int]) -> list[int]:
    """What vLLM is told of a canvas, up to the first position that nothing is assumed
    of."""
    end = drafts.index(PADDING) + 1 if PADDING in drafts else len(drafts)
    return drafts[:end]


Runs = dict[str, Run]
"""By request id; one that is not in it has none."""


def attach(runs: Runs, output: SchedulerOutput) -> None:
    output.dllm_runs = runs


def sent_with(output: SchedulerOutput) -> Runs:
    runs: Runs = getattr(output, "dllm_runs", {})
    return runs


def run_of(
    request: Request,
    candidates: list[int],
    room: int,
    manager: StructuredOutputManager,
) -> Run:
    """The run of a request's next step; the grammar is left as it was.

    Args:
        candidates: of the last step, from the first position of the canvas on.
        room: the most positions that it may have.
    """
    structured, params = request.structured_output_request, request.sampling_params
    assert structured is not None and params is not None
    grammar = structured.grammar
    if not isinstance(grammar, TAKES_BACK) or params.bad_words_token_ids:
        # Where tokens make a bad word together, one in the middle would be taken back.
        return Run()
    room = min(room, request.max_tokens - request.num_output_tokens)
    if _is_reasoning(request, manager):
        return Run(tuple(manager.validate_tokens(request, candidates[:room])))
    if (free := free_tokens(request, manager)) is not None:
        return Run(free=np.packbits(free, bitorder="little"))
    assert manager.backend is not None
    bits = manager.backend.allocate_token_bitmask(1)
    words = bits[0].numpy()
    tokens: list[int] = []
    spelled: set[int] = set()
    forced = 0
    spells = not (params.allowed_token_ids or params.logit_bias)
    while len(tokens) < room and not grammar.is_terminated():
        grammar.fill_bitmask(bits, 0)
        ahead = [] if (only := _only_token(words)) is None else [only]
        is_text = not ahead and spells
        if is_text and isinstance(grammar, XgrammarGrammar):
            before = tokens[-1] if tokens else request.all_token_ids[-1]
            ahead = forced_spelling(grammar, manager.backend.tokenizer, before)
        is_forced = bool(ahead)
        if not is_forced:
            guess = candidates[len(tokens) :][:1]
            ahead = [token for token in guess if _allows(words, token)]
        place = len(tokens)
        tokens += _accepted(grammar, request, ahead[: room - place])
        if is_forced and forced == place:
            forced = len(tokens)
        if is_forced and is_text:
            spelled |= {*range(place, len(tokens))}
        if not ahead or len(tokens) < place + len(ahead):
            break
    if tokens:
        grammar.rollback(len(tokens))
    return Run(tuple(tokens), forced, frozenset(spelled))


def _is_reasoning(request: Request, manager: StructuredOutputManager) -> bool:
    """Whether the grammar has not begun yet."""
    structured = request.structured_output_request
    assert structured is not None
    waits = manager.reasoner_cls is not None and not manager.enable_in_reasoning
    return waits and not structured.reasoning_ended


def _accepted(
    grammar: StructuredOutputGrammar, request: Request, tokens: list[int]
) -> list[int]:
    """The tokens up to the first that the grammar does not take, or that ends the
    answer."""
    assert request.sampling_params is not None
    ends, found = request.sampling_params.all_stop_token_ids, list[int]()
    for token in tokens:
        if token in ends or not grammar.accept_tokens(request.request_id, [token]):
            break
        found.append(token)
    return found


def _allows(words: npt.NDArray[np.int32], token: int) -> bool:
    return bool(int(words[token // 32]) >> token % 32 & 1)


def _only_token(words: npt.NDArray[np.int32]) -> int | None:
    """The one token that is allowed, None if there are more or none."""
    places = words.nonzero()[0]
    word = int(words[places[0]]) & 0xFFFFFFFF if len(places) == 1 else 0
    if word.bit_count() != 1:
        return None
    return int(places[0]) * 32 + word.bit_length() - 1
