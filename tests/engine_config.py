"""The configuration of an engine of a golden checkpoint, without the engine."""

from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

import tests.imported  # noqa: F401
from tests.golden_cases import GOLDEN
from vllm_dllm.config import DllmConfig


def engine_config(model: str | Path, **engine_args: Any) -> VllmConfig:
    return EngineArgs(model=str(GOLDEN / model), **engine_args).create_engine_config()


def resolved(model: str | Path, **own: Any) -> DllmConfig:
    """Our config as a worker sees it, with `own` as the user's choices."""
    config = engine_config(model, additional_config={"dllm": own} if own else {})
    return DllmConfig.of(config.model_config)
