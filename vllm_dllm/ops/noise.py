"""Random numbers that are a function of what they are for, not of when they are drawn.

A request decodes the same tokens alone, in any batch, after preemption and on every
rank, because its noise depends on (seed, position, step) alone.
"""

import torch

_LOW_48 = (1 << 48) - 1


def uniform(
    seed: torch.Tensor, position: torch.Tensor, step: torch.Tensor, stream: int
) -> torch.Tensor:
    """One number per element; arguments broadcast.

    Args:
        seed: int64, of the request.
        position: int64, absolute position of the token.
        step: int64, steps that its block has taken.
        stream: which of several independent numbers.

    Returns:
        float64 in [0, 1), with 48 random bits.
    """
    state = _mix(_mix(seed) ^ stream)
    state = _mix(state ^ position)
    state = _mix(state ^ step)
    return (state & _LOW_48).double() / (1 << 48)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser on int64, whose products wrap and whose shifts do not."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
