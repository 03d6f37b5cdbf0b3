"""The HF config classes: what released config.json files become."""

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_dllm.models import configs
from vllm_dllm.models.configs import DreamConfig, LLaDA2MoeConfig, LLaDAConfig

LLADA = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_device": "meta",
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
LLADA_MOE = {
    "architectures": ["LLaDAMoEModel"],
    "model_type": "llada",
    "attention_bias": False,
    "clip_qkv": None,
    "dense_intermediate_size": 8192,
    "eos_token_id": 156892,
    "expert_intermediate_size": 1024,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "max_position_embeddings": 8192,
    "moe_layer_freq": [1] * 16,
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "norm_topk_prob": None,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "pad_token_id": 156892,
    "partial_rotary_factor": 1,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 50000,
    "shared_expert_intermediate_size": None,
    "tie_word_embeddings": False,
    "vocab_size": 157184,
}
DREAM = {
    "architectures": ["DreamModel"],
    "model_type": "Dream",
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "max_window_layers": 8,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def read(folder: Path, config_class: Any, raw: dict[str, Any], **changes: Any) -> Any:
    """The config of a checkpoint with these fields in its config.json."""
    (folder / "config.json").write_text(json.dumps(raw | changes))
    return config_class.from_pretrained(folder)


def values(config: Any, expected: dict[str, Any]) -> dict[str, Any]:
    """The fields of `config` that `expected` names."""
    return {name: getattr(config, name, None) for name in expected}


def test_dense_llada_is_read_under_the_names_of_hf(tmp_path: Path) -> None:
    """vLLM's Llama asks for HF's names, and takes a default for a missing one."""
    config = read(tmp_path, LLaDAConfig, LLADA)
    expected = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "num_hidden_layers": 32,
        "intermediate_size": 12288,
        "max_position_embeddings": 4096,
        "vocab_size": 126464,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "qkv_bias": False,
        "hidden_act": "silu",
        "eos_token_id": 126081,
        "mask_token_id": 126336,
        "num_experts": None,
    }
    assert values(config, expected) == expected


def test_llada_moe_is_read_by_the_same_class(tmp_path: Path) -> None:
    """The two share a model type, and so the class that vLLM picks by it."""
    config = read(tmp_path, LLaDAConfig, LLADA_MOE)
    expected = {
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "moe_intermediate_size": 1024,
        "max_position_embeddings": 8192,
        "vocab_size": 157184,
        "rope_theta": 50000,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_layer_freq": [1] * 16,
        "shared_expert_intermediate_size": 0,
        "eos_token_id": 156892,
        "mask_token_id": None,
    }
    assert values(config, expected) == expected


def test_whole_heads_are_rotated_whatever_llada_moe_s_config_says(
    tmp_path: Path,
) -> None:
    """vLLM would rotate that part of each head; the authors' code does not read it."""
    config = read(tmp_path, LLaDAConfig, LLADA_MOE, partial_rotary_factor=0.5)
    assert not hasattr(config, "partial_rotary_factor")


def test_a_field_can_be_read_and_changed_under_either_name(tmp_path: Path) -> None:
    """`--hf-overrides` names fields as config.json does."""
    config = read(tmp_path, LLaDAConfig, LLADA)
    assert config.d_model == config.hidden_size
    config.update({"max_sequence_length": 8192})
    assert config.max_position_embeddings == 8192


def test_the_vocabulary_has_all_rows_of_the_embeddings(tmp_path: Path) -> None:
    """Weights with more rows than there are tokens would not load."""
    config = read(tmp_path, LLaDAConfig, LLADA, vocab_size=126349)
    assert config.vocab_size == 126464
    config = read(tmp_path, LLaDAConfig, LLADA, embedding_size=None)
    assert config.vocab_size == 126464


def test_what_a_config_leaves_out_follows_from_the_rest(tmp_path: Path) -> None:
    """As in the authors' code; a fixed number would fit one size of model."""
    small = {"d_model": 512, "n_heads": 8, "n_kv_heads": None, "mlp_hidden_size": None}
    config = read(tmp_path, LLaDAConfig, LLADA, **small)
    assert (config.num_key_value_heads, config.intermediate_size) == (8, 2048)


