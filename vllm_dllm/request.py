"""One request's choices: field names, types and limits, and where they come from.

The only place that knows them. Requests carry them in `SamplingParams.extra_args`
(over HTTP: `vllm_xargs`) with the prefix `dllm_`. They are checked in the API process,
because an exception in a worker would end the engine.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vllm_dllm import span
from vllm_dllm.decoding.registry import canonical_name, get_rule

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

    from vllm_dllm.config import DllmConfig

PREFIX = "dllm_"
MAX_COUNT = 1_000_000
"""Upper limit of whatever is counted; far above any use, and it fits a tensor."""
MAX_CREDIT_BLOCK = 256
"""credit keeps a token and a number for each pair of positions of a block."""

CachePolicy = Literal["none", "prefix", "dual"]


class RuleParams(BaseModel):
    """How positions become tokens. A server has defaults of them, a request its own."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    algorithm: str = Field(default="threshold")
    """Decoding rule; an alias is accepted and replaced."""
    threshold: float = Field(default=0.9, ge=0, le=1, allow_inf_nan=False)
    """Confidence (a probability) above which a token is taken."""
    steps: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Steps in which a whole block is decoded, or with full attention the whole answer;
    sets the least tokens per step. By default one token per step."""
    factor: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """factor: how sure n tokens must be to be taken together, 1 - factor / (n + 1)."""
    entropy_bound: float = Field(default=0.35, ge=0, allow_inf_nan=False)
    """entropy_bounded: sum of entropies (nats) of the tokens taken in a step."""
    local_leap_anchor_threshold: float = Field(default=0.9, ge=0, le=1)
    """local_leap: confidence that makes a position an anchor."""
    local_leap_neighbor_threshold: float = Field(default=0.75, ge=0, le=1)
    """local_leap: confidence that suffices near an anchor."""
    local_leap_radius: int = Field(default=4, ge=0, le=MAX_COUNT)
    """local_leap: how many positions away is near."""
    low_threshold: float = Field(default=0.6, ge=0, le=1)
    """hierarchical: confidence that the best of a run of masks must exceed."""
    credit_alpha: float = Field(default=0.7, ge=0, allow_inf_nan=False)
    """credit: weight of the credit that is added to the logits."""
    credit_beta: float = Field(default=0.8, ge=0, le=1)
    """credit: share of it that is left after a step."""
    credit_gamma: float = Field(default=0.2, ge=0, allow_inf_nan=False)
    """credit: power of the probability that is credited."""
    edit_threshold: float = Field(default=0.9, ge=0, le=1)
    """joint_threshold: confidence above which a decoded token is replaced."""
    max_post_steps: int = Field(default=16, ge=0, le=MAX_COUNT)
    """joint_threshold: steps that may go on editing a block without masks."""
    eps: float = Field(default=1e-3, gt=0, lt=1)
    """Dream's rules: where the time of the last step ends; it begins at 1."""
    alg_temp: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Dream's rules: above 0, positions are drawn by lot, the surer the likelier; how
    much is left to chance."""

    @field_validator("algorithm")
    @classmethod
    def _known_rule(cls, name: str) -> str:
        return canonical_name(name)


class DllmParams(RuleParams):
    """The decoding parameters of one request, all resolved."""

    max_nfe: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Number of denoising forwards after which the request ends ("length")."""
    block_length: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Diffusion block size. Free with full attention, where None is the whole answer;
    otherwise only the server's own is possible."""
    cache: CachePolicy = "none"
    """Full attention: which keys a step may read from an earlier one. "none" is exact;
    "prefix" reads those before the block, "dual" also those after it."""
    cfg_scale: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Full attention: classifier-free guidance, away from what the model says without
    the prompt. Above 0 a request takes twice the KV and the compute."""
    logits_eos_inf: bool = False
    """Full attention: never decode the end of the text."""
    confidence_eos_eot_inf: bool = False
    """Full attention: decode ends of text and of turn last, by leaving them out of the
    probabilities that say how sure a token is."""
    suffix_token_ids: list[Annotated[int, Field(ge=0)]] = []
    """Full attention: what follows the answer, which then fills the gap between prompt
    and suffix (infilling), `max_tokens` long. In /v1/completions `suffix`, as text."""
    return_trajectory: bool = False
    """Whether the answer says for each token which step of its block decided it."""
    stream_drafts: bool = False
    """Whether every step of a block is sent, masks and all; for `stream_mode:
    "denoise"` of /v1/generate."""

    @field_validator(
        "return_trajectory",
        "stream_drafts",
        "logits_eos_inf",
        "confidence_eos_eot_inf",
        mode="before",
    )
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        # vLLM's `vllm_xargs` turns a JSON boolean into 0 or 1.
        return bool(value) if value in (0, 1) else value


FULL_ATTENTION_FIELDS = (
    "cache",
    "cfg_scale",
    "logits_eos_inf",
    "confidence_eos_eot_inf",
    "suffix_token_ids",
)
"""Fields that have no meaning for a block-causal model."""

NUMERIC_FIELDS: dict[str, Any] = {
    name: kind
    for name, field in RuleParams.model_fields.items()
    for kind in (int, float)
    if field.annotation is kind or kind in get_args(field.annotation)
}
"""Parameters of rules that are numbers, with their type."""


GRAMMAR_RULE = "sequential"
"""What decodes an answer that has to follow a grammar, one token per step: what the
grammar allows at a position is known when all tokens before it are."""


def params_of(
    params: "SamplingParams", config: "DllmConfig", max_tokens: int | None = None
) -> DllmParams:
    """`resolve` of a request as vLLM has it."""
    follows_grammar = params.structured_outputs is not None
    return resolve(params.extra_args, config, max_tokens, follows_grammar)


def resolve(
    extra_args: dict[str, Any] | None,
    config: "DllmConfig",
    max_tokens: int | None = None,
    follows_grammar: bool = False,
) -> DllmParams:
    """The parameters of a request: its own over the server's.

    `max_tokens` is the length of the longest answer, where it matters: `steps` of the
    result are those of a block. `follows_grammar`: it has structured output.

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
        params = DllmParams(**{**config.request_defaults(), **own})
    except ValidationError as error:
        raise ValueError(describe(error, DllmParams, PREFIX)) from None
    if follows_grammar:
        params = _decode_in_order(params, own)
    rule = config.facts.rule_names.get(params.algorithm, params.algorithm)
    parameters = get_rule(rule).parameters
    for name in sorted(own.keys() & NUMERIC_FIELDS.keys() - parameters):
        raise ValueError(
            f"{PREFIX}{name}={own[name]!r} has no meaning for the decoding rule "
            f"{params.algorithm!r}, which uses "
            f"{', '.join(PREFIX + used for used in sorted(parameters))}"
        )
    if config.facts.full_attention:
        settled = _settle_full_attention(params, rule, config, max_tokens)
    else:
        settled = _settle_block_causal(params, own, config, max_tokens)
    if follows_grammar:
        settled["steps"] = settled.get("block_length")
    return params.model_copy(update={**settled, "algorithm": rule})


