"""What travels from the worker to the client besides tokens, and in which carriers.

vLLM's messages have no room for fields of a plugin. Three of its own fields arrive
unchanged at the other end and are empty for diffusion models; this module alone knows
what they hold here:

- an attribute of `ModelRunnerOutput`, which is pickled whole: `StepReport`;
- `RequestSpecDecodeMetrics`: `ForwardCount`, the forwards of a request;
- the per-position lists of `SpecDecodingStats`: `StepStats`, for /metrics.

What only a client reads goes in the free-form `kv_transfer_params` of an answer; why a
grammar ended one, in its `stop_reason`.
"""

from dataclasses import dataclass, field
from typing import Any, Self

from vllm.v1.metrics.stats import RequestSpecDecodeMetrics
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.spec_decode.metrics import SpecDecodingStats

MICROSECONDS = 1_000_000
DEAD_END = (
    "structured_outputs cannot be followed to an end: what would have to come next is "
    "no token of the model, or one of stop_token_ids, or the grammar has no answer"
)


@dataclass
class Draft:
    """The part of a request's block that is not handed out yet, after a step."""

    start: int
    """Absolute position of its first token."""
    tokens: list[int]
    """Up to the end of the block; -1 is a mask."""
    changed: list[int]
    """Absolute positions written in the step, those handed out by it included."""
    step: int
    """Steps that the block had taken before this one."""
    block_ends: list[int]
    """Absolute positions past the last token of each block in flight that is shown,
    the front one first."""


@dataclass
class Rest:
    """All of a request's block, after a step that may have ended it."""

    start: int
    """Absolute position of its first token that was not known before the step."""
    tokens: list[int]
    """Up to the end of what is in flight; -1 is a mask."""
    steps: list[int]
    """Those of its block that decided them; -1 for a mask."""


@dataclass
class StepReport:
    """What the worker says of a step, by request id."""

    trajectories: dict[str, list[int]] = field(default_factory=dict)
    """Steps of their block that decided the tokens handed out."""
    drafts: dict[str, Draft] = field(default_factory=dict)
    rests: dict[str, Rest] = field(default_factory=dict)
    forced: dict[str, list[int]] = field(default_factory=dict)
    """Absolute positions written for which a grammar allowed one token."""
    marks: dict[str, int] = field(default_factory=dict)
    """What plans remember of the step (`Plan.mark`) where only the worker knows it."""
    candidates: dict[str, list[int]] = field(default_factory=dict)
    """What is proposed for the rest of the block, of requests decoded in runs."""
    revised: int = 0
    """Tokens replaced by others, in all requests."""

    @property
    def is_worth_sending(self) -> bool:
        told = self.trajectories or self.drafts or self.rests or self.forced
        return bool(told or self.marks or self.candidates or self.revised)

    def attach(self, output: ModelRunnerOutput) -> None:
        output.dllm_report = self

    @staticmethod
    def of(output: ModelRunnerOutput) -> "StepReport":
        report: StepReport = getattr(output, "dllm_report", NOTHING)
        return report


NOTHING = StepReport()
"""Of most steps; never written to."""


@dataclass
class ForwardCount(RequestSpecDecodeMetrics):
    """Counts a request's denoising forwards; vLLM calls `observe` for each."""

    num_spec_tokens: int = 0
    """0 tells it from a count of speculative decoding."""

    def observe(
        self, num_draft_tokens: int, num_accepted: int, detailed: bool = False
    ) -> None:
        self.num_draft_tokens += 1

    def note_busy(self) -> None:
        """Count the last forward among those of a busy server."""
        self.histogram = [self.busy + 1]

    @property
    def busy(self) -> int:
        return sum(self.histogram)

    @staticmethod
    def read(metrics: RequestSpecDecodeMetrics | None) -> int | None:
        """The forwards in what arrived, None if it is no such count."""
        if metrics is None or metrics.num_spec_tokens != 0:
            return None
        return metrics.num_draft_tokens

    @staticmethod
    def read_busy(metrics: RequestSpecDecodeMetrics) -> int:
        """How many of these took the threshold of a busy server."""
        return sum(metrics.histogram)


@dataclass
class StepStats:
    """A step, for /metrics."""

    seconds: float
    """From the plan of the step to its result."""
    requests: int
    """Requests that took a denoising step."""
    positions: int
    """Positions forwarded, in all requests."""
    canvas: int
    """Of these, positions of the blocks under denoising that were not handed out."""
    committed: int
    """Tokens handed out, in all requests."""
    revised: int
    """Tokens replaced by others, in all requests."""
    busy: int
    """Requests that took the threshold of a busy server."""
    finished: list[tuple[int, int]]
    """Forwards and tokens of each request that ended."""

    def pack(self, stats: SpecDecodingStats) -> None:
        """Put it where vLLM counts accepted drafts by position, which has no meaning
        here, and the rest where vLLM's own diffusion metrics look for it."""
        stats.num_drafts = self.requests
        stats.num_draft_tokens = self.canvas
        stats.num_accepted_tokens = self.committed
        stats.num_draft_tokens_per_pos = [
            round(self.seconds * MICROSECONDS),
            self.positions,
            self.revised,
            self.busy,
        ]
        stats.num_accepted_tokens_per_pos = [n for pair in self.finished for n in pair]

    @classmethod
    def unpack(cls, stats: SpecDecodingStats) -> Self | None:
        """What `pack` put there; None if it did not."""
        if len(stats.num_draft_tokens_per_pos) != 4:
            return None
        microseconds, positions, revised, busy = stats.num_draft_tokens_per_pos
        pairs = stats.num_accepted_tokens_per_pos
        return cls(
            seconds=microseconds / MICROSECONDS,
            requests=stats.num_drafts,
            positions=positions,
            canvas=stats.num_draft_tokens,
            committed=stats.num_accepted_tokens,
            revised=revised,
            busy=busy,
            finished=list(zip(pairs[::2], pairs[1::2], strict=True)),
        )


def client_params(**fields: Any) -> dict[str, Any]:
    """`kv_transfer_params` of an answer: only what is given."""
    return {f"dllm_{k}": v for k, v in fields.items() if v is not None}
