"""hierarchical against spec B8 (`HierarchyDecoder`), written with loops."""

from tests.decoding.canvas_steps import BATCHES, Row, uniform_row, written
from vllm_dllm.decoding.hierarchical import Hierarchical

RULE = Hierarchical()


def runs(masked: list[bool]) -> list[list[int]]:
    """The columns of each maximal run of masks."""
    found: list[list[int]] = []
    for column, is_mask in enumerate(masked):
        if is_mask and column > 0 and masked[column - 1]:
            found[-1].append(column)
        elif is_mask:
            found.append([column])
    return found


def by_hand(row: Row) -> set[int]:
    taken = set(row.surest_first[:1])
    for run in runs(row.masked):
        highest = max(row.confidence[column] for column in run)
        for column in run:
            confidence = row.confidence[column]
            leads = confidence == highest and confidence > row.low_threshold
            if leads or confidence > row.threshold:
                taken.add(column)
    return taken


def test_the_surest_of_each_run_is_taken() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [by_hand(row) for row in batch]


def test_runs_end_at_tokens() -> None:
    """A run that reaches past a token would hide the surest mask behind it."""
    row = uniform_row(
        [0.4, 0.5, 0.9, 0.3, 0.4, 0.9, 0.2],
        masked=[True, True, False, True, True, False, True],
        threshold=0.95,
    )
    assert written(RULE, row) == [{1, 4}]


def test_a_run_of_unsure_masks_waits_unless_it_has_the_surest_of_all() -> None:
    """Taking one of each run regardless would decode tokens that are mere guesses."""
    unsure = [0.1, 0.2, 0.9, 0.15, 0.1]
    row = uniform_row(unsure, masked=[True, True, False, True, True])
    assert written(RULE, row) == [{1}]


def test_confidences_equal_to_a_threshold_are_not_above_it() -> None:
    """`>=` would take tokens that the authors' code leaves for a later step."""
    row = uniform_row(
        [0.5, 0.25, 0.9, 0.25, 0.9, 0.75, 0.5],
        masked=[True, True, False, True, False, True, True],
    )
    assert written(RULE, row) == [{0, 5}]


def test_equals_in_a_run_are_all_taken_but_only_one_as_the_surest() -> None:
    """The source marks each position that equals the maximum of its run."""
    row = uniform_row([0.5, 0.5, 0.5], threshold=0.75)
    assert written(RULE, row) == [{0, 1, 2}]
    row = uniform_row([0.2, 0.2, 0.2], threshold=0.75)
    assert written(RULE, row) == [{0}]
