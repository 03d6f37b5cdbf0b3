"""The references against what the authors' own code answered (tests/golden).

Everything else is compared with the references, so a slip in them would be a slip in
every other test.
"""

import pytest

from tests.golden_cases import golden_cases


@pytest.mark.parametrize(
    ("checkpoint", "block_length", "count"),
    [
        ("sdar-pub0", 4, 32),
        ("sdar-pub1", 16, 32),
        ("llada20-pub0", 8, 15),
        ("llada20-pub0", 32, 15),
    ],
)
def test_tokens_and_forwards_are_those_of_the_authors_code(
    checkpoint: str, block_length: int, count: int
) -> None:
    """A wrong reference would bless a wrong engine."""
    cases = golden_cases(checkpoint, block_length)
    assert len(cases) == count
    assert [case.answered() for case in cases] == cases
