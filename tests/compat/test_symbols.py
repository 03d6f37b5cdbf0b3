"""Names of vLLM's: found without an import of what holds them."""

import sys

import pytest
from vllm.config import vllm as imported

from vllm_dllm import compat
from vllm_dllm.compat import symbols
from vllm_dllm.compat.symbols import is_there


def test_every_private_symbol_is_there() -> None:
    """A vLLM upgrade should name what went missing, not fail somewhere inside."""
    assert compat.missing() == []


@pytest.mark.parametrize(
    "symbol",
    [
        "vllm.no_such:thing",
        "vllm.config.vllm:thing",
        "vllm.config.vllm:VllmConfig.a",
        "vllm.config.vllm:VllmConfig.__format__",
        "vllm.v1.core.sched.scheduler:Thing",
        "vllm.v1.core.sched.scheduler:Scheduler.thing",
        "vllm.v1.core.sched.scheduler:Scheduler.schedule.thing",
    ],
)
@pytest.mark.parametrize("parsed", [False, True])
def test_a_symbol_that_is_not_there_is_missed(
    monkeypatch: pytest.MonkeyPatch, symbol: str, parsed: bool
) -> None:
    """The check above would pass for anything."""
    if parsed:
        monkeypatch.delitem(sys.modules, symbol.partition(":")[0], raising=False)
    assert not is_there(symbol)


@pytest.mark.parametrize("symbol", compat.PRIVATE_SYMBOLS)
def test_source_and_import_agree(monkeypatch: pytest.MonkeyPatch, symbol: str) -> None:
    """A process without the scheduler would warn of names that are there."""
    module, *_ = symbol.partition(":")
    symbols.place_of(symbol)
    assert is_there(symbol)
    monkeypatch.delitem(sys.modules, module)
    assert is_there(symbol)


def test_what_is_gone_from_an_imported_module_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What counts is what vLLM will find, not what its files say."""
    monkeypatch.delattr(imported, "HAS_TRITON")
    assert compat.missing() == ["vllm.config.vllm:HAS_TRITON"]
