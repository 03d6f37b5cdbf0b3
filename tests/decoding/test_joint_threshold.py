"""joint_threshold against spec B4 (LLaDA2.1), written with loops.

Steps one by one, and whole blocks with a model that is a table of random answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest
import torch

from tests.decoding.canvas_steps import (
    BATCHES,
    NAN,
    PROBABILITIES,
    TOKENS,
    UNDEFINED,
    Row,
    as_step,
    uniform_row,
    written,
)
from vllm_dllm.decoding.joint_threshold import JointThreshold

RULE = JointThreshold()
MASK = 99

State = tuple[int, ...]
Answer = list[tuple[int, float]]
Model = Callable[[State], Answer]
"""From the tokens of a block to a token and its probability for each position."""


def taken_by_hand(row: Row) -> set[int]:
    above = {column for column in row.masks if row.confidence[column] > row.threshold}
    needed = min(1, len(row.masks))
    return above if len(above) >= needed else set(row.surest_first[:needed])


def edited_by_hand(row: Row) -> set[int]:
    return {
        column
        for column in range(row.block)
        if row.editable[column]
        and row.confidence[column] > row.edit_threshold
        and row.candidate[column] != row.tokens[column]
    }


def test_masks_and_edits_are_written_together() -> None:
    """Another choice decodes other tokens than the authors' code."""
    for batch in BATCHES:
        assert written(RULE, *batch) == [
            taken_by_hand(row) | edited_by_hand(row) for row in batch
        ]


def test_a_block_is_done_when_settled_or_out_of_steps() -> None:
    """Done early, corrections are lost; done late, forwards are."""
    for batch in BATCHES:
        done = RULE.decide(as_step(batch, RULE)).done
        assert done is not None
        expected = []
        for row in batch:
            settled = not row.masks and not edited_by_hand(row)
            has_masks = set(row.masks) != taken_by_hand(row)
            spent = not has_masks and row.post_steps + 1 > row.max_post_steps
            expected.append(settled or spent)
        assert done.tolist() == expected


def test_an_edit_needs_more_than_its_threshold_and_another_token() -> None:
    """An edit that changes nothing would keep the block from being done."""
    row = uniform_row(
        [0.75, 0.5, 0.75, 0.75],
        masked=[False] * 4,
        editable=[True, True, True, False],
        tokens=[1, 1, 1, 1],
        candidate=[2, 2, 1, 2],
        post_steps=1,
    )
    assert written(RULE, row) == [{0}]


def test_a_row_without_a_canvas_is_left_alone() -> None:
    """A request in prefill would have tokens of its prompt replaced."""
    row = Row([False] * 4, [1.0] * 4, tokens=[1] * 4, candidate=[2] * 4)
    row.threshold = row.edit_threshold = 0.0
    assert written(RULE, row) == [set()]


@dataclass
class Task:
    """A block to decode: the tail of the prompt, then masks."""

    model: Model
    prompt: list[int]
    block: int
    threshold: float
    edit_threshold: float
    max_post_steps: int

    @property
    def start(self) -> State:
        return (*self.prompt, *[MASK] * (self.block - len(self.prompt)))


@dataclass
class Run:
    states: list[State]
    """What each forward was given, and the tokens at the end."""

    @property
    def forwards(self) -> int:
        return len(self.states) - 1


def reference(task: Task) -> Run:
    """The loop of LLaDA2.1's `generate` over one block, with its break statements."""
    tokens = list(task.start)
    forwarded: list[State] = []
    post = 0
    while True:
        masks = [i for i, token in enumerate(tokens) if token == MASK]
        if not masks:
            post += 1
        if post > task.max_post_steps:
            break
        forwarded.append(tuple(tokens))
        answer = task.model(tuple(tokens))
        high = [i for i in masks if answer[i][1] > task.threshold]
        if len(high) < 1 and masks:
            high = [max(masks, key=lambda i: (answer[i][1], -i))]
        edits = [
            i
            for i in range(len(task.prompt), task.block)
            if i not in masks
            and answer[i][1] > task.edit_threshold
            and answer[i][0] != tokens[i]
        ]
        for i in high + edits:
            tokens[i] = answer[i][0]
        if not masks and not edits:
            break
    return Run([*forwarded, tuple(tokens)])


def decode(tasks: list[Task]) -> list[Run]:
    """The same blocks in one batch, as an engine drives the rule.

    A block that is done stays in the batch as a row without a canvas.
    """
    runs = [Run([task.start]) for task in tasks]
    active = [True] * len(tasks)
    post_steps = [0] * len(tasks)
    for step in range(200):
        batch = []
        for number, task in enumerate(tasks):
            state = runs[number].states[-1]
            masked = [active[number] and token == MASK for token in state]
            if active[number] and not any(masked):
                post_steps[number] += 1
            answer = task.model(state)
            row = Row(masked, [probability for _, probability in answer])
            row.step, row.post_steps = step, post_steps[number]
            row.tokens = [UNDEFINED if token == MASK else token for token in state]
            row.candidate = [token for token, _ in answer]
            row.editable = [
                active[number] and i >= len(task.prompt) and not masked[i]
                for i in range(task.block)
            ]
            for i in range(task.block):
                if not masked[i] and not row.editable[i]:
                    row.candidate[i], row.confidence[i] = UNDEFINED, NAN
            row.threshold, row.edit_threshold = task.threshold, task.edit_threshold
            row.max_post_steps = task.max_post_steps
            batch.append(row)
        decision = RULE.decide(as_step(batch, RULE))
        assert decision.done is not None
        for number, row in enumerate(batch):
            if not active[number]:
                assert not decision.write[number].any()
                continue
            state = runs[number].states[-1]
            of_row = decision.write[number].tolist()
            assert not any(of_row[row.block :])
            columns = zip(state, row.candidate, of_row[: row.block], strict=True)
            runs[number].states.append(
                tuple(new if write else old for old, new, write in columns)
            )
            active[number] = not bool(decision.done[number])
        if not any(active):
            return runs
    raise AssertionError("a block is never done")


