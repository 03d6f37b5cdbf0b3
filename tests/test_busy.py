"""A server that is busy decodes faster where it may, says so, and nowhere else."""

import pytest
import torch

from tests.engines import Engine, tokens_of, uses
from tests.golden_cases import golden_cases
from tests.wishes import CONFIG, FULL, with_grammar
from vllm_dllm.config import DllmConfig
from vllm_dllm.report import ForwardCount
from vllm_dllm.request import decoding_of, resolve
from vllm_dllm.worker.rule_tables import RuleTables

pytestmark = pytest.mark.timeout(400)
BUSY = {"busy_threshold": 0.3, "busy_requests": 2}
ADAPTIVE = {"dllm_adaptive": True}


def busy(config: DllmConfig) -> DllmConfig:
    return config.model_copy(update=BUSY)


def test_only_who_allows_it_is_decoded_faster() -> None:
    """An answer that depends on other clients' requests must be asked for."""
    for config in (CONFIG, FULL):
        threshold = {"dllm_algorithm": "threshold", "dllm_threshold": 0.7}
        allowed = threshold | ADAPTIVE
        assert resolve(threshold, busy(config), 20).busy_threshold is None
        assert resolve(allowed, config, 20).busy_threshold is None
        assert resolve(allowed, busy(config), 20).busy_threshold == 0.3
        slow = allowed | {"dllm_threshold": 0.2}
        assert resolve(slow, busy(config), 20).busy_threshold is None
        other = {"dllm_algorithm": "entropy_bounded", **ADAPTIVE}
        assert resolve(other, busy(config), 20).busy_threshold is None
    structured = with_grammar(dllm_algorithm="threshold", **ADAPTIVE)
    assert decoding_of(structured, busy(CONFIG), 20).busy_threshold == 0.3


@pytest.mark.parametrize("name", BUSY)
def test_half_of_the_choice_is_refused(name: str) -> None:
    """It would never have an effect."""
    with pytest.raises(ValueError, match=r"busy_threshold=.*busy_requests=.*together"):
        DllmConfig.build(CONFIG.model_dump(), {**dict.fromkeys(BUSY), name: BUSY[name]})


def test_a_slot_has_the_threshold_of_its_own_request() -> None:
    """One request would be decoded with the threshold that another one allowed."""
    tables, slots = RuleTables(3, torch.device("cpu")), torch.tensor([1, 2])
    own = {"dllm_algorithm": "threshold", "dllm_threshold": 0.7}
    for fields, slot in ((own | ADAPTIVE, 1), (own, 2)):
        tables.add_request(slot, resolve(fields, busy(CONFIG), 20), 8)
    for is_busy, expected in ((False, [0.7, 0.7]), (True, [0.3, 0.7])):
        found = tables.parameters_of("threshold", slots, is_busy)["threshold"]
        assert torch.allclose(found, torch.tensor(expected))
    tables.add_request(1, resolve(own, busy(CONFIG), 20), 8)
    found = tables.parameters_of("threshold", slots[:1], is_busy=True)["threshold"]
    assert torch.allclose(found, torch.tensor([0.7]))


@uses("sdar4")
def test_a_busy_engine_takes_its_lower_threshold(engine: Engine) -> None:
    """Half a step, or the step after the rush, would make answers of neither."""
    cases = golden_cases(engine.spec.checkpoint, engine.spec.block)[:4]
    fields = {"dllm_algorithm": "threshold", "dllm_threshold": 0.9}
    low = fields | {"dllm_threshold": 0.0}

    def ask(*wishes: dict[str, object]) -> list[tuple[list[int], int]]:
        requests = zip(cases, wishes, strict=False)
        outputs = engine.ask_each([(c, {"extra_args": w}) for c, w in requests])
        counts = [output.outputs[0].spec_decode_metrics for output in outputs]
        busy_ones = [ForwardCount.read_busy(count) for count in counts]
        return list(zip(map(tokens_of, outputs), busy_ones, strict=True))

    slow, fast = ask(*[fields] * 4), ask(*[low] * 4)
    assert [tokens for tokens, _ in slow] != [tokens for tokens, _ in fast]
    asked = ask(fields | ADAPTIVE, fields, low | ADAPTIVE, fields | ADAPTIVE)
    assert asked[1] == slow[1] and asked[2] == fast[2]
    assert asked[0][1] > 0 and asked[3][1] > 0
    assert ask(fields | ADAPTIVE, fields) == slow[:2]
