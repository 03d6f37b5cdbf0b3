"""What a CPU worker says of the arithmetic that it is started with."""

import pytest

from vllm_dllm.compat.arithmetic import FLAGS, advice, speeds

MEASURED = {"bfloat16": 100.0, "float32": 250.0, "int8": 129.0}


def test_what_is_much_faster_is_said_with_its_flag() -> None:
    """Where bfloat16 is emulated, every other start is a mistake that nobody sees."""
    assert advice("bfloat16", MEASURED) == (
        "Linear layers on this CPU, compared with bfloat16: "
        "2.5 x the speed with --dtype float32"
    )
    both = advice("bfloat16", {**MEASURED, "int8": 400.0})
    assert both is not None and both.endswith(
        "2.5 x the speed with --dtype float32, "
        "4.0 x the speed with --quantization dllm_int8"
    )


@pytest.mark.parametrize("used", ["float32", "float16"])
def test_what_is_fast_already_or_was_not_measured_needs_no_word(used: str) -> None:
    """A line that is always there is read by nobody."""
    assert advice(used, MEASURED) is None
    assert advice(used, {}) is None


def test_every_arithmetic_is_measured_here() -> None:
    """A kernel that takes other arguments would end the worker at its start."""
    measured = speeds()
    assert measured.keys() == FLAGS.keys()
    assert all(speed > 1e8 for speed in measured.values())
