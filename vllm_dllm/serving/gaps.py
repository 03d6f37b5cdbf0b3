"""Prompts with several gaps, in `/v1/completions` and `/v1/generate`.

Such a request becomes one for what stands from its first gap to its last, with the
tokens between them given (vllm_dllm/given.py). Its answer is taken apart again in
gap_answers.py.
"""

from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.tokenizers import TokenizerLike

from vllm_dllm.given import GAP, end_of_gaps
from vllm_dllm.params import PREFIX
from vllm_dllm.quoting import quoted

if TYPE_CHECKING:
    from vllm_dllm.config import DllmConfig

LENGTHS, MARKED = f"{PREFIX}gaps", f"{PREFIX}fill_masks"
IDLE = {
    "stream": "the gaps are answered together",
    "suffix": "it is the last piece of the prompt",
    f"{PREFIX}suffix_token_ids": "it is the last piece of the prompt",
    f"{PREFIX}canvas_token_ids": "it says the same in other words",
    "stop": "a gap is as long as it was said",
    "stop_token_ids": "a gap is as long as it was said",
    "truncate_prompt_tokens": "nothing is left out of what is given",
    "prompt_embeds": "a prompt with gaps is text or token ids",
    "structured_outputs": "a grammar has no gaps",
    "response_format": "a grammar has no gaps",
}
"""Fields that have no meaning beside gaps, and why. Empty ones may be there."""


class Cloze(NamedTuple):
    """A prompt with gaps."""

    head: list[int]
    """What stands before the first gap."""
    given: list[int]
    """What follows, with a `GAP` at each position of the gaps."""
    lengths: list[int]
    """Of the gaps: two of them may lie side by side."""


def asked(request: CompletionRequest) -> str | None:
    """The field by which a request asks for gaps to be filled; None if it does not.

    Raises:
        ValueError: for both fields, or one that is neither on nor off.
    """
    fields = fields_of(request)
    lengths, marked = fields.get(LENGTHS), fields.get(MARKED)
    if marked not in (None, True, False):
        raise ValueError(f"{MARKED}={quoted(marked)} is neither true nor false")
    if lengths is not None and marked:
        raise ValueError(
            f"{LENGTHS}={quoted(lengths)} and {MARKED}={quoted(marked)} are two ways "
            "to say where the gaps are; allowed: one of them"
        )
    if lengths is None and not marked:
        return None
    return MARKED if marked else LENGTHS


def fields_of(request: CompletionRequest) -> dict[str, Any]:
    """All that a request says besides what vLLM knows, wherever it says it."""
    return {**(request.vllm_xargs or {}), **(request.model_extra or {})}


