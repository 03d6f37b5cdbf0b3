"""What a request does to its logits besides temperature and filters.

logit_bias, allowed_token_ids, min_tokens, penalties and bad_words mean for a position
of a canvas what they mean for the next token of an autoregressive model, with all
tokens decoded so far, on both sides, in place of those before it.
"""

import torch
from vllm.sampling_params import SamplingParams


class LogitsRules:
    """The rules of one request. `needed` says whether it has any."""

    def __init__(self, params: SamplingParams, prompt_len: int, vocab: int) -> None:
        self.prompt_len = prompt_len
        self.vocab = vocab
        self.bias = dict(params.logit_bias or {})
        self.allowed = params.allowed_token_ids
        self.follows_grammar = params.structured_outputs is not None
        self.min_len = prompt_len + params.min_tokens
        self.stop_token_ids = sorted(params.all_stop_token_ids)
        self.presence = params.presence_penalty
        self.frequency = params.frequency_penalty
        self.repetition = params.repetition_penalty
        self.bad_words = params.bad_words_token_ids or []

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
            position: [rows] int64, absolute.
            sequence: [length] int64: its tokens up to the end of the block, -1 where
                one is not decoded yet.
        """
        for token, bias in self.bias.items():
            logits[:, token] += bias
        if self.allowed is not None:
            before = logits.clone() if self.follows_grammar else None
            banned = torch.ones(self.vocab, dtype=torch.bool, device=logits.device)
            banned[self.allowed] = False
            logits.masked_fill_(banned, float("-inf"))
            _keep_one(logits, before)
        self._penalize(logits, position, sequence)
        is_limited = self.follows_grammar or self.allowed is not None
        before = logits.clone() if is_limited else None
        early = position < self.min_len
        for token in self.stop_token_ids:
            logits[:, token].masked_fill_(early, float("-inf"))
        for words in self.bad_words:
            self._ban(logits, position, sequence, words)
        _keep_one(logits, before)

    def _penalize(
        self, logits: torch.Tensor, position: torch.Tensor, sequence: torch.Tensor
    ) -> None:
        if not (self.presence or self.frequency or self.repetition != 1.0):
            return
        answer = sequence[self.prompt_len :]
        counts = torch.bincount(answer[answer >= 0], minlength=self.vocab)
        counts = counts.repeat(len(position), 1)
        # A decoded position that may be revised does not count against itself.
        own = sequence[position]
        row = (own >= 0).nonzero().squeeze(1)
        counts[row, own[row]] -= 1
        if self.repetition != 1.0:
            seen = counts > 0
            seen[:, sequence[: self.prompt_len]] = True
            penalized = torch.where(
                logits > 0, logits / self.repetition, logits * self.repetition
            )
            torch.where(seen, penalized, logits, out=logits)
        logits -= self.frequency * counts
        logits -= self.presence * (counts > 0)

    def _ban(
        self,
        logits: torch.Tensor,
        position: torch.Tensor,
        sequence: torch.Tensor,
        words: list[int],
    ) -> None:
        """Ban the token that would complete `words`, whichever of them it is."""
        length = len(sequence)
        for index, token in enumerate(words):
            complete = torch.ones_like(position, dtype=torch.bool)
            for other, word in enumerate(words):
                if other == index:
                    continue
                place = position - index + other
                inside = (place >= self.prompt_len) & (place < length)
                complete &= inside & (sequence[place.clamp(0, length - 1)] == word)
            logits[:, token].masked_fill_(complete, float("-inf"))

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


def _keep_one(logits: torch.Tensor, before: torch.Tensor | None) -> None:
    """Take back, in place, what left a row without a token; None: nothing can have.

    A grammar comes first, then `allowed_token_ids`, then the bans.
    """
    if before is not None:
        empty = (logits == float("-inf")).all(dim=1, keepdim=True)
        torch.where(empty, before, logits, out=logits)
