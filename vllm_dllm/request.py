"""How a request is settled: what decodes it, and what its steps forward.

What it wishes (params.py) meets what its server is (config.py). Scheduler and worker
each settle a request, and come to the same; so does the API process, which refuses what
they could not do, because an exception there would end the engine.
"""

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vllm_dllm.decoding.registry import BUFFERED, get_rule
from vllm_dllm.given import GAP, behind_prompt
from vllm_dllm.params import (
    BUFFER_FIELDS,
    FIELDS_OF_RULES,
    MAX_STEPS,
    NUMERIC_FIELDS,
    PREFIX,
    DllmParams,
    describe,
)
from vllm_dllm.plans.base import Plan
from vllm_dllm.quoting import quoted
from vllm_dllm.regimes.registry import regime_of
from vllm_dllm.settled import Decoding

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

    from vllm_dllm.config import DllmConfig

MAX_REMEMBERED = 256 * 256
"""Positions times steps of a block that a rule may remember, in a table that has room
for that in every slot."""
MAX_CREDIT_BLOCK = 256
"""credit keeps a token and a number for each pair of positions of a block."""
GRAMMAR_RULE = "threshold"
"""Decides how much of an answer that has to follow a grammar is written at once, where
the rule that was asked for revises, which is too late for a grammar, or is one of
`OF_OTHER_BLOCKS`."""
OF_OTHER_BLOCKS = ("d2f", "adablock", "d3llm", "d3llm_of_dream")
"""Rules with many blocks under denoising, or with blocks that end where they find."""


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
    if follows_grammar:
        # A step may have found one position alone: it need not take several because
        # the answer is short.
        config = config.model_copy(update={"cap_steps": False})
    wishes = wishes_of(extra_args, config, follows_grammar)
    rule, size = rule_of(wishes, config), wishes.buffer_size
    regime = regime_of(config.facts, rule)
    block = regime.block_of_an_answer(wishes, config, max_tokens)
    refuse_long_credit(rule, block)
    steps = regime.steps_of_a_block(wishes, config, block, max_tokens)
    if "time" in get_rule(rule).needs:
        if f"{PREFIX}steps" in (extra_args or {}):
            refuse_idle_steps(wishes, steps, block)
        steps = min(steps, max(MAX_STEPS, block))
    one_by_one = wishes.algorithm == "sequential" and steps >= block
    in_runs = follows_grammar and not one_by_one
    busy = busy_threshold(wishes, rule, config)
    canvas, suffix = wishes.canvas_token_ids, wishes.suffix_token_ids
    given = behind_prompt(canvas, suffix, max_tokens)
    return Decoding.of(wishes, rule, block, steps, size, in_runs, busy, given)


def busy_threshold(wishes: DllmParams, rule: str, config: "DllmConfig") -> float | None:
    """The threshold that a request allows while the server is busy, where it is lower
    than its own."""
    busy = config.busy_threshold
    reads_it = "threshold" in get_rule(rule).parameters
    if busy is None or not wishes.adaptive or not reads_it:
        return None
    return busy if busy < wishes.threshold else None


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
    wishes = _with_buffer(wishes, own, config)
    rule = rule_of(wishes, config)
    refuse_strange_moves(rule, config)
    if get_rule(rule).softens:
        refuse_soft_tokens(rule, config)
    used = {name for name, user in FIELDS_OF_RULES.items() if user == rule}
    parameters = get_rule(rule).parameters | used
    known = NUMERIC_FIELDS.keys() | FIELDS_OF_RULES.keys()
    idle = own.keys() & known - parameters - {"buffer_size"}
    for name in sorted(idle - (BUFFER_FIELDS if wishes.buffer_size > 1 else set())):
        if name in BUFFER_FIELDS and not parameters & BUFFER_FIELDS:
            raise ValueError(
                f"{PREFIX}{name}={quoted(own[name])} has no meaning with "
                f"{PREFIX}buffer_size={wishes.buffer_size}, one block at a time"
            )
        raise ValueError(
            f"{PREFIX}{name}={quoted(own[name])} has no meaning for the decoding rule "
            f"{wishes.algorithm!r}, which uses "
            f"{', '.join(PREFIX + used for used in sorted(parameters))}"
        )
    regime_of(config.facts, rule).check_wishes(wishes, own, config)
    if wishes.canvas_token_ids:
        refuse_strange_canvas(wishes, rule, follows_grammar)
    if config.facts.fixed_block and "steps" in own and "time" in get_rule(rule).needs:
        refuse_idle_steps(wishes, wishes.steps or 1, config.block)
    if (block := wishes.block_length or config.block_size) is not None:
        refuse_long_credit(rule, block)
        refuse_long_edits(rule, block, wishes.max_post_steps)
    return _from_the_left(wishes, config) if follows_grammar else wishes


