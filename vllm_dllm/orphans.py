"""What a server started ends with it."""

import multiprocessing
import os
import signal
import threading
import time

STARTED_BY_SERVERS = ("EngineCore", "ApiServer")
"""How vLLM's names of such processes begin."""
GRACE_SECONDS = 10.0
"""For an orderly end; also for the requests of a server with `--shutdown-timeout`,
which nobody waits for any more."""


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

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="dllm-parent", daemon=True).start()
