"""Server-wide choices: their limits, their sources, and what vLLM is told by them."""

import json
from pathlib import Path
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from tests.checkpoints import derived
from tests.golden_cases import GOLDEN
from vllm_dllm.config import DllmConfig
from vllm_dllm.models.registry import FAMILIES
from vllm_dllm.request import resolve

BASE = {"block_size": 4, "mask_token_id": 255}


def engine_config(model: str | Path, **engine_args: Any) -> VllmConfig:
    return EngineArgs(model=str(GOLDEN / model), **engine_args).create_engine_config()


def resolved(model: str | Path, **own: Any) -> DllmConfig:
    """Our config as a worker sees it, with `own` as the user's choices."""
    config = engine_config(model, additional_config={"dllm": own} if own else {})
    return DllmConfig.of(config.model_config)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("block_size", 0, "greater than or equal to 1"),
        ("block_size", 4097, "less than or equal to 4096"),
        ("block_size", "8", "valid integer"),
        ("block_size", True, "valid integer"),
        ("mask_token_id", -1, "greater than or equal to 0"),
        ("threshold", 1.5, "less than or equal to 1"),
        ("threshold", float("nan"), "finite number"),
        ("threshold", "0.5", "valid number"),
        ("steps", 0, "greater than or equal to 1"),
        ("steps", 2.5, "valid integer"),
        ("algorithm", "fastest", "supported: .*threshold"),
        ("block_size", -8, "greater than or equal to 1"),
        ("block_size", 2.5, "valid integer"),
        ("mask_token_id", 1.5, "valid integer"),
        ("steps", 1_000_001, "less than or equal to 1000000"),
        ("max_post_steps", 1_000_001, "less than or equal to 1000000"),
        ("local_leap_radius", 2**63, "less than or equal to 1000000"),
        ("factor", 0, "greater than 0"),
        ("entropy_bound", float("inf"), "finite number"),
        ("cap_steps", 1, "valid boolean"),
        ("blocksize", 4, "^unknown field dllm.blocksize.*known: .*dllm.block_size"),
        ("max_nfe", 4, "^unknown field"),  # a choice of requests alone
    ],
)
def test_a_refusal_names_field_value_and_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    """A server that does not start should say which of its flags is to blame."""
    with pytest.raises(ValueError, match=allowed) as failure:
        DllmConfig.build(BASE, {field: value})
    assert f"dllm.{field}={value!r}" in str(failure.value)


@pytest.mark.parametrize("field", ["block_size", "mask_token_id"])
def test_what_nobody_said_is_asked_for(field: str) -> None:
    """A guessed mask token decodes noise."""
    known = {name: value for name, value in BASE.items() if name != field}
    with pytest.raises(ValueError, match=rf"^dllm\.{field} is not given"):
        DllmConfig.build(known)


def test_later_sources_win_and_none_is_no_value() -> None:
    """A source that does not know a field would erase what an earlier one said."""
    config = DllmConfig.build(
        BASE, {"block_size": None, "threshold": 0.5}, {"threshold": 0.25}
    )
    assert config.block_size == 4
    assert config.threshold == 0.25


def test_steps_follow_the_block_size_that_won() -> None:
    """Steps of another block size would force tokens on the model, or idle."""
    assert DllmConfig.build(BASE, {"block_size": 16}).steps == 16
    assert DllmConfig.build(BASE, {"block_size": 16, "steps": 3}).steps == 3


def test_an_alias_is_replaced_by_the_rules_own_name() -> None:
    """The worker would look for a rule that is in no table."""
    config = DllmConfig.build(BASE, {"algorithm": "low_confidence_static"})
    assert config.algorithm == "low_confidence"


def test_the_config_cannot_be_changed_afterwards() -> None:
    """The server's processes hold copies, which would differ from then on."""
    with pytest.raises(ValueError, match="frozen"):
        DllmConfig.build(BASE).block_size = 8


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_familys_table_has_valid_fields(architecture: str) -> None:
    """A typing slip in the table would end every server of that family."""
    DllmConfig.build(BASE, FAMILIES[architecture].defaults)


