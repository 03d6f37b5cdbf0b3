"""What we touch in vLLM: that it is there, and that we keep to it."""

from importlib.metadata import PackageNotFoundError
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import vllm as vllm_config_module
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.renderers.base import BaseRenderer
from vllm.sampling_params import SamplingParams

from vllm_dllm import compat, plugin
from vllm_dllm.compat import band
from vllm_dllm.compat.symbols import place_of
from vllm_dllm.compat.triton import claiming_triton
from vllm_dllm.config import DllmConfig
from vllm_dllm.models.registry import FAMILIES, is_ours


@pytest.mark.parametrize(
    ("version", "supported"),
    [
        ("0.31.9", False),
        ("0.32.0", True),
        ("0.32.0+cpu", True),
        ("0.32.1.dev7+g0123abc", True),
        ("0.32.3.post1", True),
        ("0.33.0", True),
        ("0.33.0+cpu", True),
        ("0.34.0", False),
        ("1.0.0", False),
    ],
)
def test_the_band_holds_the_builds_of_one_release(
    monkeypatch: pytest.MonkeyPatch, version: str, supported: bool
) -> None:
    """A CPU build left out of the band would silently lose all our models."""
    monkeypatch.setattr(band, "version", lambda _: version)
    assert band.is_supported() is supported


def test_without_vllm_the_plugin_has_no_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An exception here would end every process that lists its plugins."""

    def version(_: str) -> str:
        raise PackageNotFoundError("vllm")

    monkeypatch.setattr(band, "version", version)
    assert band.is_supported() is False


def wrapped_functions() -> dict[str, Any]:
    """Every attribute of vLLM that is replaced by a wrapper of ours."""
    found = {}
    for symbol in compat.PRIVATE_SYMBOLS:
        owner, name = place_of(symbol)
        raw = vars(owner).get(name)
        function = getattr(raw, "__func__", getattr(raw, "fget", raw))
        if getattr(function, "_vllm_dllm", False):
            found[symbol] = raw
    return found


def test_registering_again_wraps_nothing_twice() -> None:
    """vLLM registers plugins in every process, and tests do it again: flags that are
    added twice are an argparse error."""
    plugin.register()
    once = wrapped_functions()
    plugin.register()
    again = wrapped_functions()
    assert {target for patch in compat.EVERYWHERE for target in patch.targets} <= (
        once.keys()
    )
    assert once.keys() == again.keys()
    assert all(once[symbol] is again[symbol] for symbol in once)


def test_what_is_wrapped_keeps_its_kind_and_name() -> None:
    """A static method that turned into a method gets its class as the parser."""
    plugin.register()
    attributes = vars(EngineArgs)
    assert isinstance(attributes["add_cli_args"], staticmethod)
    assert isinstance(attributes["from_cli_args"], classmethod)
    assert EngineArgs.create_engine_config.__name__ == "create_engine_config"
    assert EngineArgs.create_engine_config.__doc__


def test_architectures_and_configs_are_known_to_vllm() -> None:
    """An architecture without its config would need remote code."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    plugin.register()
    assert FAMILIES.keys() <= set(ModelRegistry.get_supported_archs())
    assert FAMILIES.keys() <= MODELS_CONFIG_MAP.keys()
    models = {"llada2_moe", "sdar", "sdar_moe", "llada", "Dream"}
    assert models <= _CONFIG_REGISTRY.keys()


def test_no_architecture_of_vllms_own_is_taken_over() -> None:
    """A model that vLLM serves itself would change its behaviour with our install."""
    from vllm.model_executor.models.registry import _VLLM_MODELS

    assert FAMILIES.keys().isdisjoint(_VLLM_MODELS)


def model_config(architecture: str) -> SimpleNamespace:
    """As much of a ModelConfig as the validator looks at."""
    family = FAMILIES.get(architecture)
    config = DllmConfig.build(
        {"block_size": 4, "mask_token_id": 255, "algorithm": "low_confidence"},
        family.defaults if family else {},
        facts=family.facts if family else None,
    )
    model = SimpleNamespace(
        architectures=[architecture], is_diffusion=True, hf_config=SimpleNamespace()
    )
    config.attach(model)
    return model


def test_other_diffusion_models_keep_vllms_validation() -> None:
    """DiffusionGemma ignores a temperature; to accept one for it would be a lie."""
    plugin.register()
    gemma = model_config("DiffusionGemmaForBlockDiffusion")
    with pytest.raises(VLLMValidationError, match="not yet supported with diffusion"):
        SamplingParams(temperature=0.0)._validate_diffusion(gemma)
    SamplingParams(temperature=1.0)._validate_diffusion(gemma)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_our_models_are_validated_by_our_rules(architecture: str) -> None:
    """vLLM's validator refuses temperature 0, the one that these models decode with."""
    plugin.register()
    ours = model_config(architecture)
    SamplingParams(temperature=0.0)._validate_diffusion(ours)
    with pytest.raises(VLLMValidationError, match=r"dllm_steps=0"):
        SamplingParams(
            temperature=0.0, extra_args={"dllm_steps": 0}
        )._validate_diffusion(ours)


