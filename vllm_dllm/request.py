"""One request settled: how it is decoded, and what its steps forward.

What it wishes (params.py) meets what its server is (config.py). Scheduler and worker
each settle a request, and come to the same; so does the API process, which refuses what
they could not do, because an exception there would end the engine.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_dllm import span
from vllm_dllm.decoding.registry import BUFFERED, get_rule
from vllm_dllm.params import (
    BUFFER_FIELDS,
    FULL_ATTENTION_FIELDS,
    MAX_STEPS,
    NUMERIC_FIELDS,
    PREFIX,
    CachePolicy,
    DllmParams,
    describe,
)
from vllm_dllm.quoting import quoted

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

    from vllm_dllm.config import DllmConfig

MAX_CREDIT_BLOCK = 256
"""credit keeps a token and a number for each pair of positions of a block."""
LONGEST_ROUNDING = 128
"""Full attention: a block that is longer than this is no longer than the answer."""
GRAMMAR_RULE = "sequential"
"""What decodes an answer that has to follow a grammar, one token per step: what the
grammar allows at a position is known when all tokens before it are."""


@dataclass(frozen=True)
class Decoding:
    """How a request is decoded; for what is not said here see `DllmParams`."""

    algorithm: str
    """The rule's own name: where a family means another rule by the name that was
    asked for, that one's."""
    block_length: int
    parameters: dict[str, int | float]
    """Exactly the `parameters` of the rule; `steps` are those of one block."""
    max_nfe: int | None
    cache: CachePolicy
    cfg_scale: float
    logits_eos_inf: bool
    confidence_eos_eot_inf: bool
    suffix_token_ids: tuple[int, ...]
    return_trajectory: bool
    stream_drafts: bool
    buffer_size: int
    add_block_threshold: float
    token_stability_threshold: float

    @classmethod
    def of(
        cls,
        wishes: DllmParams,
        algorithm: str,
        block_length: int,
        steps: int,
        buffer_size: int = 1,
    ) -> "Decoding":
        """What is wished, with the answers to what a wish leaves open."""
        values = wishes.model_dump() | {"steps": steps}
        return cls(
            algorithm=algorithm,
            block_length=block_length,
            parameters={p: values[p] for p in get_rule(algorithm).parameters},
            max_nfe=wishes.max_nfe,
            cache=wishes.cache,
            cfg_scale=wishes.cfg_scale,
            logits_eos_inf=wishes.logits_eos_inf,
            confidence_eos_eot_inf=wishes.confidence_eos_eot_inf,
            suffix_token_ids=tuple(wishes.suffix_token_ids),
            return_trajectory=wishes.return_trajectory,
            stream_drafts=wishes.stream_drafts,
            buffer_size=buffer_size,
            add_block_threshold=wishes.add_block_threshold,
            token_stability_threshold=wishes.token_stability_threshold,
        )


def decoding_of(
    params: "SamplingParams", config: "DllmConfig", max_tokens: int
) -> Decoding:
    """`resolve` of a request as vLLM has it."""
    follows_grammar = params.structured_outputs is not None
    return resolve(params.extra_args, config, max_tokens, follows_grammar)


def resolve(
    extra_args: dict[str, Any] | None,
    config: "DllmConfig",
    max_tokens: int,
    follows_grammar: bool = False,
) -> Decoding:
    """How a request is decoded whose answer has at most `max_tokens`.

    Raises:
        ValueError: as `wishes_of`, and for a block that becomes too long.
    """
    wishes = wishes_of(extra_args, config, follows_grammar)
    rule, size = rule_of(wishes, config), wishes.buffer_size
    block = block_of_an_answer(wishes, config, max_tokens)
    refuse_long_credit(rule, block)
    if follows_grammar:
        steps = block
    else:
        steps = steps_of_a_block(wishes, config, block, max_tokens)
    if "time" in get_rule(rule).needs:
        if f"{PREFIX}steps" in (extra_args or {}):
            refuse_idle_steps(wishes, steps, block)
        steps = min(steps, max(MAX_STEPS, block))
    return Decoding.of(wishes, rule, block, steps, size)


