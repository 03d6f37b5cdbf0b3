"""Where server-wide choices come from, and which source wins."""

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import derived
from tests.engine_config import engine_config, resolved
from vllm_dllm.config import DllmConfig
from vllm_dllm.request import resolve


def test_the_family_speaks_when_the_checkpoint_does_not() -> None:
    """LLaDA2's config.json has no block size; SDAR's older ones have none either."""
    config = resolved("llada20-pub0")
    assert (config.block_size, config.threshold, config.steps) == (32, 0.95, 32)


def test_a_later_checkpoint_of_a_family_is_decoded_by_its_own_rule() -> None:
    """LLaDA2.2 is told from 2.1 by a field alone, and would be decoded as that."""
    config = resolved("llada22-pub1")
    assert config.algorithm == "joint_threshold_indel" and config.block_size == 8
    assert (config.threshold, config.edit_threshold) == (0.5, 0.0)
    assert config.max_post_steps == 16
    assert config.facts.moves == (253, 254)
    assert resolved("llada21-pub0").algorithm == "threshold"
    assert resolved("llada21-pub0").facts.moves is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("delete_token_id", 256),
        ("split_token_id", -1),
        ("split_token_id", 255),
        ("split_token_id", 253),
        ("delete_token_id", "253"),
    ],
)
def test_what_cannot_move_tokens_is_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    """A column that the logits do not have ends the engine; the mask is taken."""
    folder = derived(tmp_path / "model", "llada22-pub1", **{field: value})
    with pytest.raises(ValueError, match=rf"{field}={value!r}; allowed: 0 to 255"):
        resolved(folder)


def test_a_servers_rule_that_moves_tokens_needs_a_model_that_does() -> None:
    """Every request would be refused, and the operator hear of it from users."""
    with pytest.raises(ValueError, match="joint_threshold_indel' is for checkpoints"):
        resolved("llada21-pub0", algorithm="JointThresholdInDel")
    assert resolved("llada22-pub1", algorithm="threshold").algorithm == "threshold"


def test_the_checkpoint_wins_over_the_family() -> None:
    """A model trained with blocks of 16 answers badly in blocks of 4."""
    assert resolved("sdar-pub0").block_size == 4
    config = resolved("sdar-pub1")
    assert (config.block_size, config.threshold, config.steps) == (16, 0.85, 16)


def test_the_user_wins_over_the_checkpoint() -> None:
    """Old checkpoints state no or a wrong block size, and only the user knows."""
    config = resolved("sdar-pub1", block_size=8, threshold=0.5, mask_token_id=254)
    assert (config.block_size, config.threshold) == (8, 0.5)
    assert (config.mask_token_id, config.steps) == (254, 8)


def test_vllms_own_name_for_the_block_size_is_heard() -> None:
    """`--diffusion-config.canvas_length` would be overwritten without a word."""
    config = engine_config("sdar-pub1", diffusion_config={"canvas_length": 8})
    assert DllmConfig.of(config.model_config).block_size == 8


def test_two_configs_of_one_process_are_independent() -> None:
    """Settings of one engine would leak into the next through a shared default."""
    resolved("sdar-pub1", block_size=8, threshold=0.5)
    config = resolved("sdar-pub1")
    assert (config.block_size, config.threshold) == (16, 0.85)


def test_the_mask_token_is_found_in_the_tokenizer(tmp_path: Path) -> None:
    """Older SDAR checkpoints name the mask in their tokenizer alone."""
    folder = derived(tmp_path / "model", "llada20-pub0", mask_token_id=None)
    assert resolved(folder).mask_token_id == 255


def test_a_mask_token_that_nobody_knows_is_asked_for(tmp_path: Path) -> None:
    """A guess decodes noise."""
    folder = derived(tmp_path / "model", "sdar-pub0", mask_token_id=None)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        text = (folder / name).read_text().replace("<|mask|>", "<|other|>")
        (folder / name).write_text(text.replace('"mask_token"', '"other_token"'))
    with pytest.raises(ValueError, match=r"dllm\.mask_token_id"):
        resolved(folder)
    assert resolved(folder, mask_token_id=255).mask_token_id == 255


def test_a_mask_token_outside_of_the_vocabulary_is_refused() -> None:
    """The embedding would be read out of bounds in the first forward."""
    with pytest.raises(ValueError, match=r"mask_token_id=256 .*vocabulary of 256"):
        resolved("sdar-pub0", mask_token_id=256)


