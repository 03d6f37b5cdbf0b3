"""Tensor operations that know the device: a torch reference, and faster twins."""
