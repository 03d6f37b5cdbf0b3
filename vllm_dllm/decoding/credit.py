"""credit: positions that kept predicting a token get a bonus for it.

Source: dInfer's CreditThresholdParallelDecoder. Per position i of the block and token v
a credit C[i, v], 0 at the start of the block. In each step all credits decay by beta,
the best token v of each masked position gets p_i[v]^gamma, and the logits become
l' = l + alpha * ln(C + 1). Then every position with confidence >= threshold becomes its
best token under l', and the surest one (with those within 1e-5 of it) in any case.

At most one token per position and step earns credit, so C is kept as these tokens and
their values instead of a table over the vocabulary.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import Bonus, CanvasStep, SelectingRule

TIE = 1e-5


class Credit(SelectingRule):
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"threshold", "credit_alpha", "credit_beta", "credit_gamma"}
    )
    memory: ClassVar[dict[str, torch.dtype]] = {
        "credit_token": torch.int64,
        "credit": torch.float32,
    }

    def memory_steps(self, block: int, parameters: dict[str, int | float]) -> int:
        return block  # each of which decodes a position

    def reshape(
        self,
        token: torch.Tensor,
        confidence: torch.Tensor,
        memory: dict[str, torch.Tensor],
        step: torch.Tensor,
        params: dict[str, torch.Tensor],
    ) -> Bonus:
        tokens, values = memory["credit_token"], memory["credit"]
        column = step.unsqueeze(1)
        earned = confidence.pow(params["credit_gamma"]).unsqueeze(1)
        tokens.scatter_(1, column, token.unsqueeze(1))
        values.mul_(params["credit_beta"].unsqueeze(1)).scatter_(1, column, earned)
        # A token that earned in several steps has all of it, in each of its columns.
        same = tokens.unsqueeze(2) == tokens.unsqueeze(1)
        credit = (same * values.unsqueeze(1)).sum(dim=2)
        return Bonus(tokens, params["credit_alpha"].unsqueeze(1) * credit.log1p())

    def select(self, canvas: CanvasStep) -> torch.Tensor:
        sure = canvas.confidence.masked_fill(~canvas.masked, -1.0)
        top = sure.amax(dim=1) - TIE
        cut = torch.minimum(canvas.params["threshold"], top)
        return canvas.masked & (sure >= cut.unsqueeze(1))
