"""Model architectures, their HF configs and what vLLM must be told about them."""
