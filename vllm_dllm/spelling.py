"""Forced strings: how a text is written where a grammar leaves no other.

xgrammar may allow several tokens and still only one text, of which each is a beginning.
It is written as the tokenizer writes it, as far as this is certain whatever comes next:
a token that ends behind the text may begin in it. guidance does so itself: of these
tokens its bits allow one.
"""

from itertools import takewhile

import numpy as np
import numpy.typing as npt
from vllm.v1.structured_output.backend_xgrammar import XgrammarGrammar
from xgrammar import GrammarMatcher, allocate_token_bitmask

from vllm_dllm.vocabulary import Vocabulary, longer_tokens, longest, spelled


def forced_spelling(
    grammar: XgrammarGrammar, tokenizer: object, before: int
) -> list[int]:
    """The tokens of the text that a grammar forces next; it is left as it was.

    Args:
        before: the token that the text comes after.
    """
    matcher = grammar.matcher
    text = forced_text(matcher)
    if not text:
        return []
    vocabulary = Vocabulary(tokenizer, grammar.ctx.tokenizer_info)
    parts = [text, *(text[:end] for end in _open_ends(matcher, vocabulary, text))]
    ways = [spelled(vocabulary, before, part.decode(errors="ignore")) for part in parts]
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*ways, strict=False))
    return [tokens[0] for tokens in alike]


def forced_text(matcher: GrammarMatcher) -> bytes:
    """What xgrammar says of it, whole letters."""
    try:
        return matcher.find_jump_forward_string().encode()
    except UnicodeDecodeError as error:  # it ends inside a letter
        return error.object[: error.start]


def _open_ends(
    matcher: GrammarMatcher, vocabulary: Vocabulary, text: bytes
) -> list[int]:
    """The places in a forced text where a token may begin that ends behind it."""
    found, size = [], vocabulary.info.vocab_size
    for begin in range(max(0, len(text) - longest(vocabulary)), len(text)):
        longer = longer_tokens(vocabulary, text[begin:])
        if len(longer) and _allows_any(matcher, size, text[:begin], longer):
            found.append(begin)
    return found


def _allows_any(
    matcher: GrammarMatcher,
    vocab_size: int,
    behind: bytes,
    tokens: npt.NDArray[np.int64],
) -> bool:
    """Whether one of some tokens may come behind the beginning of a forced text."""
    bits = allocate_token_bitmask(1, vocab_size)
    if behind:
        assert matcher.accept_string(behind)
    matcher.fill_next_token_bitmask(bits)
    if behind:
        matcher.rollback(1)
    words = bits[0].numpy()
    return bool((words[tokens // 32] >> tokens % 32 & 1).any())
