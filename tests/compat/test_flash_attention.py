"""Which FlashAttention our models have, as far as it is seen without a GPU."""

from typing import Any

from vllm.config import get_current_vllm_config, set_current_vllm_config

from tests.engine_config import engine_config
from vllm_dllm.compat.flash_attention import keep_flash_attention_3


def version_of_vllm(*args: Any, **kwargs: Any) -> int:
    """As vLLM chooses on Hopper."""
    assert (args, kwargs) == ((1,), {"head_size": 128})
    return 4 if get_current_vllm_config().model_config.is_diffusion else 3


def test_a_model_of_ours_keeps_version_3() -> None:
    """Version 4 is compiled on first use, by a package that may not be there; nothing
    else of a server may forget that the model is a diffusion model."""
    config = engine_config("sdar-pub0")
    version = keep_flash_attention_3.wrapper(version_of_vllm)
    with set_current_vllm_config(config):
        assert version_of_vllm(1, head_size=128) == 4
        assert version(1, head_size=128) == 3
        assert version_of_vllm(1, head_size=128) == 4


def test_what_nobody_configured_is_left_to_vllm() -> None:
    """vLLM asks while its module is imported, when there is no model."""
    asked = keep_flash_attention_3.wrapper(lambda *args, **kwargs: (args, kwargs))
    assert asked(1, head_size=2) == ((1,), {"head_size": 2})
