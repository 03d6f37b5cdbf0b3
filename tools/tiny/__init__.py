"""Data and tokenizer of the tiny LLaDA2 checkpoint."""
