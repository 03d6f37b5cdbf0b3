"""A window that slides: what a step forwards, and whole answers against plain loops."""

from random import Random
from typing import Any

import pytest
import torch

from tests.worker.desk import MASK, MAX_LEN, Desk, Step, TableLogits
from vllm_dllm.worker.spans.window import WindowLayout

WISHES = {"algorithm": "wedlm", "entropy_threshold": 1.0, "pos_penalty_factor": 0.05}


def by_hand(
    logits: TableLogits, prompt: int, max_tokens: int, window: int
) -> list[int]:
    """The answer of a request with these wishes."""
    answer: list[int] = []
    slots: dict[int, int] = {}
    step = 0
    while len(answer) < max_tokens:
        known = prompt + len(answer)
        end = min(known + window, MAX_LEN)
        masks = [p for p in range(known, end) if p not in slots]
        score, token = {}, {}
        for position in masks:
            row = logits.table[(7 * position + 131 * step) % len(logits.table)].clone()
            row[MASK] = -torch.inf
            entropy = float(torch.special.entr(row.softmax(0)).sum())
            score[position] = entropy + 0.05 * (position - masks[0])
            token[position] = int(row.argmax())
        settled = [p for p in masks if score[p] < 1.0]
        for position in settled or [min(masks, key=lambda p: (score[p], p))]:
            slots[position] = token[position]
        step = 0 if len(slots) == end - known else step + 1
        while prompt + len(answer) in slots:
            answer.append(slots.pop(prompt + len(answer)))
    return answer[:max_tokens]


def added(desk: Desk, number: int, random: Random) -> tuple[int, int, int]:
    """A random request; the length of its prompt and answer, and its window."""
    prompt = random.randint(1, 30)
    longest = MAX_LEN - prompt
    max_tokens = random.choice((longest, random.randint(1, longest)))
    window = random.randint(1, 20)
    tokens = [random.randrange(2, MASK) for _ in range(prompt)]
    wishes = {**WISHES, "window": window}
    desk.add(f"r{number}", tokens, wishes, max_tokens=max_tokens)
    return prompt, max_tokens, window


@pytest.mark.parametrize("seed", range(8))
def test_windows_of_any_length_answer_as_if_they_were_alone(seed: int) -> None:
    """Columns of a ring that are mixed up, or those of a longer window beside it, give
    a position the token of another one."""
    random, logits = Random(seed), TableLogits(seed)
    desk = Desk("window")
    desk.budget = random.choice((20, 30, 500))
    shapes = [added(desk, number, random) for number in range(5)]
    requests = dict(desk.running)
    steps = 0
    while desk.running:
        step = desk.step(logits)
        check_order(desk, step)
        if random.random() < 0.3 and desk.running:
            desk.preempt(random.choice([*desk.running]))
        steps += 1
        assert steps < 500
    for (name, request), shape in zip(requests.items(), shapes, strict=True):
        assert request.answer == by_hand(logits, *shape), (name, shape)


def check_order(desk: Desk, step: Step) -> None:
    """Known tokens, then decoded positions, then masks; each where its row is."""
    ids, position = step.token_ids.tolist(), step.spans.position.tolist()
    for index, span in enumerate(step.planned):
        begin, end = step.spans.query_start[index : index + 2].tolist()
        known = span.known - span.start
        mine, places = ids[begin:end], position[begin:end]
        assert places[:known] == [*range(span.start, span.end)][:known]
        assert sorted(places) == [*range(span.start, span.end)]
        window = [*zip(mine[known:], places[known:], strict=True)]
        assert window == sorted(window, key=lambda pair: (pair[0] == MASK, pair[1]))
    request, column = step.batch.cell
    forwarded = step.spans.position[step.rows]
    assert torch.equal(forwarded, step.spans.block_start[request] + column)


def test_attention_is_one_causal_row_for_each_request() -> None:
    """More rows than requests overflow the buffers of a backend."""
    desk = Desk("window")
    for number, window in enumerate((3, 9)):
        desk.add(f"r{number}", [5] * 7, {**WISHES, "window": window})
    step = desk.step(TableLogits(0))
    rows = desk.slots.layout.attention_rows(step.input_batch, 2, step.spans)
    assert rows.seq_lens.tolist() == [10, 16] and rows.owner is None
    assert isinstance(desk.slots.layout, WindowLayout)


def test_what_left_a_window_makes_room_for_masks() -> None:
    """A token that left would stand again where the ring comes round."""
    desk, logits = Desk("window"), TableLogits(3)
    fields: dict[str, Any] = {"algorithm": "sequential", "window": 4}
    request = desk.add("a", [5] * 6, fields, max_tokens=12)
    for _ in range(9):
        step = desk.step(logits)
        assert step.token_ids.tolist()[-4:] == [MASK] * 4
    assert len(request.answer) == 9
