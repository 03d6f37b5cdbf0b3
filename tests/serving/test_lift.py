"""Decoding parameters in a request's body: none is ignored, under whatever name."""

from typing import Any

import pytest

from vllm_dllm.config import DllmConfig, Facts
from vllm_dllm.params import DllmParams
from vllm_dllm.request import wishes_of
from vllm_dllm.serving.lift import NAMES, lift

BLOCK_CAUSAL = DllmConfig.build({"block_size": 8, "mask_token_id": 255})


FULL = DllmConfig.build(
    {"block_size": 8, "mask_token_id": 255, "algorithm": "low_confidence"},
    facts=Facts(attention="full", rule_names={"threshold": "confidence_threshold"}),
)


LIFTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"user": "a", "top_k": 3, "vendor_field": {"x": 1}}, {}),
    ({"steps": 8}, {"dllm_steps": 8}),
    ({"num_denoising_steps": 8}, {"dllm_steps": 8}),
    ({"threshold": 0.8}, {"dllm_threshold": 0.8}),
    ({"accept_threshold": 0.8}, {"dllm_threshold": 0.8}),
    ({"max_nfe": 64}, {"dllm_max_nfe": 64}),
    ({"algorithm": "sequential"}, {"dllm_algorithm": "sequential"}),
    ({"block_length": 32}, {"dllm_block_length": 32}),
    ({"edit_threshold": 0.5}, {"dllm_edit_threshold": 0.5}),
    ({"max_post_steps": 4}, {"dllm_max_post_steps": 4}),
    ({"max_post_edit_steps": 4}, {"dllm_max_post_steps": 4}),
    ({"local_leap_radius": 2}, {"dllm_local_leap_radius": 2}),
    (
        {"local_leap_anchor_threshold": 0.9, "local_leap_neighbor_threshold": 0.7},
        {
            "dllm_local_leap_anchor_threshold": 0.9,
            "dllm_local_leap_neighbor_threshold": 0.7,
        },
    ),
    # The rule, said in other words.
    ({"factor": 1.5}, {"dllm_factor": 1.5, "dllm_algorithm": "factor"}),
    ({"dllm_factor": 1.5}, {"dllm_factor": 1.5, "dllm_algorithm": "factor"}),
    (
        {"factor": 1.5, "algorithm": "threshold"},  # refused later, by its rule
        {"dllm_factor": 1.5, "dllm_algorithm": "threshold"},
    ),
    ({"remasking": "random"}, {"dllm_algorithm": "random"}),
    ({"remasking": "low_confidence"}, {"dllm_algorithm": "low_confidence"}),
    (
        {"remasking": "low_confidence", "threshold": 0.9, "steps": 4},
        {"dllm_algorithm": "threshold", "dllm_threshold": 0.9, "dllm_steps": 4},
    ),
    (
        {"remasking": "low_confidence", "factor": 2.0},
        {"dllm_algorithm": "factor", "dllm_factor": 2.0},
    ),
    (
        {"remasking": "low_confidence", "algorithm": "low_confidence_static"},
        {"dllm_algorithm": "low_confidence_static"},
    ),
    (
        {"remasking": "low_confidence", "algorithm": "threshold"},
        {"dllm_algorithm": "threshold"},
    ),
    ({"use_local_leap": True}, {"dllm_algorithm": "local_leap"}),
    (
        {"use_local_leap": True, "dllm_algorithm": "local_leap"},
        {"dllm_algorithm": "local_leap"},
    ),
    ({"use_local_leap": False}, {}),
    (
        {"use_local_leap": False, "algorithm": "random"},
        {"dllm_algorithm": "random"},
    ),
    # Accepted in the one value that is true here, or in both.
    ({"cfg_scale": 0}, {}),
    ({"cfg_scale": 0.0}, {}),
    ({"logits_eos_inf": False, "confidence_eos_eot_inf": False}, {}),
    ({"suffix": []}, {}),
    ({"suffix": [5]}, {"dllm_suffix_token_ids": [5]}),
    ({"use_cache": True}, {}),
    ({"use_dual_cache": True}, {}),
    ({"use_dual_cache": False, "use_cache": True}, {}),
    ({"force_single_batch": True}, {}),
    ({"force_single_batch": False}, {}),
    # One value under two names, and rules under their aliases.
    ({"steps": 4, "num_denoising_steps": 4, "dllm_steps": 4}, {"dllm_steps": 4}),
    ({"threshold": 1, "dllm_threshold": 1.0}, {"dllm_threshold": 1}),
    (
        {"algorithm": "low_confidence_dynamic", "dllm_algorithm": "threshold"},
        {"dllm_algorithm": "low_confidence_dynamic"},
    ),
    # For `resolve` to answer.
    ({"dllm_treshold": 0.5}, {"dllm_treshold": 0.5}),
    ({"steps": "many"}, {"dllm_steps": "many"}),
    ({"algorithm": ["threshold"]}, {"dllm_algorithm": ["threshold"]}),
]


