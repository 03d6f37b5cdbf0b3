"""Walking a grammar along the tokens that are assumed of a structured answer.

What a grammar allows at a position is known when all tokens before it are. So some are
assumed: those that it forces, and candidates of the last step as far as it allows them.
Each position that they reach has a row of bits, filled on the way: vLLM's own walk,
which fills such rows along draft tokens, would be a second one.
"""

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_guidance import GuidanceGrammar
from vllm.v1.structured_output.backend_types import (
    StructuredOutputBackend,
    StructuredOutputGrammar,
)
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from vllm_dllm.free_text import free_tokens
from vllm_dllm.runs import Run
from vllm_dllm.spelling import forced_spelling

TAKES_BACK = (XgrammarGrammar, GuidanceGrammar)
"""Grammars that can take back tokens. vLLM makes those of outlines and of
lm-format-enforcer without it where no other model drafts."""


class Walker:
    def __init__(self, manager: StructuredOutputManager, most: int) -> None:
        """`most`: positions that a run may have."""
        self.manager, self.most = manager, most
        self._room: tuple[torch.Tensor, npt.NDArray[np.int32]] | None = None

    def run_of(self, request: Request, candidates: list[int], room: int) -> Run:
        """The run of a request's next step; the grammar is left as it was.

        Args:
            candidates: of the last step, from the first position of the canvas on.
            room: the most positions that it may have.
        """
        structured, params = request.structured_output_request, request.sampling_params
        assert structured is not None and params is not None
        grammar, manager = structured.grammar, self.manager
        if not isinstance(grammar, TAKES_BACK) or params.bad_words_token_ids:
            # Where tokens make a bad word together, one in the middle would be taken
            # back.
            return Run()
        room = min(room, request.max_tokens - request.num_output_tokens)
        if _is_reasoning(request, manager):
            return Run(tuple(manager.validate_tokens(request, candidates[:room])))
        if (free := free_tokens(request, manager)) is not None:
            return Run(free=np.packbits(free, bitorder="little"))
        if grammar.is_terminated():
            return Run()
        return self._walk(grammar, request, candidates, room)

    def _walk(
        self,
        grammar: XgrammarGrammar | GuidanceGrammar,
        request: Request,
        candidates: list[int],
        room: int,
    ) -> Run:
        params, backend = request.sampling_params, self.manager.backend
        assert params is not None and backend is not None
        spells = isinstance(grammar, XgrammarGrammar) and not (
            params.allowed_token_ids or params.logit_bias
        )
        bits, words = self._rows(backend)
        tokens: list[int] = []
        forced = filled = 0
        while len(tokens) < room and not grammar.is_terminated():
            place = len(tokens)
            grammar.fill_bitmask(bits, place)
            filled, row = place + 1, words[place]
            only, text = _only_token(row), list[int]()
            if only is None and spells:
                before = tokens[-1] if tokens else request.all_token_ids[-1]
                text = forced_spelling(grammar, backend.tokenizer, before)
            ahead = text if only is None else [only]
            is_forced = bool(ahead)
            if not is_forced:
                guess = candidates[place : place + 1]
                ahead = [token for token in guess if _allows(row, token)]
            taken = _accepted(grammar, request, ahead[: room - place])
            tokens += taken
            if is_forced and forced == place:
                forced = len(tokens)
            if text and taken:
                # It allows tokens that end elsewhere in the text.
                _allow_alone(words[place : len(tokens)], taken)
                filled = len(tokens)
            if len(taken) < max(1, len(ahead)):
                break
        if filled == len(tokens) < room and not grammar.is_terminated():
            grammar.fill_bitmask(bits, filled)
            filled += 1
        if tokens:
            grammar.rollback(len(tokens))
        return Run(tuple(tokens), forced, words[:filled].copy())

    def _rows(
        self, backend: StructuredOutputBackend
    ) -> tuple[torch.Tensor, npt.NDArray[np.int32]]:
        """[positions, words]: room for the bits of one walk, and as numpy's."""
        if self._room is None:
            bits: torch.Tensor = backend.allocate_token_bitmask(self.most)
            self._room = bits, bits.numpy()
        return self._room


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


def _allow_alone(words: npt.NDArray[np.int32], tokens: list[int]) -> None:
    """Let rows of bits allow one token each; words: [rows, words], changed in place."""
    only = np.array(tokens)
    words[:] = 0
    bit = (1 << only % 32).astype(np.uint32)
    words[np.arange(len(only)), only // 32] = bit.view(np.int32)


def _only_token(words: npt.NDArray[np.int32]) -> int | None:
    """The one token that is allowed, None if there are more or none."""
    places = words.nonzero()[0]
    word = int(words[places[0]]) & 0xFFFFFFFF if len(places) == 1 else 0
    if word.bit_count() != 1:
        return None
    return int(places[0]) * 32 + word.bit_length() - 1
