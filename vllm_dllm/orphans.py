"""An engine whose server is gone ends too."""

import multiprocessing
import os
import signal
import threading
import time

GRACE_SECONDS = 10.0
"""For an orderly end; also for the requests of a server with `--shutdown-timeout`,
which nobody waits for any more."""


def end_with_parent() -> None:
    """End vLLM's engine process when the process that started it has ended.

    It waits for requests of a server that was killed, for ever, and so its workers keep
    their memory. Nothing is done where the engine runs in a process of the user's.
    """
    parent = multiprocessing.parent_process()
    name = multiprocessing.current_process().name
    if parent is None or not name.startswith("EngineCore"):
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="dllm-parent", daemon=True).start()