@pytest.mark.parametrize(("body", "fields"), LIFTED)
def test_a_body_amounts_to_our_fields(
    body: dict[str, Any], fields: dict[str, Any]
) -> None:
    """A parameter that is accepted and ignored is found out weeks later, if ever."""
    assert lift(body, BLOCK_CAUSAL) == fields


LIFTED_FULL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # What the authors' functions and the servers of these models take.
    (
        {"steps": 128, "block_length": 32, "remasking": "low_confidence"},
        {
            "dllm_steps": 128,
            "dllm_block_length": 32,
            "dllm_algorithm": "low_confidence",
        },
    ),
    (
        {"cfg_scale": 1.5, "logits_eos_inf": True, "confidence_eos_eot_inf": False},
        {
            "dllm_cfg_scale": 1.5,
            "dllm_logits_eos_inf": True,
            "dllm_confidence_eos_eot_inf": False,
        },
    ),
    (
        {"alg": "entropy", "alg_temp": 0.1, "eps": 0.01},
        {"dllm_algorithm": "entropy", "dllm_alg_temp": 0.1, "dllm_eps": 0.01},
    ),
    # A threshold or a factor says the rule, and leaves `steps` without a part.
    (
        {"threshold": 0.9, "steps": 64},
        {"dllm_threshold": 0.9, "dllm_algorithm": "threshold"},
    ),
    (
        {"factor": 1.0, "threshold": 0.9, "num_denoising_steps": 64},
        {
            "dllm_factor": 1.0,
            "dllm_threshold": 0.9,
            "dllm_algorithm": "factor",
        },
    ),
    (
        {"algorithm": "sequential", "steps": 64},
        {"dllm_algorithm": "sequential"} | {"dllm_steps": 64},
    ),
    # Fast-dLLM's switches.
    ({"use_cache": True}, {"dllm_cache": "prefix"}),
    ({"use_cache": True, "use_dual_cache": False}, {"dllm_cache": "prefix"}),
    ({"use_cache": True, "use_dual_cache": True}, {"dllm_cache": "dual"}),
    ({"use_dual_cache": True}, {"dllm_cache": "dual"}),
    ({"use_dual_cache": False}, {"dllm_cache": "none"}),
    ({"use_cache": False}, {"dllm_cache": "none"}),
    ({"use_cache": False, "use_dual_cache": True}, {"dllm_cache": "none"}),
    ({"use_cache": True, "dllm_cache": "prefix"}, {"dllm_cache": "prefix"}),
    ({"suffix": [5]}, {"dllm_suffix_token_ids": [5]}),
    ({}, {}),
]


@pytest.mark.parametrize(("body", "fields"), LIFTED_FULL)
def test_a_body_amounts_to_our_fields_with_full_attention(
    body: dict[str, Any], fields: dict[str, Any]
) -> None:
    """A client of Fast-dLLM or of a LLaDA server would get other answers than there."""
    assert lift(body, FULL) == fields


def test_a_cache_named_twice_must_be_one_cache() -> None:
    """To obey one of the two names is to ignore the other."""
    with pytest.raises(ValueError, match=r"use_cache=True.*dllm_cache='dual'"):
        lift({"use_cache": True, "dllm_cache": "dual"}, FULL)


@pytest.mark.parametrize("name", DllmParams.model_fields)
def test_each_of_our_own_names_is_taken_from_the_body(name: str) -> None:
    """A field added to DllmParams would work in vllm_xargs only."""
    assert lift({f"dllm_{name}": 1}, BLOCK_CAUSAL)[f"dllm_{name}"] == 1


@pytest.mark.parametrize("target", sorted(set(NAMES.values())))
def test_other_names_lead_to_fields_that_exist(target: str) -> None:
    """After a renaming, every such request would be an unknown field."""
    assert target.removeprefix("dllm_") in DllmParams.model_fields


NULLABLE = [
    *NAMES,
    *(f"dllm_{name}" for name in DllmParams.model_fields),
    *("remasking", "use_local_leap", "force_single_batch"),
    *("cfg_scale", "use_cache", "use_dual_cache"),
]


@pytest.mark.parametrize("field", NULLABLE)
def test_null_means_not_given(field: str) -> None:
    """Clients with optional fields send null for the ones that are not set."""
    assert lift({field: None}, BLOCK_CAUSAL) == {}
    body = {field: None, "steps": 4} if field != "steps" else {"steps": 4}
    assert lift(body, BLOCK_CAUSAL) == {"dllm_steps": 4}


REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"remasking": "entropy"}, ("remasking='entropy'", "low_confidence, random")),
    ({"remasking": ["random"]}, ("remasking=['random']",)),
    ({"use_cache": False}, ("use_cache=False", "exact")),
    ({"use_cache": False, "use_dual_cache": True}, ("use_cache=False",)),
    ({"logits_eos_inf": "no"}, ("logits_eos_inf='no'", "true nor false")),
    ({"use_cache": "no"}, ("use_cache='no'", "true nor false")),
    ({"use_dual_cache": "no"}, ("use_dual_cache='no'",)),
    ({"use_local_leap": "yes"}, ("use_local_leap='yes'",)),
    ({"force_single_batch": 2}, ("force_single_batch=2",)),
    ({"steps": 4, "num_denoising_steps": 8}, ("steps=4", "num_denoising_steps=8")),
    ({"threshold": 0.5, "dllm_threshold": 0.6}, ("dllm_threshold=0.6",)),
    ({"accept_threshold": 0.5, "threshold": 0.6}, ("accept_threshold=0.5",)),
    ({"max_post_steps": 1, "max_post_edit_steps": 2}, ("max_post_edit_steps=2",)),
    ({"algorithm": "random", "dllm_algorithm": "factor"}, ("'random'", "'factor'")),
    ({"algorithm": "random", "remasking": "low_confidence"}, ("remasking", "'random'")),
    ({"algorithm": "threshold", "remasking": "random"}, ("remasking", "'threshold'")),
    ({"algorithm": "random", "use_local_leap": True}, ("use_local_leap=True",)),
    ({"algorithm": "local_leap", "use_local_leap": False}, ("use_local_leap=False",)),
    ({"algorithm": ["random"], "remasking": "random"}, ("remasking", "['random']")),
    ({"remasking": "random", "use_local_leap": True}, ("remasking", "use_local_leap")),
]


@pytest.mark.parametrize(("body", "words"), REFUSED)
def test_a_refusal_names_the_fields_and_their_values(
    body: dict[str, Any], words: tuple[str, ...]
) -> None:
    """To pick one of two contradicting values is to ignore the other."""
    with pytest.raises(ValueError) as failure:
        lift(body, BLOCK_CAUSAL)
    for word in words:
        assert word in str(failure.value)


@pytest.mark.parametrize("config", [BLOCK_CAUSAL, FULL], ids=["causal", "full"])
@pytest.mark.parametrize("names", [["threshold"], ["threshold", "accept_threshold"]])
def test_not_a_number_is_the_same_as_itself(
    names: list[str], config: DllmConfig
) -> None:
    """NaN differs from NaN: its refusal would be about two spellings that nobody sent,
    and not about the range."""
    body = {name: float("nan") for name in names}
    fields = lift(body, config, {"dllm_threshold": float("nan")})
    with pytest.raises(ValueError, match=r"^dllm_threshold=nan: .*; allowed: 0 to 1$"):
        wishes_of(fields, config)
    with pytest.raises(ValueError, match=r"threshold=0.5 .* differ"):
        lift({**body, "dllm_threshold": 0.5}, config)


MEGABYTE = "x" * 1_000_000


@pytest.mark.parametrize(
    "body",
    [
        {"threshold": MEGABYTE, "dllm_threshold": 0.5},
        {f"dllm_{MEGABYTE}": 1},
        {"remasking": MEGABYTE},
        {"remasking": [0] * 500_000},
        {"use_cache": MEGABYTE},
        {"use_local_leap": MEGABYTE},
        {"use_dual_cache": True, "dllm_cache": MEGABYTE},
        {"remasking": "random", "algorithm": MEGABYTE},
    ],
    ids=lambda body: str(body)[:30],
)
def test_a_long_value_is_not_echoed(body: dict[str, Any]) -> None:
    """A log, and an answer, of megabytes for a request that is refused."""
    xargs = {f"dllm_{MEGABYTE}": 2}
    with pytest.raises(ValueError) as failure:
        lift(body, FULL, xargs)
    assert len(str(failure.value)) < 1000


def test_xargs_are_part_of_the_same_request() -> None:
    """A rule named there would be overruled by the one that `factor` stands for."""
    assert lift({"steps": 4}, BLOCK_CAUSAL, {"dllm_steps": 4, "other": 1}) == {
        "dllm_steps": 4
    }
    named = {"dllm_algorithm": "hierarchical"}
    assert lift({"threshold": 0.5}, BLOCK_CAUSAL, named) == {
        "dllm_algorithm": "hierarchical",
        "dllm_threshold": 0.5,
    }
    factor = lift({"factor": 2.0}, BLOCK_CAUSAL, {"dllm_algorithm": "factor"})
    assert factor["dllm_factor"] == 2.0
    with pytest.raises(ValueError, match=r"vllm_xargs\.dllm_steps=8 and steps=4"):
        lift({"steps": 4}, BLOCK_CAUSAL, {"dllm_steps": 8})
    with pytest.raises(ValueError, match="remasking='random' contradicts"):
        lift({"remasking": "random"}, BLOCK_CAUSAL, {"dllm_algorithm": "threshold"})
