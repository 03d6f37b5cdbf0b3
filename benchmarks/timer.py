"""A vLLM worker extension that times the model inside the worker."""

import json
import time
from collections.abc import Callable
from typing import Any


class ForwardTimer:
    """Methods added to the worker (`--worker-extension-cls`), called over RPC."""

    def reset_timer(self) -> None:
        runner = self.model_runner  # type: ignore[attr-defined]
        if not hasattr(self, "_timer"):
            for name in ("forward", "compute_logits"):
                setattr(runner.model, name, self._timed(getattr(runner.model, name)))
        self._timer = {"seconds": 0.0, "forwards": 0}

    def read_timer(self) -> str:
        return json.dumps(self._timer)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        is_forward = function.__name__ == "forward"

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self._timer["seconds"] += time.perf_counter() - start
            self._timer["forwards"] += is_forward
            return result

        return call
