"""Names of vLLM's, "module:attribute.attribute", and whether this vLLM has them."""

import ast
import functools
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def place_of(symbol: str) -> tuple[Any, str]:
    """The module or class that holds a symbol, and its name there."""
    module, _, path = symbol.partition(":")
    owner: Any = import_module(module)
    *owners, name = path.split(".")
    for part in owners:
        owner = getattr(owner, part)
    return owner, name


def is_there(symbol: str) -> bool:
    """Whether the installed vLLM has it; what a class inherits, it has not.

    Looked up in what is imported, else read from the source: to import the engine and
    its workers would cost every vLLM process seconds.
    """
    module, _, path = symbol.partition(":")
    if module in sys.modules:
        owner: Any = sys.modules[module]
        for name in path.split("."):
            if name not in vars(owner):
                return False
            owner = getattr(owner, name)
        return True
    names = names_in(module)
    for name in path.split("."):
        if name not in names:
            return False
        node = names[name]
        names = dict(bound(node.body)) if isinstance(node, ast.ClassDef) else {}
    return True


@functools.cache
def names_in(module: str) -> dict[str, ast.AST]:
    """What a module binds, by its source; nothing if there is no such module."""
    top, *parts = module.split(".")
    spec = find_spec(top)
    assert spec is not None and spec.origin is not None
    # `find_spec` of the module itself would import all packages around it.
    folder = Path(spec.origin).parent.joinpath(*parts)
    for path in (folder.with_suffix(".py"), folder / "__init__.py"):
        if path.is_file():
            return dict(bound(ast.parse(path.read_text()).body))
    return {}


def bound(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Each name that statements bind, branches of `if` and `try` included."""
    for node in statements:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    yield alias.asname or alias.name, node
            case ast.Assign(targets=targets):
                for target in targets:
                    if isinstance(target, ast.Name):
                        yield target.id, node
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.If() | ast.Try():
                yield from bound(node.body + node.orelse)
                for handler in getattr(node, "handlers", ()):
                    yield from bound(handler.body)