def rule_of(wishes: DllmParams, config: "DllmConfig") -> str:
    """The rule's own name: what the authors of the model's family call so, and what it
    is with several blocks in flight."""
    if wishes.buffer_size > 1:
        return BUFFERED[wishes.algorithm]
    return config.facts.rule_names.get(wishes.algorithm, wishes.algorithm)


def _with_buffer(
    wishes: DllmParams, own: dict[str, Any], config: "DllmConfig"
) -> DllmParams:
    """Refuse a request's own buffer where it has no meaning, and leave the server's out
    there."""
    if wishes.buffer_size == 1:
        return wishes
    why = None
    regime = regime_of(config.facts, wishes.algorithm)
    if not regime.has_buffers:
        why = regime.why_no_buffers
    elif wishes.algorithm not in BUFFERED:
        why = (
            f"is not defined for the decoding rule {wishes.algorithm!r}, whose steps "
            f"are those of one block; allowed: {', '.join(BUFFERED)}"
        )
        if get_rule(wishes.algorithm).softens:
            why += " (joint_threshold is what DMax was measured with)"
    if why is None:
        return wishes
    if "buffer_size" in own:
        raise ValueError(f"{PREFIX}buffer_size={wishes.buffer_size} {why}")
    return wishes.model_copy(update={"buffer_size": 1})


def _from_the_left(wishes: DllmParams, config: "DllmConfig") -> DllmParams:
    """What they mean with structured output, which is written from left to right.

    Nothing is refused that a request without it may ask for: clients have fields that
    they send with all their requests.
    """
    wishes = wishes.model_copy(update={"buffer_size": 1})
    rule = rule_of(wishes, config)
    if get_rule(rule).revises or rule in OF_OTHER_BLOCKS:
        return wishes.model_copy(update={"algorithm": GRAMMAR_RULE})
    return wishes


def refuse_strange_canvas(wishes: DllmParams, rule: str, follows_grammar: bool) -> None:
    """Refuse gaps that cannot be filled, and with what cannot fill them."""
    field = f"{PREFIX}canvas_token_ids={quoted(wishes.canvas_token_ids)}"
    if GAP not in wishes.canvas_token_ids:
        raise ValueError(f"{field} has no -1, so there is nothing to decode")
    if wishes.suffix_token_ids:
        raise ValueError(
            f"{field} and {PREFIX}suffix_token_ids={quoted(wishes.suffix_token_ids)} "
            "both say what follows the prompt; allowed: one of them"
        )
    if rule in OF_OTHER_BLOCKS:
        raise ValueError(
            f"{field} has no meaning for the decoding rule {wishes.algorithm!r}, which "
            "finds or opens its blocks by what it has decoded of them"
        )
    if follows_grammar:
        raise ValueError(
            f"{field} cannot follow a grammar, which has no gaps; ask for structured "
            "output or for gaps"
        )


def refuse_soft_tokens(rule: str, config: "DllmConfig") -> None:
    """Refuse a rule that gives the model embeddings where it cannot have them."""
    field = f"{PREFIX}algorithm={rule!r}"
    if not regime_of(config.facts).has_soft_tokens:
        raise ValueError(
            f"{field} is for block-causal models that predict a token in its own place"
        )
    if not config.facts.soft_tokens:
        raise ValueError(
            f"{field} gives the model embeddings, and this server's is compiled for "
            "token ids; start it with --dllm-config '{\"soft_tokens\": true}'"
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


def refuse_long_edits(rule: str, block: int, max_post_steps: int) -> None:
    """Refuse more steps of a block than a rule can remember that remembers them."""
    if rule != "joint_threshold_indel":
        return
    longest = MAX_REMEMBERED // block - block - 1
    if longest < 0:
        raise ValueError(
            f"{PREFIX}algorithm={rule!r} is not possible with blocks of {block} tokens "
            "(dllm.block_size), whose steps it remembers"
        )
    if max_post_steps > longest:
        raise ValueError(
            f"{PREFIX}max_post_steps={max_post_steps}: the decoding rule {rule!r} "
            f"remembers the steps of a block; allowed: 0 to {longest} with "
            f"blocks of {block}"
        )


def refuse_strange_moves(rule: str, config: "DllmConfig") -> None:
    """Refuse a rule that deletes and inserts tokens where the model cannot."""
    if "moves" in get_rule(rule).needs and config.facts.moves is None:
        raise ValueError(
            f"{PREFIX}algorithm={rule!r} is for checkpoints that delete and insert "
            "tokens (delete_token_id and split_token_id in config.json: LLaDA2.2)"
        )


def plan_of(
    decoding: Decoding, config: "DllmConfig", prompt_len: int, max_tokens: int
) -> Plan:
    """What the steps of a request forward; `decoding` is that of `max_tokens`."""
    regime = regime_of(config.facts, decoding.algorithm)
    return regime.plan(decoding, config, prompt_len, max_tokens)
