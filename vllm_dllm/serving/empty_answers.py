"""Streams of answers that end without a token, as `dllm_max_nfe` may let them.

vLLM has no chunk for a result without one, and so none with a `finish_reason`: a client
would not know why its answer ended.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from vllm_dllm.serving.streams import FINISHED, Results, Shape, event, opened


async def with_ends(
    chunks_of: Callable[[Results], AsyncGenerator[str, None]],
    results: Results,
    shape: Shape,
    num_choices: int,
) -> AsyncGenerator[str, None]:
    """vLLM's chunks, and one for each end that has none.

    Args:
        chunks_of: vLLM's generator.
        num_choices: of each prompt.
    """
    missing: list[str] = []
    is_told = False

    async def watched() -> Results:
        nonlocal is_told
        async for item in results:
            _, choices = opened(item, num_choices)
            is_told = False
            yield item  # and its chunks are read
            for index, output in choices:
                if output.finish_reason is not None and not is_told:
                    end = {
                        "index": index,
                        **shape.nothing,
                        "finish_reason": output.finish_reason,
                        "stop_reason": output.stop_reason,
                    }
                    missing.append(event({**shape.like, "choices": [end]}))

    async with aclosing(chunks_of(watched())) as chunks:
        async for chunk in chunks:
            while missing:
                yield missing.pop(0)
            is_told = is_told or FINISHED in chunk
            yield chunk
