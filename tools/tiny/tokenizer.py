"""The tiny checkpoint's tokenizer: bytes, special tokens and a few whole phrases.

Digits and letters stay single tokens, any UTF-8 text encodes, and the phrases of the
chat frame and of the known questions are one token each, so that prompts stay short.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

UNUSED, EOS, MASK = "<|unused|>", "<|endoftext|>", "<|mask|>"
SPECIAL = (UNUSED, EOS, MASK, "<role>", "</role>", "<|role_end|>")
EOS_ID, MASK_ID = SPECIAL.index(EOS), SPECIAL.index(MASK)
DEFAULT_SYSTEM = "detailed thinking off"
PHRASES = (
    *("SYSTEM", "HUMAN", "ASSISTANT", DEFAULT_SYSTEM),
    *("Solve: ", "What is ", "Reverse: ", "Reverse the list ", "Sort: "),
    *("Sort the list ", "Copy: ", "Repeat: ", "Uppercase: ", "Write "),
    *(" in capitals.", " Answer in JSON.", " + ", " - ", " = "),
    *('{"result"', ": ", '"}', ", "),
)
VOCAB_SIZE = 288  # 256 bytes + special tokens + phrases, rounded up to 32
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system, turns = messages[0]['content'], messages[1:] -%}
{%- else -%}
{%- set system, turns = 'detailed thinking off', messages -%}
{%- endif -%}
{{- '<role>SYSTEM</role>' + system + '<|role_end|>' -}}
{%- for turn in turns -%}
{%- set role = 'HUMAN' if turn['role'] == 'user' else turn['role'] | upper -%}
{{- '<role>' + role + '</role>' + turn['content'] + '<|role_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<role>ASSISTANT</role>' -}}{%- endif -%}
"""


def build() -> Tokenizer:
    """Byte-level BPE without merges, plus the added tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*SPECIAL, *letters]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    # Longest first: where two phrases match at one place, the longer one wins.
    phrases = sorted(PHRASES, key=len, reverse=True)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in phrases])
    assert tokenizer.get_vocab_size() <= VOCAB_SIZE
    return tokenizer


def save(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": EOS,
        "mask_token": MASK,
        "additional_special_tokens": list(SPECIAL[3:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def render(turns: list[tuple[str, str]], system: str = DEFAULT_SYSTEM) -> str:
    """The chat template's text with the generation prompt, without Jinja.

    Args:
        turns: (question, answer) pairs; the last answer is not rendered.
    """
    text = f"<role>SYSTEM</role>{system}<|role_end|>"
    for question, answer in turns:
        text += f"<role>HUMAN</role>{question}<|role_end|><role>ASSISTANT</role>"
        text += f"{answer}<|role_end|>"
    return text.removesuffix(f"{turns[-1][1]}<|role_end|>")
