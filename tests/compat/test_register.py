"""`register` adds everything, or nothing and says why."""

import subprocess
import sys

import pytest

from vllm_dllm.compat.band import SUPPORTED

MISSING_IN_TURN = """
import logging
from vllm_dllm import compat, plugin
from vllm_dllm.compat.symbols import place_of
from vllm_dllm.models.registry import FAMILIES
from vllm import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.transformers_utils.config import _CONFIG_REGISTRY

class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("vllm.dllm").addHandler(Said())
places = {symbol: place_of(symbol) for symbol in compat.PRIVATE_SYMBOLS}
configs = dict(_CONFIG_REGISTRY)

def state():
    return [vars(owner).get(name) for owner, name in places.values()]

before = state()
for symbol, (owner, name) in places.items():
    value = vars(owner)[name]
    delattr(owner, name)
    said = []
    try:
        plugin.register()
    finally:
        setattr(owner, name, value)
    [line] = said
    assert line.endswith(f"this vLLM lacks {symbol}"), line
    for one, now, then in zip(places, state(), before, strict=True):
        assert now is then, f"without {symbol}, {one} was changed"
    assert dict(_CONFIG_REGISTRY) == configs
    assert FAMILIES.keys().isdisjoint(MODELS_CONFIG_MAP)
    assert FAMILIES.keys().isdisjoint(ModelRegistry.get_supported_archs())

said = []
plugin.register()
assert not said, said
assert FAMILIES.keys() <= set(ModelRegistry.get_supported_archs())
"""

A_BROKEN_PART = """
import sys
sys.modules["vllm_dllm.admission"] = None
from vllm_dllm import plugin
from vllm import ModelRegistry
from vllm.sampling_params import SamplingParams

before = SamplingParams._validate_diffusion
plugin.register()
assert SamplingParams._validate_diffusion is before
assert "SDARForCausalLM" not in ModelRegistry.get_supported_archs()
"""

OUTSIDE_OF_THE_BAND = """
import sys
from vllm_dllm import plugin
from vllm_dllm.compat import band
band.version = lambda _: "0.31.0"
plugin.register()
assert "vllm" not in sys.modules, "it imported what it was to leave alone"
"""


def run_python(script: str) -> list[str]:
    """Lines of the plugin that a process of its own wrote."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    return [line for line in done.stderr.splitlines() if "vllm-dllm" in line]


def test_each_missing_symbol_is_one_warning_and_no_effect() -> None:
    """An exception in a plugin ends every vLLM process on the machine, and a model
    without the patches that make it safe gives wrong answers."""
    run_python(MISSING_IN_TURN)


def test_a_broken_part_of_ours_is_one_warning_and_no_effect() -> None:
    """The same, for whatever else is wrong with the installation."""
    (line,) = run_python(A_BROKEN_PART)
    assert "has no effect" in line
    assert "vllm_dllm.admission" in line


def test_outside_of_the_band_the_plugin_warns_once_and_touches_nothing() -> None:
    """What fits another release is unknown."""
    (line,) = run_python(OUTSIDE_OF_THE_BAND)
    assert f"supports vLLM {SUPPORTED}" in line


def test_importing_the_package_imports_neither_torch_nor_vllm() -> None:
    """Seconds would be added to every `vllm` command, diffusion model or not."""
    run_python(
        "import sys, vllm_dllm\n"
        "assert not {'torch', 'vllm', 'transformers'} & sys.modules.keys()\n"
    )


VLLMS_OWN = """
import logging
from vllm import ModelRegistry
from vllm_dllm import plugin
from vllm_dllm.models.registry import FAMILIES

class Said(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

said, name = [], "NemotronLabsDiffusionModel"
logging.getLogger("vllm.dllm").addHandler(Said())
logging.getLogger("vllm.dllm").setLevel(logging.INFO)
theirs = "vllm.model_executor.models.llama"
if SERVED:
    ModelRegistry.register_model(name, f"{theirs}:LlamaForCausalLM")
plugin.register()
plugin.register()
assert (name in FAMILIES) is not SERVED
assert (ModelRegistry.models[name].module_name == theirs) is SERVED
assert len(said) == SERVED, said
"""


@pytest.mark.parametrize("served", [True, False])
def test_an_architecture_of_vllms_own_stays_vllms(served: bool) -> None:
    """Two classes of one name: which is taken would depend on who registers last."""
    script = f"SERVED = {served}\n{VLLMS_OWN}"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
