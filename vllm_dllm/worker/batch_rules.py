"""BatchRules: which rules decode the blocks of a batch, and by which parameters."""

from dataclasses import dataclass

import torch

from vllm_dllm.decoding.base import DecodingRule


@dataclass(frozen=True)
class RuleShare:
    """The `k` blocks of a batch that one rule decodes."""

    name: str
    rule: DecodingRule
    rows: torch.Tensor | None
    """[k] int64: which they are; None: all of the batch."""
    slot: torch.Tensor
    """[k] int64."""
    params: dict[str, torch.Tensor]
    """The rule's `parameters`, each [k]."""


@dataclass(frozen=True)
class BatchRules:
    """The rules of a batch; steps go on with it for as long as the batch is the same,
    so nothing of it may be written to."""

    shares: list[RuleShare]
    """Of each rule one."""
    needs: set[str]
    """What the rules read besides confidence (decoding/base.py)."""

    @property
    def names(self) -> list[str]:
        return [share.name for share in self.shares]