@pytest.mark.parametrize(
    ("raw", "field", "value"),
    [
        (LLADA, "alibi", True),
        (LLADA, "block_group_size", 2),
        (LLADA, "block_type", "sequential"),
        (LLADA, "attention_layer_norm", True),
        (LLADA, "rope", False),
        (LLADA, "include_bias", True),
        (LLADA, "bias_for_layer_norm", True),
        (LLADA, "layer_norm_type", "default"),
        (LLADA, "activation_type", "gelu"),
        (LLADA, "scale_logits", True),
        (LLADA, "input_emb_norm", True),
        (LLADA, "multi_query_attention", True),
        (LLADA_MOE, "clip_qkv", 8.0),
        (LLADA_MOE, "attention_bias", True),
        (LLADA_MOE, "qk_layernorm", False),
        (LLADA_MOE, "hidden_act", "gelu"),
    ],
)
def test_what_would_need_another_computation_is_refused(
    tmp_path: Path, raw: dict[str, Any], field: str, value: Any
) -> None:
    """Such a checkpoint would load, and answer nonsense."""
    with pytest.raises(ValueError, match=rf"{field}={value!r} is not supported"):
        read(tmp_path, LLaDAConfig, raw, **{field: value})


@pytest.mark.parametrize("family", configs.SiluAlone.__subclasses__())
def test_another_activation_is_refused(family: Any) -> None:
    """vLLM's layers would name neither the field nor the file."""
    with pytest.raises(ValueError, match=r"config\.json: hidden_act='gelu' is not"):
        family(hidden_act="gelu")
    assert family().hidden_act == "silu"


def test_dream_has_no_sliding_window(tmp_path: Path) -> None:
    """Its configs keep Qwen2's fields of a window that nothing uses."""
    config = read(tmp_path, DreamConfig, DREAM)
    assert config.sliding_window is None
    assert set(config.layer_types) == {"full_attention"}
    assert config.rope_parameters["rope_theta"] == 1000000.0
    assert config.mask_token_id == 151666


def test_a_router_of_llada2_has_a_bias_with_sigmoid_alone() -> None:
    """vLLM's router asserts it, without a word."""
    softmax = {"score_function": "softmax"}
    assert not LLaDA2MoeConfig(
        moe_router_enable_expert_bias=False, **softmax
    ).moe_router_enable_expert_bias
    with pytest.raises(ValueError, match="moe_router_enable_expert_bias=True is not"):
        LLaDA2MoeConfig(**softmax)
    with pytest.raises(ValueError, match="score_function='tanh' is not supported"):
        LLaDA2MoeConfig(score_function="tanh")


LLADA22 = {
    "block_size": 32,
    "expert_capacity": 48,
    "delete_token_id": 156930,
    "split_token_id": 156931,
}


def test_routing_by_blocks_knows_no_groups() -> None:
    """Configs of LLaDA2.2 still name groups, which vLLM's router would follow."""
    config = LLaDA2MoeConfig(**LLADA22)
    assert (config.n_group, config.topk_group) == (1, 1)
    config = LLaDA2MoeConfig(**LLADA22 | {"expert_capacity": None})
    assert (config.expert_capacity, config.n_group, config.topk_group) == (0, 8, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expert_capacity": 7}, r"expert_capacity=7; allowed: 8 .* to 256"),
        ({"expert_capacity": 257}, r"expert_capacity=257; allowed: 8 .* to 256"),
        ({"expert_capacity": -1}, r"expert_capacity=-1; allowed: 8 .* to 256"),
        ({"block_size": None}, "block_size is not given, .*expert_capacity=48"),
        ({"delete_token_id": None}, "delete_token_id is not given"),
        ({"split_token_id": None}, "split_token_id is not given"),
        (
            {"score_function": "softmax", "moe_router_enable_expert_bias": False},
            "score_function='softmax' is not supported with expert_capacity=48",
        ),
    ],
)
def test_a_half_described_llada2_2_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    """It would be served as if it were 2.1, and answer nonsense."""
    with pytest.raises(ValueError, match=message):
        LLaDA2MoeConfig(**LLADA22 | changes)
