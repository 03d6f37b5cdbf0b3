"""A draft as text."""

import functools

from vllm.tokenizers import TokenizerLike

MASK_CHARACTER = "\N{LIGHT SHADE}"
CACHED_TOKENS = 2**16


def token_texts(
    token_ids: list[int], tokenizer: TokenizerLike | None
) -> list[str | None]:
    """Each token of a draft by itself; None for a mask."""
    return [
        None if tokenizer is None or token < 0 else token_text(tokenizer, token)
        for token in token_ids
    ]


def render(token_ids: list[int], tokenizer: TokenizerLike | None) -> str:
    """A draft as text, with a visible character for each mask (-1)."""
    pieces: list[str] = []
    run: list[int] = []
    for token in [*token_ids, -1]:
        if token >= 0:
            run.append(token)
            continue
        if run and tokenizer is not None:
            pieces.append(tokenizer.decode(run, skip_special_tokens=True))
        run = []
        pieces.append(MASK_CHARACTER)
    return "".join(pieces[:-1])


@functools.lru_cache(CACHED_TOKENS)
def token_text(tokenizer: TokenizerLike, token: int) -> str:
    """One token as text; drafts name each token of a block at every step."""
    return tokenizer.decode([token])
