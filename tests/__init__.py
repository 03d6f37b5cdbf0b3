"""Tests of vllm-dllm; `vllm_dllm/x/y.py` is tested by `tests/x/test_y.py`."""
