"""The fields of a request: what is accepted, and what is refused with which words."""

from typing import Any

import pytest
import torch

from tests.wishes import CONFIG, FULL, rule_with
from vllm_dllm.params import BUFFER_FIELDS, NUMERIC_FIELDS, DllmParams, range_of
from vllm_dllm.quoting import quoted
from vllm_dllm.request import resolve, wishes_of


@pytest.mark.parametrize("threshold", [0, 1, 0.0, 1.0])
def test_the_ends_of_a_range_belong_to_it(threshold: float) -> None:
    """0 and 1 are what people try first; as JSON they arrive as integers."""
    params = wishes_of({"dllm_threshold": threshold}, CONFIG)
    assert params.threshold == threshold
    assert isinstance(params.threshold, float)


REFUSED: list[tuple[str, Any, str]] = [
    ("dllm_threshold", -0.01, "greater than or equal to 0"),
    ("dllm_threshold", 1.01, "less than or equal to 1"),
    ("dllm_threshold", float("nan"), "finite number"),
    ("dllm_threshold", float("inf"), "less than or equal to 1|finite number"),
    ("dllm_threshold", "0.5", "valid number"),
    ("dllm_threshold", True, "valid number"),
    ("dllm_threshold", [0.5], "valid number"),
    ("dllm_threshold", None, "valid number"),
    ("dllm_steps", 0, "greater than or equal to 1"),
    ("dllm_steps", -3, "greater than or equal to 1"),
    ("dllm_steps", 2.5, "valid integer"),
    ("dllm_steps", "4", "valid integer"),
    ("dllm_steps", True, "valid integer"),
    ("dllm_algorithm", "fastest", "supported: .*threshold"),
    ("dllm_algorithm", 3, "valid string"),
    ("dllm_algorithm", ["threshold"], "valid string"),
    ("dllm_max_nfe", 0, "greater than or equal to 1"),
    ("dllm_max_nfe", 2.5, "valid integer"),
    ("dllm_max_nfe", True, "valid integer"),
    ("dllm_block_length", 0, "greater than or equal to 1"),
    ("dllm_block_length", "8", "valid integer"),
    ("dllm_return_trajectory", 2, "valid boolean"),
    ("dllm_return_trajectory", -1, "valid boolean"),
    ("dllm_return_trajectory", "true", "valid boolean"),
    ("dllm_return_trajectory", None, "valid boolean"),
    ("dllm_return_trajectory", [1], "valid boolean"),
    ("dllm_factor", 0, "greater than 0"),
    ("dllm_factor", float("inf"), "finite number"),
    ("dllm_entropy_bound", -0.1, "greater than or equal to 0"),
    ("dllm_entropy_bound", float("inf"), "finite number"),
    ("dllm_local_leap_anchor_threshold", 1.1, "less than or equal to 1"),
    ("dllm_local_leap_anchor_threshold", float("nan"), "less|greater|finite"),
    ("dllm_local_leap_neighbor_threshold", -1, "greater than or equal to 0"),
    ("dllm_local_leap_neighbor_threshold", float("nan"), "less|greater|finite"),
    ("dllm_local_leap_radius", -1, "greater than or equal to 0"),
    ("dllm_local_leap_radius", 1.5, "valid integer"),
    ("dllm_low_threshold", 1.1, "less than or equal to 1"),
    ("dllm_low_threshold", float("nan"), "less|greater|finite"),
    ("dllm_edit_threshold", 1.1, "less than or equal to 1"),
    ("dllm_edit_threshold", float("nan"), "less|greater|finite"),
    ("dllm_max_post_steps", -1, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), REFUSED)
def test_a_refusal_names_field_value_and_what_is_allowed(
    field: str, value: Any, allowed: str
) -> None:
    """'Invalid request' leaves the user to guess which of ten fields it was."""
    with pytest.raises(ValueError, match=allowed) as failure:
        wishes_of({field: value}, CONFIG)
    assert f"{field}={value!r}" in str(failure.value)


COUNTS = {"steps": 1_000_000, "max_nfe": 1_000_000, "local_leap_radius": 1_000_000}
COUNTS |= {"max_post_steps": 4096}


