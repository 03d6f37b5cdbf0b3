"""DiffuLLaMA in plain PyTorch: Llama's layers without an attention mask, and its loop.

Independent of vLLM and of transformers. Row i of the logits predicts position i + 1.
"""

from collections.abc import Sequence

import torch

from tests.reference.dream import Attention, DecoderLayer, Dream
from tests.reference.dream_generate import new_canvas, shifted
from tests.reference.sdar import MLP


class DiffuLlama(Dream):
    """Dream without biases."""

    def build_layer(self, layer: int) -> DecoderLayer:
        config = self.config
        attention = Attention(config, layer, bias=False, norm=False)
        mlp = MLP(config.hidden_size, config.intermediate_size)
        return DecoderLayer(config, attention, mlp)


@torch.no_grad()
def generate_samples(
    model: Dream,
    prompt: list[int],
    reveals: Sequence[Sequence[int]],
    mask_id: int,
) -> tuple[list[int], int]:
    """Decode greedily the positions that chance chose in each step.

    The authors' `generate_samples`, whose coins have fallen: it ends with its last step
    here, also where nothing is left to decode before.

    Args:
        reveals: positions of the answer that each step decides; all of them together.

    Returns:
        tokens, and the forwards.
    """
    start, length = len(prompt), sum(map(len, reveals))
    canvas, _ = new_canvas(prompt, mask_id, length, ())
    for chosen in reveals:
        logits = shifted(model(canvas))
        logits[:, mask_id] = -torch.inf
        rows = torch.tensor(chosen, dtype=torch.int64) + start
        canvas[rows] = logits.argmax(-1)[rows]
    return canvas[start:].tolist(), len(reveals)
