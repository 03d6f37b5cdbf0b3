"""Dense LLaDA: its weights under Llama's names."""

from safetensors.torch import load_file

from tests.golden_cases import GOLDEN
from vllm_dllm.models.llada import RELEASED_NAMES, LLaDAModelLM


def released_names() -> list[str]:
    return list(load_file(GOLDEN / "llada-pub0" / "model.safetensors"))


def test_every_released_weight_has_its_place_in_llama() -> None:
    """A weight under a name that nobody asks for is left at its random start."""
    layer = {
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    }
    expected = {
        f"model.layers.{number}.{part}" for number in range(3) for part in layer
    }
    expected |= {"model.embed_tokens", "model.norm", "lm_head"}
    names = [RELEASED_NAMES.map_name(name) for name in released_names()]
    assert sorted(names) == sorted(f"{name}.weight" for name in expected)


def test_the_two_ff_out_are_told_apart() -> None:
    """A layer's is the end of its feed-forward, the model's is the head."""
    names = {
        "model.transformer.ff_out.weight": "lm_head.weight",
        "model.transformer.blocks.11.ff_out.weight": (
            "model.layers.11.mlp.down_proj.weight"
        ),
        # As quantization configs name modules.
        "model.transformer.ff_out": "lm_head",
        "model.transformer.blocks.0.ff_out": "model.layers.0.mlp.down_proj",
    }
    mapper = LLaDAModelLM.hf_to_vllm_mapper.get_rename_mapper()
    assert {name: mapper.map_name(name) for name in names} == names
