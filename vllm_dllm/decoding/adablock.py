"""adablock: blocks that end where the text does, at a delimiter.

Source: AdaBlock-dLLM (arXiv 2509.26432), its generators for LLaDA and Dream. The first
step of a block looks for delimiters among the predicted tokens of the next G / 4
positions, where G is the length of the answer. If the surest of them is at least
`delimiter_threshold` sure, the block ends with it; else it has the default length. In
this step and all others, every position of the block with c_i >= threshold becomes a
token, and the surest one.
"""

from vllm_dllm.decoding.confidence_threshold import ConfidenceThreshold


class AdaBlock(ConfidenceThreshold):
    """Where a block ends is found by `worker/spans/adaptive.py`, before it is asked."""

    parameters = frozenset({"threshold", "delimiter_threshold"})
