"""Fast-dLLM v2's checkpoints as they are released, told nothing but their folder."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.checkpoints import derived, in_shards
from tests.engine_config import engine_config, resolved
from tests.engines import Engine, OneAtATime, tokens_of
from tests.golden_cases import EOS, GOLDEN, MASK, Case, differences
from tests.new_cases import new_cases
from tests.reference.fast_dllm_v2 import FastDLLMv2
from tests.specs import EngineSpec
from vllm_dllm.request import resolve

BASE = "fastdllm2-pub0"
SECOND_END = 7
QWENS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
"""What the base model left in generation_config.json."""


def released(folder: Path) -> Path:
    """A tied head, shards, several ends, and a mask that only the tokenizer knows."""
    weights = load_file(GOLDEN / BASE / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights.pop("lm_head.weight")
    derived(folder, BASE, tie_word_embeddings=True, mask_token_id=None)
    generation = {"eos_token_id": [EOS, SECOND_END], "do_sample": True, **QWENS}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        file.write_text(file.read_text().replace("<|mask|>", "|<MASK>|"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    in_shards(folder, weights)
    return folder


@pytest.fixture
def engine(running: OneAtATime, tmp_path: Path) -> Iterator[Engine]:
    running.close()
    engine = Engine(EngineSpec(str(released(tmp_path / "model"))))
    try:
        yield engine
    finally:
        engine.close()


def load_all(folder: Path) -> dict[str, Any]:
    """The tensors of all shards."""
    weights: dict[str, Any] = {}
    for shard in folder.glob("*.safetensors"):
        weights |= load_file(shard)
    return weights


def reference(folder: Path) -> FastDLLMv2:
    raw = json.loads((folder / "config.json").read_text()) | {"mask_token_id": MASK}
    model = FastDLLMv2(FastDLLMv2.config_class.from_dict(raw))
    weights = load_all(folder)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.eval()


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_a_released_layout_answers_as_the_reference(engine: Engine) -> None:
    """A head of its own that is not tied, or another mask, gives other tokens."""
    assert wrong_answers(engine) == []


@pytest.mark.engine
@pytest.mark.timeout(400)
def test_a_tied_head_is_new_with_its_embeddings(engine: Engine) -> None:
    """The head is packed for its kernel on CPU, and no tensor of a file is its own."""
    folder = Path(engine.spec.checkpoint)
    weights = load_all(folder)
    name = "model.embed_tokens.weight"
    in_shards(folder, weights | {name: weights[name].roll(1, 0)})
    engine.llm.collective_rpc("reload_weights")
    assert wrong_answers(engine) == []


def wrong_answers(engine: Engine) -> list[str]:
    model = reference(Path(engine.spec.checkpoint))
    cases = new_cases(BASE, 32, [1, 32, 45], 40)
    cases = [ended(case.answered(model)) for case in cases]
    outputs = engine.ask(cases)
    return differences(cases, [tokens_of(output) for output in outputs])


def ended(case: Case) -> Case:
    """The same, which ends at the second end too."""
    tokens = [*case.tokens, SECOND_END]
    return replace(case, tokens=case.tokens[: tokens.index(SECOND_END) + 1])


def test_without_a_word_the_authors_rule_decodes(tmp_path: Path) -> None:
    """One line starts a server; what else it would need, nobody knows to say."""
    assert resolved(derived(tmp_path / "other", BASE, bd_size=16)).block_size == 16
    config = resolved(released(tmp_path / "model"))
    assert (config.block_size, config.mask_token_id) == (32, MASK)
    decoding = resolve(None, config, 100)
    assert decoding.algorithm == "sub_block_threshold"
    assert decoding.parameters == {"threshold": 0.9, "sub_block_length": 8}


def test_what_the_base_model_left_is_not_what_the_authors_decode_with(
    tmp_path: Path,
) -> None:
    """Their `generate` is greedy, and reads none of Qwen's sampling parameters."""
    folder = released(tmp_path / "model")

    def defaults(**options: Any) -> dict[str, Any]:
        return dict(
            engine_config(folder, **options).model_config.get_diff_sampling_param()
        )

    assert defaults() == {"temperature": 0.0}
    chosen = {"top_k": 5}
    assert defaults(override_generation_config=chosen) == {"temperature": 0.0, **chosen}
    # Whoever names a file means what it says.
    assert defaults(generation_config=str(folder)) == QWENS


def test_a_prompt_of_one_block_is_like_any_other() -> None:
    """The authors' own code forwards nothing of it, and answers all of them alike."""
    cases = [case.answered() for case in new_cases(BASE, 32, [32, 32], 8)]
    assert len({tuple(case.tokens) for case in cases}) > 1
