"""joint_threshold_indel against lists and sets (tests/reference), step by step.

Whole blocks of a model that is a table of random answers, and the move of the contents
of a block by itself.
"""

from dataclasses import dataclass
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.decoding.canvas_steps import UNDEFINED, Row, as_step
from tests.reference.joint_threshold_indel import Block, rebuilt
from vllm_dllm.decoding.base import CanvasStep, Moves
from vllm_dllm.decoding.joint_threshold_indel import JointThresholdIndel, moved_by

RULE = JointThresholdIndel()
VOCAB, DELETE, SPLIT, MASK = 40, 38, 39, 99
MOVES = Moves(DELETE, SPLIT)

Probs = torch.Tensor
"""[block, VOCAB] float32."""


@dataclass
class Task:
    """One block, and what the model says of each of its states."""

    block: int
    prompt: list[int]
    seed: int
    threshold: float
    edit_threshold: float
    max_post_steps: int
    liking: float
    """How much the model holds on to what stands; the less, the longer it edits."""

    def probs(self, state: list[int]) -> Probs:
        draw = Random(f"{self.seed} {state}")
        generator = torch.Generator().manual_seed(draw.getrandbits(60))
        logits = torch.randn(self.block, VOCAB, generator=generator)
        # Few tokens, so that states come back.
        logits[:, [0, 1, DELETE, SPLIT]] += torch.tensor([2.0, 2.0, 1.5, 1.5])
        for place, token in enumerate(state):
            if token != MASK:
                logits[place, token] += self.liking
        return logits.softmax(-1)

    def start(self) -> list[int]:
        return self.prompt + [MASK] * (self.block - len(self.prompt))

    def by_hand(self) -> Block:
        limits = self.threshold, self.edit_threshold, self.max_post_steps
        size = len(self.prompt)
        return Block(self.start(), size, MASK, DELETE, SPLIT, *limits)