def wishes_of(
    extra_args: dict[str, Any] | None,
    config: "DllmConfig",
    follows_grammar: bool = False,
) -> DllmParams:
    """What a request wishes: its own fields over the server's.

    All is checked that can be before the length of the answer is known.

    Args:
        follows_grammar: whether it has structured output.

    Raises:
        ValueError: for an unknown `dllm_*` field, a wrong type, a value out of range,
            or a field that the request's rule or model does not use. Names field and
            value.
    """
    own = {
        key.removeprefix(PREFIX): value
        for key, value in (extra_args or {}).items()
        if key.startswith(PREFIX)
    }
    try:
        wishes = DllmParams(**{**config.request_defaults(), **own})
    except ValidationError as error:
        raise ValueError(describe(error, DllmParams, PREFIX)) from None
    if follows_grammar:
        wishes = _decode_in_order(wishes, own)
    wishes = _with_buffer(wishes, own, config)
    rule = rule_of(wishes, config)
    parameters = get_rule(rule).parameters
    idle = own.keys() & NUMERIC_FIELDS.keys() - parameters - {"buffer_size"}
    for name in sorted(idle - (BUFFER_FIELDS if wishes.buffer_size > 1 else set())):
        if name in BUFFER_FIELDS:
            raise ValueError(
                f"{PREFIX}{name}={quoted(own[name])} has no meaning with "
                f"{PREFIX}buffer_size={wishes.buffer_size}, one block at a time"
            )
        raise ValueError(
            f"{PREFIX}{name}={quoted(own[name])} has no meaning for the decoding rule "
            f"{wishes.algorithm!r}, which uses "
            f"{', '.join(PREFIX + used for used in sorted(parameters))}"
        )
    if config.facts.full_attention:
        _check_full_attention(wishes, config)
    else:
        _check_block_causal(wishes, own, config)
        if "steps" in own and "time" in get_rule(rule).needs:
            refuse_idle_steps(wishes, wishes.steps or 1, config.block)
    if (block := default_block(wishes, config)) is not None:
        refuse_long_credit(rule, block)
    return wishes


def rule_of(wishes: DllmParams, config: "DllmConfig") -> str:
    """The rule's own name: what the authors of the model's family call so, and what it
    is with several blocks in flight."""
    rule = config.facts.rule_names.get(wishes.algorithm, wishes.algorithm)
    return BUFFERED[rule] if wishes.buffer_size > 1 else rule


def _with_buffer(
    wishes: DllmParams, own: dict[str, Any], config: "DllmConfig"
) -> DllmParams:
    """Refuse a request's own buffer where it has no meaning, and leave the server's out
    there."""
    if wishes.buffer_size == 1:
        return wishes
    why = None
    if config.facts.full_attention:
        why = "is for block-causal models"
    elif wishes.algorithm not in BUFFERED:
        why = (
            f"is not defined for the decoding rule {wishes.algorithm!r}, whose steps "
            f"are those of one block; allowed: {', '.join(BUFFERED)}"
        )
    if why is None:
        return wishes
    if "buffer_size" in own:
        raise ValueError(f"{PREFIX}buffer_size={wishes.buffer_size} {why}")
    return wishes.model_copy(update={"buffer_size": 1})


def default_block(wishes: DllmParams, config: "DllmConfig") -> int | None:
    """The block length of a request; None where it is that of the answer."""
    return wishes.block_length or config.block_size


def block_of_an_answer(
    wishes: DllmParams, config: "DllmConfig", max_tokens: int
) -> int:
    """The block length of an answer that has at most `max_tokens`.

    With full attention an answer is rounded up to whole blocks, and a block that is
    much longer than the answer would be masks that nobody asked for.
    """
    block = default_block(wishes, config) or max_tokens
    if config.facts.full_attention:
        return min(block, max(max_tokens, LONGEST_ROUNDING))
    return block


