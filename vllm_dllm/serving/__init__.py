"""What clients of the HTTP server see beyond vLLM's own."""
