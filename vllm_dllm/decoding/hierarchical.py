"""hierarchical: in each gap between tokens the surest mask, so that gaps divide.

Source: dInfer `HierarchyDecoder`. The masks of a block form runs, separated by tokens.
A mask becomes a token if its confidence is the highest of its run and above the low
threshold, or if it is above the threshold (both strict), or if it is the surest of the
block. Masks that share the highest confidence of a run are all taken.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, SelectingRule, best


class Hierarchical(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset({"threshold", "low_threshold"})

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        masked, confidence = canvas.masked, canvas.confidence
        threshold = canvas.params["threshold"].unsqueeze(1)
        low_threshold = canvas.params["low_threshold"].unsqueeze(1)
        leads = confidence == _run_max(confidence, masked)
        sure = (leads & (confidence > low_threshold)) | (confidence > threshold)
        surest = best(confidence, masked, masked.any(dim=1).long())
        return (masked & sure) | surest


def _run_max(score: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """The highest score in the run of masks that a position belongs to.

    Args:
        score: [n, block] float tensor.
        masked: [n, block] bool tensor.

    Returns:
        [n, block] float tensor; undefined where not masked.
    """
    # Counting the tokens up to a position gives one number to all masks of a run, and
    # to the token before them, which is too low to matter.
    run = (~masked).cumsum(dim=1)
    score = score.masked_fill(~masked, float("-inf"))
    run_max = score.new_full((score.shape[0], score.shape[1] + 1), float("-inf"))
    return run_max.scatter_reduce(1, run, score, "amax").gather(1, run)
