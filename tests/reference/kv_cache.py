"""Keys and values of one sequence under full attention, overwritten in place."""

from torch import Tensor


class Cache:
    """Per layer, rotated keys and values [length, kv_heads, head_dim]; zeros at first.

    A full-attention model rewrites any span of positions and then sees all of them, so
    the positions outside the span keep what an earlier forward left there.
    """

    def __init__(self, layers: int, length: int) -> None:
        self.length = length
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def update(
        self, layer: int, start: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write positions start .. start + len(keys) of a layer; return all of them.

        Args:
            keys, values: [span, kv_heads, head_dim].

        Returns:
            The layer's keys and values, [length, kv_heads, head_dim] both.
        """
        all_keys = self._write(self.keys, layer, start, keys)
        return all_keys, self._write(self.values, layer, start, values)

    def _write(
        self, store: list[Tensor | None], layer: int, start: int, part: Tensor
    ) -> Tensor:
        held = store[layer]
        if held is None:
            held = store[layer] = part.new_zeros(self.length, *part.shape[1:])
        held[start : start + len(part)] = part
        return held
