"""Steps that replay a CUDA graph of the whole model answer as others do."""

import pytest
from vllm.config.compilation import CUDAGraphMode

from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import differences, golden_cases, too_many_forwards
from tests.multi_block_cases import multi_block_cases
from tests.replays import replayed

pytestmark = pytest.mark.timeout(400)


@uses("sdar4", "sdar4-ahead", "llada32", "editing8", "moving8")
def test_a_graph_takes_each_block_for_a_request(engine: Engine) -> None:
    """A graph reads what lies in the tensors that it was captured with: lengths of the
    last step would give fluent but other tokens. And a batch in which some request
    finishes a block, as nearly every large one, would run without a graph."""
    block = engine.spec.block
    assert block is not None
    # vLLM has no graph of more rows than `max_num_seqs`.
    cases = golden_cases(engine.spec.checkpoint, block)[:12]
    with replayed(engine, [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]) as graphs:
        engine.forget_prefixes()
        outputs = engine.ask(cases)
        with_prefixes = engine.ask(cases)
        engine.forget_prefixes()
        alone = engine.ask(cases[:1])
    for answers in (outputs, with_prefixes):
        assert differences(cases, [tokens_of(o) for o in answers]) == []
    assert differences(cases[:1], [tokens_of(o) for o in alone]) == []
    forwards = [engine.forwards(output) for output in outputs]
    assert too_many_forwards(cases, forwards) == []
    replays = [a for a in graphs.asked if a[1].cg_mode == CUDAGraphMode.FULL]
    several = [number for number, desc in replays if desc.num_tokens > number * block]
    assert len(replays) > 0.8 * len(graphs.asked)
    assert len(several) > 5


@uses("sdar4", "llada8")
def test_a_graph_takes_several_blocks_in_flight(engine: Engine) -> None:
    """All blocks of a buffer are rows of their own; one that is handed the lengths of
    the request would see masks of the blocks behind it."""
    block = engine.spec.block
    assert block is not None
    cases = multi_block_cases(engine.spec.checkpoint, block)[:6]
    with replayed(engine, [*range(1, 17), 24, 32]) as graphs:
        outputs = engine.ask_each([(case, case.sampling) for case in cases])
    assert [tokens_of(output) for output in outputs] == [c.tokens for c in cases]
    assert sum(desc.cg_mode == CUDAGraphMode.FULL for _, desc in graphs.asked) > 5
