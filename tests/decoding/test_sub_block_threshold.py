"""sub_block_threshold against Fast-dLLM v2's loop over sub-blocks."""

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.sub_block_threshold import SubBlockThreshold

RULE = SubBlockThreshold()


def by_hand(row: Row) -> set[int]:
    for first in range(0, row.block, row.sub_block_length):
        among = [c for c in row.masks if first <= c < first + row.sub_block_length]
        if among:
            surest = max(among, key=lambda c: row.confidence[c])
            return {surest} | {c for c in among if row.confidence[c] > row.threshold}
    return set()


def test_all_sure_masks_of_the_leftmost_sub_block_and_its_surest_are_taken() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for length in (1, 2, 3, 8):
        for batch in BATCHES:
            for row in batch:
                row.sub_block_length = length
            assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_a_sub_block_is_decoded_before_the_next_one() -> None:
    """However sure the model is further right, the authors' code does not look."""
    row = uniform_row([0.1, 0.2, 0.1, 0.9, 0.9, 0.9])
    assert written(RULE, row) == [{1}]
    row.masked[:3] = [False] * 3
    assert written(RULE, row) == [{3, 4, 5}]


def test_the_threshold_itself_is_not_above_it() -> None:
    """`>=` would take a token that the authors' code leaves a mask."""
    assert written(RULE, uniform_row([0.5, 0.75, 0.5])) == [{1}]


def test_requests_have_their_own_sub_blocks() -> None:
    """One request's length would cut the blocks of its neighbours."""
    rows = [uniform_row([0.9] * 6) for _ in range(3)]
    for row, length in zip(rows, (1, 4, 100), strict=True):
        row.sub_block_length = length
    assert written(RULE, *rows) == [{0}, {0, 1, 2, 3}, {0, 1, 2, 3, 4, 5}]