@pytest.mark.parametrize(
    ("architecture", "prompt"), [("LLaDAModelLM", "a"), ("LlamaForCausalLM", None)]
)
def test_only_our_models_take_a_suffix_beside_the_prompt(
    architecture: str, prompt: str | None
) -> None:
    """Another model would answer as if nobody had told it what follows."""
    plugin.register()
    renderer: Any = SimpleNamespace(model_config=model_config(architecture))
    assert BaseRenderer.render_completion_suffix(renderer, "a", "b") == prompt


def test_no_model_at_all_is_not_ours() -> None:
    """vLLM builds configs without a model, in its own tests and for empty engines."""
    assert not is_ours(None)
    assert not is_ours(SimpleNamespace(architectures=["LlamaForCausalLM"]))


class GatedConfig:
    """The part of VllmConfig that looks at HAS_TRITON."""

    def __init__(self, architecture: str) -> None:
        self.model_config = model_config(architecture)

    @property
    def use_v2_model_runner(self) -> bool:
        return vllm_config_module.HAS_TRITON

    def _validate_v2_model_runner(self) -> None:
        if "SDAR" in self.model_config.architectures[0]:
            raise RuntimeError(f"HAS_TRITON={vllm_config_module.HAS_TRITON}")


def test_the_v2_gate_opens_for_our_models_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Model Runner V2 without its Triton kernels crashes with any other model."""
    monkeypatch.setattr(vllm_config_module, "HAS_TRITON", False)
    monkeypatch.setattr(vllm_config_module, "VllmConfig", GatedConfig)
    compat.open_v2_gate()
    assert GatedConfig("LLaDA2MoeModelLM").use_v2_model_runner
    assert not GatedConfig("LlamaForCausalLM").use_v2_model_runner
    assert not vllm_config_module.HAS_TRITON


def test_the_v2_gate_closes_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused config would leave the gate open for the next model."""
    monkeypatch.setattr(vllm_config_module, "HAS_TRITON", False)
    monkeypatch.setattr(vllm_config_module, "VllmConfig", GatedConfig)
    compat.open_v2_gate()
    with pytest.raises(RuntimeError, match="HAS_TRITON=True"):
        GatedConfig("SDARForCausalLM")._validate_v2_model_runner()
    assert not vllm_config_module.HAS_TRITON


def test_a_module_that_asks_for_triton_finds_it_for_a_while() -> None:
    """vLLM 0.33 asks in the worker; an older one would get a name it does not have."""
    asks = ModuleType("asks")
    asks.HAS_TRITON = False
    with pytest.raises(RuntimeError), claiming_triton(asks):
        raise RuntimeError(asks.HAS_TRITON)
    assert asks.HAS_TRITON is False
    with claiming_triton(does_not := ModuleType("does_not")):
        assert not hasattr(does_not, "HAS_TRITON")


def test_attention_backends_are_told_of_our_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Buffers for as many requests as may run do not hold the rows of a prefill, nor
    the last blocks of answers, which may be short; for other models nothing may
    change."""
    from vllm.v1.worker.gpu import model_runner

    told: list[Any] = []
    monkeypatch.setattr(
        model_runner, "init_attn_backend", lambda kv, config: told.append(config)
    )
    compat.size_attention_for_rows()
    compat.size_attention_for_rows()
    scheduler = SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=4096)
    for architecture, rows in (("SDARForCausalLM", 1030), ("Qwen3ForCausalLM", 8)):
        model = SimpleNamespace(architectures=[architecture])
        model.hf_config = SimpleNamespace()
        DllmConfig(block_size=4, mask_token_id=1, steps=4).attach(model)
        config = SimpleNamespace(model_config=model, scheduler_config=scheduler)
        model_runner.init_attn_backend(None, config)
        assert told[-1].scheduler_config.max_num_seqs == rows
        assert scheduler.max_num_seqs == 8
    assert len(told) == 2


def test_rows_without_an_adapter_are_left_alone() -> None:
    """Index -1 is the last adapter in memory to vLLM's kernels for CPU."""
    from vllm.lora.ops.torch_ops import lora_ops

    compat.leave_base_rows_alone()
    compat.leave_base_rows_alone()
    adapter = torch.tensor([1, -1, 0, -1])
    inputs, down = torch.randn(4, 6), torch.randn(2, 1, 3, 6)
    small = torch.zeros(4, 3)
    lora_ops.bgmv_shrink(inputs, down, small, adapter, 0.5)
    expected = 0.5 * torch.einsum("bi,boi->bo", inputs, down[adapter, 0])
    expected[adapter < 0] = 0
    torch.testing.assert_close(small, expected)
    up, output = torch.randn(2, 1, 6, 3), torch.randn(4, 6)
    before = output.clone()
    lora_ops.bgmv_expand(small, up, output, adapter, add_inputs=True)
    assert torch.equal(output[adapter < 0], before[adapter < 0])
    assert not torch.isclose(output[adapter >= 0], before[adapter >= 0]).any()
