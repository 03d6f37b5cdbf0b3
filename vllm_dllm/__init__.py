"""vLLM plugin that serves diffusion language models on stock, unmodified vLLM."""

__version__ = "0.1.0"