@pytest.mark.parametrize(
    ("model", "spelling"),
    [
        ("llada-pub0", "mdm_mask"),
        ("dream-pub0", "mask"),
        ("dream-pub0", "dlm_mask"),
    ],
)
def test_the_mask_is_found_under_the_spelling_of_its_family(
    tmp_path: Path, model: str, spelling: str
) -> None:
    """Without a mask id nothing could be decoded."""
    folder = derived(tmp_path / "model", model, mask_token_id=None)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if file.exists():
            text = file.read_text().replace("<|mask|>", f"<|{spelling}|>")
            file.write_text(text)
    assert resolved(folder).mask_token_id == 255


@pytest.mark.parametrize(
    ("model", "capped"),
    [("llada20-pub0", True), ("llada21-pub0", True), ("sdar-pub0", False)],
)
def test_steps_are_capped_where_the_authors_do(model: str, capped: bool) -> None:
    """A short answer would be decoded in other steps than theirs."""
    assert resolved(model).cap_steps is capped
    assert resolved(model, cap_steps=not capped).cap_steps is not capped


def test_a_rules_parameters_have_defaults_of_the_server() -> None:
    """An operator could set them for nobody but himself."""
    config = resolved("sdar-pub0", algorithm="JointThreshold", edit_threshold=0.5)
    decoding = resolve({"dllm_max_post_steps": 3}, config, 10)
    assert decoding.algorithm == "joint_threshold"
    assert decoding.parameters["edit_threshold"] == 0.5
    assert decoding.parameters["max_post_steps"] == 3


class Settings:
    """An `additional_config` of another plugin's own class."""

    def compute_hash(self) -> str:
        return "settings"


def test_an_additional_config_without_keys_says_nothing_to_us() -> None:
    """vLLM allows any object there, and a server with one would not start."""
    settings = Settings()
    config = engine_config("sdar-pub1", additional_config=settings)
    assert config.additional_config is settings
    assert DllmConfig.of(config.model_config) == resolved("sdar-pub1")


@pytest.mark.parametrize("value", ["fast", ["steps"], 3])
def test_an_entry_of_ours_that_is_no_mapping_is_refused(value: Any) -> None:
    """It would be ignored, or end the start far from its cause."""
    with pytest.raises(ValueError, match="is not a mapping; known fields") as failure:
        engine_config("sdar-pub1", additional_config={"dllm": value})
    assert f'additional_config["dllm"]={value!r}' in str(failure.value)


def test_families_with_full_attention_have_their_authors_choices() -> None:
    """A family is known by its table alone; a slip there is another decoder."""
    llada, dream = resolved("llada-pub0"), resolved("dream-pub0")
    assert (llada.block_size, llada.steps, llada.algorithm) == (
        32,
        None,
        "low_confidence",
    )
    assert (dream.block_size, dream.steps, dream.algorithm) == (
        None,
        None,
        "neg_entropy",
    )
    assert llada.facts.full_attention and dream.facts.full_attention
    assert llada.facts.clean_confidence and not dream.facts.clean_confidence
    assert dream.facts.shifted_logits and not llada.facts.shifted_logits
    assert llada.facts.eos_token_id == dream.facts.eos_token_id == 1
    sdar = resolved("sdar-pub0").facts
    assert not sdar.full_attention and not sdar.shifted_logits


@pytest.mark.parametrize("model", ["llada-pub0", "dream-pub0"])
def test_the_facts_of_the_engine_are_its_own(model: str) -> None:
    """Requests would be checked against limits that the engine does not have."""
    config = engine_config(
        model, max_model_len=300, max_num_batched_tokens=500, block_size=64
    )
    facts = DllmConfig.of(config.model_config).facts
    assert (facts.max_model_len, facts.max_num_batched_tokens) == (300, 500)
    assert facts.page_size == config.cache_config.block_size == 64


def test_an_end_of_the_text_may_be_one_of_several(tmp_path: Path) -> None:
    """A list of ends would leave `logits_eos_inf` without any."""
    folder = derived(tmp_path / "model", "dream-pub0", eos_token_id=[7, 1])
    assert resolved(folder).facts.eos_token_id == 7
