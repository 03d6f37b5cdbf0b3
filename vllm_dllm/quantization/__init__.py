"""Weights that become eight-bit while they are loaded."""
