"""What must not change a request's tokens: caching, chunks, preemption, neighbours."""

from dataclasses import replace

import pytest

from tests.engines import Engine, sampling_params, tokens_of, uses
from tests.golden_cases import MASK, Case, differences, golden_cases
from tests.new_cases import new_cases
from tests.specs import TIGHT_MODEL_LEN
from tests.watchdog import watched

pytestmark = pytest.mark.timeout(300)
ALL = ("sdar4", "sdar16", "fastdllm2", "llada8", "llada32", "moving8")
PAGE = 32
OUT_OF_ORDER = ("low_confidence_dynamic", "low_confidence_static", "llada2")


def cases_of(engine: Engine) -> list[Case]:
    return golden_cases(engine.spec.checkpoint, engine.spec.block)


def fresh_cases(
    engine: Engine, prompt_lengths: list[int], gen_length: int
) -> list[Case]:
    spec = engine.spec
    return new_cases(spec.checkpoint, spec.block, prompt_lengths, gen_length)


# Lengths


@uses(*ALL)
def test_prompts_around_one_block_answer_as_the_reference(engine: Engine) -> None:
    """Off-by-one errors in spans show where a prompt begins, fills or opens a block."""
    block = engine.spec.block
    lengths = [1, block - 1, block, block + 1, 2 * block - 1, 2 * block]
    cases = [case.answered() for case in fresh_cases(engine, lengths, 2 * block + 3)]
    assert differences(cases, engine.answers(cases)) == []


@uses(*ALL)
def test_answers_shorter_than_a_block_are_cut(engine: Engine) -> None:
    """A canvas reaches past `max_tokens`: what lies there must not be returned."""
    cases = [
        case.answered()
        for gen_length in (1, 2, engine.spec.block - 1)
        for case in fresh_cases(engine, [3, 45], gen_length)
    ]
    assert differences(cases, engine.answers(cases)) == []


@uses("sdar16-tight")
def test_an_answer_fills_a_model_length_that_ends_inside_a_block(
    engine: Engine,
) -> None:
    """The last canvas crosses `max_model_len`; the answer must end exactly there."""
    lengths = [TIGHT_MODEL_LEN - left for left in (1, 2, 11, 12, 27, 28, 43)]
    for case in fresh_cases(engine, lengths, 64):
        left = TIGHT_MODEL_LEN - len(case.prompt)
        longer = case.answered()  # the reference knows no model length
        [output] = engine.ask([case])
        assert tokens_of(output) == longer.tokens[:left], str(case)
        assert output.outputs[0].finish_reason == "length"


@uses("sdar16", "fastdllm2", "llada32", "moving8")
def test_mask_ids_in_a_prompt_are_tokens_like_others(engine: Engine) -> None:
    """A prompt that talks about the mask token must not be decoded itself."""
    cases = []
    for case in fresh_cases(engine, [9, 40, 64], engine.spec.block):
        prompt = [MASK if i % 3 == 2 else t for i, t in enumerate(case.prompt)]
        cases.append(replace(case, prompt=prompt).answered())
    assert differences(cases, engine.answers(cases)) == []


# Chunked prefill


@uses(
    *("sdar16-tight", "fastdllm2-tight"),
    *("llada32-small-steps", "moving8-small-steps", "moving32-small-steps"),
)
def test_golden_tokens_with_64_tokens_in_a_step(engine: Engine) -> None:
    """Prompts come in chunks, and canvases do not all fit into one step."""
    cases = cases_of(engine)
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(o) for o in outputs]) == []
    for case in cases[::4]:
        engine.forget_prefixes()
        assert engine.answers([case]) == [case.tokens], str(case)


# Prefix cache


@uses(*ALL, "moving32", "sdar4-ahead")
def test_golden_tokens_from_cached_prompts(engine: Engine) -> None:
    """A page that was shared before its KV was final answers with other tokens."""
    cases = [case for case in cases_of(engine) if len(case.prompt) > PAGE]
    engine.ask(cases)
    hits = engine.counter("prefix_cache_hits")
    outputs = engine.ask(cases)
    assert differences(cases, [tokens_of(o) for o in outputs]) == []
    for case, output in zip(cases, outputs, strict=True):
        whole_pages = (len(case.prompt) - 1) // PAGE * PAGE
        assert output.num_cached_tokens == whole_pages, str(case)
    assert engine.counter("prefix_cache_hits") - hits == sum(
        output.num_cached_tokens for output in outputs
    )


@uses(*ALL, "sdar4-ahead")
def test_an_answer_goes_on_from_its_own_cached_blocks(engine: Engine) -> None:
    """KV of generated blocks is final only after a forward without masks."""
    block = engine.spec.block
    cases = fresh_cases(engine, [PAGE + 1, 2 * PAGE], 5 * PAGE)
    # An answer that ends early has no block to go on from.
    whole = engine.answers(cases, ignore_eos=True)
    engine.forget_prefixes()
    # Cut at block borders: inside a block a new prompt may decode in another order.
    cuts = [4 * PAGE + block - len(case.prompt) for case in cases]
    first = [replace(c, gen_length=cut) for c, cut in zip(cases, cuts, strict=True)]
    begun = engine.answers(first, ignore_eos=True)
    rest = [
        replace(c, prompt=c.prompt + tokens, gen_length=c.gen_length - len(tokens))
        for c, tokens in zip(cases, begun, strict=True)
    ]
    outputs = engine.ask(rest, ignore_eos=True)
    for tokens, output, expected in zip(begun, outputs, whole, strict=True):
        assert tokens + tokens_of(output) == expected
        # Three of the four pages hold generated tokens.
        assert output.num_cached_tokens == 4 * PAGE


