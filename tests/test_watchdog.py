"""A test of a standing engine ends, with the names of the requests that stand."""

import pytest

from tests.engines import Engine, sampling_params, uses
from tests.golden_cases import golden_cases
from tests.watchdog import watched


@uses("sdar16")
def test_a_request_that_stands_still_is_named(engine: Engine) -> None:
    """The suite's own timeout would come minutes later, and name none."""
    from vllm.v1.core.sched.interface import PauseState

    llm = engine.llm.llm_engine
    scheduler = llm.engine_core.engine_core.scheduler
    case = golden_cases("sdar-pub1", 16)[0]
    scheduler.set_pause_state(PauseState.PAUSED_ALL)
    said = rf"standing-0.*: 0 tokens after a prompt of {len(case.prompt)}"
    with pytest.raises(pytest.fail.Exception, match=said), watched(llm, patience=0.5):
        prompt = {"prompt_token_ids": case.prompt}
        llm.add_request("standing-0", prompt, sampling_params(case, {}))
        while llm.has_unfinished_requests():
            llm.step()
    scheduler.set_pause_state(PauseState.UNPAUSED)
    with watched(llm):
        while llm.has_unfinished_requests():
            llm.step()
