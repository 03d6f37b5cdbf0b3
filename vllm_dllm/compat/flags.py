"""Patches of the command line and of the defaults that it gives."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.engine.arg_utils import EngineArgs


@wraps("vllm.engine.arg_utils:EngineArgs.add_cli_args")
def add_cli_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let `vllm serve` and every other command know the `--dllm-*` flags.

    Removable when vLLM lets a plugin add arguments.
    """
    from vllm_dllm import cli

    def add_cli_args(parser: Any, *args: Any, **kwargs: Any) -> Any:
        parser = function(parser, *args, **kwargs)
        cli.add_arguments(parser)
        return parser

    return add_cli_args


@wraps("vllm.engine.arg_utils:EngineArgs.from_cli_args")
def fold_cli_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Put the `--dllm-*` flags where `additional_config` has them.

    Removable with `add_cli_flags`.
    """
    from vllm_dllm import cli

    def from_cli_args(cls: type, args: Any) -> Any:
        engine_args = function(cls, args)
        engine_args.additional_config = cli.fold(args, engine_args.additional_config)
        return engine_args

    return from_cli_args


@wraps(
    "vllm.engine.arg_utils:EngineArgs._set_default_max_num_seqs_and_batched_tokens_args"
)
def raise_token_budget(function: Callable[..., None]) -> Callable[..., None]:
    """Let one forward hold the longest request of a model with full attention.

    vLLM's default for `max_num_batched_tokens` may be less than `max_model_len`, since
    it splits prompts; ours cannot be split. vLLM raises the default where prompts are
    never split, so it is told so while it sets it; a number that the user gave stays.
    Removable when a model class can say that its prompts cannot be split.
    """
    from vllm_dllm.models.registry import FAMILIES
    from vllm_dllm.regimes.registry import regime_of

    def set_defaults(
        self: "EngineArgs",
        usage_context: Any,
        model_config: "ModelConfig",
        *rest: Any,
    ) -> None:
        family = FAMILIES.get(model_config.architecture)
        if family is None or not regime_of(family.facts).forwards_whole:
            return function(self, usage_context, model_config, *rest)
        chunked, self.enable_chunked_prefill = self.enable_chunked_prefill, False
        try:
            function(self, usage_context, model_config, *rest)
        finally:
            self.enable_chunked_prefill = chunked

    return set_defaults


@wraps("vllm.engine.arg_utils:EngineArgs.create_engine_config")
def refuse_unused_flags(
    function: Callable[..., "VllmConfig"],
) -> Callable[..., "VllmConfig"]:
    """Say so when our flags are given for a model that is not ours.

    Without it they would be ignored without a word. Removable with `add_cli_flags`.
    """
    from vllm_dllm.config import given
    from vllm_dllm.models.registry import FAMILIES

    def create_engine_config(*args: Any, **kwargs: Any) -> "VllmConfig":
        config = function(*args, **kwargs)
        if not is_ours(config.model_config) and given(config.additional_config):
            raise ValueError(
                f"--dllm-* options were given, but {config.model_config.model} "
                f"({', '.join(config.model_config.architectures)}) is not one of "
                f"the supported architectures: {', '.join(FAMILIES)}"
            )
        return config

    return create_engine_config
