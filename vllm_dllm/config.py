"""Server-wide choices: one pydantic model, and where each value comes from.

Later sources win: the family's table (models/registry.py), the checkpoint's
config.json, `additional_config["dllm"]` (which `--dllm-config` and the other
`--dllm-*` flags are folded into, cli.py). The resolved config rides on the HF config,
which reaches every process inside `VllmConfig`.
"""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from vllm_dllm.params import CachePolicy, RuleParams, describe
from vllm_dllm.plans.grid import UNBOUNDED
from vllm_dllm.quoting import quoted

if TYPE_CHECKING:
    from vllm.config import ModelConfig

KEY = "dllm"
"""Our key in `additional_config`, and our attribute on the HF config."""

Effort = Literal["none", "low", "medium", "high"]

BUDGETS = (
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "long_prefill_token_threshold",
)
"""Options of vLLM that say how many tokens a step may forward of a request."""


class Facts(BaseModel):
    """What is not for a user to choose: facts of the architecture and of the engine."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    attention: Literal["block_causal", "seeded", "seeded_causal", "full", "window"] = (
        "block_causal"
    )
    """What a position sees: its own block and those before it; the whole canvas; or
    what goes before it in a window that slides. "seeded" is block-causal, and a block
    begins with the token after the one before; "seeded_causal" also, and sees itself
    only while it is denoised."""
    shifted_logits: bool = False
    """Whether the row of position p predicts position p + 1."""
    cuts_last_block: bool = False
    """Block-causal: whether the last block ends with the answer, wherever that is."""
    clean_confidence: bool = False
    """Whether a token's confidence is its probability before temperature, top-k and
    top-p, and not the one that it was drawn with."""
    soft_tokens: bool = True
    """Whether a step may be given embeddings instead of token ids, for rules that show
    the model mixtures of them."""
    rule_names: dict[str, str] = {}
    """Names of decoding rules that mean another rule here."""
    eos_token_id: int | None = None
    eot_token_id: int | None = None
    """The end of a turn, in families that have a token of its own for it."""
    stop_token_ids: list[int] = []
    """Tokens that end an answer, besides those of generation_config.json."""
    max_model_len: int = UNBOUNDED
    max_num_batched_tokens: int = UNBOUNDED
    max_num_scheduled_tokens: int = UNBOUNDED
    """The smaller of the two is what a step may forward."""
    long_prefill_token_threshold: int = UNBOUNDED
    """What it may forward of one request."""
    page_size: int = 1
    """KV page in tokens."""
    plans_ahead: bool = False
    """Whether a step may be planned before the tokens of the one before it are there
    (course.py)."""
    vocab_size: int = UNBOUNDED
    delete_token_id: int | None = None
    split_token_id: int | None = None
    """LLaDA2.2: tokens that move others, and stand in no answer."""

    @property
    def moves(self) -> tuple[int, int] | None:
        """Both of them, where the checkpoint has them."""
        if self.delete_token_id is None or self.split_token_id is None:
            return None
        return self.delete_token_id, self.split_token_id

    @property
    def never_answered(self) -> tuple[int, ...]:
        """Tokens besides the mask that no answer holds."""
        return self.moves or ()

    @property
    def full_attention(self) -> bool:
        return self.attention == "full"

    @property
    def fixed_block(self) -> bool:
        """Whether blocks are as long as those that the checkpoint was trained with, and
        no request has other ones."""
        return self.attention in ("block_causal", "seeded")

    @property
    def budgets(self) -> dict[str, int]:
        """Tokens that a step may forward of a request, by the option that says so."""
        return {name: getattr(self, name) for name in BUDGETS}


class DllmConfig(RuleParams):
    """Choices of a server that hold for all its requests, and their defaults."""

    block_size: int | None = Field(default=None, ge=1, le=4096)
    """Diffusion block size in tokens. For a block-causal model it must be the one the
    checkpoint was trained with. With full attention it is the default of a request's
    block length; without one a block is the whole answer. With WeDLM it is the default
    of a request's window. Not the KV page size, which is vLLM's `--block-size`."""
    mask_token_id: int = Field(ge=0)
    """Token id that stands for a position not yet decoded."""
    cache: CachePolicy = "none"
    """Full attention: which keys a step may read from an earlier one; "none" is exact,
    "prefix" and "dual" are Fast-dLLM's approximations."""
    cap_steps: bool = False
    """Take no more steps for a block than the whole answer may have tokens, as LLaDA2's
    authors do."""
    soft_tokens: bool | None = None
    """Block-causal: whether requests may have `dmax`, which gives the model embeddings
    instead of token ids. By default where that costs nothing: on CPU, with
    `--enforce-eager`, and where it is the server's own rule. A compiled engine that
    allows it looks embeddings up before each of its steps."""
    busy_threshold: float | None = Field(default=None, ge=0, le=1)
    """What `threshold` is, in requests with `dllm_adaptive`, while the server is busy;
    never higher than their own."""
    busy_requests: int | None = Field(default=None, ge=0)
    """The server is busy while more requests run or wait."""
    efforts: dict[Effort, dict[str, Any]] | None = None
    """What `reasoning_effort` means for the decoding of a request that says nothing of
    it itself: for "none", "low", "medium" and "high" fields of a request, without
    `dllm_`. An effort that is left out changes nothing. By default the presets of
    block-causal models whose rule is `threshold` and of LLaDA's with full attention
    whose rule is `low_confidence`, and nothing for others."""
    _facts: Facts = PrivateAttr(default=Facts())

    @property
    def facts(self) -> Facts:
        return self._facts

    def with_facts(self, facts: Facts) -> Self:
        """The same choices for a server of which `facts` hold."""
        config = self.model_copy()
        config._facts = facts
        return config

    @property
    def block(self) -> int:
        """The diffusion block size of a block-causal model."""
        assert self.block_size is not None
        return self.block_size

    def request_defaults(self) -> dict[str, Any]:
        """Values of `DllmParams` for a request that sets none."""
        # A field that is not given is no `null`.
        fields = {*RuleParams.model_fields, "cache"}
        return self.model_dump(include=fields, exclude_none=True)

    @classmethod
    def build(
        cls, *sources: dict[str, Any], facts: Facts | None = None
    ) -> "DllmConfig":
        """The config in which later sources win over earlier ones.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        facts = facts or Facts()
        fields: dict[str, Any] = {}
        for source in sources:
            fields.update((k, v) for k, v in source.items() if v is not None)
        if facts.fixed_block:
            if "block_size" not in fields:
                raise ValueError(
                    f"{KEY}.block_size is not given, and the checkpoint does not "
                    "state it"
                )
            # A block size that is refused below must not be refused as a number of
            # steps.
            block_size = fields["block_size"]
            usable = type(block_size) is int and block_size >= 1
            fields.setdefault("steps", block_size if usable else 1)
        if ("busy_threshold" in fields) != ("busy_requests" in fields):
            raise ValueError(
                f"{KEY}.busy_threshold={quoted(fields.get('busy_threshold'))} and "
                f"{KEY}.busy_requests={quoted(fields.get('busy_requests'))} go together"
            )
        try:
            return cls(**fields).with_facts(facts)
        except ValidationError as error:
            raise ValueError(describe(error, cls, f"{KEY}.")) from None

    def attach(self, model_config: "ModelConfig") -> None:
        """Make `of(model_config)` return this config, in every process."""
        choices = self.model_dump(exclude_none=True)
        fields = {"choices": choices, "facts": self.facts.model_dump()}
        setattr(model_config.hf_config, KEY, json.dumps(fields))

    @classmethod
    def of(cls, model_config: "ModelConfig") -> "DllmConfig":
        """The resolved config of a running engine."""
        return _read(getattr(model_config.hf_config, KEY))


@lru_cache(maxsize=8)
def _read(text: str) -> DllmConfig:
    """What `DllmConfig.attach` wrote. Asked for at every request, so it is kept."""
    fields = json.loads(text)
    return DllmConfig(**fields["choices"]).with_facts(Facts(**fields["facts"]))


def given(additional_config: Any) -> dict[str, Any]:
    """What the user set under our key of vLLM's `additional_config`.

    Raises:
        ValueError: if it is not a mapping.
    """
    # vLLM also takes an object of the user's own class, which has no keys.
    fields = additional_config.get(KEY) if isinstance(additional_config, dict) else None
    if not isinstance(fields, dict | None):
        raise ValueError(
            f'additional_config["{KEY}"]={quoted(fields)} is not a mapping; known '
            f"fields: {', '.join(DllmConfig.model_fields)}"
        )
    return dict(fields or {})
