"""What every process of vLLM imports, and what our plugin adds to it.

Imported by the process that tests/forked.py forks, and by tests that make engines or
their configurations. Nothing here may start a thread.
"""

import atexit
import gc
import importlib
import time
from functools import partial

import setproctitle
from vllm.distributed.device_communicators import shm_broadcast
from vllm.model_executor.models import registry
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins

for name in (
    "vllm.entrypoints.cli.serve",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    f"vllm.v1.worker.{'cpu' if current_platform.is_cpu() else 'gpu'}_worker",
):
    importlib.import_module(name)
load_general_plugins()
# vLLM looks at each class of model in a process of its own, lest CUDA be started here.
registry._run_in_subprocess = lambda look: look()
# A reader that spins takes the core that its writer needs, where cores are few.
shm_broadcast.sched_yield = partial(time.sleep, 0.0002)
setproctitle.getproctitle()  # finds the place of the title, which moves
# The collector of a fork need not look at any of it.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # libraries complain of what is never collected
