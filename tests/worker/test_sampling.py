"""Candidates of a step: which probabilities a confidence is taken from, and of whom."""

from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams

from tests.decodings import decoding
from tests.worker import desk as worker
from tests.worker.blocks import gather
from tests.worker.desk import CPU, EOS, EOT, MASK, VOCAB, Running
from vllm_dllm.config import Facts
from vllm_dllm.ops.candidate import Candidates
from vllm_dllm.worker import sampling as module
from vllm_dllm.worker.canvas_batch import CanvasBatch
from vllm_dllm.worker.sampling import Sampling

SLOTS, START = 4, 5
CLEAN = Facts(clean_confidence=True, eos_token_id=EOS, eot_token_id=EOT)
FILTERED = Facts(eos_token_id=EOS, eot_token_id=EOT)


class Desk:
    """The requests of a step with all of their blocks masked, and their logits."""

    def __init__(self, facts: Facts, block: int = 6) -> None:
        self.desk = worker.Desk("full", SLOTS, block)
        self.block = block
        self.canvas = self.desk.slots.canvas
        self.sampling = Sampling(SLOTS, VOCAB, CPU, facts)
        self.requests: list[Running] = []

    def add(self, slot: int, dllm: dict[str, Any] | None = None, **fields: Any) -> None:
        prompt, block = [5] * START, self.block
        request = self.desk.add(str(slot), prompt, slot=slot, max_tokens=block)
        asked = SamplingParams(seed=slot, max_tokens=99, **fields)
        settled = decoding(**(dllm or {}))
        self.sampling.add_request(str(slot), slot, asked, START, settled)
        self.requests.append(request)

    def batch(self) -> CanvasBatch:
        return gather(self.desk, self.requests, [START] * len(self.requests))

    def propose(self, logits: torch.Tensor, *needs: str) -> Candidates:
        known = torch.zeros(SLOTS, 50).int()
        return self.sampling.propose(
            logits.clone(), self.batch(), MASK, bool(needs), known
        )


def logits_of(rows: int, seed: int = 0) -> torch.Tensor:
    """Rows in which an end token is about as likely as others."""
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def probabilities(logits: torch.Tensor, without: tuple[int, ...] = ()) -> torch.Tensor:
    """The softmax of rows in float64; the mask and `without` have no part in it."""
    values = logits.double().clone()
    values[:, [MASK, *without]] = float("-inf")
    return values.softmax(dim=1)


