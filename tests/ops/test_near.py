"""Small arrays: on the host numpy does what torch does on a device."""

import numpy as np
import pytest
import torch

from vllm_dllm.ops import near as op

CPU = torch.device("cpu")


@pytest.mark.parametrize("length", [1, 31, 64, 70, 96, 100])
@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_bits_are_unpacked_alike(
    length: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token would be allowed on one device and not on another; rows may hold more
    bits than there are tokens, or fewer."""
    flags = np.random.default_rng(length).random((5, 96)) < 0.5
    words = np.packbits(flags, axis=1, bitorder="little").view(kind)
    host = op.unpacked(words, length, CPU)
    monkeypatch.setattr(op, "brought", lambda array, _: torch.tensor(array))
    device = op.unpacked(words, length, CPU)
    expected = np.zeros((5, length), dtype=bool)
    expected[:, :96] = flags[:, :length]
    assert host.dtype == np.bool_ and device.dtype is torch.bool
    assert host.tolist() == device.tolist() == expected.tolist()
