"""The texts of a tokenizer's tokens, as grammars read them."""

import logging
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from xgrammar import TokenizerInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """What grammars know of a tokenizer; the same where the tokenizer is."""

    tokenizer: Any
    info: TokenizerInfo = field(compare=False)


@lru_cache(maxsize=1)
def texts(vocabulary: Vocabulary) -> list[bytes]:
    """Of all tokens."""
    found: list[bytes] = vocabulary.info.decoded_vocab
    return found


@lru_cache(maxsize=4096)
def longer_tokens(vocabulary: Vocabulary, text: bytes) -> npt.NDArray[np.int64]:
    """The tokens that begin with a text and go on behind it."""
    in_order, ids = _sorted(vocabulary)
    begin = bisect_right(in_order, text)
    end = bisect_right(in_order, text, begin, key=lambda one: one[: len(text)])
    return ids[begin:end]


@lru_cache(maxsize=1)
def longest(vocabulary: Vocabulary) -> int:
    """Bytes of the longest token."""
    return max(map(len, texts(vocabulary)))


@lru_cache(maxsize=4096)
def spelled(vocabulary: Vocabulary, before: int, text: str) -> tuple[int, ...]:
    """The tokens that a text is written with behind another token; none if the
    tokenizer would change it, up to the first special one."""
    tokenizer, known = vocabulary.tokenizer, texts(vocabulary)
    special = frozenset(tokenizer.all_special_ids)
    ids = _encoded(tokenizer, text)
    if before < len(known) and before not in special:
        try:
            first, *rest = _encoded(tokenizer, known[before].decode() + text)
        except (UnicodeDecodeError, ValueError):
            first = -1
        ids = rest if first == before else ids
    left, found = text.encode(), list[int]()
    for token in ids:
        is_text = token < len(known) and token not in special and known[token]
        if not is_text or not left.startswith(known[token]):
            break
        left = left.removeprefix(known[token])
        found.append(token)
    return tuple(found)


def _encoded(tokenizer: Any, text: str) -> list[int]:
    """The tokenizer's own; none where it fails. It may be anybody's code, and an
    exception here would end the engine."""
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    except Exception:
        logger.exception("The tokenizer does not encode %r.", text)
        return []
    return ids


@lru_cache(maxsize=1)
def _sorted(vocabulary: Vocabulary) -> tuple[list[bytes], npt.NDArray[np.int64]]:
    """The texts in their order, and the token of each."""
    found = texts(vocabulary)
    ids = sorted(range(len(found)), key=found.__getitem__)
    return [found[token] for token in ids], np.array(ids, dtype=np.int64)
