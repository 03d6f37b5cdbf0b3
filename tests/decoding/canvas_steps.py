"""Steps to ask the rules about, and slow helpers to answer them by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from vllm_dllm.decoding.base import CanvasStep, DecodingRule, Moves, reshapes

NAN = float("nan")


def as_float32(value: float) -> float:
    """What is left of a number in the tensors, so that both sides compare the same."""
    return torch.tensor(value, dtype=torch.float32).item()


# Few values, so that ties are common; the bounds of a probability are among them.
PROBABILITIES = tuple(map(as_float32, (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)))
ENTROPIES = tuple(map(as_float32, (0.0, 0.01, 0.1, 0.25, 0.3, 1.0, 2.5, 11.9)))
MEASURES = {
    "confidence": PROBABILITIES,
    "entropy": ENTROPIES,
    "margin": PROBABILITIES,
    "noise": PROBABILITIES[:-1],
}
TOKENS = 4
UNDEFINED = -1
NO_MOVES = Moves(TOKENS, TOKENS + 1)
"""Of a model that never predicts them."""


@dataclass
class Row:
    """One request's part of a step, in plain Python.

    As long as its own block, which may be shorter than that of another row.
    """

    masked: list[bool]
    confidence: list[float]
    step: int = 0
    post_steps: int = 0
    editable: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    candidate: list[int] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    margin: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)

    # Parameters of rules.
    steps: int = 1
    threshold: float = 0.5
    factor: float = 1.0
    entropy_bound: float = 0.25
    entropy_threshold: float = 0.25
    pos_penalty_factor: float = 0.125
    low_threshold: float = 0.25
    sub_block_length: int = 3
    delimiter_threshold: float = 0.5
    local_leap_anchor_threshold: float = 0.75
    local_leap_neighbor_threshold: float = 0.5
    local_leap_radius: int = 2
    edit_threshold: float = 0.5
    credit_alpha: float = 0.7
    credit_beta: float = 0.8
    credit_gamma: float = 0.2
    max_post_steps: int = 2
    eps: float = 1e-3
    alg_temp: float = 0.0

    def __post_init__(self) -> None:
        self.editable = self.editable or [False] * self.block
        self.tokens = self.tokens or [UNDEFINED] * self.block
        self.candidate = self.candidate or [UNDEFINED] * self.block
        self.entropy = self.entropy or [NAN] * self.block
        self.margin = self.margin or [NAN] * self.block
        self.noise = self.noise or [NAN] * self.block

    @property
    def block(self) -> int:
        return len(self.masked)

    @property
    def masks(self) -> list[int]:
        return [column for column, masked in enumerate(self.masked) if masked]

    def highest_first(self, score: list[float]) -> list[int]:
        """The masks by falling score; among equals the lower column first."""
        return sorted(self.masks, key=lambda column: (-score[column], column))

    @property
    def surest_first(self) -> list[int]:
        return self.highest_first(self.confidence)

    @property
    def quota(self) -> int:
        """This step's share when the block is spread over the steps (spec B1, B4)."""
        if self.step >= self.steps:
            return len(self.masks)
        schedule = [self.block // self.steps] * self.steps
        for step in range(self.block % self.steps):
            schedule[step] += 1
        return min(schedule[self.step], len(self.masks))

    @property
    def time(self) -> float:
        """The share of the masks that Dream's times give to this step, in float32."""
        if self.step >= self.steps - 1:
            return 1.0
        times = torch.linspace(1, self.eps, self.steps + 1)
        return float(1 - times[self.step + 1] / times[self.step])


PARAMETERS: dict[str, Sequence[Any]] = {
    "threshold": PROBABILITIES,
    "factor": (0.25, 0.5, 1.0, 1.5, 2.0, 4.0),
    "entropy_bound": (*ENTROPIES, 0.5, 20.0),
    "entropy_threshold": ENTROPIES,
    "pos_penalty_factor": (0.0, 0.125, 0.25, 2.0),
    "low_threshold": PROBABILITIES,
    "delimiter_threshold": PROBABILITIES,
    "local_leap_anchor_threshold": PROBABILITIES,
    "local_leap_neighbor_threshold": PROBABILITIES,
    "local_leap_radius": range(21),
    "edit_threshold": PROBABILITIES,
    "credit_alpha": PROBABILITIES,
    "credit_beta": PROBABILITIES,
    "credit_gamma": PROBABILITIES,
    "max_post_steps": range(4),
    "eps": (1e-3, 0.1, 0.5),
    "alg_temp": (0.0, 0.0, 0.1, 1.0),
}


def random_masks(draw: Random, block: int) -> list[bool]:
    """The masks of a block: all of it, one, none, or any, behind a prompt's tail."""
    kind = draw.choice(("any", "any", "all", "one", "none"))
    tail = draw.randrange(block)
    if kind == "any":
        return [column >= tail and draw.random() < 0.6 for column in range(block)]
    if kind == "one":
        return [column == tail for column in range(block)]
    return [kind == "all"] * block


def random_row(draw: Random, block: int) -> Row:
    """A row in any state: a prompt tail, the last steps, nothing masked, a step late.

    What is undefined is NaN or no token at all: a rule must not look at it.
    """
    masked = random_masks(draw, block)
    editable = [not mask and draw.random() < 0.5 for mask in masked]
    defined = [masked[c] or editable[c] for c in range(block)]
    tied = draw.random() < 0.5
    measures = {
        name: [
            (draw.choice(values) if tied else as_float32(draw.uniform(0, max(values))))
            if defined[column]
            else NAN
            for column in range(block)
        ]
        for name, values in MEASURES.items()
    }
    steps = draw.randint(1, block + 2)
    step = draw.randint(0, steps + 1)
    if step >= block:
        # Each of the first `block` steps takes something: masks are late by then.
        step = max(step, steps)
    return Row(
        masked=masked,
        editable=editable,
        tokens=[UNDEFINED if mask else draw.randrange(TOKENS) for mask in masked],
        candidate=[draw.randrange(TOKENS) if known else UNDEFINED for known in defined],
        step=step,
        post_steps=0 if any(masked) else draw.randint(1, 4),
        steps=steps,
        **measures,
        **{name: draw.choice(values) for name, values in PARAMETERS.items()},
    )


def random_batch(seed: int) -> list[Row]:
    """Rows, of which there is at least one; half of them with a block of their own."""
    draw = Random(seed)
    longest = draw.randint(1, 17)
    return [
        random_row(draw, draw.choice((longest, draw.randint(1, longest))))
        for _ in range(draw.randint(1, 5))
    ]


BATCHES = [random_batch(seed) for seed in range(200)]


def as_step(batch: list[Row], rule: DecodingRule | None = None) -> CanvasStep:
    """The same rows as the tensors that a rule is given.

    Columns past the block of a row are undefined.

    Args:
        rule: it is given what it declares and no more; None: all there is.
    """
    names = ["steps", *PARAMETERS] if rule is None else rule.parameters
    width = max(row.block for row in batch)

    def grid(name: str, missing: Any) -> torch.Tensor:
        rows = [getattr(row, name) for row in batch]
        return torch.tensor([row + [missing] * (width - len(row)) for row in rows])

    def column(name: str) -> torch.Tensor:
        return torch.tensor([getattr(row, name) for row in batch])

    def needed(name: str) -> bool:
        return rule is None or name in rule.needs

    candidate = grid("candidate", UNDEFINED)

    def proposed(columns: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        return candidate.gather(1, columns.unsqueeze(1)).squeeze(1)

    return CanvasStep(
        tokens=grid("tokens", UNDEFINED),
        masked=grid("masked", False),
        editable=grid("editable", False),
        length=column("block"),
        step=column("step"),
        post_steps=column("post_steps"),
        candidate=candidate,
        confidence=grid("confidence", NAN),
        entropy=grid("entropy", NAN) if needed("entropy") else None,
        margin=grid("margin", NAN) if needed("margin") else None,
        noise=grid("noise", NAN) if needed("noise") else None,
        time=column("time") if needed("time") else None,
        params={name: column(name) for name in names},
        moves=NO_MOVES if needed("moves") else None,
        still=candidate,
        another=proposed,
        memory={} if rule is None else nothing_remembered(rule, len(batch), width),
    )


def nothing_remembered(
    rule: DecodingRule, rows: int, width: int
) -> dict[str, torch.Tensor]:
    """The memory of a rule that decides by it, in blocks with as many steps."""
    memory = {} if reshapes(rule) else rule.memory
    return {
        name: torch.zeros(rows, width, 4 * width + 4, dtype=dtype)
        for name, dtype in memory.items()
    }


def columns(selected: torch.Tensor) -> list[set[int]]:
    """The selected columns of each row."""
    return [set(row.nonzero().flatten().tolist()) for row in selected]


def written(rule: DecodingRule, *batch: Row) -> list[set[int]]:
    """The columns of each row that the rule writes."""
    return columns(rule.decide(as_step(list(batch), rule)).write)


def uniform_row(confidence: list[float], **changes: Any) -> Row:
    """A row with all positions masked, in the first of as many steps."""
    values: dict[str, Any] = {
        "masked": [True] * len(confidence),
        "confidence": confidence,
        "steps": len(confidence),
        **changes,
    }
    return Row(**values)
