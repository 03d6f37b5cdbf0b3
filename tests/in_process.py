"""vLLM engines in the process of the tests: started in seconds, gone without a trace.

Workers of vLLM for CPU are processes, each of which imports vLLM and torch again. An
engine of one rank needs none, and one step of it is one call of `step`.
"""

import gc
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def in_this_process() -> Iterator[None]:
    """The engine that is started and shut down inside runs in this process.

    What a worker changes for its whole process is undone. What a failed start leaves of
    its distributed groups is ended. vLLM looks for garbage ten times on the way: not in
    what was imported, which would take half a second each time.
    """
    importlib.import_module("tests.imported")
    from vllm.distributed import cleanup_dist_env_and_memory

    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    cores = os.sched_getaffinity(0)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        environment.setenv("VLLM_DIST_IDENT", "")  # a worker's own
        environment.setattr(gc, "freeze", lambda: None)
        environment.setattr(gc, "unfreeze", lambda: None)
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(threads)
            os.sched_setaffinity(0, cores)
            cleanup_dist_env_and_memory()
