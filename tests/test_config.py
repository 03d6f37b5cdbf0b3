"""Server-wide choices: their limits, their sources, and what vLLM is told by them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext

from tests.checkpoints import derived
from tests.engine_config import engine_config, resolved
from tests.golden_cases import GOLDEN
from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.params import DllmParams, RuleParams
from vllm_dllm.request import resolve

BASE = {"block_size": 4, "mask_token_id": 255}


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
        ("max_post_steps", 4097, "less than or equal to 4096"),
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


def test_a_worker_of_the_users_own_is_kept() -> None:
    """vLLM documents --worker-cls; a subclass of our worker is put in through it."""
    config = engine_config("sdar-pub0", worker_cls="my.module.Worker")
    assert config.parallel_config.worker_cls == "my.module.Worker"


FULL = Facts(attention="full", rule_names={"threshold": "confidence_threshold"})


def test_facts_arrive_in_every_process() -> None:
    """A worker without them would run the model as a block-causal one."""
    facts = FULL.model_copy(
        update={"eos_token_id": 1, "stop_token_ids": [1, 7], "max_model_len": 77}
    )
    config = DllmConfig.build({"mask_token_id": 255, "cache": "dual"}, facts=facts)
    model = SimpleNamespace(hf_config=SimpleNamespace())
    config.attach(model)
    sent = json.loads(json.dumps(model.hf_config.dllm))  # config.json can hold it
    arrived = DllmConfig.of(SimpleNamespace(hf_config=SimpleNamespace(dllm=sent)))
    assert arrived == config
    assert arrived.facts == facts
    assert (arrived.cache, arrived.block_size, arrived.steps) == ("dual", None, None)


def test_a_copy_with_other_facts_leaves_the_first_as_it_was() -> None:
    """Two engines of one process would share theirs."""
    first = DllmConfig.build(BASE)
    second = first.with_facts(FULL)
    assert first.facts == Facts() and second.facts == FULL
    assert first != second
    assert first.model_dump() == second.model_dump()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("facts", {"attention": "full"}),
        ("_facts", {"attention": "full"}),
        ("full_attention", True),
        ("shifted_logits", True),
        ("eos_token_id", 3),
        ("page_size", 16),
    ],
)
def test_facts_are_not_for_a_user_to_choose(field: str, value: Any) -> None:
    """A block-causal model with full attention answers nonsense."""
    with pytest.raises(ValueError, match=f"^unknown field dllm.{field}="):
        DllmConfig.build(BASE, {field: value})


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("cache", "both", "'none', 'prefix' or 'dual'"),
        ("cache", True, "'none', 'prefix' or 'dual'"),
        ("eps", 0, "greater than 0"),
        ("eps", 1, "less than 1"),
        ("alg_temp", -1, "greater than or equal to 0"),
        ("alg_temp", float("inf"), "finite number"),
        ("block_size", 0, "greater than or equal to 1"),
        ("steps", 0, "greater than or equal to 1"),
        ("cfg_scale", 1.0, "^unknown field"),  # a choice of requests alone
    ],
)
def test_limits_of_the_choices_of_full_attention(
    field: str, value: Any, allowed: str
) -> None:
    """A server that does not start should say which of its flags is to blame."""
    with pytest.raises(ValueError, match=allowed) as failure:
        DllmConfig.build({"mask_token_id": 255}, {field: value}, facts=FULL)
    assert f"dllm.{field}={value!r}" in str(failure.value)


def test_with_full_attention_neither_block_nor_steps_need_be_said() -> None:
    """A block of a size that nobody asked for is another order, and other tokens."""
    config = DllmConfig.build({"mask_token_id": 255}, facts=FULL)
    assert (config.block_size, config.steps, config.cache) == (None, None, "none")
    config = DllmConfig.build({"mask_token_id": 255, "block_size": 32}, facts=FULL)
    assert (config.block_size, config.steps) == (32, None)


def test_defaults_of_requests_are_the_servers_choices() -> None:
    """What is left out here would be the default of the plugin for every request."""
    config = DllmConfig.build({**BASE, "eps": 0.5, "cache": "dual"}, facts=FULL)
    defaults = config.request_defaults()
    assert defaults.keys() == RuleParams.model_fields.keys() | {"cache"}
    assert (defaults["eps"], defaults["cache"]) == (0.5, "dual")
    assert defaults.keys() <= DllmParams.model_fields.keys()


def test_a_cache_of_a_block_causal_model_is_refused() -> None:
    """It would be ignored, and the operator would believe that it is there."""
    with pytest.raises(ValueError, match=r"dllm\.cache='dual' has no meaning"):
        resolved("sdar-pub0", cache="dual")
    assert resolved("sdar-pub0", cache="none").cache == "none"


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


@pytest.mark.parametrize("model", ["llada-pub0", "dream-pub0"])
@pytest.mark.parametrize("asked", [None, True, False])
def test_with_full_attention_no_prefix_is_shared(
    model: str, asked: bool | None
) -> None:
    """KV of a prompt depends on the answer: another request's would be wrong."""
    config = engine_config(model, enable_prefix_caching=asked)
    assert config.cache_config.enable_prefix_caching is False
    assert config.scheduler_config.scheduler_cls == (
        "vllm_dllm.scheduler.BlockDiffusionScheduler"
    )
    assert config.parallel_config.worker_cls.startswith("vllm_dllm.worker.worker.")
    assert config.model_config.is_diffusion
    assert config.use_v2_model_runner
    assert not config.scheduler_config.async_scheduling


