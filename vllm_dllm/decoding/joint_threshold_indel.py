"""joint_threshold_indel: joint_threshold whose edits also delete and insert positions.

Source: LLaDA2.2, on SGLang's schedule. The model may predict DELETE and SPLIT in place
of a token. With c_i the probability of the prediction t_i and x_i the input, a step

1. selects masks. They are *original* (masks since the block's first step) or *new*.
   With n new masks and an original one left: all masks with c_i > threshold, or the
   n + 1 surest if these are fewer. Without an original one: all.
2. edits decoded positions with t_i other than x_i and c_i > edit threshold (both
   strict).
3. is done if there is nothing to write. Else it writes, and where DELETE or SPLIT was
   written the block is laid out anew (`moved_by`). New masks fill it up.

A step is *final*, and the block done, once `max_post_steps` steps began without an
original mask (if that is 0, once no original mask is left behind), or after
B + `max_post_steps` steps. It writes every mask, and neither DELETE nor SPLIT.

Where the input of a step is one of an earlier step, the least sure position that
changes takes what the model would predict next to all that was written there.
"""

from typing import ClassVar

import torch

from vllm_dllm.decoding.base import CanvasStep, Decision, best

NEVER = -1
"""A mask, and what was written where nothing was."""


class JointThresholdIndel:
    parameters: ClassVar[frozenset[str]] = frozenset(
        {"threshold", "edit_threshold", "max_post_steps"}
    )
    needs: ClassVar[frozenset[str]] = frozenset({"moves"})
    revises: ClassVar[bool] = True
    softens: ClassVar[bool] = False
    memory: ClassVar[dict[str, torch.dtype]] = {
        "indel_input": torch.int32,
        "indel_written": torch.int32,
        "indel_original": torch.bool,
    }
    """The block before each step; what each step wrote; after each step, the masks
    that were there from the first on."""

    def memory_steps(self, block: int, parameters: dict[str, int | float]) -> int:
        return block + int(parameters["max_post_steps"]) + 1

    def decide(self, canvas: CanvasStep) -> Decision:
        assert canvas.moves is not None and canvas.still is not None
        masked, editable = canvas.masked, canvas.editable
        candidate, confidence = canvas.candidate, canvas.confidence
        limit, memory = canvas.params, canvas.memory
        block = torch.where(masked, NEVER, torch.where(editable, canvas.tokens, 0))
        steps = memory["indel_input"].shape[2]
        now = canvas.step.clamp(max=steps - 1)
        past = torch.arange(steps, device=now.device) < now.unsqueeze(1)
        begins = (now == 0).unsqueeze(1)

        original = masked & (begins | at(memory["indel_original"], now - 1))
        has_original = original.any(dim=1)
        post_steps = limit["max_post_steps"]
        final = without_original(memory, past) + ~has_original >= post_steps
        final = torch.where(post_steps > 0, final, ~has_original)
        final |= canvas.step >= canvas.length + post_steps
        taken = self._selected(canvas, original, has_original)
        final |= (post_steps == 0) & ~(original & ~taken).any(dim=1)
        taken |= masked & final.unsqueeze(1)
        changes = candidate != block
        sure = confidence > limit["edit_threshold"].unsqueeze(1)
        write = taken | (editable & changes & sure)

        is_move = (candidate == canvas.moves.delete) | (candidate == canvas.moves.split)
        tokens = torch.where(final.unsqueeze(1) & is_move, canvas.still, candidate)
        same = (memory["indel_input"] == block.unsqueeze(2)).all(dim=1) & past
        loops = same.any(dim=1) & ~final
        tokens = self._without_loop(canvas, tokens, write & changes, loops, past)

        is_move = (tokens == canvas.moves.delete) | (tokens == canvas.moves.split)
        decoded = write & ~is_move
        source = moved_by(tokens, write, canvas)
        remember(memory["indel_input"], now, block)
        remember(memory["indel_written"], now, torch.where(write, tokens, NEVER))
        remember(memory["indel_original"], now, follow(original & ~decoded, source))
        done = final | ~write.any(dim=1)
        return Decision(decoded, done, tokens=tokens, source=source)

    def _selected(
        self, canvas: CanvasStep, original: torch.Tensor, has_original: torch.Tensor
    ) -> torch.Tensor:
        """[n, block] bool: the masks that become tokens if the step is not final."""
        masked, count = canvas.masked, canvas.masked.sum(dim=1)
        needed = (1 + count - original.sum(dim=1)).minimum(count)
        above = masked & (canvas.confidence > canvas.params["threshold"].unsqueeze(1))
        # The positions above the threshold are the surest ones, so the larger of the
        # two sets holds the smaller.
        wanted = torch.maximum(above.sum(dim=1), needed)
        wanted = torch.where(has_original, wanted, count)
        return best(canvas.confidence, masked, wanted)

    def _without_loop(
        self,
        canvas: CanvasStep,
        tokens: torch.Tensor,
        changed: torch.Tensor,
        loops: torch.Tensor,
        past: torch.Tensor,
    ) -> torch.Tensor:
        """`tokens`, of which one is another in blocks that go round in circles.

        Args:
            changed: [n, block] bool: positions that would change.
            loops: [n] bool.
            past: [n, steps] bool: earlier steps of the block.
        """
        assert canvas.another is not None
        unsure = best(-canvas.confidence, changed, changed.any(dim=1).long())
        column = unsure.long().argmax(dim=1)
        written = canvas.memory["indel_written"][rows_of(column), column]
        taken = written.long().masked_fill(~past, NEVER)
        other = canvas.another(column, taken).unsqueeze(1)
        return torch.where(unsure & loops.unsqueeze(1), other, tokens)


