"""What a request does to its logits besides temperature and filters.

logit_bias, allowed_token_ids, min_tokens, penalties and bad_words mean for a position
of a canvas what they mean for the next token of an autoregressive model, with all
tokens decoded so far, on both sides, in place of those before it.

Whatever vLLM accepts is computed: a logit that was a number stays one or is banned, and
a row that had a token keeps one.
"""

from collections import defaultdict

import torch
from torch.nn.functional import pad
from vllm.sampling_params import SamplingParams

LIMIT = 1e30
"""Larger values count as this one: float32 still holds it over any temperature."""
TAKEN = 3
"""Tokens that may have been taken from every row: the mask, and those that move
others."""
FAR = 2**62
"""Beyond every position, and an int64 like them."""


def _limited(value: float) -> float:
    return min(LIMIT, max(-LIMIT, value))


class LogitsRules:
    """The rules of one request. `needed` says whether it has any."""

    def __init__(self, params: SamplingParams, prompt_len: int, vocab: int) -> None:
        self.prompt_len = prompt_len
        self.vocab = vocab
        bias = params.logit_bias or {}
        self.biased = torch.tensor(list(bias), dtype=torch.int64)
        self.bias = torch.tensor([*map(_limited, bias.values())], dtype=torch.float32)
        self.not_allowed: torch.Tensor | None = None
        """[vocab] bool."""
        if params.allowed_token_ids is not None:
            self.not_allowed = torch.ones(vocab, dtype=torch.bool)
            self.not_allowed[params.allowed_token_ids] = False
        self.follows_grammar = params.structured_outputs is not None
        self.presence = params.presence_penalty
        self.frequency = params.frequency_penalty
        self.repetition = _limited(params.repetition_penalty)
        self.min_len = min(prompt_len + params.min_tokens, FAR)
        # A checkpoint can name ends, and its tokenizer tokens, that the model lacks.
        stops = [token for token in params.all_stop_token_ids if 0 <= token < vocab]
        self.stops = torch.tensor(sorted(stops), dtype=torch.int64)
        self.bad_words = [
            words
            for words in params.bad_words_token_ids or []
            if words and all(0 <= token < vocab for token in words)
        ]
        by_length: defaultdict[int, list[list[int]]] = defaultdict(list)
        for words in self.bad_words:
            by_length[len(words)].append(words)
        self.bad_words_by_length = [torch.tensor(same) for same in by_length.values()]
        """[words, length] int64 each."""
        num_bans = len(stops) + sum(map(len, self.bad_words))
        self.may_leave_none = (
            self.follows_grammar
            or self.not_allowed is not None
            or num_bans >= vocab - TAKEN
        )
        """Whether a row could be without a token after the bans."""

    @staticmethod
    def needed(params: SamplingParams) -> bool:
        return bool(
            params.logit_bias
            or params.allowed_token_ids
            or params.min_tokens
            or params.presence_penalty
            or params.frequency_penalty
            or params.repetition_penalty != 1.0
            or params.bad_words_token_ids
        )

    def apply(
        self, logits: torch.Tensor, position: torch.Tensor, sequence: torch.Tensor
    ) -> None:
        """Change the rows of the request in place.

        Args:
            logits: [rows, vocab] float32.
            position: [rows] int64, absolute. Rows of positions in the prompt or after
                the block, which the device may compute, come to no harm.
            sequence: [length] int64: its tokens up to the end of the block, -1 where
                one is not decoded yet.
        """
        device = logits.device
        biased, stops = self.biased.to(device), self.stops.to(device)
        logits[:, biased] += self.bias.to(device)
        if self.not_allowed is not None:
            before = logits.clone() if self.follows_grammar else None
            logits.masked_fill_(self.not_allowed.to(device), float("-inf"))
            _keep_one(logits, before)
        # Two places without a token: the one after the answer, and one for all others.
        answer = pad(sequence[self.prompt_len :], (0, 2), value=-1)
        place, nowhere = position - self.prompt_len, len(answer) - 1
        place = place.masked_fill((place < 0) | (place > nowhere), nowhere)
        self._penalize(logits, place, answer, sequence[: self.prompt_len])
        before = logits.clone() if self.may_leave_none else None
        early = (position < self.min_len).unsqueeze(1)
        logits[:, stops] = logits[:, stops].masked_fill(early, float("-inf"))
        for words in self.bad_words_by_length:
            _ban(logits, place, answer, words.to(device))
        _keep_one(logits, before)

    def _penalize(
        self,
        logits: torch.Tensor,
        place: torch.Tensor,
        answer: torch.Tensor,
        prompt: torch.Tensor,
    ) -> None:
        """Change the columns of tokens that are in answer or prompt.

        Args:
            place: [rows] int64, index into `answer`.
            answer, prompt: [length] int64.
        """
        if not (self.presence or self.frequency or self.repetition != 1.0):
            return
        # The other penalties are about tokens of the answer alone.
        given = prompt if self.repetition != 1.0 else prompt[:0]
        given = given[(given >= 0) & (given < self.vocab)]
        decoded = answer[answer >= 0]
        token, index = torch.cat([given, decoded]).unique(return_inverse=True)
        counts = torch.bincount(index[len(given) :], minlength=len(token)).int()
        # A decoded position that may be revised does not count against itself.
        counts = counts - (token == answer[place].unsqueeze(1)).int()
        columns = logits[:, token]
        if self.repetition != 1.0:
            seen = counts > 0
            seen[:, index[: len(given)]] = True
            penalized = torch.where(
                columns > 0, columns / self.repetition, columns * self.repetition
            ).clamp(-LIMIT, LIMIT)
            columns = torch.where(seen & columns.isfinite(), penalized, columns)
        columns -= self.frequency * counts
        columns -= self.presence * (counts > 0)
        logits[:, token] = columns

    def conflicts(
        self,
        before: torch.Tensor,
        after: torch.Tensor,
        confidence: torch.Tensor,
        block_start: int,
    ) -> list[int]:
        """Positions whose tokens were written in one step and make a bad word together.

        Each was allowed by itself. Of each such group the least sure is named; the
        others stand, so that the step is never without effect.

        Args:
            before, after: [length] int64 sequences around the step, -1 where masked.
            confidence: [length] float32, of the written tokens.
            block_start: nothing before it was written.
        """
        old, new = before.tolist(), after.tolist()
        dropped: list[int] = []
        while (place := self._worst(old, new, confidence, block_start)) is not None:
            # What comes back may be part of a bad word too, of one that was looked at.
            new[place] = old[place]
            dropped.append(place)
        return dropped

    def _worst(
        self,
        old: list[int],
        new: list[int],
        confidence: torch.Tensor,
        block_start: int,
    ) -> int | None:
        """The least sure of the written positions of a bad word in `new`, if there is
        one. A single one was written because no other token was left (`apply`)."""
        for words in self.bad_words:
            # A window that touches the block begins at most this far before it.
            first = max(self.prompt_len, block_start - len(words) + 1)
            for start in range(first, len(new) - len(words) + 1):
                places = range(start, start + len(words))
                if new[start : places.stop] != words:
                    continue
                written = [place for place in places if new[place] != old[place]]
                if len(written) > 1:
                    return min(written, key=lambda place: float(confidence[place]))
        return None


