"""What the scheduler keeps of requests and steps."""

import pickle

from vllm.v1.core.sched.output import SchedulerOutput

from tests.wishes import CONFIG
from vllm_dllm.course import Course
from vllm_dllm.plans.base import Span
from vllm_dllm.plans.block_causal import BlockCausal
from vllm_dllm.plans.grid import Grid
from vllm_dllm.progress import Progress, StepPlan
from vllm_dllm.request import resolve


def test_a_plan_comes_back_with_its_step() -> None:
    """With two steps on their way the older one would be read as the newer."""
    plans = [StepPlan({"a": Span(0, 8, 5, 3)}), StepPlan({"a": Span(8, 16, 9, 7)})]
    outputs = [SchedulerOutput.make_empty() for _ in plans]
    for plan, output in zip(plans, outputs, strict=True):
        plan.attach(output)
    assert [StepPlan.of(output) for output in outputs] == plans


def test_a_plan_stays_with_the_scheduler() -> None:
    """Every rank would be sent what it finds out by itself, in every step."""
    output = SchedulerOutput.make_empty()
    StepPlan({"a": Span(0, 8, 5, 3)}, started=7.0).attach(output)
    assert StepPlan.of(pickle.loads(pickle.dumps(output))).spans == {}


def test_a_request_without_a_limit_is_never_spent() -> None:
    """It would end in the middle of its answer."""
    course = Course(BlockCausal(Grid(0, 4, 100)))
    limits = (None, 3, 2, 1)
    requests = [
        Progress(course, resolve({"dllm_max_nfe": max_nfe}, CONFIG, 20))
        for max_nfe in limits
    ]
    for request in requests:
        for _ in range(2):
            request.forwards.observe(num_draft_tokens=4, num_accepted=1)
    assert [request.is_spent for request in requests] == [False, False, True, True]
