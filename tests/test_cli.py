"""The `--dllm-*` flags, through the parser of `vllm serve` itself."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

from tests.golden_cases import GOLDEN
from vllm_dllm import cli
from vllm_dllm.config import DllmConfig
from vllm_dllm.decoding.registry import ALIASES, NAMES

MODEL = str(GOLDEN / "sdar-pub1")  # its config.json says block_size 16


@pytest.fixture(scope="module")
def parser() -> FlexibleArgumentParser:
    load_general_plugins()  # the `vllm` command does so before it parses
    parser = FlexibleArgumentParser(prog="vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers())
    return parser


@pytest.fixture(autouse=True)
def forget_help_keyword(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """vLLM keeps the word of `--help=word` on the class."""
    monkeypatch.setattr(FlexibleArgumentParser, "_search_keyword", None)
    yield


def engine_args(parser: FlexibleArgumentParser, *flags: str) -> AsyncEngineArgs:
    args = parser.parse_args(["serve", MODEL, *flags])
    args.model = args.model_tag
    return AsyncEngineArgs.from_cli_args(args)


def own(parser: FlexibleArgumentParser, *flags: str) -> dict[str, Any]:
    """Our part of `additional_config` after these flags."""
    return engine_args(parser, *flags).additional_config.get("dllm", {})


def test_flags_reach_the_engine(parser: FlexibleArgumentParser) -> None:
    """A flag that is parsed and then lost changes nothing, without a word."""
    flags = "--dllm-block-size 8 --dllm-threshold 0.5 --dllm-steps 4"
    config = engine_args(
        parser, *flags.split(), "--dllm-algorithm", "LowConfidence"
    ).create_engine_config()
    ours = DllmConfig.of(config.model_config)
    expected = DllmConfig(
        block_size=8, threshold=0.5, steps=4, algorithm="threshold", mask_token_id=255
    )
    assert ours == expected.with_facts(ours.facts)
    assert config.diffusion_config.canvas_length == 8


def test_the_cache_of_full_attention_has_a_flag(
    parser: FlexibleArgumentParser,
) -> None:
    """A server would be exact and slow, against the operator's wish."""
    args = engine_args(parser, "--dllm-cache", "dual")
    args.model = str(GOLDEN / "llada-pub0")
    ours = DllmConfig.of(args.create_engine_config().model_config)
    assert ours.cache == "dual"


def test_without_flags_nothing_is_added(parser: FlexibleArgumentParser) -> None:
    """An empty entry would be taken for options of a model that is not ours."""
    assert engine_args(parser).additional_config == {}


def test_other_entries_of_additional_config_stay(
    parser: FlexibleArgumentParser,
) -> None:
    """Another plugin's settings would vanish as soon as ours are used."""
    flags = ("--additional-config", '{"other": {"x": 1}}', "--dllm-steps", "2")
    assert engine_args(parser, *flags).additional_config == {
        "other": {"x": 1},
        "dllm": {"steps": 2},
    }


def test_an_additional_config_of_a_users_own_class_stays() -> None:
    """vLLM allows any object there; without our flags it is none of our business."""
    settings = object()
    assert cli.fold(argparse.Namespace(), settings) is settings


def test_underscores_and_equal_signs_work_as_everywhere_in_vllm(
    parser: FlexibleArgumentParser,
) -> None:
    """Half of vLLM's users write --block_size=8."""
    assert own(parser, "--dllm_block_size=8") == {"block_size": 8}


def test_dotted_additional_config_works(parser: FlexibleArgumentParser) -> None:
    """vLLM re-appends dotted options last; ours must not overwrite them."""
    dotted = ("--additional-config.dllm.block_size", "8")
    assert own(parser, *dotted) == {"block_size": 8}
    both = own(parser, *dotted, "--dllm-threshold", "0.5")
    assert both == {"block_size": 8, "threshold": 0.5}


def test_the_more_specific_source_wins(parser: FlexibleArgumentParser) -> None:
    """Flags are put after a config that others wrote, to change one value of it."""
    additional = {"threshold": 0.1, "steps": 1, "block_size": 2}
    whole = {"threshold": 0.2, "steps": 2}
    config = engine_args(
        parser,
        *("--additional-config", json.dumps({"dllm": additional})),
        *("--dllm-config", json.dumps(whole)),
        *("--dllm-threshold", "0.3"),
    ).create_engine_config()
    ours = DllmConfig.of(config.model_config)
    assert (ours.block_size, ours.steps, ours.threshold) == (2, 2, 0.3)


@pytest.mark.parametrize("suffix", ["yaml", "yml", "conf"])
def test_dllm_config_may_be_a_yaml_file(
    parser: FlexibleArgumentParser, tmp_path: Path, suffix: str
) -> None:
    """SGLang's users have their settings in such a file already."""
    file = tmp_path / f"dllm.v1.{suffix}"
    file.write_text("algorithm: sequential\nsteps: 2\n")
    expected = {"algorithm": "sequential", "steps": 2}
    assert own(parser, "--dllm-config", str(file)) == expected
    assert own(parser, f"--dllm-config={file}") == expected


def test_dllm_config_may_be_json(parser: FlexibleArgumentParser) -> None:
    """JSON is how vLLM's own config flags are written."""
    text = '{"threshold": 0.5, "mask_token_id": 7}'
    expected = {"threshold": 0.5, "mask_token_id": 7}
    assert own(parser, "--dllm-config", text) == expected
    assert own(parser, f"--dllm-config= {text}") == expected


