"""The pieces of a stream, from the engine's outputs to the route."""

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.outputs import LogprobsLists

from vllm_dllm import plugin


def output(tokens: list[int]) -> EngineCoreOutput:
    """One of the engine, whose tokens have the negative of their id as logprob."""
    ids = np.array(tokens, dtype=np.int64)[:, None]
    rows = LogprobsLists(ids, -ids.astype(np.float32), np.ones(len(tokens), np.int64))
    return EngineCoreOutput("one", [*tokens], new_logprobs=rows if tokens else None)


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize(
    "pieces",
    [[[], [3], [4, 5]], [[], [], [3], [], [4], [5]], [[3], [], [4, 5]]],
    ids=str,
)
async def test_tokens_of_a_slow_client_keep_their_logprobs(
    pieces: list[list[int]], is_flat: bool
) -> None:
    """A draft comes without a token. What followed one was told with logprobs of other
    tokens, or ended its stream, if nobody had read it yet."""
    plugin.register()
    params = SamplingParams(
        logprobs=0,
        flat_logprobs=is_flat,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "one")
    processor = OutputProcessor(None, log_stats=False)
    request = EngineCoreRequest("one", [2], None, params, None, 0.0, None, None, None)
    request.external_req_id = "one"
    processor.add_request(request, None, queue=queue)
    for piece in pieces:
        processor.process_outputs([output(piece)])
    [told] = (await queue.get()).outputs
    assert list(told.token_ids) == [3, 4, 5]
    assert told.logprobs is not None
    assert [{t: one.logprob for t, one in row.items()} for row in told.logprobs] == [
        {token: -float(token)} for token in told.token_ids
    ]
