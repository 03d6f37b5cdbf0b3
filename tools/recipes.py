"""docs/recipes.md from tools/checkpoints.toml and the code: `--check` or rewrite.

Shapes, the authors' rules and their figures are those of the file; attention, blocks,
defaults and memory are asked of the code. A rule that no server would accept is an
error here.
"""

import argparse
import json
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.docs_parameters import table  # noqa: E402
from tools.footprint import BITS, Footprint, footprint_of  # noqa: E402
from vllm_dllm.cli import FLAGS  # noqa: E402
from vllm_dllm.config import DllmConfig, Facts  # noqa: E402
from vllm_dllm.models.registry import FAMILIES, Family  # noqa: E402
from vllm_dllm.models.sources import defaults_of  # noqa: E402
from vllm_dllm.params import PREFIX  # noqa: E402

PAGE = ROOT / "docs" / "recipes.md"
DATA = Path(__file__).with_name("checkpoints.toml")
START, END = "<!-- generated: recipes -->\n", "<!-- end -->"
USUAL = {"temperature": 1.0, "top_p": 1.0}
"""What vLLM samples with where nobody says anything else."""


@dataclass(frozen=True)
class Recipe:
    """One released checkpoint, served as its authors decode."""

    name: str
    shape: str
    config: dict[str, Any]
    """Of its config.json, what makes its shape."""
    block: int | None
    """What a server has to be told, because the checkpoint does not say."""
    rule: dict[str, Any]
    sampling: dict[str, Any]
    options: list[str]
    report: str

    @property
    def family(self) -> Family:
        return FAMILIES[self.config["architectures"][0]]

    @property
    def server(self) -> DllmConfig:
        """The choices of a server that decodes as the authors do."""
        return self.build(self.rule)

    def build(self, own: dict[str, Any]) -> DllmConfig:
        config: Any = SimpleNamespace(
            architecture=self.config["architectures"][0],
            hf_config=SimpleNamespace(**self.config),
        )
        stated = {"block_size": self.config.get("block_size"), "mask_token_id": 0}
        own = {"block_size": self.block, **own}
        known = {k: v for k, v in self.config.items() if k in Facts.model_fields}
        facts = self.family.facts.model_copy(update=known)
        return DllmConfig.build(defaults_of(config), stated, own, facts=facts)

    @property
    def command(self) -> str:
        """`vllm serve` with what is not its default already."""
        default, names = self.build({}), self.family.facts.rule_names
        changed = {
            name: value
            for name, value in self.rule.items()
            # Some rules have another name in some families.
            if getattr(default, name) not in (value, names.get(str(value), value))
        }
        if self.block is not None:
            changed = {"block_size": self.block, **changed}
        words = [f"vllm serve {self.name}"]
        words += [
            f"--dllm-{name.replace('_', '-')} {changed.pop(name)}"
            for name in FLAGS
            if name in changed
        ]
        words += [f"--dllm-config '{json.dumps(changed)}'"] if changed else []
        usual = USUAL | self.family.generation
        sampling = {k: v for k, v in self.sampling.items() if usual.get(k) != v}
        if sampling:
            words.append(f"--override-generation-config '{json.dumps(sampling)}'")
        return " ".join([*words, *self.options])

    @property
    def fields(self) -> dict[str, Any]:
        """The same, as the fields of a request."""
        names = {"block_size": "block_length"}
        of_rule = {PREFIX + names.get(k, k): v for k, v in self.rule.items()}
        return of_rule | self.sampling


def recipes(switched_off: bool = False) -> Iterator[tuple[str, Recipe]]:
    """The title of the family and the recipe of each checkpoint that is served, or of
    each that is not."""
    data = tomllib.loads(DATA.read_text())
    for family in data["families"]:
        for one in family["checkpoints"]:
            if one.get("off", False) != switched_off:
                continue
            given = {"rule": {}, "sampling": {}, "options": [], **family, **one}
            report = given.get("expect", "")
            if report:
                report += f" ([source]({given['source']}))"
            for block in given.get("block", [None]):
                for name in given["names"]:
                    yield (
                        family["title"],
                        Recipe(
                            name.format(block=block),
                            given["shape"],
                            data["shapes"][given["shape"]],
                            block,
                            given["rule"],
                            given["sampling"],
                            given["options"],
                            report,
                        ),
                    )


def shape_of(name: str) -> dict[str, Any] | None:
    """The config.json of a released checkpoint, as far as its shape goes."""
    both = [*recipes(), *recipes(switched_off=True)]
    return next((one.config for _, one in both if one.name == name), None)


@cache
def measured(shape: str) -> Footprint:
    config = tomllib.loads(DATA.read_text())["shapes"][shape]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps({**config, "dtype": "bfloat16"}))
        return footprint_of(path)


def row(recipe: Recipe) -> list[str]:
    one = measured(recipe.shape)
    weights = [one.weights(), *(one.weights(name) for name in BITS)]
    block = recipe.server.block_size
    return [
        f"[`{recipe.name}`](https://huggingface.co/{recipe.name})",
        str(block) if block else "the answer",
        f"`{json.dumps(recipe.fields)}`",
        " / ".join(f"{size / 1e9:.1f}" for size in weights),
        f"{one.kv_per_token:,}",
        f"`{recipe.command}`",
        recipe.report,
    ]


def made() -> str:
    """The generated part: a heading, a line and a table for each family."""
    head = [
        "checkpoint",
        "block",
        "the authors' rule, as a request says it",
        f"weights, GB: bf16 / {' / '.join(BITS)}",
        "KV, bytes a token",
        "command",
        "reported",
    ]
    parts: dict[str, list[Recipe]] = {}
    for title, recipe in recipes():
        parts.setdefault(title, []).append(recipe)
    text = ""
    for title, some in parts.items():
        names = dict.fromkeys(one.config["architectures"][0] for one in some)
        attention = some[0].family.facts.attention.replace("_", "-")
        models = ", ".join(f"`{name}`" for name in names)
        text += f"\n## {title}\n\n{models}; {attention} attention.\n\n"
        text += table([head, *map(row, some)])
    return text + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args()
    text = PAGE.read_text()
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    current = before + START + made() + END + after
    for _, recipe in recipes(switched_off=True):
        if recipe.config["architectures"][0] in FAMILIES:
            print(f"off in {DATA.name}: {recipe.name}", file=sys.stderr)
    if current == text:
        return
    if args.check:
        sys.exit(f"{PAGE} is not current; run: python tools/recipes.py")
    PAGE.write_text(current)


if __name__ == "__main__":
    main()
