"""Tokens that move others, at the worker: what goes with a token that moves."""

import pytest
import torch

from tests.worker.desk import DELETE, MASK, SPLIT, VOCAB, Desk, TableLogits
from vllm_dllm.worker.canvas_batch import CanvasBatch

RULE = {"algorithm": "joint_threshold_indel", "threshold": 0.5, "edit_threshold": 0.5}
PROMPT = [5, 6, 7, 8]
SURE, UNSURE = 9.0, 1.0


class Script:
    """Logits of one block of four, by step: a token for each column, and how sure."""

    def __init__(self, *steps: list[tuple[int, float]]) -> None:
        self.steps = steps

    def of(self, step: int) -> torch.Tensor:
        """[4, VOCAB]."""
        logits = torch.zeros(4, VOCAB)
        for column, (token, sure) in enumerate(self.steps[step]):
            logits[column, token] = sure
        return logits

    def logprob(self, step: int, column: int, token: int) -> float:
        """Without what is in no answer."""
        logits = self.of(step)[column].clone()
        logits[[MASK, DELETE, SPLIT]] = -torch.inf
        return float(logits.log_softmax(0)[token])

    def __call__(self, batch: CanvasBatch, rows: int) -> torch.Tensor:
        request, column = batch.cell
        return torch.stack(
            [
                self.of(step)[place]
                for step, place in zip(
                    batch.step[request].tolist(), column.tolist(), strict=True
                )
            ]
        )


SCRIPT = Script(
    [(9, UNSURE), (10, SURE), (11, UNSURE), (12, SURE)],
    # The token of column 1 is deleted, so that the others move left.
    [(9, SURE), (DELETE, SURE), (11, UNSURE), (12, SURE)],
    [(SPLIT, SURE), (11, SURE), (12, SURE), (13, UNSURE)],
    [(14, SURE), (9, SURE), (11, SURE), (12, SURE)],
    [(14, SURE), (9, SURE), (11, SURE), (12, SURE)],
)


def test_logprobs_and_steps_go_where_their_tokens_go() -> None:
    """A client would be told of the token that stood there before."""
    desk = Desk("moving")
    request = desk.add(
        "a",
        PROMPT,
        {**RULE, "return_trajectory": True, "stream_drafts": True},
        max_tokens=4,
        logprobs=0,
    )
    drafts, trajectory, logprobs = [], [], []
    while desk.running:
        output = desk.step(SCRIPT).output
        report = desk.sampler.take_report()
        trajectory += report.trajectories["a"]
        drafts.append((report.drafts["a"].tokens, report.drafts["a"].changed))
        if len(output.logprobs_tensors.logprobs):
            logprobs += output.logprobs_tensors.logprobs[:, 0].tolist()
    assert drafts == [
        ([-1, 10, -1, 12], [5, 7]),
        # Column 2 is still a mask, and there is a new one.
        ([9, -1, 12, -1], [4]),
        # What was written last in the block has left it.
        ([-1, 9, 11, 12], [6]),
        ([14, 9, 11, 12], [4]),
        ([], []),
    ]
    assert request.answer == [14, 9, 11, 12]
    assert trajectory == [3, 1, 2, 0]
    decided = [(3, 0, 14), (1, 0, 9), (2, 1, 11), (0, 3, 12)]
    expected = [SCRIPT.logprob(*cell) for cell in decided]
    assert logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("rule", ["threshold", "joint_threshold", "credit"])
def test_to_other_rules_they_are_never_a_candidate(rule: str) -> None:
    """They would stand in an answer, as a token without a text."""
    desk = Desk("moving")
    logits = TableLogits(1)
    logits.table[:, [DELETE, SPLIT]] = 50.0
    request = desk.add("a", PROMPT, {"algorithm": rule}, max_tokens=12)
    beside = desk.add("b", PROMPT, RULE, max_tokens=12)
    desk.run(logits)
    assert not {MASK, DELETE, SPLIT} & {*request.answer, *beside.answer}


def test_a_neighbour_that_moves_its_tokens_moves_no_others() -> None:
    """Where one rule of a batch moves tokens, all blocks are laid out anew."""
    answers = []
    for beside in (False, True):
        desk, logits = Desk("moving"), TableLogits(4)
        logits.table[:, [DELETE, SPLIT]] += 4.0
        request = desk.add("a", PROMPT, {"algorithm": "threshold"}, max_tokens=20)
        if beside:
            desk.add("b", PROMPT, RULE, max_tokens=20)
            desk.add("c", [5, 6], {**RULE, "edit_threshold": 0.0}, max_tokens=9)
        desk.run(logits)
        answers.append(request.answer)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("allowed", [[3], [3, 4], [3, 4, DELETE, SPLIT]])
def test_a_loop_ends_within_what_a_request_allows(allowed: list[int]) -> None:
    """A token that was not tried yet would be one of those that it forbids."""
    desk, logits = Desk("moving"), TableLogits(3, 0.1)
    fields = {**RULE, "edit_threshold": 0.0, "max_post_steps": 50}
    asked = {"allowed_token_ids": allowed, "temperature": 1.0}
    request = desk.add("a", PROMPT, fields, max_tokens=12, **asked)
    desk.run(logits)
    assert len(request.answer) == 12 and set(request.answer) <= {3, 4}
