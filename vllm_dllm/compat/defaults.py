"""How a request, which knows nothing of its model, is told that it is ours.

Each handler of a route gets the default sampling parameters from its model and passes
them along with every request, so they carry the model's config. Other models keep a
plain dict and vLLM's behaviour.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vllm_dllm.compat.patch import wraps
from vllm_dllm.models.registry import is_ours

if TYPE_CHECKING:
    from vllm.config import ModelConfig


class OurDefaults(dict[str, Any]):
    """Default sampling parameters that belong to one of our models."""

    model_config: "ModelConfig"


def our_defaults(arguments: Iterable[Any]) -> OurDefaults | None:
    """Those among what a function of vLLM's was called with, if the model is ours."""
    return next((one for one in arguments if isinstance(one, OurDefaults)), None)


@wraps("vllm.config.model:ModelConfig.get_diff_sampling_param")
def mark_defaults(
    function: Callable[..., dict[str, Any]],
) -> Callable[..., dict[str, Any]]:
    """Give requests to our models the defaults of the authors, marked as ours.

    Removable when a request knows its model.
    """
    from vllm_dllm.models.registry import FAMILIES

    def get_diff_sampling_param(self: "ModelConfig") -> dict[str, Any]:
        stated = function(self)
        if not is_ours(self):
            return stated
        # What the authors decode with, where the checkpoint does not say.
        [architecture, *_] = FAMILIES.keys() & set(self.architectures)
        family = FAMILIES[architecture]
        defaults = OurDefaults(family.generation)
        if self.generation_config == "auto":
            unread = family.inherited - self.override_generation_config.keys()
            stated = {n: value for n, value in stated.items() if n not in unread}
        if self.generation_config not in ("auto", "vllm"):
            # vLLM would take a default of such a server for its limit.
            defaults.pop("max_tokens", None)
        defaults.update(stated)
        defaults.model_config = self
        return defaults

    return get_diff_sampling_param
