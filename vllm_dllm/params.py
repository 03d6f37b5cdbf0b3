"""The parameters of decoding: names, types, limits, defaults and meanings.

The only place that knows them. Requests carry them in `SamplingParams.extra_args`
(over HTTP: `vllm_xargs`) with the prefix `dllm_`; a server has defaults of them.
"""

from itertools import takewhile
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from vllm_dllm.decoding.registry import canonical_name
from vllm_dllm.quoting import quoted, shortened

PREFIX = "dllm_"
MAX_COUNT = 1_000_000
"""Upper limit of whatever is counted; far above any use, and it fits a tensor."""
MAX_STEPS = 4096
"""Upper limit of steps of a block that may decide nothing; every other step decides a
token at least."""
MAX_REAL = 1e6
"""Upper limit of a number that has no other. The worker computes in float32."""
MIN_REAL = 1e-6
"""Lower limit of a number above 0, which dividing by it must not take to infinity."""
MAX_WEIGHT = 100.0
"""Upper limit of what multiplies logits: they stay finite in float16."""

MAX_DELIMITERS = 256
"""Most tokens that may end a block; each is compared with every candidate."""

MAX_BUFFER_SIZE = 16
"""Most blocks of a request under denoising at once."""

CachePolicy = Literal["none", "prefix", "dual"]


def _not_tiny(value: float) -> float:
    if 0 < value < MIN_REAL:
        raise PydanticCustomError(
            "tiny", "Input should not lie between 0 and {least}", {"least": MIN_REAL}
        )
    return value


Real = Annotated[float, AfterValidator(_not_tiny)]
"""A number that a formula divides by, or that costs as much as a larger one."""


class RuleParams(BaseModel):
    """How positions become tokens. A server has defaults of them, a request its own."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    algorithm: str = Field(default="threshold")
    """Decoding rule; an alias is accepted and replaced."""
    threshold: float = Field(default=0.9, ge=0, le=1)
    """Confidence (a probability) above which a token is taken."""
    steps: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Steps in which a whole block is decoded, or with full attention the whole answer;
    sets the least tokens per step. By default one token per step."""
    factor: Real = Field(default=1.0, gt=0, le=MAX_REAL)
    """factor: how sure n tokens must be to be taken together, 1 - factor / (n + 1)."""
    entropy_bound: float = Field(default=0.35, ge=0, le=MAX_REAL)
    """entropy_bounded: sum of entropies (nats) of the tokens taken in a step."""
    local_leap_anchor_threshold: float = Field(default=0.9, ge=0, le=1)
    """local_leap: confidence that makes a position an anchor."""
    local_leap_neighbor_threshold: float = Field(default=0.75, ge=0, le=1)
    """local_leap: confidence that suffices near an anchor."""
    local_leap_radius: int = Field(default=4, ge=0, le=MAX_COUNT)
    """local_leap: how many positions away is near."""
    low_threshold: float = Field(default=0.6, ge=0, le=1)
    """hierarchical: confidence that the best of a run of masks must exceed."""
    credit_alpha: float = Field(default=0.7, ge=0, le=MAX_WEIGHT)
    """credit: weight of the credit that is added to the logits."""
    credit_beta: float = Field(default=0.8, ge=0, le=1)
    """credit: share of it that is left after a step."""
    credit_gamma: float = Field(default=0.2, ge=0, le=MAX_REAL)
    """credit: power of the probability that is credited."""
    entropy_threshold: float | None = Field(default=None, ge=0, le=MAX_REAL)
    """entropy_threshold, d3llm, wedlm: entropy (nats) up to which a position is taken;
    with wedlm that and the penalty of its place, and below. With 0 one position per
    step, and so with `null`. By default the authors': 0.5, with wedlm 0.4."""
    pos_penalty_factor: float = Field(default=0.02, ge=0, le=MAX_REAL)
    """wedlm: what is added to the entropy of a position for each position that it lies
    behind the first mask."""
    edit_threshold: float = Field(default=0.9, ge=0, le=1)
    """joint_threshold, joint_threshold_indel: confidence above which a decoded token is
    replaced."""
    max_post_steps: int = Field(default=16, ge=0, le=MAX_STEPS)
    """joint_threshold, joint_threshold_indel: steps that may go on editing a block
    without masks."""
    sub_block_length: int = Field(default=8, ge=1, le=MAX_COUNT)
    """sub_block_threshold: length of the parts of a block, from its start on, that are
    decoded one after the other."""
    eps: Real = Field(default=1e-3, gt=0, lt=1)
    """Dream's rules: where the time of the last step ends; it begins at 1."""
    alg_temp: Real = Field(default=0.0, ge=0, le=MAX_REAL)
    """Dream's rules: above 0, positions are drawn by lot, the surer the likelier; how
    much is left to chance."""
    delimiter_ids: list[Annotated[int, Field(ge=0)]] = Field(
        default=[], max_length=MAX_DELIMITERS
    )
    """adablock: tokens of which a predicted one ends a block."""
    delimiter_threshold: float | None = Field(default=None, ge=0, le=1)
    """adablock: how sure it must be. Without a threshold, or without such tokens, all
    blocks have the default length."""

    buffer_size: int = Field(default=1, ge=1, le=MAX_BUFFER_SIZE)
    """Block-causal: blocks under denoising at once (multi_bd), with `threshold` and
    `joint_threshold`. With 1 a block is decoded before the next one begins, which is
    exact; with more, tokens are taken while some before them are not known yet."""
    add_block_threshold: float = Field(default=0.1, gt=0, le=1)
    """Several blocks, d2f, d3llm: decoded share of the last one from which the next one
    begins."""
    semi_complete_threshold: float = Field(default=0.9, gt=0, le=1)
    """Several blocks with threshold, d2f: decoded share of a block from which the one
    behind it is given a token in every step, however unsure."""
    token_stability_threshold: float = Field(default=0.0, ge=0, le=1)
    """Several blocks: share of the tokens of the last one that a step would not change,
    from which the next one begins."""

    @field_validator("entropy_threshold", mode="before")
    @classmethod
    def _no_threshold(cls, value: Any) -> Any:
        return 0.0 if value is None else value

    @field_validator("algorithm")
    @classmethod
    def _known_rule(cls, name: str) -> str:
        return canonical_name(name)


