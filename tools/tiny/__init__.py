"""Data, tokenizer and recipes of the tiny checkpoints."""