def moved_by(
    tokens: torch.Tensor, write: torch.Tensor, canvas: CanvasStep
) -> torch.Tensor:
    """Where the content of each position comes from, as `Decision.source`.

    From left to right: nothing stands for a DELETE, for a SPLIT a mask and the old
    content of its position, for all else that position. What goes past the end of the
    block is lost; what is missing there are masks.

    Args:
        tokens: [n, block] int64, what is written; write: [n, block] bool.
    """
    assert canvas.moves is not None
    end, width = canvas.length.unsqueeze(1), tokens.shape[1]
    column = torch.arange(width, device=tokens.device).expand_as(tokens)
    deletes = write & (tokens == canvas.moves.delete)
    splits = (write & (tokens == canvas.moves.split)).long()
    size = 1 - deletes.long() + splits
    place = size.cumsum(dim=1) - size + splits
    is_lost = deletes | (place >= end) | (column >= end)
    source = torch.full((len(tokens), width + 1), NEVER, device=tokens.device)
    source.scatter_(1, place.masked_fill(is_lost, width), column)
    return torch.where(column < end, source[:, :width], column)


def follow(values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """[n, block] bool, moved as `source` says; False for new masks."""
    return values.gather(1, source.clamp(min=0)) & (source >= 0)


def rows_of(index: torch.Tensor) -> torch.Tensor:
    """[n] int64: 0 to n - 1."""
    return torch.arange(len(index), device=index.device)


def at(memory: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """[n, block]: what [n, block, steps] holds of a step, [n] int64."""
    return memory[rows_of(step), :, step]


def remember(memory: torch.Tensor, step: torch.Tensor, values: torch.Tensor) -> None:
    memory[rows_of(step), :, step] = values.to(memory.dtype)


def without_original(
    memory: dict[str, torch.Tensor], past: torch.Tensor
) -> torch.Tensor:
    """[n] int64: how many of the `past` steps, [n, steps], began without an original
    mask."""
    # The first step begins with masks alone.
    after = memory["indel_original"].any(dim=1)[:, :-1]
    return (past[:, 1:] & ~after).sum(dim=1)
