"""What stands before a gap with which a text begins."""

from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.tokenizers import TokenizerLike

from tests.golden_cases import GOLDEN
from tests.wishes import FULL
from vllm_dllm.given import GAP
from vllm_dllm.serving.gap_answers import places_of
from vllm_dllm.serving.gaps import Cloze, drop_fields, read

BEGINNING = 7
"""What the tokenizer is told to take for the beginning of a text."""


@pytest.fixture
def tokenizer() -> TokenizerLike:
    return AutoTokenizer.from_pretrained(GOLDEN / "llada-pub0", bos_token="w7")


def cloze_of(tokenizer: TokenizerLike, **body: Any) -> Cloze | None:
    return read(CompletionRequest(**body), FULL, tokenizer)


def test_a_text_may_begin_with_a_gap(tokenizer: TokenizerLike) -> None:
    """Whoever wants a text's first words would have to know the model's tokens."""
    expected = Cloze([BEGINNING], [GAP, GAP, 12], [2])
    for body in (
        {"prompt": ["", "w12"], "dllm_gaps": [2]},
        {"prompt": "<|mask|><|mask|>w12", "dllm_fill_masks": True},
    ):
        assert cloze_of(tokenizer, **body) == expected


def test_gaps_may_be_long_without_a_word_about_it(tokenizer: TokenizerLike) -> None:
    """vLLM's default of 16 tokens would be a limit that nobody has set."""
    body = {"prompt": ["w5", "w12"], "dllm_gaps": [9, 9]}
    expected = Cloze([5], [*[GAP] * 9, 12, *[GAP] * 9], [9, 9])
    assert cloze_of(tokenizer, **body) == expected
    assert cloze_of(tokenizer, **body, max_tokens=None) == expected
    with pytest.raises(ValueError, match=r"max_tokens=17 .* at least 18"):
        cloze_of(tokenizer, **body, max_tokens=17)


def test_gaps_may_lie_side_by_side(tokenizer: TokenizerLike) -> None:
    """Two that become one are answered with a list of another length."""
    cloze = cloze_of(tokenizer, prompt=["w5", "", "w12", ""], dllm_gaps=[2, 3, 1, 1])
    expected = Cloze([5], [*[GAP] * 5, 12, GAP, GAP], [2, 3, 1, 1])
    assert cloze == expected
    places = [slice(0, 2), slice(2, 5), slice(6, 7), slice(7, 8)]
    assert places_of(expected) == places
    marked = "w5<|mask|><|mask|>w12<|mask|>"
    cloze = cloze_of(tokenizer, prompt=marked, dllm_fill_masks=True)
    assert cloze == Cloze([5], [GAP, GAP, 12, GAP], [2, 1])


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ["w5"], "dllm_gaps": [200]},
        {"prompt": ["w5", "w12"], "dllm_gaps": [199]},
        {"prompt": "w5" + "<|mask|>" * 200, "dllm_fill_masks": True},
    ],
)
def test_too_long_gaps_are_refused_by_their_name(
    tokenizer: TokenizerLike, body: dict[str, Any]
) -> None:
    """Of `max_tokens`, which vLLM would name, nobody said a word."""
    field = next(name for name in body if name.startswith("dllm"))
    with pytest.raises(ValueError, match=f"{field}: .* 201 tokens; allowed: 200"):
        cloze_of(tokenizer, **body)


def test_gaps_that_are_not_asked_for_are_no_fields() -> None:
    """`false` would be refused, as if it asked for something unknown."""
    off = {"dllm_fill_masks": False}
    body = {"prompt": "w5", **off, "vllm_xargs": {**off, "dllm_max_nfe": 3}}
    request = CompletionRequest(**body)
    drop_fields(request)
    assert request.model_extra == {}
    assert request.vllm_xargs == {"dllm_max_nfe": 3}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"prompt": [[], [12]]}, "token ids are taken as they are"),
        ({"prompt": []}, "token ids are taken as they are"),
        ({"prompt": ["", "w12"], "add_special_tokens": False}, "add_special_tokens"),
        ({"prompt": ["", "w12"], "bos": None}, "no token for the beginning"),
    ],
)
def test_a_gap_that_nothing_can_precede_is_refused(
    tokenizer: TokenizerLike, body: dict[str, Any], why: str
) -> None:
    """vLLM would say that the prompt is empty, which it is not."""
    if "bos" in body:
        tokenizer.bos_token = body.pop("bos")
    said = f"dllm_gaps: the prompt begins with a gap.*{why}.*at least one token"
    with pytest.raises(ValueError, match=said):
        cloze_of(tokenizer, **body, dllm_gaps=[2])
