"""The bonus of rules that change logits: while candidates are found, for their own."""

import pytest
import torch

from tests.worker.blocks import gather, take_step
from tests.worker.desk import MASK, VOCAB, Desk, Running
from vllm_dllm.worker.bonus import add_bonuses
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.changed_logits import take_back

CREDIT = {"algorithm": "credit", "credit_gamma": 1.0, "credit_beta": 0.5}


def requests_of(desk: Desk) -> list[Running]:
    """Two with credit and one without between them."""
    return [
        desk.add("a", [5] * 9, CREDIT | {"credit_alpha": 1.0}),
        desk.add("b", [5] * 8, {"algorithm": "joint_threshold"}),
        desk.add("c", [5] * 8, CREDIT | {"credit_alpha": 3.0}),
    ]


def boosted(desk: Desk, batch: CanvasBatch, logits: torch.Tensor) -> torch.Tensor:
    """Logits while candidates are found; the mask's column is lost."""
    rules = desk.slots.rules
    names = rules.of(batch.spans.slot_np)
    changed = add_bonuses(names, logits, batch, rules, MASK)
    inside = logits.clone()
    take_back(logits, changed)
    inside[:, MASK] = logits[:, MASK] = 0
    return inside


@pytest.mark.parametrize("whole_blocks", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bonus_is_added_to_masks_of_its_requests_and_taken_back(
    dtype: torch.dtype, whole_blocks: bool
) -> None:
    """Logprobs are those of the model, to the bit; a neighbour decides by its own."""
    desk = Desk("block-causal")
    desk.slots.canvas.whole_blocks = whole_blocks
    requests, known = requests_of(desk), [9, 8, 8]
    generator = torch.Generator().manual_seed(0)
    credits: dict[tuple[int, int], dict[int, float]] = {}
    for step in range(4):
        batch = gather(desk, requests, known)
        cells = list(zip(*(part.tolist() for part in batch.cell), strict=True))
        logits = torch.randn(len(cells), VOCAB, generator=generator).to(dtype)
        own = logits.clone()
        own[:, MASK] = 0
        inside = boosted(desk, batch, logits)
        assert torch.equal(logits, own)
        for row, cell in enumerate(cells):
            expected, index = own[row].double(), cell[0]
            if index != 1 and bool(batch.masked[cell]):
                credit = credits.setdefault(cell, {})
                probs = expected.clone()
                probs[MASK] = -torch.inf
                confidence, token = probs.softmax(0).max(0)
                for kept in credit:
                    credit[kept] *= 0.5
                best = int(token)
                credit[best] = credit.get(best, 0.0) + float(confidence)
                alpha = 1.0 if index == 0 else 3.0
                for kept, value in credit.items():
                    expected[kept] += alpha * torch.tensor(value).double().log1p()
                changed = (inside[row] != own[row]).nonzero().flatten().tolist()
                assert set(changed) <= set(credit) and changed
            near = 1e-5 if dtype == torch.float32 else 0.05
            assert inside[row].double().tolist() == pytest.approx(
                expected.tolist(), abs=near
            )
        take_step(desk, requests, known, [{3: 4} if step == 1 else {}] * 3)


def test_a_new_block_begins_without_what_was_remembered_of_the_last() -> None:
    """Credit for a token at the same column of another block would count here."""
    desk = Desk("block-causal")
    a = desk.add("a", [5] * 8, CREDIT)
    generator = torch.Generator().manual_seed(0)
    found = []
    for block in (8, 12):
        for step in range(2):
            batch = gather(desk, [a], [block])
            logits = torch.randn(4, VOCAB, generator=generator.manual_seed(step))
            found.append(boosted(desk, batch, logits))
            writes = dict.fromkeys(range(4), 3) if step else {}
            take_step(desk, [a], [block], [writes], finished=[step == 1])
    assert torch.equal(found[2], found[0]) and torch.equal(found[3], found[1])
    assert not torch.equal(found[0], found[1])


def test_without_such_a_rule_logits_are_left_alone() -> None:
    """Copies of logits are gigabytes that were not reserved."""
    desk = Desk("block-causal")
    batch = gather(desk, [desk.add("a", [5] * 8)], [8])
    logits = torch.randn(4, VOCAB)
    assert not add_bonuses(["threshold"], logits, batch, desk.slots.rules, MASK)
    assert not desk.slots.rules.memory
