"""dmax: takes tokens from the left, shows them half-decoded, and corrects all of them.

Source: DMax (`decode_uniform` of its dInfer). With x_i the best token of position i and
p_i its probability: masks become tokens from the left as long as p_i >= threshold, or
the leftmost mask does if there is none. At the same time every decoded position of the
block, not one of the prompt, takes its x_i, however unsure. The next step is shown each
of these as p_i E[x_i] + (1 - p_i) E[mask] (ops/mixture.py).

The block is done when all of its p_i are at least `SURE`, when no token changed, or
after as many steps as it has positions. Theirs also ends with masks in the text, where
all are sure and the threshold is above `SURE`; here no block does.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, Decision

SURE = 0.9


class DMax:
    parameters: ClassVar[frozenset[str]] = frozenset({"threshold"})
    needs: ClassVar[frozenset[str]] = frozenset()
    revises: ClassVar[bool] = True
    softens: ClassVar[bool] = True
    memory: ClassVar[dict[str, torch.dtype]] = {}

    def decide(self, canvas: CanvasStep) -> Decision:
        masked, confidence = canvas.masked, canvas.confidence
        threshold = canvas.params["threshold"].unsqueeze(1)
        unsure = masked & (confidence < threshold)
        first = masked & (masked.cumsum(dim=1) == 1)
        taken = (masked & (unsure.cumsum(dim=1) == 0)) | first
        changed = canvas.editable & (canvas.candidate != canvas.tokens)

        doubted = (masked | canvas.editable) & ~(confidence >= SURE)
        settled = ~doubted.any(dim=1) | ~(taken | changed).any(dim=1)
        late = canvas.step + 1 >= canvas.length
        has_masks = (masked & ~taken).any(dim=1)
        return Decision(taken | changed, done=(settled | late) & ~has_masks)
