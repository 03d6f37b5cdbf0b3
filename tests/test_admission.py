"""What is asked of a request before the engine gets it."""

from typing import Any

import pytest
from vllm.sampling_params import SamplingParams

from tests.wishes import CONFIG, FACTS, FULL, WHOLE, with_grammar
from vllm_dllm.admission import (
    UNSUPPORTED,
    check_length,
    check_sampling_params,
)
from vllm_dllm.config import DllmConfig, Facts


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.5, "top_k": 20, "min_p": 0.1},
        {"seed": 7},
        {"n": 3, "seed": 7},
        {"presence_penalty": 0.5, "frequency_penalty": -0.5},
        {"repetition_penalty": 1.1},
        {"logit_bias": {3: 1.0}},
        {"bad_words": ["a"]},
        {"allowed_token_ids": [1, 2]},
        {"min_tokens": 2},
        {"logprobs": 0},
        {"logprobs": 2},
        {"logprobs": -1},
        {"stop": ["x"], "stop_token_ids": [3], "ignore_eos": True},
        {"stop": ["x"], "include_stop_str_in_output": True},
        {"max_tokens": 3, "skip_special_tokens": False},
        {"logit_bias": {}, "bad_words": [], "min_tokens": 0},
        {"extra_args": {"dllm_steps": 2, "other_plugin": 1}},
    ],
)
def test_what_vllm_offers_for_a_token_is_accepted(fields: dict[str, Any]) -> None:
    """A field that works would be out of reach."""
    params = SamplingParams(**fields)
    before = params.clone()
    check_sampling_params(params, CONFIG)
    assert params == before


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("prompt_logprobs", 1, "both sides"),
        ("prompt_logprobs", 0, "both sides"),
        ("prompt_logprobs", -1, "both sides"),
        ("prompt_logprob_token_ids", [3], "prompt_logprobs"),
        ("thinking_token_budget", 8, "not supported"),
        ("thinking_token_budget", 0, "not supported"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_canvas_cannot_honour_is_refused(
    field: str, value: Any, reason: str, temperature: float
) -> None:
    """A sampling parameter that is accepted and ignored gives wrong answers."""
    params = SamplingParams(temperature=temperature)
    assert getattr(params, field) is None
    setattr(params, field, value)
    with pytest.raises(ValueError, match=rf"not supported.*|{reason}") as failure:
        check_sampling_params(params, CONFIG)
    assert f"{field}={value!r}" in str(failure.value)
    assert reason in str(failure.value)


@pytest.mark.parametrize("field", ["kv_transfer_params", "ec_transfer_params"])
@pytest.mark.parametrize("value", ["none", 1, [1], False])
def test_what_is_read_as_an_object_is_one(field: str, value: Any) -> None:
    """A word in its place is a 500 without a message."""
    with pytest.raises(ValueError, match=rf"{field}=.*an object") as failure:
        check_sampling_params(SamplingParams(extra_args={field: value}), CONFIG)
    assert repr(value) in str(failure.value)
    for fine in ({}, {"do_remote_decode": False}, None):
        check_sampling_params(SamplingParams(extra_args={field: fine}), CONFIG)


def test_everything_that_is_refused_is_tested_above() -> None:
    """A new refusal could name a field that vLLM does not have."""
    assert UNSUPPORTED.keys() == {
        "prompt_logprobs",
        "prompt_logprob_token_ids",
        "thinking_token_budget",
    }


def test_an_answer_of_masks_alone_is_refused() -> None:
    """The mask is never chosen, so there would be no token to choose at all."""
    params = SamplingParams(allowed_token_ids=[CONFIG.mask_token_id])
    with pytest.raises(ValueError, match="never chosen") as failure:
        check_sampling_params(params, CONFIG)
    assert "allowed_token_ids=[255]" in str(failure.value)
    params = SamplingParams(allowed_token_ids=[CONFIG.mask_token_id, 7])
    check_sampling_params(params, CONFIG)


@pytest.mark.parametrize(
    "fields",
    [
        {"dllm_algorithm": "joint_threshold", "dllm_edit_threshold": 0.5},
        {"dllm_algorithm": "entropy_bounded", "dllm_entropy_bound": 0.5},
        {"dllm_steps": 4, "dllm_threshold": 0.5},
        {"dllm_buffer_size": 3, "dllm_add_block_threshold": 0.5},
    ],
)
def test_a_grammar_is_no_ground_for_refusal(fields: dict[str, Any]) -> None:
    """Clients set fields once for all their requests: structured ones would fail."""
    check_sampling_params(SamplingParams(extra_args=fields), CONFIG)
    check_sampling_params(with_grammar(**fields), CONFIG)
    with pytest.raises(ValueError, match=r"dllm_factor=0\.5"):
        check_sampling_params(with_grammar(dllm_factor=0.5), CONFIG)


@pytest.mark.parametrize("field", ["diffusion_max_steps", "diffusion_anything"])
def test_fields_of_other_diffusion_models_are_refused(field: str) -> None:
    """`diffusion_max_steps` means DiffusionGemma's steps and does nothing here."""
    params = SamplingParams(extra_args={"dllm_steps": 2, field: 4})
    with pytest.raises(ValueError, match=rf"{field} .* dllm_steps"):
        check_sampling_params(params, CONFIG)


def test_a_check_of_sampling_parameters_is_one_of_our_fields_too() -> None:
    """The worker would be the first to find a bad one, and the engine would end."""
    params = SamplingParams(extra_args={"dllm_threshold": 2})
    with pytest.raises(ValueError, match="dllm_threshold=2"):
        check_sampling_params(params, CONFIG)


def check_length_of(
    own: dict[str, Any] | None, config: DllmConfig, prompt_len: int, max_tokens: int
) -> None:
    params = SamplingParams(max_tokens=max_tokens, extra_args=own)
    check_length(params, config, prompt_len)


def test_a_request_that_no_forward_can_hold_is_refused_with_its_numbers() -> None:
    """It would wait for ever: full attention forwards it whole or not at all."""
    check_length_of(None, FULL, 50, 96)
    with pytest.raises(ValueError) as failure:
        check_length_of(None, FULL, 60, 65)
    message = str(failure.value)
    assert "the prompt (60 tokens) and the canvas (96 tokens" in message
    assert "max_tokens=65 in blocks of 32" in message
    assert "are 156 tokens" in message
    assert "allowed: 150 (max_num_batched_tokens)" in message
    assert "smaller max_tokens" in message
    assert "cfg_scale" not in message
    # A shorter block fits: its canvas is rounded up to less.
    check_length_of({"dllm_block_length": 5}, FULL, 60, 65)


def test_a_suffix_needs_room_beside_prompt_and_canvas() -> None:
    """A step forwards it too, and its keys need pages."""
    own = {"dllm_suffix_token_ids": [7] * 50}
    check_length_of(own, FULL, 50, 50)
    with pytest.raises(ValueError) as failure:
        check_length_of(own, FULL, 50, 51)
    message = str(failure.value)
    assert (
        "max_tokens=51 in blocks of 32) and the suffix (50 tokens) are 151" in message
    )
    assert "allowed: 150 (max_num_batched_tokens)" in message
    with pytest.raises(ValueError, match=r"the suffix .* are 212 tokens"):
        check_length_of({**own, "dllm_cfg_scale": 0.5}, FULL, 20, 30)


def test_a_guided_request_needs_the_room_twice() -> None:
    """Its second branch would be forwarded past the buffers, or have no pages."""
    own = {"dllm_cfg_scale": 0.5}
    check_length_of(own, FULL, 32, 32)  # 64 and 64
    check_length_of(None, FULL, 50, 64)
    with pytest.raises(ValueError) as failure:
        check_length_of(own, FULL, 50, 30)
    message = str(failure.value)
    assert "the canvas (32 tokens" in message
    assert ", twice with dllm_cfg_scale=0.5 are 178 tokens" in message  # 82, on 96
    assert "allowed: 150 (max_num_batched_tokens)" in message
    facts = FACTS.model_copy(update={"max_num_batched_tokens": 1000})
    check_length_of(own, FULL.with_facts(facts), 50, 30)
    with pytest.raises(ValueError, match=r"allowed: 200 \(max_model_len\)"):
        check_length_of(own, FULL.with_facts(facts), 80, 30)


def test_the_length_of_a_block_causal_request_is_vllms_to_check() -> None:
    """Its prompt is forwarded in parts, so a budget is no limit of it."""
    facts = Facts(max_model_len=200, max_num_batched_tokens=16)
    config = CONFIG.with_facts(facts)
    for prompt_len, max_tokens in ((190, 5), (17, 1), (199, 1), (250, 9)):
        check_length_of(None, config, prompt_len, max_tokens)
        full = FULL.with_facts(facts.model_copy(update={"attention": "full"}))
        with pytest.raises(ValueError, match=r"allowed: 16 \(max_num_batched_tokens\)"):
            check_length_of(None, full, prompt_len, max_tokens)
    # What the length shows besides is checked all the same.
    with pytest.raises(ValueError, match="dllm_steps=5000"):
        own = {"dllm_algorithm": "origin", "dllm_steps": 5000}
        check_length_of(own, config, 190, 5)


def test_a_check_of_the_length_is_one_of_our_fields_too() -> None:
    """What only the length of the answer shows would be found by the worker."""
    facts = FACTS.model_copy(update={"max_model_len": 2000})
    own = {"dllm_algorithm": "credit"}
    with pytest.raises(ValueError, match="'credit'"):
        check_length_of(own, WHOLE.with_facts(facts), 5, 300)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("logprobs", 257, "-1 to 256"),
        ("top_k", 2**64, "-1 to 18,446,744,073,709,551,615"),
        ("max_tokens", 2**64, "1 to 18,446,744,073,709,551,615"),
        ("min_tokens", 2**64, "0 to 18,446,744,073,709,551,615"),
        ("seed", 2**63, "-9,223,372,036,854,775,808 to 9,223,372,036,854,775,807"),
        (
            "seed",
            -(2**63) - 1,
            "-9,223,372,036,854,775,808 to 9,223,372,036,854,775,807",
        ),
    ],
)
def test_numbers_of_vllm_that_no_table_holds_are_refused(
    field: str, value: Any, allowed: str
) -> None:
    """vLLM lets them through, and they are an error on their way to the engine, or in
    it."""
    config = CONFIG.with_facts(Facts(max_model_len=200, vocab_size=256))
    params = SamplingParams(**{"max_tokens": None, field: value})
    with pytest.raises(ValueError, match=f"^{field}=") as failure:
        check_sampling_params(params, config)
    assert str(failure.value).endswith(f"allowed: {allowed}")


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 2**63},
        {"seed": 2**63 - 1},
        {"seed": -(2**63)},
        {"temperature": 1e-40},
        {"min_p": 1e-40},
        {"top_p": 1e-40},
        {"repetition_penalty": 1e-45},
        {"logit_bias": {3: 1e39, 4: -float("inf")}},
        {"logprobs": 256},
        {"logprobs": -1},
        {"min_tokens": 2**63},
        {"max_tokens": 2**63},
    ],
)
def test_numbers_that_the_worker_can_take_are_accepted(fields: dict[str, Any]) -> None:
    """What vLLM clamps, or means "off", would be refused."""
    config = CONFIG.with_facts(Facts(max_model_len=200, vocab_size=256))
    check_sampling_params(SamplingParams(**{"max_tokens": None} | fields), config)


