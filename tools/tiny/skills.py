"""What the tiny checkpoint can do: seeded examples with a fixed train / held-out split.

Whether an input is held out depends on a hash of the input alone (about one in ten), so
no phrasing of a held-out input, plain or as JSON, is ever trained on.
"""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase

JSON_REQUEST = " Answer in JSON."
JSON_SHARE = 0.3
HELD_OUT_ONE_IN = 10
LIST_LENGTHS = (3, 4, 5, 6)
MAX_PHRASE = 14
LONG_LIST, LONG_SUMS = 34, 12


Phrasings = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Example:
    """One question, its only right answer, and the skill it exercises."""

    skill: str
    question: str
    answer: str


@dataclass(frozen=True)
class Task:
    """An input of one skill, before a phrasing and an answer format are chosen."""

    content: str
    answer: str
    result: int | str | list[int]


def operand(rng: Random, easy: bool) -> int:
    """0..99, mostly two digits; mostly one digit if easy."""
    small = rng.random() >= (0.3 if easy else 0.92)
    return rng.randint(0, 9) if small else rng.randint(10, 99)


def add(rng: Random, easy: bool) -> Task:
    """12 + 30 -> 12 + 30 = 42."""
    left, right = operand(rng, easy), operand(rng, easy)
    content = f"{left} + {right}"
    return Task(content, f"{content} = {left + right}", left + right)


def subtract(rng: Random, easy: bool) -> Task:
    """12 - 30 -> 12 - 30 = -18."""
    left, right = operand(rng, easy), operand(rng, easy)
    content = f"{left} - {right}"
    return Task(content, f"{content} = {left - right}", left - right)


def numbers(rng: Random, easy: bool) -> list[int]:
    """Three to six different two-digit numbers; two or three if easy."""
    return rng.sample(range(10, 100), rng.choice((2, 3) if easy else LIST_LENGTHS))


def reverse(rng: Random, easy: bool) -> Task:
    """12 30 7 -> 7 30 12."""
    values = numbers(rng, easy)
    result = values[::-1]
    return Task(" ".join(map(str, values)), " ".join(map(str, result)), result)


def ascending(rng: Random, easy: bool) -> Task:
    """12 30 7 -> 7 12 30."""
    values = numbers(rng, easy)
    result = sorted(values)
    return Task(" ".join(map(str, values)), " ".join(map(str, result)), result)


def phrase(rng: Random) -> str:
    """One to three made-up lower-case words, at most MAX_PHRASE characters."""
    words: list[str] = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        if rng.random() < 0.5:
            word = "".join(rng.choices(ascii_lowercase, k=rng.randint(2, 7)))
        else:
            onsets = rng.choices("bcdfghjklmnprstvw", k=rng.randint(1, 3))
            word = "".join(onset + rng.choice("aeiou") for onset in onsets)
            word += rng.choice(("", "n", "r", "s", "t"))
        words.append(word)
    while len(" ".join(words)) > MAX_PHRASE:
        words.pop()
    return " ".join(words)


def copy(rng: Random, easy: bool) -> Task:
    """hello -> hello."""
    text = phrase(rng)
    return Task(text, text, text)


def upper(rng: Random, easy: bool) -> Task:
    """hello -> HELLO."""
    text = phrase(rng)
    return Task(text, text.upper(), text.upper())


def long_numbers(rng: Random) -> list[int]:
    """LONG_LIST different two-digit numbers."""
    return rng.sample(range(10, 100), LONG_LIST)


def long_copy(rng: Random, easy: bool) -> Task:
    """12 30 7 ... -> 12 30 7 ..."""
    values = long_numbers(rng)
    text = " ".join(map(str, values))
    return Task(text, text, values)


def long_reverse(rng: Random, easy: bool) -> Task:
    """12 30 ... 77 -> 77 ... 30 12."""
    values = long_numbers(rng)
    result = values[::-1]
    return Task(" ".join(map(str, values)), " ".join(map(str, result)), result)


def two_digit_sum(rng: Random) -> tuple[str, int]:
    """One sum of two-digit operands and its two-digit result."""
    while True:
        left, right = rng.randint(10, 99), rng.randint(10, 99)
        adds = rng.random() < 0.5
        result = left + right if adds else left - right
        if 10 <= result <= 99:
            return f"{left} {'+' if adds else '-'} {right} = ", result


def long_sums(rng: Random, easy: bool) -> Task:
    """12 + 30 = ??, 77 - 30 = ??, ... -> 12 + 30 = 42, 77 - 30 = 47, ..."""
    sums = [two_digit_sum(rng) for _ in range(LONG_SUMS)]
    asked = ", ".join(f"{left}??" for left, _ in sums)
    answer = ", ".join(f"{left}{result}" for left, result in sums)
    return Task(asked, answer, [result for _, result in sums])


ARITHMETIC = (("Solve: {}.", 0.8), ("What is {}?", 0.2))
TASKS: dict[str, tuple[Callable[[Random, bool], Task], Phrasings]] = {
    "add": (add, ARITHMETIC),
    "subtract": (subtract, ARITHMETIC),
    "reverse": (reverse, (("Reverse: {}.", 0.8), ("Reverse the list {}.", 0.2))),
    "sort": (ascending, (("Sort: {}.", 0.8), ("Sort the list {}.", 0.2))),
    "copy": (copy, (("Copy: {}.", 0.8), ("Repeat: {}.", 0.2))),
    "upper": (upper, (("Uppercase: {}.", 0.8), ("Write {} in capitals.", 0.2))),
}
LONG_TASKS: dict[str, tuple[Callable[[Random, bool], Task], Phrasings]] = {
    "long copy": (long_copy, (("Copy: {}.", 1.0),)),
    "long reverse": (long_reverse, (("Reverse: {}.", 1.0),)),
    "long sums": (long_sums, (("Solve: {}.", 1.0),)),
}
SKILLS = (*TASKS, "json")


def is_held_out(task_name: str, content: str) -> bool:
    """The split: a function of the input alone."""
    return zlib.crc32(f"{task_name}:{content}".encode()) % HELD_OUT_ONE_IN == 0


def draw(
    rng: Random, task_name: str, held_out: bool, as_json: bool, easy: bool = False
) -> Example:
    """One example of `task_name` from the wanted side of the split."""
    make, phrasings = (TASKS | LONG_TASKS)[task_name]
    task = make(rng, easy)
    while is_held_out(task_name, task.content) != held_out:
        task = make(rng, easy)
    templates, weights = zip(*phrasings, strict=True)
    question = rng.choices(templates, weights)[0].format(task.content)
    if as_json:
        answer = json.dumps({"result": task.result})
        return Example("json", question + JSON_REQUEST, answer)
    return Example(task_name, question, task.answer)


def train_example(rng: Random, weights: dict[str, float], easy_share: float) -> Example:
    """A training example; `weights` gives each task's share (any scale)."""
    task_name = rng.choices(list(weights), list(weights.values()))[0]
    as_json = rng.random() < JSON_SHARE
    easy = easy_share > 0 and rng.random() < easy_share
    return draw(rng, task_name, False, as_json, easy)


def held_out_examples(skill: str, count: int, seed: int) -> list[Example]:
    """`count` different held-out examples; "json" takes the short tasks in turn."""
    rng = Random(f"{seed}:{skill}")
    names = list(TASKS) if skill == "json" else [skill]
    found: dict[str, Example] = {}
    while len(found) < count:
        name = names[len(found) % len(names)]
        example = draw(rng, name, held_out=True, as_json=skill == "json")
        found[example.question] = example
    return list(found.values())