@pytest.mark.parametrize(("field", "most"), COUNTS.items())
def test_a_count_has_an_upper_limit(field: str, most: int) -> None:
    """A number that fits no tensor raises in the worker, and ends it for everybody."""
    own = {"dllm_algorithm": rule_with(field), f"dllm_{field}": most}
    assert getattr(wishes_of(own, CONFIG), field) == most
    for count in (most + 1, 2**63, 2**64 - 1):
        own[f"dllm_{field}"] = count
        with pytest.raises(ValueError, match=f"equal to {most};") as failure:
            wishes_of(own, CONFIG)
        assert f"dllm_{field}={count!r}" in str(failure.value)


@pytest.mark.parametrize("field", ["dllm_treshold", "dllm_", "dllm_block_size"])
def test_an_unknown_field_is_answered_with_all_known_ones(field: str) -> None:
    """A misspelled parameter would be ignored, and its effect blamed on the model."""
    with pytest.raises(ValueError, match=f"^unknown field {field}=0.5; ") as failure:
        wishes_of({"dllm_steps": 2, field: 0.5}, CONFIG)
    known = str(failure.value).partition("; known: ")[2].split(", ")
    assert known == [f"dllm_{name}" for name in DllmParams.model_fields]
    assert field not in known


@pytest.mark.parametrize(
    ("value", "meant"), [(0, False), (1, True), (False, False), (True, True)]
)
def test_a_flag_may_be_a_number(value: Any, meant: bool) -> None:
    """`vllm_xargs` turns a JSON boolean into 0 or 1."""
    params = wishes_of({"dllm_return_trajectory": value}, CONFIG)
    assert params.return_trajectory is meant


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("dllm_cache", "both", "'none', 'prefix' or 'dual'"),
        ("dllm_cache", None, "'none', 'prefix' or 'dual'"),
        ("dllm_cache", True, "'none', 'prefix' or 'dual'"),
        ("dllm_cache", ["dual"], "'none', 'prefix' or 'dual'"),
        ("dllm_cfg_scale", -0.1, "greater than or equal to 0"),
        ("dllm_cfg_scale", float("inf"), "finite number"),
        ("dllm_cfg_scale", float("nan"), "finite number|greater"),
        ("dllm_cfg_scale", "1", "valid number"),
        ("dllm_cfg_scale", True, "valid number"),
        ("dllm_logits_eos_inf", 2, "valid boolean"),
        ("dllm_logits_eos_inf", "true", "valid boolean"),
        ("dllm_logits_eos_inf", None, "valid boolean"),
        ("dllm_confidence_eos_eot_inf", -1, "valid boolean"),
        ("dllm_confidence_eos_eot_inf", [1], "valid boolean"),
        ("dllm_suffix_token_ids", "5", "valid list"),
        ("dllm_suffix_token_ids", None, "valid list"),
        ("dllm_suffix_token_ids", 5, "valid list"),
        ("dllm_eps", 0, "greater than 0"),
        ("dllm_eps", 1, "less than 1"),
        ("dllm_eps", float("nan"), "greater|less|finite"),
        ("dllm_eps", "0.1", "valid number"),
        ("dllm_alg_temp", -0.1, "greater than or equal to 0"),
        ("dllm_alg_temp", float("inf"), "finite number"),
        ("dllm_alg_temp", float("nan"), "finite number|greater"),
        ("dllm_alg_temp", "hot", "valid number"),
        ("dllm_block_length", 0, "greater than or equal to 1"),
        ("dllm_block_length", -32, "greater than or equal to 1"),
        ("dllm_block_length", 1_000_001, "less than or equal to 1000000"),
        ("dllm_block_length", 2**63, "less than or equal to 1000000"),
        ("dllm_block_length", 8.5, "valid integer"),
        ("dllm_block_length", True, "valid integer"),
    ],
)
def test_limits_of_fields_of_full_attention(
    field: str, value: Any, allowed: str
) -> None:
    """A number that fits no tensor raises in the worker, and ends it for everybody."""
    rule = rule_with(field.removeprefix("dllm_"))
    with pytest.raises(ValueError, match=allowed) as failure:
        wishes_of({"dllm_algorithm": rule, field: value}, FULL)
    assert f"{field}={value!r}" in str(failure.value)


