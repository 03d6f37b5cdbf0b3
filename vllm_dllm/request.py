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


class DllmParams(BaseModel):
    """The decoding parameters of one request, all resolved."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    algorithm: str
    """Name of the decoding rule (an alias is accepted and replaced)."""
    threshold: float = Field(ge=0, le=1, allow_inf_nan=False)
    """Confidence above which a token is taken; a probability."""
    steps: int = Field(ge=1)
    """Steps in which a whole block is decoded; sets the least tokens per step."""

    @field_validator("algorithm")
    @classmethod
    def _known_rule(cls, name: str) -> str:
        return canonical_name(name)


def resolve(extra_args: dict[str, Any] | None, config: "DllmConfig") -> DllmParams:
    """The parameters of a request: its own over the server's.

    Raises:
        ValueError: for an unknown `dllm_*` field, a wrong type, a value out of range,
            or a field that the request's rule does not use. Names field and value.
    """
    own = {
        key.removeprefix(PREFIX): value
        for key, value in (extra_args or {}).items()
        if key.startswith(PREFIX)
    }
    unknown = own.keys() - DllmParams.model_fields.keys()
    if unknown:
        raise ValueError(
            f"unknown field {PREFIX}{min(unknown)}; known: "
            f"{', '.join(PREFIX + name for name in DllmParams.model_fields)}"
        )
    try:
        params = DllmParams(**{**config.request_defaults(), **own})
    except ValidationError as error:
        raise ValueError(describe(error, PREFIX)) from None
    unused = own.keys() - {"algorithm"} - get_rule(params.algorithm).parameters
    if unused:
        raise ValueError(
            f"{PREFIX}{min(unused)} has no meaning for the decoding rule "
            f"{params.algorithm!r}"
        )
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
    for field, allowed in GREEDY_ONLY.items():
        value = getattr(params, field)
        if value != allowed and value not in (None, [], {}):
            raise ValueError(
                f"{field}={value!r} is not supported: tokens are chosen greedily "
                f"({field} must be {allowed!r})"
            )


GREEDY_ONLY: dict[str, Any] = {
    "temperature": 0.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "logit_bias": None,
    "bad_words": None,
    "allowed_token_ids": None,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "structured_outputs": None,
}
"""Fields of `SamplingParams` with the only value that greedy decoding can honour."""


def describe(error: ValidationError, prefix: str = "") -> str:
    """A pydantic error as one line: field, value, what is wrong with it."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{prefix}{field}={first['input']!r}: {first['msg']}"