def _decode_in_order(params: DllmParams, own: dict[str, Any]) -> DllmParams:
    """Replace the server's rule and steps; the request's own can only be refused."""
    in_order = {"algorithm": GRAMMAR_RULE, "steps": None}
    for name, only in in_order.items():
        if name in own and getattr(params, name) != only:
            raise ValueError(
                f"{PREFIX}{name}={own[name]!r} is not possible with structured output, "
                f"which is decoded from left to right, one token per step "
                f"({PREFIX}algorithm={GRAMMAR_RULE!r}); leave it out"
            )
    return params.model_copy(update=in_order)


def _settle_block_causal(
    params: DllmParams,
    own: dict[str, Any],
    config: "DllmConfig",
    max_tokens: int | None,
) -> dict[str, Any]:
    """The block, and the steps of one."""
    for name in FULL_ATTENTION_FIELDS:
        if name in own:
            raise ValueError(
                f"{PREFIX}{name}={own[name]!r} has no meaning for a block-causal "
                "model, whose KV cache is exact; it is for models with full attention"
            )
    if params.block_length not in (None, config.block):
        raise ValueError(
            f"{PREFIX}block_length={params.block_length} is not the block size of this "
            f"server, {config.block}, which the checkpoint was trained with"
        )
    steps = params.steps or config.block
    if config.cap_steps and max_tokens is not None:
        steps = min(steps, max_tokens)
    return {"block_length": config.block, "steps": steps}