# Preemption


@uses("sdar16-few-pages", "sdar16-few-pages-ahead")
def test_golden_tokens_after_preemption(engine: Engine) -> None:
    """A preempted request loses its pages, but not what it has decoded."""
    cases = cases_of(engine)
    before = engine.counter("num_preemptions")
    outputs = engine.ask(cases)
    assert engine.counter("num_preemptions") > before
    preempted = {
        case.algorithm
        for case, output in zip(cases, outputs, strict=True)
        if output.metrics.num_preemptions
    }
    # Their blocks were half decoded, with holes, when the pages were taken away.
    assert preempted.issuperset(OUT_OF_ORDER[:2])
    assert differences(cases, [tokens_of(o) for o in outputs]) == []


@uses("fastdllm2", "moving8", "moving32")
@pytest.mark.parametrize("every", [1, 2, 5])
def test_golden_tokens_when_all_are_preempted_again_and_again(
    engine: Engine, every: int
) -> None:
    """A token that begins a block is decided by a row whose KV was there already; what
    a rule remembers of a block is on the worker alone."""
    cases = cases_of(engine)
    outputs = engine.ask_preempting([(case, {}) for case in cases], every)
    assert differences(cases, [tokens_of(output) for output in outputs]) == []


@uses("sdar16-few-pages", "sdar16-few-pages-ahead")
def test_golden_tokens_when_the_urgent_take_the_pages_of_others(engine: Engine) -> None:
    """vLLM takes a request back out of the step that it had already joined."""
    cases = cases_of(engine)
    llm = engine.llm.llm_engine
    before = engine.counter("num_preemptions")
    outputs = []
    for number, case in enumerate(cases):
        prompt = {"prompt_token_ids": case.prompt}
        params = sampling_params(case, {})
        llm.add_request(f"urgent-{number}", prompt, params, priority=-number)
        outputs += llm.step()
    with watched(llm):
        while llm.has_unfinished_requests():
            outputs += llm.step()
    found = {o.request_id: tokens_of(o) for o in outputs if o.finished}
    assert engine.counter("num_preemptions") > before
    answers = [found[f"urgent-{number}"] for number in range(len(cases))]
    assert differences(cases, answers) == []


@uses("sdar16-few-pages", "sdar16-few-pages-ahead")
def test_long_answers_after_many_preemptions(engine: Engine) -> None:
    """A block saved for a request must be that of its latest preemption."""
    cases = [case.answered() for case in fresh_cases(engine, [5, 31, 33, 48], 150)]
    outputs = engine.ask(cases)
    assert max(output.metrics.num_preemptions for output in outputs) > 1
    assert differences(cases, [tokens_of(o) for o in outputs]) == []


# Neighbours


@uses("sdar16", "fastdllm2", "llada32", "moving8")
def test_tokens_do_not_depend_on_the_neighbours(engine: Engine) -> None:
    """Rules, steps and thresholds are per request, in whatever batch it runs."""
    cases = fresh_cases(engine, [1, 15, 40, 70], 50)[:8]
    alone = [engine.answers([case])[0] for case in cases]
    assert engine.answers(cases) == alone
    assert engine.answers(cases[::-1]) == alone[::-1]
    # The same prompt under several rules, and twice under the same one.
    twins = [replace(case, prompt=cases[0].prompt) for case in cases] * 2
    twins_alone = [engine.answers([case])[0] for case in twins[:8]]
    assert engine.answers(twins) == twins_alone * 2


# Aborts


@uses("sdar16", "sdar16-few-pages", "sdar16-few-pages-ahead", "fastdllm2-tight")
def test_aborted_requests_hold_nothing(engine: Engine) -> None:
    """Pages, slots or saved blocks of aborted requests would be lost for good."""
    from vllm import SamplingParams

    core = engine.llm.llm_engine
    cases = fresh_cases(engine, [5, 20, 33, 60, 64, 65, 70, 90], 120)
    for steps in (1, 2, 9, 30):
        ids = [f"aborted-{steps}-{number}" for number in range(len(cases))]
        for request_id, case in zip(ids, cases, strict=True):
            core.add_request(
                request_id,
                {"prompt_token_ids": case.prompt},
                SamplingParams(
                    temperature=0,
                    max_tokens=case.gen_length,
                    ignore_eos=True,
                    extra_args=case.fields,
                ),
            )
        for _ in range(steps):
            core.step()
        assert core.has_unfinished_requests()
        core.abort_request(ids)
        engine.check_idle()
    golden = cases_of(engine)
    assert differences(golden, engine.answers(golden)) == []