def test_steps_are_checked_before_the_engine_has_the_request() -> None:
    """The scheduler would be the first to refuse them, and end with it."""
    own = {"dllm_algorithm": "origin", "dllm_steps": 5000}
    for config in (CONFIG, FULL):
        with pytest.raises(ValueError, match="allowed: 1 to 4096 for a block"):
            check_length_of(own, config, 5, 10)


def test_the_smaller_budget_is_the_limit() -> None:
    """A request between the two would wait for ever."""
    facts = FACTS.model_copy(update={"max_num_scheduled_tokens": 120})
    check_length_of(None, FULL.with_facts(facts), 50, 64)
    with pytest.raises(ValueError, match=r"allowed: 120 \(max_num_scheduled_tokens\)"):
        check_length_of(None, FULL.with_facts(facts), 50, 96)


def test_an_answer_ends_with_the_longest_request() -> None:
    """vLLM ends it there; what its tokens would be past it is no ground for refusal."""
    facts = FACTS.model_copy(update={"max_num_batched_tokens": 1000})
    own = {"dllm_algorithm": "credit"}
    check_length_of(own, WHOLE.with_facts(facts), 50, 10_000_000)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_logprob_token_ids": [[1] * 500_000]},
        {"extra_args": {"diffusion_" + "x" * 1_000_000: 1}},
        {"allowed_token_ids": [255] * 500_000},
    ],
)
def test_a_long_value_is_not_echoed(fields: dict[str, Any]) -> None:
    """A log, and an answer, of megabytes for a request that is refused."""
    with pytest.raises(ValueError) as failure:
        check_sampling_params(SamplingParams(**fields), CONFIG)
    assert len(str(failure.value)) < 1000