def test_dllm_config_may_be_dotted(parser: FlexibleArgumentParser) -> None:
    """vLLM promises this form for every flag that takes JSON."""
    flags = ("--dllm-config.threshold", "0.5", "--dllm-config.steps", "2")
    assert own(parser, *flags) == {"threshold": 0.5, "steps": 2}


def test_vllms_config_file_knows_our_flags(
    parser: FlexibleArgumentParser, tmp_path: Path
) -> None:
    """A deployment keeps all flags in one YAML file; ours must not be left out."""
    file = tmp_path / "serve.yaml"
    file.write_text(
        "dllm-block-size: 8\n"
        "dllm-threshold: 0.5\n"
        "dllm-config:\n  steps: 2\n  threshold: 0.1\n"
    )
    flags = ("--config", str(file))
    assert own(parser, *flags) == {"block_size": 8, "threshold": 0.5, "steps": 2}
    assert own(parser, *flags, "--dllm-threshold", "0.75")["threshold"] == 0.75


@pytest.mark.parametrize(
    ("flag", "value", "complaint"),
    [
        ("--dllm-block-size", "many", "invalid int value: 'many'"),
        ("--dllm-threshold", "high", "invalid float value: 'high'"),
        ("--dllm-algorithm", "fastest", "invalid choice: 'fastest'"),
        ("--dllm-cache", "both", "invalid choice: 'both'"),
        ("--dllm-config", "{", "neither a JSON object nor a readable YAML file"),
        ("--dllm-config", "/no/such.yaml", "'/no/such.yaml' is neither"),
        ("--dllm-config", "{}{}", "'{}{}' is neither"),
    ],
)
def test_a_flag_that_cannot_be_read_is_named(
    parser: FlexibleArgumentParser,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    value: str,
    complaint: str,
) -> None:
    """A traceback from the middle of the start says nothing about the flag."""
    with pytest.raises(SystemExit):
        engine_args(parser, flag, value)
    error = capsys.readouterr().err
    assert flag in error
    assert complaint in error


@pytest.mark.parametrize("content", ["- 1\n- 2\n", "just text\n", ""])
def test_a_file_without_a_mapping_is_refused(tmp_path: Path, content: str) -> None:
    """A list of settings would be dropped, or crash far from its cause."""
    file = tmp_path / "dllm.yaml"
    file.write_text(content)
    with pytest.raises(argparse.ArgumentTypeError, match="does not hold a mapping"):
        cli.parse_config(str(file))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--dllm-threshold", "1.5"), r"dllm\.threshold=1\.5: .*less than or equal"),
        (("--dllm-steps", "0"), r"dllm\.steps=0: .*greater than or equal to 1"),
        (("--dllm-config", '{"typo": 1}'), r" unknown field dllm\.typo=1; known: "),
        (("--dllm-config", '{"factor": 0}'), r"dllm\.factor=0: .*greater than 0"),
        (("--dllm-steps", "1000001"), r"dllm\.steps=1000001: .*equal to 1000000"),
        (("--dllm-config", '{"max_nfe": 4}'), r" unknown field dllm\.max_nfe=4;"),
    ],
)
def test_a_value_out_of_range_ends_the_start(
    parser: FlexibleArgumentParser, flags: tuple[str, ...], complaint: str
) -> None:
    """A server that starts with a value it does not honour is worse than none."""
    with pytest.raises(ValueError, match=complaint):
        engine_args(parser, *flags).create_engine_config()


def test_help_has_a_group_of_ours(
    parser: FlexibleArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vllm serve --help=dllm` is where a user looks first."""
    with pytest.raises(SystemExit) as leave:
        parser.parse_args(["serve", "--help=dllm"])
    assert leave.value.code == 0
    text = capsys.readouterr().out
    for name in cli.FLAGS:
        assert f"--dllm-{name.replace('_', '-')}" in text
    assert "--dllm-config" in text
    for rule in [*NAMES, *ALIASES]:
        assert rule in text
    words = " ".join(text.split())
    for name in DllmConfig.model_fields.keys() - {*cli.FLAGS}:
        assert name in words, "--dllm-config says what else it may hold"


def test_every_flag_is_explained(parser: FlexibleArgumentParser) -> None:
    """A flag without help is one that nobody finds out how to use."""
    (commands,) = (
        action
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    actions = commands.choices["serve"]._actions
    ours = [action for action in actions if action.dest.startswith("dllm_")]
    assert len(ours) == len(cli.FLAGS) + 1
    for action in ours:
        assert action.help
        assert action.help % {"default": action.default, "prog": "vllm"}


def test_other_commands_know_the_flags_too() -> None:
    """`vllm bench throughput` would measure another configuration than is served."""
    load_general_plugins()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    args = parser.parse_args(["--model", MODEL, "--dllm-block-size", "8"])
    assert EngineArgs.from_cli_args(args).additional_config == {
        "dllm": {"block_size": 8}
    }


def test_flags_for_a_model_that_is_not_ours_are_refused(
    parser: FlexibleArgumentParser, tmp_path: Path
) -> None:
    """They would be ignored, and the user would wonder why nothing changes."""
    model = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 256,
        "max_position_embeddings": 128,
    }
    (tmp_path / "config.json").write_text(json.dumps(model))
    flags = ("--skip-tokenizer-init", "--dllm-steps", "2")
    args = engine_args(parser, *flags)
    args.model = str(tmp_path)
    with pytest.raises(ValueError, match=r"--dllm-\* .*LlamaForCausalLM.*SDAR"):
        args.create_engine_config()