@pytest.mark.parametrize("field", ["logits_eos_inf", "confidence_eos_eot_inf"])
@pytest.mark.parametrize(
    ("value", "meant"), [(0, False), (1, True), (False, False), (True, True)]
)
def test_flags_of_full_attention_may_be_numbers(
    field: str, value: Any, meant: bool
) -> None:
    """`vllm_xargs` turns a JSON boolean into 0 or 1."""
    assert getattr(resolve({f"dllm_{field}": value}, FULL, 10), field) is meant


REALS = [
    *(
        name
        for name, kind in NUMERIC_FIELDS.items()
        if kind is float and name not in BUFFER_FIELDS  # FULL has no buffers
    ),
    "cfg_scale",
]


@pytest.mark.parametrize("field", REALS)
@pytest.mark.parametrize("value", [1e39, 1e308, 1e7, 10**30, float("inf")])
def test_a_number_has_an_upper_limit(field: str, value: float) -> None:
    """float32 cannot hold it: the worker raises, and the engine ends for everybody."""
    own = {"dllm_algorithm": rule_with(field), f"dllm_{field}": value}
    with pytest.raises(ValueError, match=rf"^dllm_{field}=.*; allowed: .*") as failure:
        wishes_of(own, FULL)
    assert quoted(value) in str(failure.value)
    assert range_of(DllmParams.model_fields[field]) in str(failure.value)


@pytest.mark.parametrize("field", REALS)
def test_the_largest_number_is_one_that_the_worker_can_store(field: str) -> None:
    """A limit in float64 is none in float32."""
    rule = rule_with(field)
    highest = 0.0
    for value in (1e-6, 0.5, 1.0 - 2**-24, 1.0, 100.0, 1e6):
        own = {"dllm_algorithm": rule, f"dllm_{field}": value}
        try:
            decoding = resolve(own, FULL, 10)
        except ValueError:
            continue
        stored = torch.tensor(getattr(wishes_of(own, FULL), field))
        assert stored.isfinite() and stored > 0
        assert field == "cfg_scale" or decoding.parameters[field] == value
        highest = value
    assert highest >= 0.5


@pytest.mark.parametrize("field", ["factor", "eps", "alg_temp", "cfg_scale"])
@pytest.mark.parametrize("value", [1e-45, 1e-40, 5e-324, 9.9e-7])
def test_a_divisor_is_not_next_to_nothing(field: str, value: float) -> None:
    """In float32 it is 0, or what it divides becomes infinite."""
    own = {"dllm_algorithm": rule_with(field), f"dllm_{field}": value}
    with pytest.raises(ValueError, match=f"^dllm_{field}=.* between 0 and 1e-06"):
        wishes_of(own, FULL)
    own[f"dllm_{field}"] = 1e-6
    assert getattr(wishes_of(own, FULL), field) == 1e-6


@pytest.mark.parametrize("field", REALS)
def test_not_a_number_is_answered_with_the_range(field: str) -> None:
    """Python's json sends NaN, and what it is compared with is neither above nor below
    it."""
    own = {"dllm_algorithm": rule_with(field), f"dllm_{field}": float("nan")}
    with pytest.raises(ValueError, match=f"^dllm_{field}=nan: .*; allowed: ") as error:
        wishes_of(own, FULL)
    assert str(error.value).endswith(range_of(DllmParams.model_fields[field]))


MEGABYTE = "x" * 1_000_000


LONG = {
    "text": MEGABYTE,
    "list": [0.5] * 500_000,
    "mapping": {MEGABYTE: 1},
    "digits": 10**5000,
}


@pytest.mark.parametrize("value", LONG.values(), ids=LONG)
@pytest.mark.parametrize("field", [f"dllm_{name}" for name in DllmParams.model_fields])
def test_a_long_value_is_not_echoed(field: str, value: Any) -> None:
    """A log, and an answer, of megabytes for a request that is refused."""
    with pytest.raises(ValueError, match=f"^{field}") as failure:
        wishes_of({field: value}, FULL)
    assert len(str(failure.value)) < 1000


def test_a_long_name_is_not_echoed() -> None:
    """As above; a name is the user's too."""
    with pytest.raises(
        ValueError, match=r"^unknown field dllm_xxx.*; known: "
    ) as error:
        wishes_of({f"dllm_{MEGABYTE}": 1}, FULL)
    assert len(str(error.value)) < 1000
