"""d2f: several blocks of a model with full attention, behind its prompt (D2F).

Source: Discrete Diffusion Forcing, `_generate_block_single`. The prompt is one unit,
which is decoded; the blocks behind it are under denoising as soon as enough of the last
one is decoded (`add_block_threshold`). In each of them, tokens are taken as by
`threshold` with several blocks in flight.
"""

from typing import ClassVar

from vllm_dllm.decoding.buffered_threshold import BufferedThreshold


class D2F(BufferedThreshold):
    parameters: ClassVar[frozenset[str]] = BufferedThreshold.parameters | {
        "add_block_threshold"
    }