def read(
    request: CompletionRequest, config: "DllmConfig", tokenizer: TokenizerLike | None
) -> Cloze | None:
    """The gaps that a request asks to be filled, if it does.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    field = asked(request)
    if field is None:
        return None
    fields = fields_of(request)
    if not config.facts.full_attention:
        raise ValueError(
            f"{field}={quoted(fields[field])} is for models with full attention: this "
            "one is block-causal or causal, and sees nothing of what follows a gap"
        )
    refuse_idle(request, field)
    prompt = request.prompt
    whole = not isinstance(prompt, list) or all(isinstance(t, int) for t in prompt)
    pieces: list[Any] = [prompt] if whole or not isinstance(prompt, list) else prompt
    tokens = [
        tokens_of(piece, tokenizer, request.add_special_tokens and index == 0)
        for index, piece in enumerate(pieces)
    ]
    if field == LENGTHS:
        lengths = fields[LENGTHS]
        sequence = with_gaps(tokens, lengths, config.facts.max_model_len)
    elif len(tokens) == 1:
        mask = config.mask_token_id
        sequence = [GAP if token == mask else token for token in tokens[0]]
        lengths = [len([*run]) for gap, run in groupby(sequence, GAP.__eq__) if gap]
        if not lengths:
            mask_text = tokenizer.decode([mask]) if tokenizer else ""
            raise ValueError(
                f"{MARKED}=True: the prompt has no mask (token {mask}, "
                f"{quoted(mask_text)}), so there is no gap"
            )
    else:
        raise ValueError(
            f"{MARKED}=True is for one prompt, and there are {len(tokens)}; allowed: 1"
        )
    first = sequence.index(GAP)
    head = sequence[:first] or [beginning_of_text(request, field, tokenizer)]
    cloze = Cloze(head, sequence[first:], lengths)
    refuse_few_tokens(request, field, sum(lengths))
    refuse_long(cloze, field, config.facts.max_model_len)
    return cloze


def refuse_long(cloze: Cloze, field: str, longest: int) -> None:
    length = len(cloze.head) + len(cloze.given)
    if length > longest:
        raise ValueError(
            f"{field}: what is given and the gaps are {length} tokens; allowed: "
            f"{longest} (max_model_len)"
        )


def beginning_of_text(
    request: CompletionRequest, field: str, tokenizer: TokenizerLike | None
) -> int:
    """What stands before a gap with which a text begins.

    Something must: vLLM keeps no empty prompt, and a model that predicts the next
    position has no row for the first one.

    Raises:
        ValueError: if the request gives nothing and there is no such token.
    """
    prompt: Any = request.prompt
    token = getattr(tokenizer, "bos_token_id", None)
    if not isinstance(
        prompt[0] if isinstance(prompt, list) and prompt else prompt, str
    ):
        why = "token ids are taken as they are"
    elif not request.add_special_tokens:
        why = "add_special_tokens=False leaves the beginning of the text out"
    elif token is None:
        why = "the tokenizer has no token for the beginning of a text"
    else:
        return int(token)
    raise ValueError(
        f"{field}: the prompt begins with a gap, before which a token is needed, and "
        f"{why}; allowed: at least one token before the first gap"
    )


def refuse_idle(request: CompletionRequest, field: str) -> None:
    values = {**fields_of(request), **vars(request)}
    for name, why in IDLE.items():
        value = values.get(name)
        kind = getattr(value, "type", None)
        if value and kind != "text":
            raise ValueError(
                f"{name}={quoted(value)} is not possible with {field}: {why}"
            )


def refuse_few_tokens(request: CompletionRequest, field: str, gaps: int) -> None:
    """`max_tokens` need not be said; where it is, it is a limit. vLLM writes its
    default into requests that do not say it, which therefore is none."""
    most, default = request.max_tokens, CompletionRequest.model_fields["max_tokens"]
    if most is not None and most != default.default and most < gaps:
        raise ValueError(
            f"max_tokens={most} is less than the gaps of {field} are long together; "
            f"allowed: at least {gaps}, or leave it out"
        )


def tokens_of(
    piece: str | list[int] | None, tokenizer: TokenizerLike | None, special: bool
) -> list[int]:
    if isinstance(piece, str):
        if tokenizer is None:
            raise ValueError(
                f"{quoted(piece)} is text, and this server has no tokenizer"
            )
        return list(tokenizer.encode(piece, add_special_tokens=special))
    return list(piece or ())


def with_gaps(pieces: list[list[int]], lengths: Any, longest: int) -> list[int]:
    """The pieces one after the other, each gap behind its piece."""
    if not isinstance(lengths, list) or not lengths:
        raise ValueError(
            f"{LENGTHS}={quoted(lengths)} cannot be read; allowed: a list of the "
            "lengths of the gaps in tokens"
        )
    room = longest
    for length in lengths:
        if type(length) is not int or not 1 <= length <= room:
            raise ValueError(
                f"{LENGTHS}={quoted(lengths)}: {quoted(length)} is not the length of a "
                f"gap; allowed: at least 1, and all together at most {longest} tokens "
                "(max_model_len)"
            )
        room -= length
    if len(pieces) - len(lengths) not in (0, 1):
        raise ValueError(
            f"{LENGTHS}={quoted(lengths)} are {len(lengths)} gaps and prompt has "
            f"{len(pieces)} pieces; allowed: as many pieces as gaps, or one more, "
            "which follows the last gap"
        )
    sequence: list[int] = []
    for index, piece in enumerate(pieces):
        sequence += piece
        sequence += [GAP] * (lengths[index] if index < len(lengths) else 0)
    return sequence


def as_completion(request: CompletionRequest, cloze: Cloze) -> CompletionRequest:
    """The request for what stands from the first gap to the last."""
    inner = request.model_copy(
        update={
            "prompt": cloze.head,
            "max_tokens": end_of_gaps(cloze.given),
            "ignore_eos": True,
            "echo": False,
            "return_token_ids": True,
            f"{PREFIX}canvas_token_ids": cloze.given,
        }
    )
    drop_fields(inner)
    return inner


def drop_fields(request: CompletionRequest) -> None:
    """Leave out of a request how it asks for gaps, or that it asks for none."""
    if request.vllm_xargs is not None:
        request.vllm_xargs = dict(request.vllm_xargs)
    for fields in (request.vllm_xargs, request.model_extra):
        for name in (LENGTHS, MARKED):
            (fields or {}).pop(name, None)
