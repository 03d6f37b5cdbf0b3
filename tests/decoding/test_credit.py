"""Credit: the bonus of repeated predictions, and the selection under it."""

import math

import pytest
import torch

from vllm_dllm.decoding.credit import Credit

VOCAB, BLOCK = 12, 6
ALPHA, BETA, GAMMA = 0.7, 0.8, 0.2


def params_of(rows: int) -> dict[str, torch.Tensor]:
    values = {"credit_alpha": ALPHA, "credit_beta": BETA, "credit_gamma": GAMMA}
    return {name: torch.full((rows,), value) for name, value in values.items()}


def plain_credits(
    credits: list[dict[int, float]], logits: torch.Tensor, step: int
) -> torch.Tensor:
    """The authors' table, as one dict per position; returns the new logits."""
    boosted = logits.double().clone()
    for row, of_row in enumerate(credits):
        for token in of_row:
            of_row[token] *= BETA if step > 0 else 1.0
        probs = logits[row].double().softmax(0)
        best = int(probs.argmax())
        of_row[best] = of_row.get(best, 0.0) + float(probs[best]) ** GAMMA
        for token, credit in of_row.items():
            boosted[row, token] += ALPHA * math.log(credit + 1)
    return boosted


@pytest.mark.parametrize("seed", range(5))
def test_credit_adds_up_over_steps_as_the_table_does(seed: int) -> None:
    """A token kept in several columns could count twice, or decay once only."""
    generator = torch.Generator().manual_seed(seed)
    rows = 4
    credits: list[dict[int, float]] = [{} for _ in range(rows)]
    history = (
        torch.zeros(rows, BLOCK, dtype=torch.int64),
        torch.zeros(rows, BLOCK),
    )
    for step in range(BLOCK):
        logits = torch.randn(rows, VOCAB, generator=generator) * 2
        expected = plain_credits(credits, logits, step)
        confidence, token = logits.softmax(1).max(1)
        history = Credit().reshape(
            logits,
            token,
            confidence,
            history,
            torch.full((rows,), step),
            params_of(rows),
        )
        assert torch.allclose(logits.double(), expected, atol=1e-5)


def test_without_weight_credit_changes_nothing() -> None:
    """A bonus that is not scaled by alpha would shift every answer."""
    logits = torch.randn(3, VOCAB)
    before = logits.clone()
    confidence, token = logits.softmax(1).max(1)
    history = (torch.zeros(3, BLOCK, dtype=torch.int64), torch.zeros(3, BLOCK))
    params = params_of(3) | {"credit_alpha": torch.zeros(3)}
    Credit().reshape(logits, token, confidence, history, torch.zeros(3).long(), params)
    assert torch.equal(logits, before)
