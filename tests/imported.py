"""What every process of vLLM imports, and what our plugin adds to it.

Imported by the process that tests/forked.py forks. Nothing here may start a thread.
"""

import gc
import importlib

import setproctitle
from vllm.plugins import load_general_plugins

for name in (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
):
    importlib.import_module(name)
load_general_plugins()
setproctitle.getproctitle()  # finds the place of the title, which moves
# The collector of a fork need not look at any of it.
gc.collect()
gc.freeze()
