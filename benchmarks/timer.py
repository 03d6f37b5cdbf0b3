"""A vLLM worker extension that times the model inside the worker."""

import json
import time
from collections.abc import Callable
from typing import Any

import torch


class ForwardTimer:
    """Methods added to the worker (`--worker-extension-cls`), called over RPC.

    On a GPU the model's time is that of the device, which works behind the calls.
    """

    def reset_timer(self) -> None:
        runner = self.model_runner  # type: ignore[attr-defined]
        if not hasattr(self, "_timer"):
            for owner, name in (
                (runner.model, "forward"),
                (runner.model, "compute_logits"),
                (runner, "execute_model"),
                (runner, "sample_tokens"),
                (getattr(runner, "cudagraph_manager", None), "run_fullgraph"),
            ):
                if hasattr(owner, name):  # not every server has graphs
                    setattr(owner, name, self._timed(name, getattr(owner, name)))
        self._timer = {"model": 0.0, "worker": 0.0, "forwards": 0}
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def read_timer(self) -> str:
        if self._events:
            torch.cuda.synchronize()
            on_device = sum(start.elapsed_time(end) for start, end in self._events)
            return json.dumps({**self._timer, "model": on_device / 1000})
        return json.dumps(self._timer)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        is_model = name in ("forward", "compute_logits", "run_fullgraph")
        on_device = is_model and torch.cuda.is_available()

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            if on_device:
                events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
                events[0].record()
            result = function(*args, **kwargs)
            if on_device:
                events[1].record()
                self._events.append(events)
            spent = time.perf_counter() - start
            self._timer["model" if is_model else "worker"] += spent
            self._timer["forwards"] += name in ("forward", "run_fullgraph")
            return result

        return call
