"""Free text: what comes before the first call where tools may be called.

The grammar of tools in "auto" lets everything through until the text that a call begins
with. A token that holds no letter such a text may begin with leaves it where it was,
so any number of them may be written in one forward.
"""

import json
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar

from vllm_dllm.vocabulary import Vocabulary, texts

Tokens = npt.NDArray[np.bool_]
"""[vocab]: some of the vocabulary."""


def free_tokens(request: Request, manager: StructuredOutputManager) -> Tokens | None:
    """The tokens that leave a request's grammar where it is; None if these are not
    known, or the text is not free, or no longer."""
    structured, params = request.structured_output_request, request.sampling_params
    assert structured is not None and params is not None
    wish, backend = params.structured_outputs, manager.backend
    if wish is None or wish.structural_tag is None or backend is None:
        return None
    if not isinstance(structured.grammar, XgrammarGrammar):
        return None
    letters = first_letters(wish.structural_tag)
    if not letters:
        return None
    vocabulary = Vocabulary(backend.tokenizer, structured.grammar.ctx.tokenizer_info)
    free = without(vocabulary, letters, frozenset(params.all_stop_token_ids))
    said = np.array(request.output_token_ids, dtype=np.int64)
    is_free = (said < len(free)).all() and free[said].all()
    return free if is_free else None


@lru_cache(maxsize=256)
def first_letters(structural_tag: str) -> bytes:
    """What the texts begin with, as bytes, that end the free text of a structural tag;
    none if it does not begin with free text."""
    form: dict[str, Any] = json.loads(structural_tag).get("format") or {}
    if form.get("type") != "triggered_tags" or form.get("at_least_one"):
        return b""
    ends = [*form["triggers"], *form.get("excludes", [])]
    if not all(isinstance(end, str) and end for end in ends):
        return b""  # they may be named by their ids
    return bytes({end.encode()[0] for end in ends})


@lru_cache(maxsize=64)
def without(vocabulary: Vocabulary, letters: bytes, stops: frozenset[int]) -> Tokens:
    """The tokens without these letters that end nothing."""
    free = np.array([not set(letters) & set(text) for text in texts(vocabulary)])
    free[[token for token in stops if token < len(free)]] = False
    return free
