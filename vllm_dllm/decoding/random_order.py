"""random_order: each mask by itself, so that all orders are equally likely.

Source: DiffuLLaMA `generate_samples`. Of `steps` steps, step k makes each masked
position a token with probability 1 / (steps - k); a step may decide nothing, the last
one decides all. As Dream's `origin`, whose time would have to end at nothing.
"""

from typing import ClassVar

from vllm_dllm.decoding.time_grid import Origin


class RandomOrder(Origin):
    parameters: ClassVar[frozenset[str]] = frozenset({"steps"})
