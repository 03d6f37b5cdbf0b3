"""entropy_threshold against d3LLM's rule, written with loops."""

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.entropy_threshold import EntropyThreshold

RULE = EntropyThreshold()


def by_hand(row: Row) -> set[int]:
    settled = {c for c in row.masks if row.entropy[c] <= row.entropy_threshold}
    return settled | set(sorted(row.masks, key=lambda c: (row.entropy[c], c))[:1])


def test_all_settled_positions_and_the_most_settled_are_taken() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_an_entropy_equal_to_the_threshold_is_enough() -> None:
    """`<` is WeDLM's comparison, and leaves tokens that d3LLM takes."""
    row = uniform_row([0.5] * 3, entropy=[0.5, 1.0, 0.25], entropy_threshold=0.5)
    assert written(RULE, row) == [{0, 2}]
    row = uniform_row([0.5] * 3, entropy=[0.5, 1.0, 0.25], entropy_threshold=0.0)
    assert written(RULE, row) == [{2}]
