"""The worker's side: spans to model inputs, logits to tokens."""
