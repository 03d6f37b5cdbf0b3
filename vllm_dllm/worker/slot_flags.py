"""SlotFlags: which slots have something that most requests never ask for."""

import numpy as np


class SlotFlags:
    """A yes or no for each slot, on the CPU."""

    def __init__(self, num_slots: int) -> None:
        self.values_np = np.zeros(num_slots, dtype=bool)
        """[num_slots] bool."""
        self._on: set[int] = set()
        """The slots that have a yes: to find none takes a tenth of numpy's look."""

    def __setitem__(self, slot: int, value: bool) -> None:
        self.values_np[slot] = value
        (self._on.add if value else self._on.discard)(slot)

    def of(self, slot_np: np.ndarray) -> np.ndarray:
        """[m] bool of [m] int64 slots."""
        return self.values_np[slot_np]

    def any_of(self, slot_np: np.ndarray) -> bool:
        """Whether some slot of a batch has a yes; slot_np: [m] int64."""
        return bool(self._on) and bool(self.values_np[slot_np].any())