def steps_of_a_block(
    wishes: DllmParams, config: "DllmConfig", block: int, max_tokens: int
) -> int:
    """With full attention, the authors spread `steps` over all blocks of the answer."""
    steps = block if wishes.steps is None else wishes.steps
    if config.facts.full_attention:
        blocks = 1 if wishes.steps is None else max(1, -(-max_tokens // block))
        return max(1, steps // blocks)
    return min(steps, max_tokens) if config.cap_steps else steps


def _decode_in_order(wishes: DllmParams, own: dict[str, Any]) -> DllmParams:
    """Replace the server's rule and steps; the request's own can only be refused."""
    in_order = {"algorithm": GRAMMAR_RULE, "steps": None, "buffer_size": 1}
    for name, only in in_order.items():
        if name in own and getattr(wishes, name) != only:
            raise ValueError(
                f"{PREFIX}{name}={quoted(own[name])} is not possible with structured "
                f"output, which is decoded from left to right, one token per step "
                f"({PREFIX}algorithm={GRAMMAR_RULE!r}); leave it out"
            )
    return wishes.model_copy(update=in_order)


def _check_block_causal(
    wishes: DllmParams, own: dict[str, Any], config: "DllmConfig"
) -> None:
    for name in FULL_ATTENTION_FIELDS:
        if name in own:
            raise ValueError(
                f"{PREFIX}{name}={quoted(own[name])} has no meaning for a block-causal "
                "model, whose KV cache is exact; it is for models with full attention"
            )
    if wishes.block_length not in (None, config.block):
        raise ValueError(
            f"{PREFIX}block_length={wishes.block_length} is not the block size of this "
            f"server, {config.block}, which the checkpoint was trained with"
        )


def _check_full_attention(wishes: DllmParams, config: "DllmConfig") -> None:
    if config.facts.eos_token_id is None:
        for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
            if getattr(wishes, name):
                raise ValueError(
                    f"{PREFIX}{name}=True: the checkpoint names no end of the text "
                    "(eos_token_id)"
                )
    for token in wishes.suffix_token_ids:
        if token >= config.facts.vocab_size:
            raise ValueError(
                f"{PREFIX}suffix_token_ids: {quoted(token)} is not in the vocabulary; "
                f"allowed: 0 to {config.facts.vocab_size - 1}"
            )
    longest = config.facts.max_model_len
    if wishes.block_length is not None and wishes.block_length > longest:
        raise ValueError(
            f"{PREFIX}block_length={wishes.block_length} is longer than any answer; "
            f"allowed: 1 to {longest} (max_model_len)"
        )


def refuse_idle_steps(wishes: DllmParams, steps: int, block: int) -> None:
    """Refuse more steps of a block than a rule may take that decides none in some."""
    most = max(MAX_STEPS, block)
    if steps > most:
        raise ValueError(
            f"{PREFIX}steps={wishes.steps} are {steps} steps for a block of {block} "
            f"tokens, most of which would decide nothing under the decoding rule "
            f"{wishes.algorithm!r}; allowed: 1 to {most} for a block"
        )


def refuse_long_credit(rule: str, block: int) -> None:
    if rule == "credit" and block > MAX_CREDIT_BLOCK:
        raise ValueError(
            f"{PREFIX}block_length={block} is too long for the decoding rule "
            f"'credit'; allowed: 1 to {MAX_CREDIT_BLOCK}"
        )


def plan_of(
    decoding: Decoding, config: "DllmConfig", prompt_len: int, max_tokens: int
) -> span.Plan:
    """What the steps of a request forward; `decoding` is that of `max_tokens`."""
    if not config.facts.full_attention:
        block = decoding.block_length
        if decoding.buffer_size == 1:
            return span.BlockCausal(span.Grid(0, block, span.UNBOUNDED))
        end = span.round_up(prompt_len + max_tokens, block)
        grid = span.Grid(0, block, end)
        return span.Buffered(grid, prompt_len, decoding.buffer_size)
    suffix = len(decoding.suffix_token_ids)
    grid = span.full_attention_grid(
        prompt_len,
        max_tokens,
        decoding.block_length,
        config.facts.max_model_len,
        infills=suffix > 0,
    )
    plan = span.FullAttention(grid, decoding.cache, suffix=suffix)
    if decoding.cfg_scale > 0:
        branch = span.round_up(plan.end, config.facts.page_size)
        plan = plan._replace(branch=branch)
    return plan