def _ban(
    logits: torch.Tensor,
    place: torch.Tensor,
    answer: torch.Tensor,
    words: torch.Tensor,
) -> None:
    """Ban tokens that would complete one of `words`, whichever of its tokens it is.

    Args:
        logits: [rows, vocab] float32; changed in place.
        place: [rows] int64, index into `answer`.
        answer: [length] int64.
        words: [words, tokens] int64.
    """
    num_words, num_tokens = words.shape
    first = max(0, int(place.min()) - num_tokens + 1)
    answer, place = answer[first:], place - first
    stands = torch.ones(num_words, len(answer), dtype=torch.bool, device=answer.device)
    # [words, length] each: whether the tokens before the i-th stand right before a
    # place, and those after it right behind the place.
    before = [stands]
    for token in words.T[:-1]:
        ends = before[-1] & (answer == token.unsqueeze(1))
        before.append(pad(ends[:, :-1], (1, 0)))
    behind = stands
    for index in reversed(range(num_tokens)):
        token = words[:, index]
        word, row = (before[index] & behind)[:, place].nonzero(as_tuple=True)
        logits[row, token[word]] = float("-inf")
        begins = behind & (answer == token.unsqueeze(1))
        behind = pad(begins[:, 1:], (0, 1))


def _keep_one(logits: torch.Tensor, before: torch.Tensor | None) -> None:
    """Take back, in place, what left a row without a token; None: nothing can have.

    A grammar comes first, then `allowed_token_ids`, then the bans.
    """
    if before is not None:
        empty = (logits == float("-inf")).all(dim=1, keepdim=True)
        torch.where(empty, before, logits, out=logits)