def test_a_block_causal_model_keeps_its_prefix_cache() -> None:
    """What is right for one kind of attention costs the other its cache."""
    assert engine_config("sdar-pub0").cache_config.enable_prefix_caching


@pytest.mark.parametrize("page", [None, 16, 48])
@pytest.mark.parametrize("block", [None, 5, 32])
def test_with_full_attention_any_page_will_do(
    page: int | None, block: int | None
) -> None:
    """No page is shared, so that it may end inside a block."""
    own = {"dllm": {} if block is None else {"block_size": block}}
    options = {} if page is None else {"block_size": page}
    config = engine_config("dream-pub0", additional_config=own, **options)
    assert config.cache_config.block_size == (page or 32)
    assert DllmConfig.of(config.model_config).block_size == block
    assert config.diffusion_config.canvas_length == (block or 32)


def long_model(folder: Path, model: str) -> Path:
    """A checkpoint whose requests are longer than vLLM's default budget."""
    limits = {"max_sequence_length": 50_000, "max_position_embeddings": 50_000}
    name = next(iter(limits)) if model.startswith("llada-") else list(limits)[1]
    return derived(folder / "model", model, **{name: limits[name]})


@pytest.mark.parametrize("model", ["llada-pub0", "dream-pub0"])
@pytest.mark.parametrize("context", [None, *UsageContext])
def test_by_default_a_forward_holds_the_longest_request(
    tmp_path: Path, model: str, context: UsageContext | None
) -> None:
    """A request that is longer than the budget would wait for ever, or be refused."""
    args = EngineArgs(model=str(long_model(tmp_path, model)))
    config = args.create_engine_config(context)
    assert config.model_config.max_model_len == 50_000
    assert config.scheduler_config.max_num_batched_tokens >= 50_000
    budget = DllmConfig.of(config.model_config).facts.max_num_batched_tokens
    assert budget == config.scheduler_config.max_num_batched_tokens
    assert config.scheduler_config.max_num_seqs > 1


@pytest.mark.parametrize("tokens", [512, 2048])
def test_a_budget_that_the_operator_chose_is_kept(tmp_path: Path, tokens: int) -> None:
    """It was chosen for the memory there is; longer requests are refused one by one."""
    folder = long_model(tmp_path, "llada-pub0")
    config = engine_config(folder, max_num_batched_tokens=tokens)
    assert config.scheduler_config.max_num_batched_tokens == tokens
    facts = DllmConfig.of(config.model_config).facts
    assert (facts.max_num_batched_tokens, facts.max_model_len) == (tokens, 50_000)


def test_a_model_that_splits_prompts_keeps_vllms_budget(tmp_path: Path) -> None:
    """One forward of 50,000 tokens would take the memory of the KV cache."""
    block_causal = engine_config(long_model(tmp_path, "sdar-pub0"))
    assert block_causal.scheduler_config.max_num_batched_tokens < 50_000


def test_the_arguments_are_left_as_they_were() -> None:
    """vLLM goes on with them: a budget is one thing, to split prompts another."""
    args = EngineArgs(model=str(GOLDEN / "llada-pub0"))
    config = args.create_engine_config()
    like = EngineArgs(model=str(GOLDEN / "sdar-pub0"))
    other = like.create_engine_config().scheduler_config
    assert args.enable_chunked_prefill == like.enable_chunked_prefill
    ours = config.scheduler_config
    assert ours.enable_chunked_prefill == other.enable_chunked_prefill


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
    [("llada-pub0", "eot_id"), ("dream-pub0", "im_end"), ("llada20-pub0", "role_end")],
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


def test_ends_that_the_checkpoint_names_are_kept(tmp_path: Path) -> None:
    """An author's own list of ends would be replaced by the family's."""
    folder = with_tokens(tmp_path, "llada-pub0", eot_id=9)
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


@pytest.mark.parametrize("model", ["llada-pub0", "dream-pub0"])
def test_prompts_that_cannot_be_split_are_not_to_be(model: str) -> None:
    """A chunk of a prompt is never scheduled: the request would wait for ever."""
    with pytest.raises(
        ValueError, match=r"long_prefill_token_threshold=64 .*full attention"
    ):
        engine_config(model, long_prefill_token_threshold=64)


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


def test_an_end_of_the_text_may_be_one_of_several(tmp_path: Path) -> None:
    """A list of ends would leave `logits_eos_inf` without any."""
    folder = derived(tmp_path / "model", "dream-pub0", eos_token_id=[7, 1])
    assert resolved(folder).facts.eos_token_id == 7
