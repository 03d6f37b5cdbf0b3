"""d3llm's blocks, one at a time; its answers are compared in tests/test_d3llm.py."""

import pytest
import torch

from tests.decoding.canvas_steps import Row, as_step
from vllm_dllm.decoding.d3llm import open_blocks


@pytest.mark.parametrize(
    ("masks", "share", "opened"),
    [
        # Of blocks of 10: how many masks each has, and how many are open.
        ([10, 10, 10], 0.1, 1),
        ([9, 10, 10], 0.1, 1),  # 1 - 9 / 10 is less than 0.1, for the authors too
        ([7, 10, 10], 0.3, 2),  # and 1 - 7 / 10 is more than 0.3
        ([8, 10, 10], 0.1, 2),
        ([8, 5, 10], 0.1, 3),
        ([0, 0, 10], 1.0, 3),
        ([1, 10, 10], 1.0, 1),
        ([10, 10, 10], 1e-7, 1),
    ],
)
def test_a_block_opens_when_the_last_one_is_far_enough(
    masks: list[int], share: float, opened: int
) -> None:
    """A step early or late, and all that follows is decoded to other tokens."""
    masked = [column < count for count in masks for column in range(10)]
    step = as_step([Row(masked, [0.5] * 30)])
    step.params["block_length"] = torch.tensor([10])
    step.params["add_block_threshold"] = torch.tensor([share])
    block, is_open = open_blocks(step)
    assert block.tolist() == [[column // 10 for column in range(30)]]
    assert is_open.tolist() == [[column < 10 * opened for column in range(30)]]