def random_task(seed: int, block: int) -> Task:
    draw = Random(seed)
    prompt = [draw.randrange(30) for _ in range(draw.choice((0, 0, block // 2)))]
    return Task(
        block,
        prompt,
        seed,
        threshold=draw.choice((0.0, 0.2, 0.5, 1.0)),
        edit_threshold=draw.choice((0.0, 0.0, 0.3, 0.9)),
        max_post_steps=draw.choice((0, 1, 2, 5, 16)),
        liking=draw.choice((0.0, 1.0, 2.0, 4.0)),
    )


def states_by_hand(task: Task) -> list[list[int]]:
    block = task.by_hand()
    states = [block.tokens]
    while not block.done:
        probs, order = task.probs(block.tokens).sort(
            stable=True, dim=-1, descending=True
        )
        block.step(
            [
                list(zip(*of_place, strict=True))
                for of_place in zip(order.tolist(), probs.tolist(), strict=True)
            ]
        )
        states.append(block.tokens)
    return states


def as_rows(tasks: list[Task], states: list[list[int]], step: int) -> CanvasStep:
    rows = []
    for task, state in zip(tasks, states, strict=True):
        first = len(task.prompt)
        masked = [t == MASK for t in state]
        best = task.probs(state).max(-1)
        rows.append(
            Row(
                masked,
                best.values.tolist(),
                step=step,
                editable=[i >= first and not masked[i] for i in range(task.block)],
                tokens=[UNDEFINED if t == MASK else t for t in state],
                candidate=best.indices.tolist(),
                threshold=task.threshold,
                edit_threshold=task.edit_threshold,
                max_post_steps=task.max_post_steps,
            )
        )
    return as_step(rows, RULE)


def states_of_rule(tasks: list[Task]) -> list[list[list[int]]]:
    """All blocks at once; one that is done stands still and is asked on."""
    states = [task.start() for task in tasks]
    runs, done = [[state] for state in states], [False] * len(tasks)
    width = max(task.block for task in tasks)
    steps = max(RULE.memory_steps(t.block, vars(t)) for t in tasks)
    memory = {
        name: torch.zeros(len(tasks), width, steps, dtype=dtype)
        for name, dtype in RULE.memory.items()
    }
    step = 0
    while not all(done):
        canvas = as_rows(tasks, states, step)
        probs = torch.zeros(len(tasks), width, VOCAB)
        for index, (task, state) in enumerate(zip(tasks, states, strict=True)):
            probs[index, : task.block] = task.probs(state)
        still = probs.clone()
        still[:, :, list(MOVES)] = 0

        def another(
            column: torch.Tensor, taken: torch.Tensor, probs: torch.Tensor = probs
        ) -> torch.Tensor:
            rows = probs[torch.arange(len(column)), column].clone()
            for row, tokens in zip(rows, taken, strict=True):
                row[tokens[tokens >= 0]] = 0
            return rows.argmax(-1)

        canvas.moves, canvas.still, canvas.another = MOVES, still.argmax(-1), another
        canvas.memory = memory
        decision = RULE.decide(canvas)
        assert decision.tokens is not None and decision.source is not None
        assert decision.done is not None
        written = torch.where(decision.write, decision.tokens, canvas.tokens)
        written[canvas.masked & ~decision.write] = MASK
        moved = written.gather(1, decision.source.clamp(min=0))
        moved[decision.source < 0] = MASK
        for index, task in enumerate(tasks):
            if not done[index]:
                states[index] = moved[index, : task.block].tolist()
                runs[index].append(states[index])
                done[index] = bool(decision.done[index])
        step += 1
    return runs


BLOCKS = (1, 2, 4, 8)
TASKS = {
    block: [random_task(1000 * block + seed, block) for seed in range(60)]
    for block in BLOCKS
}


@pytest.mark.parametrize("block", BLOCKS)
def test_whole_blocks_pass_through_the_same_states(block: int) -> None:
    """A floor, a count or a history that is off by one gives other tokens."""
    for first in range(0, len(TASKS[block]), 10):
        tasks = TASKS[block][first : first + 10]
        assert states_of_rule(tasks) == [states_by_hand(task) for task in tasks]


def test_blocks_of_other_lengths_in_the_batch_change_nothing() -> None:
    """What lies past a short block would be moved into it."""
    for number in range(0, 60, 4):
        tasks = [TASKS[block][number] for block in BLOCKS]
        assert states_of_rule(tasks) == [states_by_hand(task) for task in tasks]


def test_the_random_blocks_end_in_all_ways() -> None:
    """Without circles, late ends and moves the comparison above shows little."""
    settled = spent = circles = at_once = full = 0
    for task in [task for tasks in TASKS.values() for task in tasks]:
        states = [tuple(state) for state in states_by_hand(task)]
        ended = states[-1] == states[-2]
        settled += ended
        spent += not ended and task.max_post_steps > 0
        at_once += not ended and task.max_post_steps == 0
        circles += len(set(states[:-1])) < len(states) - 1
        full += len(states) - 1 == task.block + task.max_post_steps + 1
    found = settled, spent, circles, at_once, full
    assert min(found[:4]) >= 10 and full, found


def test_no_block_ends_with_a_mask_or_with_what_moves_others() -> None:
    """They have no text."""
    for task in [task for tasks in TASKS.values() for task in tasks]:
        assert not {MASK, DELETE, SPLIT} & set(states_by_hand(task)[-1])


@st.composite
def written_blocks(draw: st.DrawFn) -> tuple[int, int, dict[int, int]]:
    """Length of a block, length of the prompt in it, what is written where."""
    block = draw(st.integers(1, 12))
    first = draw(st.integers(0, block - 1))
    token = st.sampled_from([5, DELETE, DELETE, SPLIT, SPLIT])
    return block, first, draw(st.dictionaries(st.integers(first, block - 1), token))


@given(st.lists(written_blocks(), min_size=1, max_size=4))
def test_contents_move_as_if_laid_down_from_left_to_right(
    blocks: list[tuple[int, int, dict[int, int]]],
) -> None:
    """A token would be lost, doubled, or come from a neighbour."""
    width = max(block for block, _, _ in blocks)
    tokens = torch.full((len(blocks), width), UNDEFINED)
    write = torch.zeros(len(blocks), width, dtype=torch.bool)
    rows, expected = [], []
    for index, (block, first, written) in enumerate(blocks):
        for place, token in written.items():
            tokens[index, place], write[index, place] = token, True
        rows.append(Row([False] * block, [0.0] * block))
        sources = rebuilt([0] * block, written, first, DELETE, SPLIT)
        known = [-1 if source is None else source for source in sources]
        expected.append(known + list(range(block, width)))
    canvas = as_step(rows, RULE)
    canvas.moves = MOVES
    assert moved_by(tokens, write, canvas).tolist() == expected
