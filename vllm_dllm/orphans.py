"""An engine whose parent process is gone ends too."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """End this process, as by SIGTERM, when the process that started it has ended.

    vLLM's engine waits for requests of a server that was killed, for ever, and so its
    workers keep their memory. Without such a parent
    nothing is done.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="dllm-parent", daemon=True).start()
