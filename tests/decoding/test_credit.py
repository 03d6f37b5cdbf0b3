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


def reshaped(
    logits: torch.Tensor,
    memory: dict[str, torch.Tensor],
    step: int,
    params: dict[str, torch.Tensor],
) -> torch.Tensor:
    """Logits with their bonus."""
    confidence, token = logits.softmax(1).max(1)
    steps = torch.full((len(logits),), step)
    bonus = Credit().reshape(token, confidence, memory, steps, params)
    assert bonus.tokens.shape == bonus.values.shape
    own = logits.gather(1, bonus.tokens)
    return logits.scatter(1, bonus.tokens, own + bonus.values)


def no_memory(rows: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros(rows, BLOCK, dtype=dtype)
        for name, dtype in Credit.memory.items()
    }


@pytest.mark.parametrize("seed", range(5))
def test_credit_adds_up_over_steps_as_the_table_does(seed: int) -> None:
    """A token kept in several columns could count twice, or decay once only."""
    generator = torch.Generator().manual_seed(seed)
    rows = 4
    credits: list[dict[int, float]] = [{} for _ in range(rows)]
    memory = no_memory(rows)
    for step in range(BLOCK):
        logits = torch.randn(rows, VOCAB, generator=generator) * 2
        expected = plain_credits(credits, logits, step)
        changed = reshaped(logits, memory, step, params_of(rows))
        assert torch.allclose(changed.double(), expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_token_that_earned_twice_has_the_same_bonus_twice(seed: int) -> None:
    """They are written to the same logit, in no order."""
    generator = torch.Generator().manual_seed(seed)
    memory, steps = no_memory(4), torch.zeros(4, dtype=torch.int64)
    for step in range(BLOCK):
        token = torch.randint(3, (4,), generator=generator)
        confidence = torch.rand(4, generator=generator)
        bonus = Credit().reshape(token, confidence, memory, steps + step, params_of(4))
        for tokens, values in zip(bonus.tokens, bonus.values, strict=True):
            for one in set(tokens.tolist()):
                assert len(values[tokens == one].unique()) == 1


def test_without_weight_credit_changes_nothing() -> None:
    """A bonus that is not scaled by alpha would shift every answer."""
    logits = torch.randn(3, VOCAB)
    params = params_of(3) | {"credit_alpha": torch.zeros(3)}
    assert torch.equal(reshaped(logits, no_memory(3), 0, params), logits)
