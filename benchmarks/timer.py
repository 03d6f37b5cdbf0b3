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
            for owner, name in (
                (runner.model, "forward"),
                (runner.model, "compute_logits"),
                (runner, "execute_model"),
                (runner, "sample_tokens"),
            ):
                setattr(owner, name, self._timed(name, getattr(owner, name)))
        self._timer = {"model": 0.0, "worker": 0.0, "forwards": 0}

    def read_timer(self) -> str:
        return json.dumps(self._timer)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        key = "model" if name in ("forward", "compute_logits") else "worker"

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self._timer[key] += time.perf_counter() - start
            self._timer["forwards"] += name == "forward"
            return result

        return call
