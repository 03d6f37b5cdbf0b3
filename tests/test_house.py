"""Rules of the house that are not about which room imports which (`make lint`)."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm_dllm

ROOT = Path(vllm_dllm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PATCHES = (ROOT / "plugin.py", ROOT / "cli.py", *(ROOT / "compat").rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, list[ast.alias]]]:
    """Each module that is imported anywhere in a file, and what of it is bound."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [alias]
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.names


def test_no_file_is_longer_than_400_lines() -> None:
    """A file grows a second concept line by line."""
    files = [*FILES, *Path(__file__).parent.rglob("*.py")]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        (
            "decoding",
            {"torch", "vllm_dllm.decoding", "vllm_dllm.ops", "vllm_dllm.quoting"},
        ),
        ("ops/choice.py", {"torch", "vllm_dllm.ops.extension"}),
        ("plans", {"vllm_dllm.plans"}),
        ("quoting.py", set()),
    ],
)
def test_the_ground_stands_on_nothing(room: str, allowed: set[str]) -> None:
    """A rule that knows vLLM, or the arithmetic torch, could not be tried alone."""
    files = [path for path in FILES if path.is_relative_to(ROOT / room)]
    assert files
    for path in files:
        for module, _ in imports(ast.parse(path.read_text())):
            top = module.partition(".")[0]
            fine = top in sys.stdlib_module_names or any(
                module == name or module.startswith(f"{name}.") for name in allowed
            )
            assert fine, f"{path.relative_to(ROOT)} imports {module}"


def changed(tree: ast.AST) -> Iterator[ast.expr]:
    """Everything whose attribute is set or deleted, by statement or by `setattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "setattr",
            "delattr",
        ):
            yield node.args[0]


def test_only_compat_changes_vllm() -> None:
    """A patch elsewhere has no reason beside it, and outlives the one it had."""
    for path in set(FILES) - set(PATCHES):
        tree = ast.parse(path.read_text())
        of_vllm = {
            alias.asname or alias.name.partition(".")[0]
            for module, aliases in imports(tree)
            if module.partition(".")[0] == "vllm"
            for alias in aliases
        }
        for target in changed(tree):
            where = f"{path.relative_to(ROOT)}:{target.lineno}"
            assert ast.unparse(target).partition(".")[0] not in of_vllm, where


def test_a_file_holds_one_concept() -> None:
    """What grows for ever is read by nobody."""
    lengths = {path.name: len(path.read_text().splitlines()) for path in FILES}
    assert {name for name, lines in lengths.items() if lines > 400} == set()
