"""Defaults of requests that their family knows: temperature, length, ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import derived
from tests.engine_config import engine_config
from vllm_dllm.config import DllmConfig


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
    ("model", "length"), [("llada-pub0", 128), ("dream-pub0", 512)]
)
@pytest.mark.parametrize("source", ["auto", "vllm"])
def test_without_a_word_an_answer_is_as_long_as_the_authors(
    model: str, length: int, source: str
) -> None:
    """vLLM's default, all that fits, is a canvas of thousands of masks."""
    config = engine_config(model, generation_config=source).model_config
    params = config.get_diff_sampling_param()
    assert (params["max_tokens"], params["temperature"]) == (length, 0.0)


@pytest.mark.parametrize("model", ["llada-pub0", "dream-pub0"])
def test_an_answers_default_length_is_the_checkpoints_or_the_operators(
    tmp_path: Path, model: str
) -> None:
    """A setting that is dropped in silence is a trap."""
    chosen = {"max_new_tokens": 77}
    config = engine_config(model, override_generation_config=chosen).model_config
    params = config.get_diff_sampling_param()
    assert (params["max_tokens"], params["temperature"]) == (77, 0.0)
    folder = derived(tmp_path / "model", model)
    (folder / "generation_config.json").write_text(
        json.dumps({"max_new_tokens": 99, "temperature": 0.4, "do_sample": True})
    )
    params = engine_config(folder).model_config.get_diff_sampling_param()
    assert (params["max_tokens"], params["temperature"]) == (99, 0.4)


def test_an_answer_of_a_block_causal_model_is_as_long_as_it_gets() -> None:
    """Its canvas is a block: a limit of ours would cut answers off."""
    for model in ("sdar-pub0", "llada20-pub0"):
        params = engine_config(model).model_config.get_diff_sampling_param()
        assert "max_tokens" not in params


def with_tokens(folder: Path, model: str, **tokens: int) -> Path:
    """A checkpoint whose tokenizer knows these as well, in place of its words."""
    copy = derived(folder / "model", model)
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    for name, token in tokens.items():
        old = next(word for word, number in vocab.items() if number == token)
        del vocab[old]
        vocab[f"<|{name}|>"] = token
        known = {**content["added_tokens"][0], "id": token, "content": f"<|{name}|>"}
        content["added_tokens"].append(known)
    file.write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("llada-pub0", "eot_id"),
        ("dream-pub0", "im_end"),
        ("llada20-pub0", "role_end"),
        ("llada22-pub1", "role_end"),
        ("fastdllm2-pub0", "im_end"),
        ("wedlm-pub0", "im_end"),
    ],
)
@pytest.mark.parametrize("source", ["auto", "vllm"])
def test_the_end_of_a_turn_ends_an_answer(
    tmp_path: Path, model: str, name: str, source: str
) -> None:
    """Released checkpoints name one end and use two: answers would go on after it."""
    folder = with_tokens(tmp_path, model, **{name: 9})
    config = engine_config(folder, generation_config=source).model_config
    assert config.try_get_generation_config()["eos_token_id"] == [1, 9]
    facts = DllmConfig.of(config).facts
    assert (facts.eos_token_id, facts.eot_token_id) == (1, 9)
    assert facts.stop_token_ids == [1, 9]


@pytest.mark.parametrize(
    ("model", "name"), [("llada-pub0", "eot_id"), ("llada22-pub1", "role_end")]
)
def test_ends_that_the_checkpoint_names_are_kept(
    model: str, name: str, tmp_path: Path
) -> None:
    """An author's own list of ends would be replaced by the family's."""
    folder = with_tokens(tmp_path, model, **{name: 9})
    file = folder / "generation_config.json"
    for named, expected in (([5, 9], [5, 9, 1]), (5, [5, 1, 9])):
        file.write_text(json.dumps({"eos_token_id": named}))
        config = engine_config(folder).model_config
        assert config.try_get_generation_config()["eos_token_id"] == expected
    file.unlink()
    config = engine_config(folder).model_config
    assert config.try_get_generation_config()["eos_token_id"] == [1, 9]


def test_without_a_token_of_its_own_a_turn_has_no_end() -> None:
    """Some other token would be decoded last, and end answers."""
    config = engine_config("llada-pub0").model_config
    facts = DllmConfig.of(config).facts
    assert (facts.eot_token_id, facts.stop_token_ids) == (None, [1])
    assert config.try_get_generation_config()["eos_token_id"] == [1]
    config = engine_config("sdar-pub0").model_config
    assert config.try_get_generation_config()["eos_token_id"] in (1, [1])