class DllmParams(RuleParams):
    """What one request wishes, over the defaults of its server."""

    max_nfe: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Number of denoising forwards after which the request ends ("length")."""
    block_length: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Diffusion block size. Free with full attention, where None is the whole answer,
    and for Nemotron-Labs-Diffusion; otherwise only the server's own is possible."""
    window: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """WeDLM: how many positions right of the known tokens are decoded at once."""
    cache: CachePolicy = "none"
    """Full attention: which keys a step may read from an earlier one. "none" is exact;
    "prefix" reads those before the block, "dual" also those after it. Not for d2f,
    which caches without a loss, and d3llm."""
    cfg_scale: Real = Field(default=0.0, ge=0, le=MAX_WEIGHT)
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
    canvas_token_ids: list[Annotated[int, Field(ge=-1)]] = []
    """Full attention: what follows the prompt where it has several gaps: a token id at
    each position that is given, -1 at each that is decoded. `max_tokens` is how many
    there are up to the last -1; tokens behind it are a suffix. In /v1/completions
    `dllm_gaps` or `dllm_fill_masks`."""
    adaptive: bool = False
    """Whether the server may decode with its `busy_threshold` while it is busy. The
    answer then depends on what else is asked."""
    return_trajectory: bool = False
    """Whether the answer says for each token which step of its block decided it."""
    return_step_maps: bool = False
    """The same with steps from 1 on, under SGLang's name, `step_maps`."""
    return_rest: bool = False
    """Whether the answer says what was decoded behind its end, and in which steps: what
    the model saw beside it."""
    stream_drafts: bool = False
    """Whether every step of a block is sent, masks and all; for `stream_mode:
    "denoise"`."""

    @field_validator(
        "adaptive",
        "return_trajectory",
        "return_step_maps",
        "return_rest",
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
    "canvas_token_ids",
)
"""Fields that have no meaning without full attention."""
WINDOW_FIELDS = ("window",)
"""Fields that have no meaning without a window that slides."""


BUFFER_FIELDS = frozenset(
    {"add_block_threshold", "semi_complete_threshold", "token_stability_threshold"}
)
"""Fields that have a meaning with several blocks in flight alone."""


FIELDS_OF_RULES = {"delimiter_ids": "adablock"}
"""Fields of one rule that are no numbers, and the rule."""


def choices_of(field: FieldInfo) -> list[str] | None:
    """The values that the type of a field lists, if it does."""
    is_choice = get_origin(field.annotation) is Literal
    return list(get_args(field.annotation)) if is_choice else None


def kind_of(field: FieldInfo) -> Any:
    """The type of a field's values, None aside."""
    if choices_of(field) is not None:
        return str
    kinds = get_args(field.annotation) or (field.annotation,)
    return next(kind for kind in kinds if kind is not NoneType)


NUMERIC_FIELDS: dict[str, Any] = {
    name: kind_of(field)
    for name, field in RuleParams.model_fields.items()
    if kind_of(field) in (int, float)
}
"""Parameters of rules that are numbers, with their type."""


def describe(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """A pydantic error as one line: field, value, what is wrong with it."""
    first, *others = error.errors(include_url=False)
    # Of what may be of several kinds each says why it is none of it.
    same = (e for e in others if e["loc"][0] == first["loc"][0])
    kinds = [first, *(e for e in same if e["input"] is first["input"])]
    levels = zip(*(e["loc"] for e in kinds), strict=False)
    parts = takewhile(lambda part: len({*part}) == 1, levels)
    field = shortened(prefix + ".".join(str(part) for part, *_ in parts))
    value = quoted(first["input"])
    if first["type"] == "missing":
        return f"{field} is not given, and the checkpoint does not state it"
    if first["type"] == "extra_forbidden":
        known = ", ".join(prefix + name for name in model.model_fields)
        return f"unknown field {field}={value}; known: {known}"
    said = f"{field}={value}: {' or '.join(dict.fromkeys(e['msg'] for e in kinds))}"
    allowed = range_of(model.model_fields[str(first["loc"][0])])
    return f"{said}; allowed: {allowed}" if allowed else said


def range_of(field: FieldInfo) -> str:
    """The limits of a field in words; empty if it has none."""
    return in_words(
        {
            name: getattr(limit, name)
            for limit in field.metadata
            for name in ("ge", "gt", "le", "lt")
            if hasattr(limit, name)
        }
    )


def in_words(limits: dict[str, float]) -> str:
    """Limits by pydantic's names of them, `ge`, `gt`, `le` and `lt`."""
    numbers = {
        name: f"{limit:,}" if isinstance(limit, int) else f"{limit:,.10g}"
        for name, limit in limits.items()
    }
    if numbers.keys() == {"ge", "le"}:
        return f"{numbers['ge']} to {numbers['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{words[name]} {number}" for name, number in numbers.items())
