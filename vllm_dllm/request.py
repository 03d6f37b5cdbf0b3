"""One request's choices: field names, types and limits, and where they come from.

The only place that knows them. Requests carry them in `SamplingParams.extra_args`
(over HTTP: `vllm_xargs`) with the prefix `dllm_`. They are checked in the API process,
because an exception in a worker would end the engine.
"""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vllm_dllm.decoding.registry import canonical_name, get_rule

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

    from vllm_dllm.config import DllmConfig

PREFIX = "dllm_"
MAX_COUNT = 1_000_000
"""Upper limit of whatever is counted; far above any use, and it fits a tensor."""


class RuleParams(BaseModel):
    """How positions become tokens. A server has defaults of them, a request its own."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    algorithm: str = Field(default="threshold")
    """Decoding rule; an alias is accepted and replaced."""
    threshold: float = Field(default=0.9, ge=0, le=1, allow_inf_nan=False)
    """Confidence (a probability) above which a token is taken."""
    steps: int = Field(ge=1, le=MAX_COUNT)
    """Steps in which a whole block is decoded; sets the least tokens per step."""
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

    @field_validator("algorithm")
    @classmethod
    def _known_rule(cls, name: str) -> str:
        return canonical_name(name)


class DllmParams(RuleParams):
    """The decoding parameters of one request, all resolved."""

    max_nfe: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Number of denoising forwards after which the request ends ("length")."""
    block_length: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Diffusion block size; only the server's own is possible."""
    return_trajectory: bool = False
    """Whether the answer says for each token which step of its block decided it."""

    @field_validator("return_trajectory", mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        # vLLM's `vllm_xargs` turns a JSON boolean into 0 or 1.
        return bool(value) if value in (0, 1) else value


NUMERIC_FIELDS: dict[str, Any] = {
    name: kind
    for name, field in RuleParams.model_fields.items()
    for kind in (int, float)
    if field.annotation is kind
}
"""Parameters of rules that are numbers, with their type."""


def resolve(
    extra_args: dict[str, Any] | None,
    config: "DllmConfig",
    max_tokens: int | None = None,
) -> DllmParams:
    """The parameters of a request: its own over the server's.

    `max_tokens` is the length of the longest answer, where it matters.

    Raises:
        ValueError: for an unknown `dllm_*` field, a wrong type, a value out of range,
            or a field that the request's rule does not use. Names field and value.
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
    if params.block_length not in (None, config.block_size):
        raise ValueError(
            f"{PREFIX}block_length={params.block_length} is not the block size of this "
            f"server, {config.block_size}, which the checkpoint was trained with"
        )
    parameters = get_rule(params.algorithm).parameters
    for name in sorted(own.keys() & NUMERIC_FIELDS.keys() - parameters):
        raise ValueError(
            f"{PREFIX}{name}={own[name]!r} has no meaning for the decoding rule "
            f"{params.algorithm!r}, which uses "
            f"{', '.join(PREFIX + used for used in sorted(parameters))}"
        )
    if config.cap_steps and max_tokens is not None:
        params = params.model_copy(update={"steps": min(params.steps, max_tokens)})
    return params


def check_sampling_params(params: "SamplingParams", config: "DllmConfig") -> None:
    """Accept a request or say why not.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    resolve(params.extra_args, config)
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
    "structured_outputs": (
        "not supported: a grammar needs its tokens from left to right, and a block is "
        "decoded in any order"
    ),
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
