"""Plain PyTorch re-implementations that the engine's answers are compared with."""
