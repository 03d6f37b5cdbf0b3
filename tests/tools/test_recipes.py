"""Recipes: what a newcomer copies from the page is what a server accepts."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

from tools.recipes import Recipe, recipes
from vllm_dllm.cli import fold
from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.registry import ALIASES
from vllm_dllm.params import PREFIX
from vllm_dllm.request import wishes_of

ROOT = Path(__file__).parents[2]
ALL = [recipe for _, recipe in recipes()]
OFF = [recipe for _, recipe in recipes(switched_off=True)]
each = pytest.mark.parametrize("recipe", ALL, ids=lambda recipe: recipe.name)


@pytest.fixture(scope="module")
def parser() -> FlexibleArgumentParser:
    load_general_plugins()  # the `vllm` command does so before it parses
    parser = FlexibleArgumentParser(prog="vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers())
    return parser


def test_the_page_is_that_of_the_code() -> None:
    """Weights and pages of a model that was changed since, or a checkpoint that no
    table has."""
    command = [sys.executable, "tools/recipes.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_checkpoint_has_one_recipe() -> None:
    """Two would contradict each other sooner or later."""
    names = [recipe.name for recipe in ALL + OFF]
    assert len(names) == len({*names}) > 30


@each
def test_the_command_makes_the_authors_rule_the_default(
    recipe: Recipe, parser: FlexibleArgumentParser
) -> None:
    """A flag that does not parse, or one that is missing, is found by the newcomer."""
    program, *words = shlex.split(recipe.command)
    assert program == "vllm"
    args = parser.parse_args(words)
    assert args.model_tag == recipe.name
    served = recipe.build(fold(args, args.additional_config).get("dllm", {}))
    wanted = recipe.server
    names = recipe.family.facts.rule_names

    def rule(config: DllmConfig) -> str:
        name = names.get(config.algorithm, config.algorithm)
        return ALIASES.get(name, name)

    assert rule(served) == rule(wanted)
    assert served.model_copy(update={"algorithm": wanted.algorithm}) == wanted
    sampling = recipe.family.generation | args.override_generation_config
    for name, value in recipe.sampling.items():
        assert sampling.get(name, 1.0) == value


@each
def test_a_request_may_say_the_same(recipe: Recipe) -> None:
    """The fields of the page would be a 400."""
    fields = {k: v for k, v in recipe.fields.items() if k.startswith(PREFIX)}
    wishes_of(fields, recipe.build({}), False)


@each
def test_what_is_reported_has_a_source(recipe: Recipe) -> None:
    """Nobody could look up under which conditions."""
    assert not recipe.report or "](https://" in recipe.report
