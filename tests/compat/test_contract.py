"""vLLM's inner parts are those that this was written for, in behaviour and by name."""

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import vllm_dllm
from tests.contract import kernel_parameters, original, path_of_installed
from vllm_dllm import compat
from vllm_dllm.compat.patch import Call, Patch
from vllm_dllm.ops.runner_kernels import fallback, kernels_of

ROOT = Path(__file__).parents[2]


@cache
def contract_here() -> dict[str, dict[str, str]]:
    """Found in a process of its own: an engine that ran in this one has put CPU
    versions of some functions in their places."""
    show = "import json, tests.contract as t; print(json.dumps(t.contract()))"
    run = [sys.executable, "-c", show]
    told = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(told.stdout.splitlines()[-1])


@pytest.mark.xdist_group("contract")
@pytest.mark.parametrize("part", ["symbols", "kernels"])
def test_what_we_rely_on_is_what_it_was(part: str) -> None:
    """A function that kept its name and changed what it does breaks us in silence:
    read what changed, mend or not, then `make contract`."""
    path = path_of_installed()
    assert path.exists(), f"nobody looked at this vLLM yet: make contract ({path.name})"
    stored = json.loads(path.read_text())[part]
    found = contract_here()[part]
    changed = {
        name: (stored.get(name), found.get(name))
        for name in stored.keys() | found.keys()
        if stored.get(name) != found.get(name)
    }
    assert not changed, "\n".join(
        f"{name}: {was} -> {now}" for name, (was, now) in sorted(changed.items())
    )


@pytest.mark.parametrize("kernel", kernels_of(fallback))
def test_a_replaced_kernel_takes_what_vllm_launches_it_with(kernel: str) -> None:
    """A new parameter is a TypeError in the first step of every engine on CPU."""
    # Those in capitals are passed by name.
    theirs = kernel_parameters(kernel)
    ours = inspect.signature(kernels_of(fallback)[kernel]).parameters.values()
    kinds = [parameter.kind for parameter in ours]
    assert inspect.Parameter.VAR_KEYWORD in kinds
    named = [
        one.name
        for one in ours
        if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        and not one.name.isupper()
    ]
    passed = [name for name in theirs if not name.isupper()]
    assert len(named) <= len(passed)
    takes_more = inspect.Parameter.VAR_POSITIONAL in kinds
    assert takes_more or len(named) == len(passed), f"{named} for {passed}"


@pytest.mark.parametrize(
    ("patch", "target"),
    [(patch, name) for patch in compat.EVERYWHERE for name in patch.targets],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_patch_takes_what_vllm_calls_its_function_with(
    patch: Patch, target: str
) -> None:
    """A new parameter is a TypeError, for other models too: `vllm run-batch` of 0.33
    could not begin."""
    function = original(target)
    if inspect.isclass(function):
        return
    theirs = inspect.signature(function).parameters.values()
    takes = inspect.signature(patch.wrapper(function), follow_wrapped=False)
    kinds = [one.kind for one in takes.parameters.values()]
    by_place = [one.name for one in theirs if one.kind is one.POSITIONAL_OR_KEYWORD]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        by_place = by_place[: kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    takes.bind(*by_place, **{o.name: 0 for o in theirs if o.name not in by_place})


def test_every_patch_is_in_a_table() -> None:
    """One that is not is never applied, or its names never looked for."""
    tables = {*map(id, compat.EVERYWHERE + compat.IN_WORKERS)}
    tables |= {id(compat.register_configs), id(compat.replace_cpu_kernels)}
    for module in pkgutil.iter_modules(compat.__path__, f"{compat.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, Patch | Call):
                assert id(value) in tables, name


def test_every_override_is_stated() -> None:
    """A method that vLLM renames is then never called, and nothing says so."""
    for module in pkgutil.walk_packages(vllm_dllm.__path__, "vllm_dllm."):
        if module.name.endswith(("_C", "_triton")):
            continue
        for ours in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(ours) and ours.__module__ == module.name:
                stated = set(compat.OVERRIDES.get(module.name, ()))
                assert overrides(ours) <= stated, f"{module.name}.{ours.__name__}"


PUBLIC = (
    "vllm.model_executor.models.config",
    "vllm.entrypoints.serve.engine.protocol",
    "vllm.model_executor.layers.quantization.base_config",
)
"""Modules with interfaces that vLLM documents for plugins."""


def overrides(ours: type) -> set[str]:
    """The functions of vLLM's classes that a class defines anew, as symbols."""
    found = set()
    for name, value in vars(ours).items():
        value = getattr(value, "__func__", getattr(value, "fget", value))
        if getattr(value, "__module__", None) != ours.__module__ or not (
            inspect.isfunction(value)
            and value.__code__.co_filename == inspect.getfile(ours)
        ):
            continue  # not written down in the class
        for base in ours.__mro__[1:]:
            if name in vars(base):
                module = base.__module__
                if module.startswith("vllm.") and module not in PUBLIC:
                    found.add(f"{module}:{base.__qualname__}.{name}")
                break
    return found