def of_tokens(probs: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    return probs.gather(1, tokens.unsqueeze(1)).squeeze(1).tolist()


WARM = {"temperature": 0.7, "top_k": 4, "top_p": 0.9}


def test_a_clean_confidence_is_that_of_the_models_own_distribution() -> None:
    """LLaDA draws with noise and asks the untouched softmax how sure it was. From the
    filtered one, a token that is hardly likely would look sure."""
    desk = Desk(CLEAN)
    desk.add(1, **WARM)
    logits = logits_of(6)
    found = desk.propose(logits)
    expected = of_tokens(probabilities(logits), found.token)
    assert found.confidence.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.token.tolist() != probabilities(logits).argmax(dim=1).tolist()


def test_a_request_without_rows_draws_nothing() -> None:
    """The only one with a top-k may be in the chunks of its prompt: vLLM's filter fails
    on no rows, and would end the engine for everyone."""
    desk = Desk(FILTERED)
    desk.add(0, temperature=0)
    desk.add(1, temperature=0.7, top_k=4)
    batch = gather(desk.desk, desk.requests, [START] * 2, active=[True, False])
    logits, known = logits_of(len(batch.cell[0])), torch.zeros(SLOTS, 50).int()
    assert set(batch.request.tolist()) == {0}
    found = desk.sampling.propose(logits.clone(), batch, MASK, False, known)
    assert found.token.tolist() == probabilities(logits).argmax(dim=1).tolist()


def test_a_filtered_confidence_is_that_of_the_draw() -> None:
    """Dream and SDAR ask the distribution that the token was drawn from."""
    desk = Desk(FILTERED)
    desk.add(1, **WARM)
    logits = logits_of(6)
    found = desk.propose(logits)
    tempered = logits / WARM["temperature"]
    expected = []
    for row, token in zip(tempered.double(), found.token.tolist(), strict=True):
        row[MASK] = float("-inf")
        best = row.topk(4)
        probs = best.values.softmax(0)
        before = probs.cumsum(0) - probs
        kept = probs.masked_fill(before >= WARM["top_p"], 0)
        place = best.indices.tolist().index(token)
        expected.append(float(kept[place] / kept.sum()))
    assert found.confidence.tolist() == pytest.approx(expected, abs=1e-5)
    clean = of_tokens(probabilities(logits), found.token)
    assert found.confidence.tolist() != pytest.approx(clean, abs=1e-2)


def test_both_draw_the_same_tokens() -> None:
    """How sure it was must not change what is drawn."""
    tokens = []
    for facts in (CLEAN, FILTERED):
        desk = Desk(facts)
        desk.add(1, **WARM)
        tokens.append(desk.propose(logits_of(6)).token.tolist())
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("facts", [CLEAN, FILTERED], ids=["clean", "filtered"])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_entropy_and_margin_are_of_the_distribution_of_the_confidence(
    facts: Facts, temperature: float
) -> None:
    """A rule would compare measures of two different distributions."""
    desk = Desk(facts)
    desk.add(2, temperature=temperature)
    logits = logits_of(6)
    found = desk.propose(logits, "entropy", "margin")
    heat = 1.0 if facts is CLEAN or temperature == 0 else temperature
    probs = probabilities(logits / heat)
    first, second = probs.topk(2, dim=1).values.unbind(1)
    entropy = -(probs * probs.clamp(min=1e-300).log()).sum(dim=1)
    assert found.entropy is not None and found.margin is not None
    assert found.entropy.tolist() == pytest.approx(entropy.tolist(), abs=1e-5)
    assert found.margin.tolist() == pytest.approx((first - second).tolist(), abs=1e-6)
    expected = of_tokens(probs, found.token)
    assert found.confidence.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("needs", [set(), {"entropy"}])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_without_an_end_of_text_it_is_neither_decoded_nor_counted(
    temperature: float, needs: set[str]
) -> None:
    """`logits_eos_inf`: a softmax that still holds it says less than it should."""
    desk = Desk(CLEAN)
    desk.add(0, {"logits_eos_inf": True}, temperature=temperature)
    logits = logits_of(6)
    logits[:, EOS] += 5
    found = desk.propose(logits, *needs)
    assert EOS not in found.token.tolist()
    probs = probabilities(logits, without=(EOS,))
    expected = of_tokens(probs, found.token)
    assert found.confidence.tolist() == pytest.approx(expected, abs=1e-6)
    if temperature == 0:
        assert found.token.tolist() == probs.argmax(dim=1).tolist()


@pytest.mark.parametrize("needs", [set(), {"margin"}])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_ends_are_left_out_of_the_confidence_and_may_be_decoded(
    temperature: float, needs: set[str]
) -> None:
    """`confidence_eos_eot_inf`: ends come last, and still come. With a temperature the
    end of the text keeps its share, as in LLaDA's script."""
    desk = Desk(CLEAN)
    desk.add(3, {"confidence_eos_eot_inf": True}, temperature=temperature)
    logits = logits_of(6)
    logits[0, EOS] = logits[1, EOT] = 30  # whatever is drawn, these are
    logits[2:, EOS] = logits[2:, EOT] = 3
    found = desk.propose(logits, *needs)
    assert found.token[:2].tolist() == [EOS, EOT]
    left_out = (EOS, EOT) if temperature == 0 else (EOT,)
    expected = of_tokens(probabilities(logits, without=left_out), found.token)
    assert found.confidence.tolist() == pytest.approx(expected, abs=1e-6)
    assert float(found.confidence[1]) == 0
    assert float(found.confidence[0]) == pytest.approx(float(temperature > 0), abs=1e-6)
    if temperature == 0:
        whole = probabilities(logits).argmax(dim=1)
        assert found.token.tolist() == whole.tolist()


def test_a_wish_about_ends_is_one_requests_own() -> None:
    """A neighbour's answer would never end, or end last."""
    desk = Desk(CLEAN)
    desk.add(2)
    desk.add(0, {"logits_eos_inf": True}, temperature=0.0)
    desk.add(3, temperature=0.0)
    desk.add(1, {"confidence_eos_eot_inf": True}, temperature=0.0)
    logits = logits_of(24)
    logits[:, EOS] += 4
    found = desk.propose(logits)
    no_eos, plain, late = (slice(6 * i, 6 * i + 6) for i in (1, 2, 3))
    for rows, without in ((no_eos, (EOS,)), (plain, ()), (late, (EOS, EOT))):
        probs = probabilities(logits[rows], without)
        expected = of_tokens(probs, found.token[rows])
        assert found.confidence[rows].tolist() == pytest.approx(expected, abs=1e-6)
    assert EOS not in found.token[no_eos].tolist()
    assert EOS in found.token[plain].tolist()
    assert EOS in found.token[late].tolist()


def test_a_slot_keeps_no_wish_of_its_former_request() -> None:
    """The next answer in the slot would never end."""
    desk = Desk(CLEAN)
    both = {"logits_eos_inf": True, "confidence_eos_eot_inf": True}
    desk.add(1, both, temperature=0.0)
    desk.requests.clear()
    desk.add(1, temperature=0.0)
    logits = logits_of(6)
    logits[:, EOS] += 9
    found = desk.propose(logits)
    expected = of_tokens(probabilities(logits), found.token)
    assert set(found.token.tolist()) == {EOS}
    assert found.confidence.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_family_without_such_tokens_has_nothing_to_leave_out() -> None:
    """An id of None would be an index of everything."""
    desk = Desk(Facts(clean_confidence=True))
    both = {"logits_eos_inf": True, "confidence_eos_eot_inf": True}
    desk.add(1, both, temperature=0.0)
    logits = logits_of(6)
    found = desk.propose(logits)
    probs = probabilities(logits)
    assert found.token.tolist() == probs.argmax(dim=1).tolist()
    expected = of_tokens(probs, found.token)
    assert found.confidence.tolist() == pytest.approx(expected, abs=1e-6)


def test_where_nothing_but_the_end_is_allowed_it_stays() -> None:
    """A row without any token has no distribution: the candidate would be token 0,
    which was not allowed, and its confidence not a number."""
    desk = Desk(CLEAN)
    desk.add(1, {"logits_eos_inf": True}, temperature=0.0, allowed_token_ids=[EOS])
    found = desk.propose(logits_of(6))
    assert found.token.tolist() == [EOS] * 6
    assert not found.confidence.isnan().any()


@pytest.mark.parametrize("highest", [0.0, 0.5, 1 - 2**-24, 1 - 2**-25, 1 - 2**-48])
def test_the_lot_of_a_position_is_below_1(
    monkeypatch: pytest.MonkeyPatch, highest: float
) -> None:
    """A mask with a lot of 1 is left behind by a step that decides all of them: float64
    just below 1 is 1 in float32."""

    def uniform(*of: Any) -> torch.Tensor:
        return torch.full((1, 6), highest, dtype=torch.float64)

    monkeypatch.setattr(module, "uniform", uniform)
    desk = Desk(CLEAN)
    desk.add(1)
    noise = desk.sampling.order_noise(desk.batch())
    assert noise.dtype == torch.float32
    assert bool((noise < 1).all())
    assert noise[0].tolist() == pytest.approx([highest] * 6, abs=1e-7)


def test_lots_of_positions_and_of_steps_differ() -> None:
    """In the same order at every step, a position that lost once loses always."""
    desk = Desk(CLEAN)
    desk.add(1)
    desk.add(3)
    first = desk.sampling.order_noise(desk.batch())
    desk.canvas.step.values[1] = 1
    second = desk.sampling.order_noise(desk.batch())
    assert len({*first.flatten().tolist(), *second[0].tolist()}) == 18
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("facts", [CLEAN, FILTERED], ids=["clean", "filtered"])
@pytest.mark.parametrize("top_k", [VOCAB + 1, 1000, 2**63, 0, -1])
def test_a_top_k_above_the_vocabulary_is_all_of_it(facts: Facts, top_k: int) -> None:
    """The kernel would look up the k-th best of fewer tokens: out of bounds, beside any
    request with a top_k of its own; a larger number fits no tensor."""
    found = []
    for number in (VOCAB, top_k):
        alone, beside = Desk(facts), Desk(facts)
        for desk in (alone, beside):
            desk.add(1, temperature=1.0, top_k=number)
        beside.add(2, temperature=1.0, top_k=5)
        logits = logits_of(12)
        for desk, rows in ((alone, logits[:6]), (beside, logits)):
            candidates = desk.propose(rows)
            found.append((candidates.token.tolist(), candidates.confidence.tolist()))
    assert found[:2] == found[2:]


@pytest.mark.parametrize("needs", [(), ("entropy", "margin")])
def test_with_all_positions_of_the_blocks_the_candidates_are_the_same(
    needs: tuple[str, ...],
) -> None:
    """A GPU is not asked which positions are masks, so the rows of a request are
    counted on the CPU: one off, and it gets its neighbour's temperature."""
    asked = [{}, WARM, {"temperature": 1.0, "min_p": 0.2}, {"logit_bias": {3: 5.0}}]
    for some in ([0, 1, 2, 3], [2, 0], [3], [0]):
        every_position = torch.randn(
            len(some), 6, VOCAB, generator=torch.manual_seed(1)
        )
        found = []
        for whole in (False, True):
            desk = Desk(CLEAN)
            desk.canvas.whole_blocks = whole
            for slot in some:
                fields = {"temperature": 0.0, **asked[slot]}
                desk.add(slot, {"logits_eos_inf": slot == 1}, **fields)
                desk.canvas.tokens.values[slot, slot::2] = 7
            batch = desk.batch()
            rows = every_position[batch.cell]
            assert len(rows) == 6 * len(some) if whole else len(rows) < 6 * len(some)
            candidates = desk.propose(rows, *needs)
            masks = batch.masked[batch.cell]
            found.append(
                {
                    k: v[masks]
                    for k, v in vars(candidates).items()
                    if v is not None and (needs or k in ("token", "confidence"))
                }
            )
        for name, values in found[0].items():
            assert torch.equal(values, found[1][name]), name
