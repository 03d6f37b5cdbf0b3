"""entropy: spec B6's `entropy` on B1's schedule, written with loops."""

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.entropy import Entropy

RULE = Entropy()


def by_hand(row: Row) -> set[int]:
    lowest_first = sorted(row.masks, key=lambda c: (row.entropy[c], c))
    return set(lowest_first[: row.quota])


def test_the_lowest_entropies_fill_the_quota() -> None:
    """Another choice decodes other tokens than the formula."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_a_wide_open_position_waits_though_it_is_the_surest() -> None:
    """The rule would be low_confidence by another name."""
    row = uniform_row([0.5, 0.4], entropy=[4.0, 0.7])
    assert written(RULE, row) == [{1}]
