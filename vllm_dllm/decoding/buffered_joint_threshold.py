"""joint_threshold with several blocks in flight (Diffulex's multi_bd, edit).

Of each open block of B positions, with x_i the best token of position i and p_i its
probability: masks with p > threshold become tokens, or the surest mask if there is
none. Decoded positions, not those of the prompt, with another x and p > edit threshold
(both strict) take it. A step is *late* after B + `max_post_steps` steps: then all masks
become tokens. The block is done when it is late, or nothing is to be written, or more
than `max_post_steps` steps began without a mask; in the last two cases nothing is.

A block that is done waits for those before it, is judged anew in each step, and may be
edited again.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, Decision, best


class BufferedJointThreshold:
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"threshold", "edit_threshold", "max_post_steps"}
    )
    needs: ClassVar[frozenset[str]] = frozenset()
    revises: ClassVar[bool] = True
    softens: ClassVar[bool] = False
    memory: ClassVar[dict[str, torch.dtype]] = {}

    def decide(self, canvas: CanvasStep) -> Decision:
        assert canvas.age is not None
        masked, confidence, limit = canvas.masked, canvas.confidence, canvas.params
        has_mask = masked.any(dim=1)
        above = masked & (confidence > limit["threshold"].unsqueeze(1))
        must = has_mask & ~above.any(dim=1)
        taken = above | best(confidence, masked, must.long())
        other = canvas.editable & (canvas.candidate != canvas.tokens)
        edited = other & (confidence > limit["edit_threshold"].unsqueeze(1))

        late = canvas.age >= canvas.length + limit["max_post_steps"]
        idle = ~(taken | edited).any(dim=1)
        spent = ~has_mask & (canvas.post_steps > limit["max_post_steps"])
        done = late | idle | spent
        write = torch.where(
            late.unsqueeze(1), masked | edited, (taken | edited) & ~done.unsqueeze(1)
        )
        decoded = canvas.editable.sum(dim=1)
        same = 1 - other.sum(dim=1) / decoded.clamp(min=1)
        return Decision(write, done, torch.where(late, 1.0, same))
