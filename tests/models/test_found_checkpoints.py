"""Checkpoints as people have them: fields that are missing, idle or of a tool's own."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import derived
from tests.engine_config import engine_config
from tests.engines import Engine, OneAtATime
from tests.golden_cases import EOS, MASK, differences, golden_cases
from tests.specs import EngineSpec
from vllm_dllm.config import DllmConfig
from vllm_dllm.models.configs import SDARConfig

pytestmark = pytest.mark.timeout(400)

FAMILIES = [
    *("llada20-pub0", "llada-pub0", "sdar-pub0", "dream-pub0"),
    *("llada22-pub1", "fastdllm2-pub0", "nemotron-pub0", "wedlm-pub0"),
]
every_family = pytest.mark.parametrize("base", FAMILIES)


def settled(folder: Path, **options: Any) -> DllmConfig:
    return DllmConfig.of(engine_config(folder, **options).model_config)


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    fields = json.loads(file.read_text()) | changes
    fields = {name: value for name, value in fields.items() if value is not None}
    file.write_text(json.dumps(fields))


def stops_of(folder: Path, **options: Any) -> list[int]:
    """What vLLM ends an answer with, besides the tokenizer's end."""
    model_config = engine_config(folder, **options).model_config
    return model_config.try_get_generation_config()["eos_token_id"]


# The end of the text


@every_family
@pytest.mark.parametrize("stated", [None, "null", [], 999])
def test_the_end_may_be_stated_elsewhere(
    base: str, stated: Any, tmp_path: Path
) -> None:
    """Training configs of LLaDA2 have none, and the server would not start."""
    folder = derived(tmp_path / "model", base, eos_token_id=stated)
    if stated == "null":
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"null"', "null"))
    assert settled(folder).facts.eos_token_id == EOS
    assert EOS in stops_of(folder)


def test_the_end_is_looked_for_in_three_places(tmp_path: Path) -> None:
    """Of two that differ the model's own is right; without any there is none."""
    folder = derived(tmp_path / "model", "llada-pub0", eos_token_id=5)
    assert settled(folder).facts.eos_token_id == 5
    edit(folder / "config.json", eos_token_id=None)
    edit(folder / "generation_config.json", eos_token_id=[999, 6])
    assert settled(folder).facts.eos_token_id == 6
    (folder / "generation_config.json").unlink()
    assert settled(folder).facts.eos_token_id == EOS
    options = {"skip_tokenizer_init": True}
    assert settled(folder, **options).facts.eos_token_id is None


def test_an_answer_ends_where_config_json_alone_says_so(tmp_path: Path) -> None:
    """vLLM reads the end from the other two files."""
    folder = derived(tmp_path / "model", "sdar-pub0", eos_token_id=0)
    edit(folder / "generation_config.json", eos_token_id=None)
    assert stops_of(folder) == [0]
    assert stops_of(folder, generation_config="vllm") == [0]


# The mask


@every_family
@pytest.mark.parametrize("spelling", ["<|mask|>", "[MASK]"])
def test_the_mask_is_what_the_tokenizer_calls_so(
    base: str, spelling: str, tmp_path: Path
) -> None:
    """docs/parameters.md promises it; masks of released checkpoints have many names."""
    folder = derived(tmp_path / "model", base, mask_token_id=None)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (file := folder / name).exists():
            file.write_text(file.read_text().replace("<|mask|>", spelling))
    assert settled(folder).mask_token_id == MASK