def random_model(seed: int) -> Model:
    """A fixed answer to each state, of which a part goes for one and the same text."""
    target = Random(seed).choices(range(TOKENS), k=32)
    stubborn = Random(seed).choice((0.0, 0.5, 0.8, 0.95))
    probabilities = Random(seed).choice((PROBABILITIES, PROBABILITIES[-2:]))

    def model(state: State) -> Answer:
        draw = Random(f"{seed} {state}")
        return [
            (
                target[i] if draw.random() < stubborn else draw.randrange(TOKENS),
                draw.choice(probabilities),
            )
            for i in range(len(state))
        ]

    return model


def random_task(seed: int, block: int) -> Task:
    draw = Random(seed)
    return Task(
        model=random_model(seed),
        prompt=draw.choices(range(TOKENS), k=draw.randrange(block)),
        block=block,
        threshold=draw.choice(PROBABILITIES),
        edit_threshold=draw.choice((0.0, *PROBABILITIES)),
        max_post_steps=draw.choice((0, 1, 2, 5, 16)),
    )


BLOCKS = (1, 2, 4, 8, 32)
TASKS = {
    block: [random_task(1000 * block + seed, block) for seed in range(50)]
    for block in BLOCKS
}


@pytest.mark.parametrize("block", BLOCKS)
def test_whole_blocks_pass_through_the_same_states(block: int) -> None:
    """A block that ends a forward earlier or later than the authors' differs."""
    for first in range(0, len(TASKS[block]), 5):
        tasks = TASKS[block][first : first + 5]
        expected = [reference(task).states for task in tasks]
        assert [run.states for run in decode(tasks)] == expected


def test_blocks_of_other_lengths_in_the_batch_change_nothing() -> None:
    """What lies past a short block would keep it from being done."""
    for number in range(len(TASKS[1])):
        tasks = [TASKS[block][number] for block in BLOCKS]
        expected = [reference(task).states for task in tasks]
        assert [run.states for run in decode(tasks)] == expected


def test_the_random_blocks_end_in_all_ways() -> None:
    """Without circles and late ends the comparison above shows little."""
    settled = spent = circles = 0
    for task in [task for tasks in TASKS.values() for task in tasks]:
        states = reference(task).states
        post_steps = sum(MASK not in state for state in states[:-1])
        unchanged = states[-1] == states[-2]
        settled += unchanged
        spent += not unchanged and post_steps == task.max_post_steps > 0
        circles += len(set(states[:-1])) < len(states) - 1
    assert min(settled, spent, circles) >= 10, (settled, spent, circles)


def flip(state: State) -> Answer:
    """Replaces every 0 by 1 and everything else by 0, for ever."""
    return [(1 if token == 0 else 0, 1.0) for token in state]


@pytest.mark.parametrize("max_post_steps", range(5))
def test_a_block_that_flips_for_ever_has_its_post_steps(max_post_steps: int) -> None:
    """Without the limit the request would never end."""
    task = Task(flip, [3], 4, 0.5, 0.0, max_post_steps)
    (run,) = decode([task])
    assert run.states == reference(task).states
    assert run.forwards == 1 + max_post_steps
    assert run.states[-1] == (3, *[max_post_steps % 2] * 3)


def test_without_post_steps_the_first_full_block_is_final() -> None:
    """The forward that would confirm it must not be asked for."""
    task = Task(lambda state: [(1, 1.0)] * len(state), [], 4, 0.5, 0.0, 0)
    (run,) = decode([task])
    assert run.states == reference(task).states == [(MASK,) * 4, (1,) * 4]


def test_a_settled_block_takes_one_forward_to_confirm() -> None:
    """That forward has the final tokens as its input, so that its KV is final."""
    task = Task(lambda state: [(1, 1.0)] * len(state), [], 4, 0.5, 0.0, 16)
    (run,) = decode([task])
    assert run.states == [(MASK,) * 4, (1,) * 4, (1,) * 4]


def test_decisions_are_boolean_tensors_of_the_canvas() -> None:
    """An engine writes through them."""
    decision = RULE.decide(as_step([uniform_row([0.5, 0.6])], RULE))
    assert decision.done is not None
    assert decision.write.dtype == decision.done.dtype == torch.bool
    assert (decision.write.shape, decision.done.shape) == ((1, 2), (1,))