def test_the_family_speaks_when_the_checkpoint_does_not() -> None:
    """LLaDA2's config.json has no block size; SDAR's older ones have none either."""
    config = resolved("llada20-pub0")
    assert (config.block_size, config.threshold, config.steps) == (32, 0.95, 32)


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
    """SDAR spells its mask otherwise than this tokenizer; a guess decodes noise."""
    folder = derived(tmp_path / "model", "sdar-pub0", mask_token_id=None)
    with pytest.raises(ValueError, match=r"dllm\.mask_token_id"):
        resolved(folder)
    assert resolved(folder, mask_token_id=255).mask_token_id == 255


def test_a_mask_token_outside_of_the_vocabulary_is_refused() -> None:
    """The embedding would be read out of bounds in the first forward."""
    with pytest.raises(ValueError, match=r"mask_token_id=256 .*vocabulary of 256"):
        resolved("sdar-pub0", mask_token_id=256)


@pytest.mark.parametrize("block", [1, 4, 24, 32, 48])
def test_vllm_is_told_everything_it_needs(block: int) -> None:
    """Any of these left at vLLM's default gives wrong tokens or a crash."""
    config = engine_config(
        "sdar-pub0", additional_config={"dllm": {"block_size": block}}
    )
    assert config.scheduler_config.scheduler_cls == (
        "vllm_dllm.scheduler.BlockDiffusionScheduler"
    )
    assert config.parallel_config.worker_cls.startswith("vllm_dllm.worker.worker.")
    assert config.diffusion_config.canvas_length == block
    assert config.model_config.is_diffusion
    assert config.cache_config.block_size % block == 0
    assert config.use_v2_model_runner
    assert not config.scheduler_config.async_scheduling


@pytest.mark.parametrize(("block", "positions"), [(4, 1024), (32, 1024), (24, 1032)])
def test_rotary_tables_reach_the_end_of_the_last_block(
    block: int, positions: int
) -> None:
    """A canvas past the longest request would be rotated by garbage."""
    config = engine_config(
        "sdar-pub0", additional_config={"dllm": {"block_size": block}}
    )
    assert config.model_config.hf_config.max_position_embeddings == positions
    assert config.model_config.max_model_len == 1024


def default_temperature(model: str | Path, **engine_args: Any) -> float | None:
    """What a request that names none gets; None is vLLM's own default, 1."""
    config = engine_config(model, **engine_args).model_config
    return config.get_diff_sampling_param().get("temperature")


@pytest.mark.parametrize(
    ("model", "expected"),
    [("llada20-pub0", 0.0), ("llada21-pub0", 0.0), ("sdar-pub0", None)],
)
@pytest.mark.parametrize("source", ["auto", "vllm"])
def test_without_a_word_the_temperature_is_the_authors(
    model: str, expected: float | None, source: str
) -> None:
    """LLaDA2's authors decode greedily; at temperature 1 its answers are worse."""
    assert default_temperature(model, generation_config=source) == expected


@pytest.mark.parametrize("model", ["llada20-pub0", "sdar-pub0"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_checkpoints_own_temperature_wins(
    tmp_path: Path, model: str, temperature: float
) -> None:
    """Its authors said what it is to be decoded with."""
    folder = derived(tmp_path / "model", model)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 1, "temperature": temperature, "do_sample": True})
    )
    assert default_temperature(folder) == temperature


@pytest.mark.parametrize("model", ["llada20-pub0", "sdar-pub0"])
def test_a_temperature_that_the_operator_chose_is_kept(model: str) -> None:
    """An operator's setting that is dropped in silence is a trap."""
    chosen = {"temperature": 0.5}
    assert default_temperature(model, override_generation_config=chosen) == 0.5


def test_a_default_temperature_keeps_the_operators_other_choices() -> None:
    """Ours would take the place of everything that was overridden."""
    config = engine_config("llada20-pub0", override_generation_config={"top_p": 0.9})
    params = config.model_config.get_diff_sampling_param()
    assert (params["temperature"], params["top_p"]) == (0.0, 0.9)


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
    params = resolve({"dllm_max_post_steps": 3}, config)
    assert (params.algorithm, params.edit_threshold) == ("joint_threshold", 0.5)
    assert params.max_post_steps == 3


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


def test_a_worker_of_the_users_own_is_kept() -> None:
    """vLLM documents --worker-cls; a subclass of our worker is put in through it."""
    config = engine_config("sdar-pub0", worker_cls="my.module.Worker")
    assert config.parallel_config.worker_cls == "my.module.Worker"
