"""Decoding: one request's wishes, settled against its server."""

from dataclasses import dataclass
from typing import Self

from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.given import NOTHING, Given
from vllm_dllm.params import CachePolicy, DllmParams

NEVER = 2.0
"""A probability that nothing has."""
ENTROPY_THRESHOLD = 0.5
"""Of d3LLM's authors."""
ENTROPY_THRESHOLDS = {"wedlm": 0.4}
"""That of the authors of other rules."""


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
    given: Given
    """What the request gives behind its prompt (given.py)."""
    return_trajectory: bool
    return_step_maps: bool
    return_rest: bool
    stream_drafts: bool
    buffer_size: int
    add_block_threshold: float
    token_stability_threshold: float
    delimiter_ids: tuple[int, ...]
    busy_threshold: float | None
    """`threshold` while the server is busy, where that is another one."""
    in_runs: bool
    """Whether it is structured output of several tokens a step (runs.py)."""

    @classmethod
    def of(
        cls,
        wishes: DllmParams,
        algorithm: str,
        block_length: int,
        steps: int,
        buffer_size: int = 1,
        in_runs: bool = False,
        busy_threshold: float | None = None,
        given: Given = NOTHING,
    ) -> Self:
        """What is wished, with the answers to what a wish leaves open."""
        values = wishes.model_dump() | {"steps": steps, "block_length": block_length}
        if wishes.delimiter_threshold is None:
            values["delimiter_threshold"] = NEVER
        if wishes.entropy_threshold is None:
            authors = ENTROPY_THRESHOLDS.get(algorithm, ENTROPY_THRESHOLD)
            values["entropy_threshold"] = authors
        return cls(
            algorithm=algorithm,
            block_length=block_length,
            parameters={p: values[p] for p in get_rule(algorithm).parameters},
            max_nfe=wishes.max_nfe,
            cache=wishes.cache,
            cfg_scale=wishes.cfg_scale,
            logits_eos_inf=wishes.logits_eos_inf,
            confidence_eos_eot_inf=wishes.confidence_eos_eot_inf,
            given=given,
            return_trajectory=wishes.return_trajectory,
            return_step_maps=wishes.return_step_maps,
            return_rest=wishes.return_rest,
            stream_drafts=wishes.stream_drafts,
            buffer_size=buffer_size,
            add_block_threshold=wishes.add_block_threshold,
            token_stability_threshold=(
                wishes.token_stability_threshold if buffer_size > 1 else 0.0
            ),
            delimiter_ids=tuple(wishes.delimiter_ids),
            busy_threshold=busy_threshold,
            in_runs=in_runs,
        )
