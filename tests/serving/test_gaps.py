"""What stands before a gap with which a text begins."""

from typing import Any

import pytest
from transformers import AutoTokenizer
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.tokenizers import TokenizerLike

from tests.golden_cases import GOLDEN
from tests.wishes import FULL
from vllm_dllm.given import GAP
from vllm_dllm.serving.gaps import Cloze, read

BEGINNING = 7
"""What the tokenizer is told to take for the beginning of a text."""


@pytest.fixture
def tokenizer() -> TokenizerLike:
    return AutoTokenizer.from_pretrained(GOLDEN / "llada-pub0", bos_token="w7")


def cloze_of(tokenizer: TokenizerLike, **body: Any) -> Cloze | None:
    return read(CompletionRequest(**body), FULL, tokenizer)


def test_a_text_may_begin_with_a_gap(tokenizer: TokenizerLike) -> None:
    """Whoever wants a text's first words would have to know the model's tokens."""
    expected = Cloze([BEGINNING], [GAP, GAP, 12])
    for body in (
        {"prompt": ["", "w12"], "dllm_gaps": [2]},
        {"prompt": "<|mask|><|mask|>w12", "dllm_fill_masks": True},
    ):
        assert cloze_of(tokenizer, **body) == expected


def test_gaps_may_be_long_without_a_word_about_it(tokenizer: TokenizerLike) -> None:
    """vLLM's default of 16 tokens would be a limit that nobody has set."""
    body = {"prompt": ["w5", "w12"], "dllm_gaps": [9, 9]}
    expected = Cloze([5], [*[GAP] * 9, 12, *[GAP] * 9])
    assert cloze_of(tokenizer, **body) == expected
    assert cloze_of(tokenizer, **body, max_tokens=None) == expected
    with pytest.raises(ValueError, match=r"max_tokens=17 .* at least 18"):
        cloze_of(tokenizer, **body, max_tokens=17)


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
