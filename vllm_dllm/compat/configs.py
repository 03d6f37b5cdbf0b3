"""Patches that read the files of our checkpoints."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import needs, wraps

if TYPE_CHECKING:
    from vllm.config import ModelConfig


@needs(
    "vllm.transformers_utils.config:_CONFIG_REGISTRY",
    "vllm.model_executor.models.config:MODELS_CONFIG_MAP",
)
def register_configs() -> None:
    """Read our checkpoints' config.json without remote code.

    Without it transformers knows none of the model types. A second call stores the
    same classes again. Removable when vLLM offers a registration call for configs.
    """
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    from vllm_dllm.models import configs, engine
    from vllm_dllm.models.registry import FAMILIES

    for architecture, family in FAMILIES.items():
        config_class = getattr(configs, family.config)
        _CONFIG_REGISTRY[config_class.model_type] = config_class
        MODELS_CONFIG_MAP[architecture] = engine.BlockDiffusionConfig


@wraps("vllm.transformers_utils.config:HFConfigParser.parse")
def read_configs_by_architecture(function: Callable[..., Any]) -> Callable[..., Any]:
    """Read config.json of our architectures whatever `model_type` it has, or none.

    Trainers write names of their own there, which neither vLLM nor transformers knows;
    what a checkpoint is made for, its architecture says. Removable when a model class
    can name its config class.
    """
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from transformers import PreTrainedConfig

    from vllm_dllm.models import configs
    from vllm_dllm.models.registry import FAMILIES

    def parse(
        self: Any, model: Any, *args: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], Any]:
        revision = kwargs.get("revision")
        fields, _ = PreTrainedConfig.get_config_dict(
            model, revision=revision, local_files_only=HF_HUB_OFFLINE
        )
        overrides = kwargs.get("hf_overrides")
        stated = fields | (overrides if isinstance(overrides, dict) else {})
        family = next(map(FAMILIES.get, stated.get("architectures") or ()), None)
        if family is not None:
            config_class = getattr(configs, family.config)
            model_type = config_class.model_type
            if stated.get("model_type") != model_type:
                fields["model_type"] = model_type
                return fields, config_class.from_dict(fields)
        return function(self, model, *args, **kwargs)

    return parse


@wraps("vllm.config.model:ModelConfig.try_get_generation_config")
def add_stop_tokens(function: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """End answers with the tokens that end a turn in our families.

    Released checkpoints name one end token in generation_config.json and are trained to
    use two. Other models keep what their files say. Removable when a model's config
    hook can add end tokens.
    """
    from vllm_dllm.config import KEY, DllmConfig

    def try_get_generation_config(self: "ModelConfig") -> dict[str, Any]:
        config = function(self)
        if not hasattr(self.hf_config, KEY):
            return config
        facts = DllmConfig.of(self).facts
        eos = config.get("eos_token_id")
        if eos is None or eos == []:
            eos = [] if facts.eos_token_id is None else facts.eos_token_id
        stops = [eos] if isinstance(eos, int) else list(eos)
        stops += facts.stop_token_ids
        return {**config, "eos_token_id": list(dict.fromkeys(stops))}

    return try_get_generation_config
