"""Block routing (LLaDA2.2): the tokens of a block share a few experts.

The score of an expert for a block is the best one that a token of the block gives it.
The `capacity` experts with the best scores are the block's own, and each of its tokens
chooses among these.

The choice is made here, and the router behind it finds no other: all other experts have
a logit of -inf, which is a score of 0. So kernels, ranks and quantization are what they
are for every model of vLLM.
"""

import torch


def chosen_alone(
    logits: torch.Tensor, bias: torch.Tensor, block: int, capacity: int, top_k: int
) -> torch.Tensor:
    """The logits of the experts that each token has chosen, -inf for all others.

    Args:
        logits: [num_tokens, num_experts]: of whole blocks, one after the other. What
            pads a batch follows them, and is blocks of its own.
        bias: [num_experts] float32: moves the choice, and is no part of the logits.
    """
    choice = logits.float().sigmoid() + bias
    num_tokens, num_experts = choice.shape
    # Not a view of whole blocks: the last one of a padded batch may be shorter, and a
    # compiled model must not depend on it.
    block_of = torch.arange(num_tokens, device=logits.device) // block
    best = choice.new_full((-(-num_tokens // block), num_experts), float("-inf"))
    rows = block_of.unsqueeze(1).expand_as(choice)
    best = best.scatter_reduce(0, rows, choice, "amax")
    own = best.topk(capacity, dim=1).indices
    is_own = torch.zeros_like(best, dtype=torch.bool).scatter(1, own, True)
    choice = choice.masked_fill(~is_own[block_of], float("-inf"))
    chosen = choice.topk(top_k, dim=1).indices
    alone = torch.full_like(logits, float("-inf"))
    return alone.scatter(1, chosen, logits.gather(1, chosen))
