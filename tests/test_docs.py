"""What the documentation says that a program can check."""

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from vllm_dllm.config import DllmConfig
from vllm_dllm.request import wishes_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()

ANY = "…"
"""Stands for a value in a message."""

OTHERS = (
    "vllm/sampling_params.py",
    "vllm/plugins/endpoint_plugins/interface.py",
    "vllm/plugins/__init__.py",
    "vllm/config/scheduler.py",
    "vllm/platforms/cpu.py",
    "transformers/models/auto/configuration_auto.py",
)
"""Files of other packages with messages that we explain."""


def test_the_tables_of_parameters_are_those_of_the_code() -> None:
    """A field that is in no table is found by nobody."""
    command = [sys.executable, "tools/docs_parameters.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# Links


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(
        r"^#+ +(.+?) *$", without_code(page.read_text()), re.MULTILINE
    ):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        again = sum(1 for known in found if re.fullmatch(rf"{slug}(-\d+)?", known))
        found.add(f"{slug}-{again}" if again else slug)
    return found


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A heading that is renamed leaves links behind that open the top of a page."""
    assert broken_links(page) == []


# Messages


def messages(source: str) -> list[str]:
    """The texts of a Python file, joined as Python does; `ANY` for a value."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [
                part.value if isinstance(part, ast.Constant) else ANY
                for part in node.values
            ]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value.replace("%s", ANY))
    return found


@cache
def known_messages() -> list[str]:
    files = sorted((ROOT / "vllm_dllm").rglob("*.py"))
    for name in OTHERS:
        package, _, path = name.partition("/")
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        files.append(Path(spec.submodule_search_locations[0]) / path)
    return [text for file in files for text in messages(file.read_text())]


def holds(message: str, quoted: str) -> bool:
    """Whether the parts of `quoted` between values are in `message`, in order."""
    place = 0
    for part in filter(None, map(str.strip, quoted.split(ANY))):
        place = message.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


OF_PYDANTIC = (
    "dllm_threshold=7: Input should be less than or equal to 1; allowed: 0 to 1"
)
QUOTED = sorted(
    {
        *re.findall(r"^### `([^`]+)`$", TROUBLE, re.MULTILINE),
        *(code for code in re.findall(r"`([^`]+)`", TROUBLE) if ANY in code),
        *re.findall(r"^- `([^`]+)`", TROUBLE, re.MULTILINE),
    }
    - {ANY, OF_PYDANTIC}
)


@pytest.mark.parametrize("quoted", QUOTED)
def test_an_explained_message_is_one_that_is_given(quoted: str) -> None:
    """Who looks for a message looks for its words."""
    assert any(holds(message, quoted) for message in known_messages())


def test_an_explained_message_of_pydantic_is_one_that_is_given() -> None:
    """As above; it is in no file."""
    config = DllmConfig.build({"block_size": 8, "mask_token_id": 255})
    assert OF_PYDANTIC in TROUBLE
    with pytest.raises(ValueError) as failure:
        wishes_of({"dllm_threshold": 7}, config)
    assert str(failure.value) == OF_PYDANTIC
