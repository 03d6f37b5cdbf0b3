"""Models that are not ours behave as if the plugin were not installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden_cases import GOLDEN
from tests.specs import CORE

pytestmark = [pytest.mark.timeout(400), pytest.mark.engine]

ASK = """
import json, sys
from vllm import LLM, SamplingParams

def kinds(worker):
    return type(worker).__qualname__, type(worker.model_runner).__qualname__

if __name__ == "__main__":
    if len(sys.argv) > 3:  # a name of vLLM's that this one is to lack
        from vllm_dllm.compat.symbols import place_of
        delattr(*place_of(sys.argv[3]))
    llm = LLM(
        sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True, seed=0
    )
    prompts = [{"prompt_token_ids": list(range(9, 9 + n))} for n in (1, 15, 16, 40)]
    params = [
        SamplingParams(temperature=0, max_tokens=24, logprobs=3),
        SamplingParams(temperature=0.7, seed=3, top_p=0.9, max_tokens=24),
        SamplingParams(temperature=0, presence_penalty=1, min_tokens=4, max_tokens=24),
    ]
    answers = [
        (list(one.token_ids), one.text, one.finish_reason, repr(one.logprobs))
        for param in params
        for output in llm.generate(prompts, param, use_tqdm=False)
        for one in output.outputs
    ]
    config = llm.llm_engine.vllm_config
    with open(sys.argv[2], "w") as file:
        json.dump({
            "answers": answers,
            "kinds": llm.collective_rpc(kinds),
            "scheduler": str(config.scheduler_config.get_scheduler_cls()),
            "async_scheduling": config.scheduler_config.async_scheduling,
            "page": config.cache_config.block_size,
        }, file)
"""


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3, the plain kin of SDAR, with its tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("qwen3")
    for file in (GOLDEN / "sdar-pub1").glob("*token*"):
        shutil.copy(file, folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        eos_token_id=1,
        pad_token_id=1,
        initializer_range=0.2,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def ask(
    model: Path,
    folder: Path,
    plugins: str | None,
    lacking: str | None = None,
    processes: bool = False,
) -> dict[str, Any]:
    """Answers and inner parts of an engine in a process of its own, or in three."""
    script, answers = folder / "ask.py", folder / "answers.json"
    script.write_text(ASK)
    env = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": str(CORE)}
    env.pop("VLLM_PLUGINS", None)
    env["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(processes))
    if plugins is not None:
        env["VLLM_PLUGINS"] = plugins
    done = subprocess.run(
        [sys.executable, script, model, answers, *([lacking] if lacking else [])],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    warned = f"vllm-dllm has no effect: this vLLM lacks {lacking}"
    assert (warned in done.stdout) is (lacking is not None)
    return json.loads(answers.read_text())


def test_a_plain_qwen3_runs_as_without_the_plugin(
    qwen3: Path, tmp_path: Path, running: Any
) -> None:
    """A patch meant for our models would change what others get, or their runner."""
    running.close()  # one engine at a time
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with_plugin = ask(qwen3, tmp_path / "with", None, processes=True)
    without = ask(qwen3, tmp_path / "without", "")
    assert with_plugin == without
    assert len({tuple(answer[0]) for answer in without["answers"]}) > 3
    assert "Denoising" not in str(without["kinds"])


def test_a_vllm_that_lacks_what_we_need_serves_other_models(
    qwen3: Path, tmp_path: Path, running: Any
) -> None:
    """An exception, or half of the patches, would end or change what others get."""
    running.close()
    lacking = "vllm.v1.core.sched.scheduler:Scheduler.make_spec_decoding_stats"
    answers = ask(qwen3, tmp_path, None, lacking)["answers"]
    assert len({tuple(answer[0]) for answer in answers}) > 3


def test_our_options_are_refused_for_other_models(qwen3: Path) -> None:
    """They would be ignored without a word."""
    from vllm import LLM

    with pytest.raises(ValueError) as error:
        LLM(
            str(qwen3),
            dtype="float32",
            max_model_len=256,
            enforce_eager=True,
            additional_config={"dllm": {"threshold": 0.5}},
        )
    message = str(error.value)
    assert "Qwen3ForCausalLM" in message
    assert "LLaDA2MoeModelLM" in message and "SDARForCausalLM" in message