@every_family
def test_the_mask_may_be_a_token_or_a_number_that_is_stated_elsewhere(
    base: str, tmp_path: Path
) -> None:
    """Dream's generation_config.json has it, and no mask_token."""
    folder = derived(tmp_path / "model", base, mask_token_id=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", mask_token=None)
    assert settled(folder).mask_token_id == MASK  # by its spelling
    edit(folder / "generation_config.json", mask_token_id=9)
    assert settled(folder).mask_token_id == 9
    edit(folder / "config.json", mask_token_id=8)
    assert settled(folder).mask_token_id == 8
    edit(folder / "config.json", mask_token_id=256)
    with pytest.raises(ValueError, match="mask_token_id=256 is not in the vocabulary"):
        settled(folder)


# Windows of attention

UNUSED: list[dict[str, Any]] = [
    {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3},
    {"sliding_window": None, "layer_types": ["full_attention"] * 3},
]
USED: list[dict[str, Any]] = [
    {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
    {
        "use_sliding_window": True,
        "sliding_window": 64,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
]


@every_family
@pytest.mark.parametrize("fields", UNUSED, ids=str)
def test_a_window_that_no_layer_has_is_none(
    base: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """LLaDA2's own config class writes one into every fine-tune."""
    folder = derived(tmp_path / "model", base, **fields)
    assert engine_config(folder).model_config.get_sliding_window() is None


@every_family
@pytest.mark.parametrize("fields", USED, ids=str)
def test_a_window_that_a_layer_has_is_refused(
    base: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """A window that is left out in silence would give wrong tokens."""
    folder = derived(tmp_path / "model", base, **{"layer_types": None, **fields})
    with pytest.raises(ValueError, match="sliding window attention is not supported"):
        engine_config(folder)


# Rotary positions


@every_family
@pytest.mark.parametrize("stretch", ["yarn", "linear"])
@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_positions_may_be_stretched(
    base: str, stretch: str, field: str, tmp_path: Path
) -> None:
    """Whoever wants longer prompts adds this: LLaDA's config could not be read with
    one of them, and one that is overlooked gives other tokens."""
    longest = {"original_max_position_embeddings": 512}
    fields = {"rope_type": stretch, "rope_theta": 9000.0, "factor": 2.0} | longest
    folder = derived(
        tmp_path / "model", base, **{"rope_parameters": None, field: fields}
    )
    config = engine_config(folder).model_config.hf_config
    assert config.rope_parameters.items() >= fields.items()


# The name of the config


@every_family
@pytest.mark.parametrize("model_type", [None, "qwen3"])
def test_an_architecture_is_enough_to_read_a_config(
    base: str, model_type: str | None, tmp_path: Path
) -> None:
    """Trainers write model types of their own, and code that nobody wants to run."""
    own = {"AutoConfig": "configuration_own.OwnConfig"}
    folder = derived(tmp_path / "m", base, model_type=model_type, auto_map=own)
    expected = engine_config(derived(tmp_path / "base", base)).model_config
    config = engine_config(folder).model_config
    assert type(config.hf_config) is type(expected.hf_config)
    assert config.hf_config.model_type == expected.hf_config.model_type
    assert settled(folder) == settled(tmp_path / "base")


def test_an_architecture_may_be_the_users(tmp_path: Path) -> None:
    """`--hf-overrides` is how vLLM is told what an odd checkpoint is."""
    theirs = {"architectures": ["TheirModel"], "model_type": "theirs"}
    folder = derived(tmp_path / "model", "sdar-pub0", **theirs)
    overrides = {"architectures": ["SDARForCausalLM"]}
    config = engine_config(folder, hf_overrides=overrides).model_config.hf_config
    assert type(config) is SDARConfig


# All at once


FOUND: dict[str, dict[str, Any]] = {
    "llada20-pub0": {
        "model_type": "llada2_moe_veomni",
        "sliding_window": 4096,
        "moe_router_enable_expert_bias": False,
    },
    "llada-pub0": {"sliding_window": 16, "max_window_layers": 28},
}


@pytest.fixture(params=FOUND)
def found(
    request: pytest.FixtureRequest, running: OneAtATime, tmp_path: Path
) -> Iterator[Engine]:
    """A golden checkpoint without what can be found, and with what is not used."""
    running.close()
    base: str = request.param
    missing = dict.fromkeys(["eos_token_id", "mask_token_id", "model_type"])
    idle = {"use_sliding_window": False, "auto_map": {"AutoConfig": "own.Own"}}
    folder = derived(tmp_path / "model", base, **missing | idle | FOUND[base])
    engine = Engine(EngineSpec(str(folder), 8 if base == "llada20-pub0" else None))
    try:
        yield engine
    finally:
        engine.close()


@pytest.mark.engine
def test_such_a_checkpoint_answers_as_the_whole_one(found: Engine) -> None:
    """A config that is read, but otherwise, gives other tokens."""
    block = found.spec.block
    name = "llada20-pub0" if block else "llada-pub0"
    cases = golden_cases(name, block)
    assert differences(cases, found.answers(cases)) == []
