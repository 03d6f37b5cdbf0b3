"""What a server started ends with it."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

STARTED_BY_SERVERS = ("EngineCore", "ApiServer")
"""How vLLM's names of such processes begin."""
GRACE_SECONDS = 10.0
"""For an orderly end; also for the requests of a server with `--shutdown-timeout`,
which nobody waits for any more."""
OPENMP = "/dev/shm/__KMP_REGISTERED_LIB_{pid}_{user}"


def end_with_parent() -> None:
    """End this process of vLLM's when the process that started it has ended.

    An engine waits for requests of a server that was killed, for ever, and so its
    workers keep their memory; one API server of several keeps the port. Nothing is done
    in a process of the user's.
    """
    parent = multiprocessing.parent_process()
    name = multiprocessing.current_process().name
    if parent is None or not name.startswith(STARTED_BY_SERVERS):
        return
    forget_openmp(os.getpid())

    def wait() -> None:
        parent.join()
        forget_openmp(parent.pid)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="dllm-parent", daemon=True).start()


def forget_openmp(pid: int | None) -> None:
    """Remove the file in which Intel's OpenMP says that it is in a process.

    It does that itself where a process ends by returning from main: one that is killed
    does not, and a child of multiprocessing never does. The file is for other copies of
    the library that the process may load, and by now it has loaded all.
    """
    Path(OPENMP.format(pid=pid, user=os.getuid())).unlink(missing_ok=True)
