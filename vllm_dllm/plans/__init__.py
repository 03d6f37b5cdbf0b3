"""What the steps of a request forward: one plan per file.

Pure functions shared by the scheduler (one process) and the worker (another), so that
the two cannot disagree. No torch, no vLLM. Vocabulary: docs/architecture.md.

All positions are absolute token positions of one request. There is a plan for each kind
of attention, and for each way to have several blocks under denoising at once.
"""
