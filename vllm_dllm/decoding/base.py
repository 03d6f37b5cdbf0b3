"""What a decoding rule is given and what it answers. Torch and ops only, no vLLM."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard

import torch

from vllm_dllm.ops.choice import best as best  # rules take it from here
from vllm_dllm.ops.choice import best_of_quota, quota


class Moves(NamedTuple):
    """Tokens that a model predicts to move others; no answer holds one."""

    delete: int
    """Takes its position away: what follows moves left."""
    split: int
    """Puts a mask before the token of its position: what follows moves right."""


@dataclass
class CanvasStep:
    """One step of `n` requests that share a rule; row i is the block of request i.

    `block` is the length of the longest block; columns are positions of the blocks. A
    request whose step has no canvas has a row without masks and without editable
    positions, and the columns past a shorter block are neither.
    """

    # Filled from the canvas.
    tokens: torch.Tensor
    """[n, block] int64: the tokens before this step; undefined where masked."""
    masked: torch.Tensor
    """[n, block] bool: positions that are still masks."""
    editable: torch.Tensor
    """[n, block] bool: decoded positions that were not handed out yet."""
    length: torch.Tensor
    """[n] int64: number of positions of the block."""
    step: torch.Tensor
    """[n] int64: steps that this block has already taken."""
    post_steps: torch.Tensor
    """[n] int64: of these, and of this one, how many began without a mask."""

    # Filled from the logits; undefined where neither masked nor, for a rule that
    # revises, editable.
    candidate: torch.Tensor
    """[n, block] int64: the proposed token; never the mask."""
    confidence: torch.Tensor
    """[n, block] float32: its probability."""
    entropy: torch.Tensor | None
    """[n, block] float32, nats: of the distribution that the candidate is from; for
    rules that need "entropy"."""
    margin: torch.Tensor | None
    """[n, block] float32: probability of the best token less that of the second best;
    for rules that need "margin"."""
    noise: torch.Tensor | None
    """[n, block] float32 in [0, 1): a function of the request's seed, the position and
    the step; for rules that need "noise"."""

    # Filled from the requests.
    time: torch.Tensor | None
    """[n] float32: share of the masks that Dream's time grid gives to this step; for
    rules that need "time"."""
    params: dict[str, torch.Tensor]
    """The rule's `parameters`, each [n]."""
    given: torch.Tensor | None = None
    """[n] int64: positions of the block that the request gave; None if none did."""

    # Filled from the buffers, for rules of several blocks in flight.
    before: torch.Tensor | None = None
    """[n] float32: decoded share of the block before it; 1 in front of all."""
    age: torch.Tensor | None = None
    """[n] int64: `step`, and one more of a block that begins with tokens of the
    prompt."""

    # For rules that need "moves".
    moves: Moves | None = None
    """Candidates may be these then; for all other rules they never are."""
    still: torch.Tensor | None = None
    """[n, block] int64: the proposed token that moves nothing."""
    another: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    """(column: [n] int64, taken: [n, k] int64) -> [n] int64: the token that would be
    proposed at a column if those taken could not be; -1 is none. Undefined where the
    column has no candidate."""

    # For rules that have a memory and do not reshape.
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    """Each [n, block, steps], changed in place; zeros at the block's first step."""

    def take(self, rows: torch.Tensor) -> "CanvasStep":
        """The same of some requests: rows is [m] int64. What is of their rule comes
        separately: `params`, `memory`, `another`."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value[rows]
        return CanvasStep(**values)

    def quota(self) -> torch.Tensor:
        """Number of positions that this step must decode, at most all masked ones.

        A block of B positions in s steps: B div s in each, one more in the first
        B mod s (LLaDA's `get_num_transfer_tokens`). Past the last step nothing may
        stay masked. What is given in the midst of an answer does not count.

        Returns:
            [n] int64 tensor.
        """
        return quota(*self._shared_out())

    def best_of_quota(
        self, score: torch.Tensor, above: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[n, block] bool: the masked positions with the highest score, as many as
        `quota` says, or all that score higher than `above`, if these are more.

        Args:
            score: [n, block] float tensor.
            above: [n] float32 tensor.
        """
        return best_of_quota(score, *self._shared_out(), above)

    def _shared_out(
        self,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks of the blocks, and over how many steps their positions are shared
        out."""
        length = self.length if self.given is None else self.length - self.given
        return self.masked, length, self.step, self.params["steps"]


@dataclass
class Decision:
    """A rule's answer for a step, in tensors of its own."""

    write: torch.Tensor
    """[n, block] bool: positions that take their candidate. Masked ones are selected;
    editable ones, which only a rule that revises may name, are revised."""
    done: torch.Tensor | None = None
    """[n] bool, from rules that revise: the block will not change any more. None:
    every decoded position is stable at once."""
    stability: torch.Tensor | None = None
    """[n] float32, from rules of buffers that revise: share of the decoded positions
    that would get the same token again."""
    tokens: torch.Tensor | None = None
    """[n, block] int64: what the positions of `write` take; None: their candidates."""
    source: torch.Tensor | None = None
    """[n, block] int64: the column whose content each position has after all was
    written; -1 makes it a mask. None: its own, nothing moves."""


class DecodingRule(Protocol):
    """Chooses the positions that take their candidate tokens."""

    parameters: ClassVar[frozenset[str]]
    """The fields of `RuleParams` that change what this rule does."""
    needs: ClassVar[frozenset[str]]
    """Which of "entropy", "margin", "noise", "time" and "moves" it reads."""
    revises: ClassVar[bool]
    """Whether it changes decoded tokens. Nothing of a block is handed out then before
    the block is done."""
    softens: ClassVar[bool]
    """Whether the model is shown a decoded token of the block under denoising as a
    mixture of its embedding and the mask's, by the token's last confidence."""
    memory: ClassVar[dict[str, torch.dtype]]
    """What it remembers of a block, by name: a value of this type for each position
    and step, 0 at first. A rule that has any is a `RememberingRule`."""

    def decide(self, canvas: CanvasStep) -> Decision:
        """Positions that are written in this step."""
        ...


class RememberingRule(DecodingRule, Protocol):
    """A rule that has a memory."""

    def memory_steps(self, block: int, parameters: dict[str, int | float]) -> int:
        """How many steps of a block it remembers: no block takes more.

        Args:
            parameters: the rule's `parameters`.
        """
        ...


@dataclass
class Bonus:
    """What a rule adds to the logits of `rows` positions, for their candidates."""

    tokens: torch.Tensor
    """[rows, k] int64; a token that stands twice has the same value twice."""
    values: torch.Tensor
    """[rows, k] float32."""


class ReshapingRule(RememberingRule, Protocol):
    """A rule that changes logits by what it saw in earlier steps of the block."""

    def reshape(
        self,
        token: torch.Tensor,
        confidence: torch.Tensor,
        memory: dict[str, torch.Tensor],
        step: torch.Tensor,
        params: dict[str, torch.Tensor],
    ) -> Bonus:
        """What is added to the logits of `rows` masked positions.

        Args:
            token, confidence: [rows]: the best token under the model's own logits, its
                probability.
            memory: each [rows, block], changed in place; zeros at the block's first
                step.
            step: [rows] int64.
            params: the rule's `parameters`, each [rows].
        """
        ...


def reshapes(rule: DecodingRule) -> TypeGuard[ReshapingRule]:
    """Whether it changes logits; its memory is for that then."""
    return hasattr(rule, "reshape")


class SelectingRule:
    """Base of the rules that only turn masks into tokens."""

    needs: ClassVar[frozenset[str]] = frozenset()
    revises: ClassVar[bool] = False
    softens: ClassVar[bool] = False
    memory: ClassVar[dict[str, torch.dtype]] = {}

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        """[n, block] bool: a subset of `canvas.masked`, not empty where that is not."""
        raise NotImplementedError

    def decide(self, canvas: CanvasStep) -> Decision:
        return Decision(self.select(canvas))
