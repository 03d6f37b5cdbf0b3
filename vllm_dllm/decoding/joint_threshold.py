"""joint_threshold: takes sure tokens and corrects earlier ones in the same step.

Source: LLaDA2.1 `generate`. Masks with c_i > threshold become tokens, or the surest
mask if there is none. At the same time a token of the block that is not of the prompt
is replaced where another one is proposed with c_i > edit threshold (both strict).

The block is done after a step that began without a mask and replaced nothing, or after
`max_post_steps` steps that began without a mask: replacing can go round in circles.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, Decision, best


class JointThreshold:
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"threshold", "edit_threshold", "max_post_steps"}
    )
    needs: ClassVar[frozenset[str]] = frozenset()
    revises: ClassVar[bool] = True
    softens: ClassVar[bool] = False
    memory: ClassVar[dict[str, torch.dtype]] = {}

    def decide(self, canvas: CanvasStep) -> Decision:
        masked, confidence = canvas.masked, canvas.confidence
        threshold = canvas.params["threshold"].unsqueeze(1)
        edit_threshold = canvas.params["edit_threshold"].unsqueeze(1)
        had_masks = masked.any(dim=1)

        # If any mask is above the threshold, then the surest one is.
        surest = best(confidence, masked, had_masks.long())
        taken = (masked & (confidence > threshold)) | surest
        edited = canvas.editable & (confidence > edit_threshold)
        edited &= canvas.candidate != canvas.tokens

        settled = ~had_masks & ~edited.any(dim=1)
        has_masks = (masked & ~taken).any(dim=1)
        spent = ~has_masks & (canvas.post_steps >= canvas.params["max_post_steps"])
        return Decision(taken | edited, done=settled | spent)
