"""Rules that change logits: their bonus is there while candidates are found."""

import torch

from vllm_dllm.decoding.base import Bonus, ReshapingRule, reshapes
from vllm_dllm.decoding.registry import get_rule
from vllm_dllm.ops.candidate import candidates
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.changed_logits import Changed
from vllm_dllm.worker.rule_tables import RuleTables


def add_bonuses(
    names: list[str],
    logits: torch.Tensor,
    batch: CanvasBatch,
    tables: RuleTables,
    mask_token_id: int,
) -> Changed:
    """Add what rules of the batch add to the logits of their requests' masks.

    Args:
        names: the rules of the batch.
        logits: [rows, vocab], those of `batch.cell`; the mask's column is lost.
    """
    changed: Changed = []
    for name in names:
        if reshapes(rule := get_rule(name)):
            rows, bonus = _bonus_of(name, rule, logits, batch, tables, mask_token_id)
            own = logits[rows].gather(1, bonus.tokens)
            changed.append((rows.unsqueeze(1), bonus.tokens, own))
            logits[rows.unsqueeze(1), bonus.tokens] = own + bonus.values.to(own.dtype)
    return changed


def _bonus_of(
    name: str,
    rule: ReshapingRule,
    logits: torch.Tensor,
    batch: CanvasBatch,
    tables: RuleTables,
    mask_token_id: int,
) -> tuple[torch.Tensor, Bonus]:
    """The rows that a rule changes, [m] int64, and what it adds to them."""
    block, column = batch.cell
    mine = torch.zeros_like(batch.active)
    mine[tables.where(name, batch.slot_np)] = True
    rows = (mine[block] & batch.masked[block, column]).nonzero().squeeze(1)
    block, column = block[rows], column[rows]
    slot, step = batch.slot[block], batch.step[block]
    found = candidates(logits[rows], mask_token_id)
    # What is there before the first step is of the slot's last block.
    begun = (step > 0).unsqueeze(1)
    values = {n: tables.memory[n].values for n in rule.memory}
    memory = {n: table[slot, column] * begun for n, table in values.items()}
    parameters = tables.parameters_of(name, slot)
    bonus = rule.reshape(found.token, found.confidence, memory, step, parameters)
    for n, table in values.items():
        table[slot, column] = memory[n]
    return rows, bonus
