"""Fields of Diffulex that stand for more than one parameter of ours, or for none."""

from typing import Any

import pytest

from vllm_dllm.config import DllmConfig
from vllm_dllm.request import wishes_of
from vllm_dllm.serving.lift import lift

CONFIG = DllmConfig.build({"block_size": 8, "mask_token_id": 255})
EDITING = DllmConfig.build(CONFIG.model_dump(), {"algorithm": "joint_threshold"})
SEVERAL = DllmConfig.build(CONFIG.model_dump(), {"buffer_size": 2})
EDIT = {"dllm_algorithm": "joint_threshold"}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"decoding_strategy": "multi_bd"}, {"dllm_buffer_size": 4}),
        (
            {"decoding_strategy": "multi_bd", "buffer_size": 2},
            {"dllm_buffer_size": 2},
        ),
        ({"decoding_strategy": "d2f"}, {"dllm_algorithm": "d2f"}),
        (
            {"decoding_strategy": "d2f", "accept_threshold": 0.5},
            {"dllm_algorithm": "d2f", "dllm_threshold": 0.5},
        ),
        ({"decoding_strategy": "dmax"}, {"dllm_algorithm": "dmax"}),
        ({"sampling_mode": "naive"}, {}),
        ({"sampling_mode": "edit"}, EDIT),
        ({"sampling_mode": "edit", "algorithm": "JointThreshold"}, EDIT),
        ({"sampling_mode": "naive", "algorithm": "margin"}, {"algorithm": "margin"}),
        (
            {"add_block_threshold": 0.5, "semi_complete_threshold": 0.6},
            {"dllm_add_block_threshold": 0.5, "dllm_semi_complete_threshold": 0.6},
        ),
        (
            {"token_stability_threshold": 0.5},
            {"dllm_token_stability_threshold": 0.5},
        ),
    ],
)
def test_words_of_diffulex_amount_to_our_fields(
    body: dict[str, Any], fields: dict[str, Any]
) -> None:
    """A client that moves here would get one block at a time without a word."""
    got = lift(body, CONFIG)
    got.setdefault("dllm_algorithm", None)
    wanted = {"dllm_algorithm": body.get("algorithm"), **fields}
    wanted.pop("algorithm", None)
    if wanted["dllm_algorithm"] == "joint_threshold":
        assert got["dllm_algorithm"] in ("joint_threshold", "JointThreshold")
        wanted["dllm_algorithm"] = got["dllm_algorithm"]
    assert got == wanted


def test_a_default_of_the_server_stays_with_the_strategy() -> None:
    """It says how many blocks multi_bd has here."""
    assert lift({"decoding_strategy": "multi_bd"}, SEVERAL) == {}


def test_a_mode_stands_for_a_rule_where_the_default_is_of_the_other() -> None:
    """`naive` must not edit because the server does by default."""
    naive = lift({"sampling_mode": "naive"}, EDITING)
    assert naive == {"dllm_algorithm": "threshold"}
    assert lift({"sampling_mode": "edit"}, EDITING) == {}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"decoding_strategy": "d2f", "algorithm": "margin"},
            ("decoding_strategy='d2f' contradicts", "'margin'"),
        ),
        (
            {"decoding_strategy": "dmax", "algorithm": "margin"},
            ("decoding_strategy='dmax'", "'margin'"),
        ),
        ({"decoding_strategy": 3}, ("decoding_strategy=3",)),
        ({"sampling_mode": "greedy"}, ("sampling_mode='greedy'", "naive, edit")),
        ({"sampling_mode": ["edit"]}, ("sampling_mode=['edit']",)),
        ({"remask_threshold": 0.4}, ("remask_threshold=0.4", "a mask again")),
        (
            {"sampling_mode": "edit", "algorithm": "threshold"},
            ("sampling_mode='edit' contradicts", "'threshold'"),
        ),
        (
            {"sampling_mode": "naive", "algorithm": "joint_threshold"},
            ("sampling_mode='naive' contradicts", "'joint_threshold'"),
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    body: dict[str, Any], words: tuple[str, ...]
) -> None:
    """A strategy that is ignored answers with other tokens."""
    with pytest.raises(ValueError) as failure:
        lift(body, CONFIG)
    for word in words:
        assert word in str(failure.value)


def test_a_rule_that_is_unknown_is_refused_as_that() -> None:
    """Not as a contradiction of the mode beside it."""
    fields = lift({"sampling_mode": "edit", "algorithm": "nope"}, CONFIG)
    with pytest.raises(ValueError, match="unknown decoding rule 'nope'"):
        wishes_of(fields, CONFIG)
