"""models/tiny-llada: weights that were trained, with every cache.

Random weights, as the golden checkpoints have them, are unsure of everything; these
know their answers, so that several tokens pass the threshold and a block ends early.
"""

import pytest

from tests.engines import Engine, Request, tokens_of, uses
from tests.full_attention import CACHES
from tests.golden_cases import Case
from tests.reference.llada import LLaDA
from tests.reference.llada_generate import generate
from tools.tiny import skills, tokenizer

pytestmark = pytest.mark.timeout(400)
CANVAS, THRESHOLD = 32, 0.9
BLOCKS = (8, 32)


def request_of(engine: Engine, question: str, cache: str, block: int) -> Request:
    prompt = tokenizer.build().encode(tokenizer.render([(question, "")])).ids
    case = Case(engine.spec.checkpoint, prompt, CANVAS, block, "threshold")
    fields = {
        "dllm_algorithm": "threshold",
        "dllm_threshold": THRESHOLD,
        "dllm_block_length": block,
        "dllm_cache": cache,
    }
    return case, {"extra_args": fields, "ignore_eos": True}


@uses("tiny-llada")
def test_sure_answers_are_those_of_the_reference(engine: Engine) -> None:
    """Blocks of a batch end after few steps, each at another one."""
    model = LLaDA.from_pretrained(engine.spec.checkpoint)
    requests, expected = [], []
    for number, skill in enumerate(skills.SKILLS * 2):
        [example] = skills.held_out_examples(skill, 1, seed=number)
        for cache in CACHES:
            block = BLOCKS[number % len(BLOCKS)]
            request = request_of(engine, example.question, cache, block)
            answer, _ = generate(
                model,
                request[0].prompt,
                CANVAS,
                block,
                mask_id=tokenizer.MASK_ID,
                threshold=THRESHOLD,
                cache=cache,
            )
            requests.append(request)
            expected.append(answer)
    outputs = engine.ask_each(requests)
    assert [tokens_of(output) for output in outputs] == expected
    steps = sum(engine.forwards(output) for output in outputs)
    assert steps < CANVAS * len(requests) / 3, "the model is not sure of anything"


@uses("tiny-llada")
def test_it_can_add_and_subtract(engine: Engine) -> None:
    """A checkpoint that lost its skills in training or saving would pass the above."""
    codec, right, asked = tokenizer.build(), 0, 0
    for skill in ("add", "subtract"):
        examples = skills.held_out_examples(skill, 50, seed=7)
        questions = [example.question for example in examples]
        outputs = engine.ask_each(
            [request_of(engine, question, "none", CANVAS) for question in questions]
        )
        for example, output in zip(examples, outputs, strict=True):
            text = codec.decode(tokens_of(output), skip_special_tokens=True)
            right, asked = right + (text == example.answer), asked + 1
    assert right >= 0.93 * asked, f"{right} of {asked}"
