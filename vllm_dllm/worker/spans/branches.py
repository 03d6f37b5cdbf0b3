"""Unconditional branches: classifier-free guidance, as a second sequence of a request.

A guided request is forwarded twice, once with its prompt and suffix masked. The second
branch lies in the same request's pages, from `offset` on, and is a second row of
attention; the sampler joins the logits of both. How its tokens follow those of the
first is said by `Span.length` (plans/base.py).
"""

from dataclasses import dataclass

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch


@dataclass
class Branches:
    """Those of a batch in which some requests have one."""

    offset_np: np.ndarray
    """[n] int64, on the CPU: where the pages of each begin; 0 without guidance."""
    half_np: np.ndarray
    """[n] int64, on the CPU: tokens that the span forwards of each of its branches; of
    an unguided request all."""
    follows: torch.Tensor
    """[n] int64: how many tokens after one of the first branch the same position of the
    second one follows; undefined without guidance."""
    unconditional: torch.Tensor
    """[num_tokens] bool: the tokens of these branches."""
    scale: torch.Tensor
    """[n] float32: how far to move away from what they say."""

    @property
    def guided_np(self) -> np.ndarray:
        """[n] bool, on the CPU: the requests that have one."""
        return self.offset_np > 0

    def guide(
        self, logits: torch.Tensor, rows: torch.Tensor, request: torch.Tensor
    ) -> torch.Tensor:
        """Move guided rows away from the unconditional branch.

        LLaDA's `generate`: l_u + (scale + 1) * (l - l_u).

        Args:
            logits: [n_rows + guided, vocab]: those of the first branches, then one of
                the second for each of `rows`.
            rows: [guided] int64: those of the first branches that are guided.
            request: [guided] int64: whose they are.

        Returns:
            [n_rows, vocab].
        """
        logits, unconditional = logits.split([len(logits) - len(rows), len(rows)])
        scale = self.scale[request].unsqueeze(1)
        away = (scale + 1) * (logits[rows] - unconditional)
        logits[rows] = (unconditional + away).to(logits.dtype)
        return logits


def place_branches(
    input_batch: InputBatch,
    ends_np: np.ndarray,
    offset_np: np.ndarray,
    offset: torch.Tensor,
    scale: torch.Tensor,
    owner: torch.Tensor,
) -> Branches:
    """Find the branches of a batch, and move their tokens to their pages, in place.

    The runner has numbered the tokens of a span from its start on. That suits a
    refresh; a later step is two runs of positions, one in each branch.

    Args:
        ends_np: [n] int64: length of each sequence.
        offset_np, offset: [n] int64, as in `Branches`; scale: [n] float32.
        owner: [num_tokens] int64: index in the batch of each token's request.
    """
    n = input_batch.num_reqs
    length_np = input_batch.num_scheduled_tokens[:n]
    refresh_np = input_batch.num_computed_tokens_np[:n] == 0
    guided_np = offset_np > 0
    of_branch_np = np.where(refresh_np, ends_np, length_np // 2)
    half_np = np.where(guided_np, of_branch_np, length_np)
    for index in np.flatnonzero(guided_np & ~refresh_np):
        end = int(input_batch.query_start_loc_np[index + 1])
        half = int(half_np[index])
        input_batch.positions[end - half : end] += int(offset_np[index]) - half
    of_token = offset[owner]
    position = input_batch.positions[: len(owner)]
    return Branches(
        offset_np=offset_np,
        half_np=half_np,
        follows=async_tensor_h2d(
            np.where(refresh_np, offset_np, half_np), offset.device, torch.int64
        ),
        unconditional=(of_token > 0) & (position >= of_token),
        scale=scale,
    )


def guided_rows(
    lengths_np: np.ndarray, branches: Branches, ends_np: np.ndarray, page: int
) -> np.ndarray:
    """Rows of attention (`AttentionRows.of_table`) of a batch in which some requests
    have a second branch.

    The branch has the last tokens of a span, and the pages from its offset on. In a
    refresh, what lies between the branches is a row of its own, which nobody reads.

    Args:
        lengths_np: [n]: tokens of each span.
        ends_np: [n] int64: length of each sequence.
        page: KV page in tokens.
    """
    rows: list[tuple[int, int, int, int]] = []  # owner, queries, keys, first page
    for owner, (length, end, offset, half) in enumerate(
        zip(
            lengths_np.tolist(),
            ends_np.tolist(),
            branches.offset_np.tolist(),
            branches.half_np.tolist(),
            strict=True,
        )
    ):
        rows.append((owner, half, end, 0))
        if not offset:
            continue
        if length > 2 * half:
            rows.append((owner, length - 2 * half, offset, 0))
        rows.append((owner, half, end, offset // page))
    return np.array(rows, dtype=np.int64)