def _settle_full_attention(
    params: DllmParams, rule: str, config: "DllmConfig", max_tokens: int | None
) -> dict[str, Any]:
    """The block, and the steps of one: the authors spread `steps` over all blocks."""
    if config.facts.eos_token_id is None:
        for name in ("logits_eos_inf", "confidence_eos_eot_inf"):
            if getattr(params, name):
                raise ValueError(
                    f"{PREFIX}{name}=True: the checkpoint's config.json names no end "
                    "of the text (eos_token_id)"
                )
    for token in params.suffix_token_ids:
        if token >= config.facts.vocab_size:
            raise ValueError(
                f"{PREFIX}suffix_token_ids: {token} is not in the vocabulary; allowed: "
                f"0 to {config.facts.vocab_size - 1}"
            )
    block = params.block_length or config.block_size or max_tokens
    if rule == "credit" and block is not None and block > MAX_CREDIT_BLOCK:
        raise ValueError(
            f"{PREFIX}block_length={block} is too long for the decoding rule "
            f"'credit'; allowed: 1 to {MAX_CREDIT_BLOCK}"
        )
    if block is None or max_tokens is None:
        return {}
    blocks = max(1, -(-max_tokens // block))
    steps = block if params.steps is None else max(1, params.steps // blocks)
    return {"block_length": block, "steps": steps}


def plan_of(
    params: DllmParams, config: "DllmConfig", prompt_len: int, max_tokens: int
) -> span.Plan:
    """What the steps of a request forward; `params` were resolved with `max_tokens`."""
    assert params.block_length is not None
    if not config.facts.full_attention:
        return span.BlockCausal(span.Grid(0, params.block_length, span.UNBOUNDED))
    suffix = len(params.suffix_token_ids)
    grid = span.full_attention_grid(
        prompt_len,
        max_tokens,
        params.block_length,
        config.facts.max_model_len,
        infills=suffix > 0,
    )
    plan = span.FullAttention(grid, params.cache, suffix=suffix)
    if params.cfg_scale > 0:
        twin = span.round_up(plan.end, config.facts.page_size)
        plan = plan._replace(twin=twin)
    return plan


def check_length(
    sampling_params: "SamplingParams", config: "DllmConfig", prompt_len: int
) -> None:
    """Refuse a request whose refresh does not fit one forward, or the pages of one.

    Raises:
        ValueError: naming the numbers.
    """
    if not config.facts.full_attention:
        return
    max_tokens = sampling_params.max_tokens
    assert max_tokens is not None
    params = params_of(sampling_params, config, max_tokens)
    plan = plan_of(params, config, prompt_len, max_tokens)
    longest = plan.span(0, prompt_len, None)
    limits = {
        "max_num_batched_tokens": config.facts.max_num_batched_tokens,
        "max_model_len": config.facts.max_model_len,
    }
    for name, limit in limits.items():
        if longest.length > limit:
            suffix = f" and the suffix ({len(params.suffix_token_ids)} tokens)"
            twice = f", twice with {PREFIX}cfg_scale={params.cfg_scale}"
            raise ValueError(
                f"the prompt ({prompt_len} tokens) and the canvas "
                f"({plan.grid.end - prompt_len} tokens: max_tokens={max_tokens} in "
                f"blocks of {params.block_length})"
                f"{suffix if params.suffix_token_ids else ''}"
                f"{twice if longest.twin else ''} "
                f"are {longest.length} tokens, which one forward must hold; allowed: "
                f"{limit} ({name}). Ask for a smaller max_tokens."
            )


def check_sampling_params(params: "SamplingParams", config: "DllmConfig") -> None:
    """Accept a request or say why not.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    params_of(params, config)
    for key in params.extra_args or {}:
        if key.startswith("diffusion_"):
            raise ValueError(
                f"{key} is a field of other diffusion models; this model knows "
                f"{', '.join(PREFIX + name for name in DllmParams.model_fields)}"
            )
    for field, reason in UNSUPPORTED.items():
        if getattr(params, field) is not None:
            raise ValueError(f"{field}={getattr(params, field)!r}: {reason}")
    if set(params.allowed_token_ids or ()) == {config.mask_token_id}:
        raise ValueError(
            f"allowed_token_ids={params.allowed_token_ids!r} allows no token but the "
            "mask, which is never chosen"
        )


UNSUPPORTED: dict[str, str] = {
    "prompt_logprobs": (
        "not supported: a token of the prompt is seen by its neighbours on both sides, "
        "so the model predicts none of them"
    ),
    "prompt_logprob_token_ids": "not supported, as prompt_logprobs are not",
    "thinking_token_budget": "not supported for diffusion language models",
    "logprob_token_ids": "not supported; ask for logprobs",
}
"""Fields of `SamplingParams` that no value of can be honoured, and why."""


def describe(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """A pydantic error as one line: field, value, what is wrong with it."""
    first = error.errors(include_url=False)[0]
    field = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{field} is not given, and the checkpoint does not state it"
    if first["type"] == "extra_forbidden":
        known = ", ".join(prefix + name for name in model.model_fields)
        return f"unknown field {field}={first['input']!r}; known: {known}"
    return f"{field}={first['input']!r}: {first['msg']}"
