"""Logits that are changed while candidates are found, and are the model's own again
afterwards: logprobs are taken from them."""

from typing import Any

import torch

Changed = list[tuple[Any, Any, torch.Tensor]]
"""Rows and columns of what was changed, as an index, and its own values; in the order
in which it was."""


def take_back(logits: torch.Tensor, changed: Changed) -> None:
    """Give [rows, vocab] their own values again."""
    for rows, columns, own in reversed(changed):
        logits[rows, columns] = own
