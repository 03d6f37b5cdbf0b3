"""Runs: what is assumed of the next tokens of structured output, and the bits of a
grammar that hold if it is so.

Made by the scheduler (walk.py), and sent with its step to the worker, which takes, from
the left, what turns out to be as assumed (worker/grammar.py).
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from vllm.v1.core.sched.output import SchedulerOutput


@dataclass(frozen=True)
class Run:
    """What is assumed of the first positions of a canvas."""

    tokens: tuple[int, ...] = ()
    """One for each of them, from the left."""
    forced: int = 0
    """How many of these, from the left, the grammar leaves no choice of."""
    bits: npt.NDArray[np.int32] | None = field(default=None, compare=False)
    """[positions, words]: what may stand at each of them, and at the next one if there
    is room; None: vLLM sends it (`StructuredOutputManager.grammar_bitmask`)."""
    free: npt.NDArray[np.uint8] | None = field(default=None, compare=False)
    """Bits of the tokens behind which the grammar is where it was, so that nothing has
    to be assumed; None where text is not free (free_text.py)."""


NO_RUN = Run()
"""Of a request of which nothing is assumed."""
PADDING = -1
"""vLLM's draft token that stands for none."""


def up_to_padding(drafts: list[int]) -> list[int]:
    """What vLLM is told of a canvas, up to the first position that nothing is assumed
    of."""
    end = drafts.index(PADDING) + 1 if PADDING in drafts else len(drafts)
    return drafts[:end]


Runs = dict[str, Run]
"""By request id; one that is not in it has none."""


def attach(runs: Runs, output: SchedulerOutput) -> None:
    output.dllm_runs = runs


def sent_with(output: SchedulerOutput) -> Runs:
    runs: Runs = getattr(output, "dllm_runs", {})
    return runs