def test_more_blocks_in_flight_than_a_forward_holds_are_refused() -> None:
    """A buffer is forwarded whole: the request would wait for ever."""
    facts = Facts(max_model_len=500, max_num_batched_tokens=32)
    config = CONFIG.with_facts(facts)
    check_length_of({"dllm_buffer_size": 4}, config, 100, 100)
    # Blocks that the answer does not have are not forwarded.
    check_length_of({"dllm_buffer_size": 16}, config, 100, 27)
    with pytest.raises(ValueError) as failure:
        check_length_of({"dllm_buffer_size": 5}, config, 100, 100)
    message = str(failure.value)
    assert "dllm_buffer_size=5: 5 blocks of 8 tokens are 40 tokens in flight" in message
    assert "a forward holds 32 (max_num_batched_tokens); allowed: 1 to 4" in message
    # It is named as it was sent, also where the answer has fewer blocks.
    with pytest.raises(ValueError, match=r"size=16: 5 blocks .* are 40 tokens"):
        check_length_of({"dllm_buffer_size": 16}, config, 100, 35)
    for name in ("max_num_scheduled_tokens", "long_prefill_token_threshold"):
        small = CONFIG.with_facts(Facts(max_model_len=500, **{name: 24}))
        with pytest.raises(ValueError, match=rf"24 \({name}\).*1 to 3"):
            check_length_of({"dllm_buffer_size": 4}, small, 100, 100)
        check_length_of({"dllm_buffer_size": 3}, small, 100, 100)
