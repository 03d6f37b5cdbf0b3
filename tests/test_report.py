"""What travels in fields of vLLM's messages arrives as it was sent."""

import pickle

import pytest
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.metrics.stats import RequestSpecDecodeMetrics, SchedulerStats
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.spec_decode.metrics import SpecDecodingStats

from vllm_dllm.report import (
    Draft,
    ForwardCount,
    StepReport,
    StepStats,
    client_params,
)

STEP = StepStats(
    seconds=0.25,
    requests=3,
    positions=96,
    canvas=40,
    committed=7,
    revised=2,
    busy=1,
    finished=[(4, 30), (1, 9)],
)


def sent(outputs: EngineCoreOutputs) -> EngineCoreOutputs:
    """As the API process gets it from the engine."""
    decoder = MsgpackDecoder(EngineCoreOutputs)
    received: EngineCoreOutputs = decoder.decode(MsgpackEncoder().encode(outputs))
    return received


def test_a_report_comes_with_the_runners_output() -> None:
    """vLLM pickles the object: an attribute in the wrong place stays behind."""
    output = ModelRunnerOutput(req_ids=["a"], req_id_to_index={"a": 0})
    assert StepReport.of(output) == StepReport()
    report = StepReport({"a": [0, 1]}, {"a": Draft(4, [-1, 7], [5], 2, [6])}, revised=1)
    report.attach(output)
    assert StepReport.of(pickle.loads(pickle.dumps(output))) == report


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (StepReport(), False),
        (StepReport(trajectories={"a": []}), True),
        (StepReport(drafts={"a": Draft(0, [], [], 0, [])}), True),
        (StepReport(revised=1), True),
    ],
)
def test_nothing_is_sent_for_nothing(report: StepReport, expected: bool) -> None:
    """Every step of every server would carry an empty report."""
    assert report.is_worth_sending is expected


def test_stats_of_a_step_arrive() -> None:
    """vLLM decodes by type: what its own class has no room for is lost."""
    stats = SpecDecodingStats(num_spec_tokens=32)
    STEP.pack(stats)
    outputs = EngineCoreOutputs(
        scheduler_stats=SchedulerStats(spec_decoding_stats=stats)
    )
    received = sent(outputs).scheduler_stats
    assert received is not None and received.spec_decoding_stats is not None
    assert StepStats.unpack(received.spec_decoding_stats) == STEP


def test_stats_that_are_not_ours_are_left_alone() -> None:
    """Lists of a speculating model would be read as times and counts."""
    assert StepStats.unpack(SpecDecodingStats.new(5)) is None


def test_forwards_arrive_with_an_answer() -> None:
    """They are the `nfe` of the usage."""
    count = ForwardCount()
    for accepted in (0, 500, 3):  # vLLM's own count ends at a canvas
        count.observe(num_draft_tokens=4, num_accepted=accepted, detailed=True)
    output = EngineCoreOutput("a", [1], spec_decode_metrics=count)
    [received] = sent(EngineCoreOutputs(outputs=[output])).outputs
    assert ForwardCount.read(received.spec_decode_metrics) == 3


def test_a_count_of_speculative_decoding_is_not_one_of_forwards() -> None:
    """Another model's usage would get an `nfe`."""
    assert ForwardCount.read(RequestSpecDecodeMetrics.new(5)) is None
    assert ForwardCount.read(None) is None


def test_clients_get_what_is_there() -> None:
    """A null would show in every answer that has kv_transfer_params."""
    assert client_params(draft=None, trajectory=[0]) == {"dllm_trajectory": [0]}
