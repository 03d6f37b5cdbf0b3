"""margin: spec B6's `topk_margin` on B1's schedule, written with loops."""

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.margin import Margin

RULE = Margin()


def by_hand(row: Row) -> set[int]:
    return set(row.highest_first(row.margin)[: row.quota])


def test_the_clearest_leads_fill_the_quota() -> None:
    """Another choice decodes other tokens than the formula."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_a_contested_token_waits_though_it_is_the_surest() -> None:
    """The rule would be low_confidence by another name."""
    row = uniform_row([0.5, 0.4], margin=[0.01, 0.3])
    assert written(RULE, row) == [{1}]
