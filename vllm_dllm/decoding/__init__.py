"""Decoding rules: which masked positions of a canvas become tokens in a step."""
