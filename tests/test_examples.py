"""Every file of examples/, run as its head says, against the bundled model."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.engines import OneAtATime, uses_server
from tests.servers import Server
from tests.specs import CORE

REPO = Path(__file__).parents[1]
EXAMPLES = REPO / "examples"
MODEL = REPO / "models" / "tiny-llada2"
DOCKERFILES = ["Dockerfile.cpu", "Dockerfile.cuda"]
SCRIPTS = ["curl.sh", "load_test.sh", "slurm.sbatch"]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(*command: object, stdin: str = "", code: int = 0, **env: str) -> str:
    """What an example prints; its exit status must be `code`."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=REPO,
        env={**os.environ, "PATH": PATH, **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def run_python(name: str, *arguments: object, **options: str) -> str:
    return run(sys.executable, EXAMPLES / name, *arguments, **options)


@uses_server(MODEL.name)
def test_openai_client(server: Server) -> None:
    """Prevents an example that the official client no longer runs."""
    out = run_python("openai_client.py", "--base-url", f"{server.url}/v1")
    lines = out.splitlines()
    assert re.fullmatch(r"answer: +12 \+ 30 = 42", lines[0])
    assert re.search(r"completion_tokens 9, nfe [1-4], tokens_per_forward", lines[1])
    assert "nfe 9, tokens_per_forward 1.0" in lines[3]
    assert lines[4].replace("|", "").endswith("12 + 30 = 42")
    assert lines[4].count("|") > 2, "one piece is no stream"
    first, second = re.findall(r"'.*?'", lines[6])
    assert first == second
    assert re.search(r"'1' [01]\.\d{3}  '2' ", lines[7])
    assert json.loads(lines[8].removeprefix("JSON:")) == {"result": 42}


@uses_server(MODEL.name)
def test_langchain_chat(server: Server) -> None:
    """Prevents LangChain from dropping our fields on their way in or out."""
    pytest.importorskip("langchain_openai")
    url, model = f"{server.url}/v1", Server.MODEL
    out = run_python("langchain_chat.py", "--base-url", url, "--model", model)
    invoke, usage, stream, chain = out.splitlines()
    assert invoke.split() == ["invoke:", "HELLO"]
    assert re.search(r"nfe \d+, per forward \d", usage)
    assert stream.replace("|", "").split() == ["stream:", "HELLO"]
    assert stream.count("|") > 3, "the rule of one call did not arrive"
    assert chain.endswith("77 30 12  90 63 25 41")


@uses_server(MODEL.name)
def test_curl(server: Server) -> None:
    """Prevents a route or a field from going missing."""
    out = run(EXAMPLES / "curl.sh", URL=server.url, MODEL=Server.MODEL)
    _, chat, completion, stream = re.split(r"^# POST .*\n", out, flags=re.MULTILINE)
    assert json.loads(chat)["choices"][0]["message"]["content"] == "12 + 30 = 42"
    assert json.loads(completion)["choices"][0]["text"] == "12 20 30 45 77"
    data = re.findall(r"^data: (.*)$", stream, re.MULTILINE)
    assert data[-1] == "[DONE]"
    events = [json.loads(each) for each in data[:-1]]
    assert any("░" in event["text"] for event in events if event["type"] == "draft")
    assert events[-1]["full_text"].endswith("12 20 30 45 77")
    assert events[-1]["nfe"] > 2


@uses_server(MODEL.name)
def test_curl_fails_where_the_server_refuses(server: Server) -> None:
    """Prevents a script that ends well after an error."""
    options = {"URL": server.url, "MODEL": "other"}
    assert "does not exist" in run(EXAMPLES / "curl.sh", code=22, **options)


@uses_server(MODEL.name)
def test_terminal_chat_shows_denoising(server: Server) -> None:
    """Prevents a display that skips the drafts, or an answer that it garbles."""
    options = ("--url", server.url, "--once", "Sort: 77 12 30.", "--delay", 0)
    options += ("--algorithm", "low_confidence", "--steps", 8)
    plain = run_python("terminal_chat.py", *options)
    assert plain.splitlines()[0] == "12 30 77"
    assert re.search(r"9 tokens, \d+ forwards", plain)
    shown = run_python("terminal_chat.py", *options, FORCE_COLOR="1")
    assert "░" in shown
    assert "\x1b[7;33m7" in shown, "the last step's tokens are not marked"


@uses_server(MODEL.name)
def test_terminal_chat_holds_a_conversation(server: Server) -> None:
    """Prevents the end of input from being an error, and a lost second turn."""
    asked = "Solve: 12 + 30.\nUppercase: hello.\n"
    options = ("--url", server.url, "--delay", 0)
    out = run_python("terminal_chat.py", *options, stdin=asked)
    assert re.search(r"12 \+ 30 = 42\n.*HELLO\n", out, re.DOTALL)


@uses_server(MODEL.name)
def test_terminal_chat_passes_on_what_the_server_says(server: Server) -> None:
    """Prevents a traceback where the user gave a bad value."""
    options = ("--url", server.url, "--once", "Hi.", "--threshold", 4)
    assert "dllm_threshold=4.0" in run_python("terminal_chat.py", *options, code=1)


@uses_server(MODEL.name)
@pytest.mark.parametrize("kind", ["random", "questions"])
def test_load_test(server: Server, kind: str) -> None:
    """Prevents options that `vllm bench serve` no longer has, and downloads."""
    options = ("--disable-tqdm", "--extra-body", '{"dllm_algorithm": "sequential"}')
    out = run(EXAMPLES / "load_test.sh", kind, *options, URL=server.url, REQUESTS="8")
    assert re.search(r"Successful requests: +8 *\n", out)
    assert re.search(r"tokens \d+, forwards of requests \d+,.* forward 1\.00$", out)


def test_load_test_names_its_kinds() -> None:
    """Prevents a typing error from starting the wrong test."""
    out = run(EXAMPLES / "load_test.sh", "randon", code=2)
    assert "randon is none of: random, questions" in out


@pytest.mark.engine
def test_offline_batch(running: OneAtATime) -> None:
    """Prevents answers in another order than the prompts, or rules that are ignored."""
    running.close()
    out = run_python(
        *("offline_batch.py", "--prompts", EXAMPLES / "questions.txt"),
        *("--rules", "threshold", "sequential"),
        VLLM_CPU_OMP_THREADS_BIND=str(CORE),
    )
    pattern = r"^(.+) -> (.+?) +\[(\w+): (\d+) tokens, (\d+) forwards\]$"
    rows = re.findall(pattern, out, re.MULTILINE)
    questions = (EXAMPLES / "questions.txt").read_text().splitlines()
    assert [row[0] for row in rows] == questions
    answers = {question: answer for question, answer, *_ in rows}
    assert answers["Solve: 71 - 26."] == "71 - 26 = 45"
    assert answers["Reverse: 15 48 72. Answer in JSON."] == '{"result": [72, 48, 15]}'
    assert [row[2] for row in rows[:2]] == ["threshold", "sequential"]
    for *_, rule, tokens, forwards in rows:
        assert (tokens == forwards) == (rule == "sequential")


@pytest.mark.engine
def test_rollout(running: OneAtATime) -> None:
    """Prevents a loop whose new weights do not arrive, or whose old ones do not come
    back: much noise is no policy, and is not kept."""
    running.close()
    out = run_python(
        *("rollout.py", "--rounds", 1, "--noise", 1, "--questions", 8),
        VLLM_CPU_OMP_THREADS_BIND=str(CORE),
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
    )
    lines = [line for line in out.splitlines() if ": reward " in line]
    start, tried, end = (line.partition(": reward ")[2] for line in lines)
    assert float(start) > 0.5
    assert tried == "0.000"
    assert end == start


SERVER_STUB = f"""#!{sys.executable}
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
print("vllm", *sys.argv[1:])
if sys.argv[1] == "serve":
    assert os.environ["VLLM_PLUGINS"] == "dllm"
    if "broken" in sys.argv[2]:
        sys.exit("no such model")
    open("pid", "w").write(str(os.getpid()))
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
    HTTPServer(("127.0.0.1", int(sys.argv[4])), Handler).serve_forever()
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job whose `vllm` is a stub."""
    (tmp_path / "vllm").write_text(SERVER_STUB)
    (tmp_path / "vllm").chmod(0o755)
    (tmp_path / "examples").symlink_to(EXAMPLES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "PATH": f"{tmp_path}{os.pathsep}{PATH}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_GPUS_ON_NODE": "4",
        "PORT": str(port),
    }


def test_slurm_starts_asks_and_ends_the_server(cluster, tmp_path) -> None:
    """Prevents a job that never ends, or loses the server's log."""
    out = run("bash", EXAMPLES / "slurm.sbatch", MODEL="org/model", **cluster)
    assert "org/model is ready on 4 GPU(s)" in out
    assert re.search(r"vllm bench serve .*--tokenizer org/model ", out)
    log = (tmp_path / "server-local.log").read_text()
    assert "--served-model-name model --tensor-parallel-size 4" in log
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists(), "the server outlives the job"


def test_slurm_passes_on_the_commands_status(cluster) -> None:
    """Prevents a failed evaluation from looking like a good one."""
    run("bash", EXAMPLES / "slurm.sbatch", "bash", "-c", "exit 3", code=3, **cluster)


def test_slurm_says_why_there_is_no_server(cluster) -> None:
    """Prevents a job that waits for a server that is dead."""
    script = EXAMPLES / "slurm.sbatch"
    assert "no such model" in run("bash", script, code=1, MODEL="broken", **cluster)


def test_slurm_directives() -> None:
    """Prevents a directive after the first command, which Slurm ignores."""
    lines = (EXAMPLES / "slurm.sbatch").read_text().splitlines()
    directives = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives == list(range(1, len(directives) + 1))
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+=\S+", lines[n]) for n in directives)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_scripts_pass_shellcheck(name: str) -> None:
    """Prevents unquoted words and the like."""
    run("bash", "-n", EXAMPLES / name)
    if shutil.which("shellcheck", path=PATH) is None:
        pytest.skip("shellcheck is not installed")
    run("shellcheck", "-x", EXAMPLES / name)


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a Dockerfile, comments left out."""
    lines = (EXAMPLES / name).read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", " ", text)
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines())
        if word
    ]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_build_from_what_is_here(name: str) -> None:
    """Prevents a COPY of a file that has moved, and typing errors."""
    found = instructions(name)
    known = {"FROM", "WORKDIR", "RUN", "COPY", "USER", "ENV", "EXPOSE", "HEALTHCHECK"}
    assert {word for word, _ in found} <= known | {"ENTRYPOINT", "CMD"}
    assert found[0][0] == "FROM"
    for word, rest in found:
        if word == "COPY":
            *sources, _ = rest.split()
            assert sources
            for source in sources:
                assert (REPO / source).exists(), f"COPY {source}"
        if word in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(each, str) for each in json.loads(rest))
        if word == "HEALTHCHECK":
            assert json.loads(rest[rest.index("[") :])
        if word == "RUN":
            run("bash", "-n", "-c", rest)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_serve_as_a_user(name: str) -> None:
    """Prevents images that follow a moving tag, run as root, or load no routes."""
    last = dict(instructions(name))
    image, _, tag = last["FROM"].partition(":")
    assert image and tag and tag != "latest"
    assert last["USER"].isdigit() and last["USER"] != "0"
    assert last["EXPOSE"] == "8000"
    assert json.loads(last["ENTRYPOINT"]) == ["vllm", "serve"]
    assert "VLLM_PLUGINS=dllm" in last["ENV"]


def test_dockerfiles_have_the_versions_of_the_installer() -> None:
    """Prevents an image with another vLLM or torch than the tests run on."""
    installer = (REPO / "tools" / "install.sh").read_text()
    metadata = (REPO / "packaging" / "vllm-metadata" / "pyproject.toml").read_text()
    [torch] = re.findall(r"^TORCH=(.+)$", installer, re.MULTILINE)
    [vllm] = re.findall(r'^version = "(.+)\+cpu"$', metadata, re.MULTILINE)
    assert f"torch=={torch}+cpu" in (EXAMPLES / "Dockerfile.cpu").read_text()
    assert f"vllm-cpu=={vllm} " in (EXAMPLES / "Dockerfile.cpu").read_text()
    assert f":v{vllm}\n" in (EXAMPLES / "Dockerfile.cuda").read_text()


@uses_server(MODEL.name)
def test_dashboard_asks_for_metrics_that_exist(server: Server) -> None:
    """Prevents empty panels, and metrics of ours that no panel shows."""
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text())
    text = json.dumps(dashboard)
    asked = set(re.findall(r"\b(?:vllm|vllm_dllm):\w+", text))
    body = {"prompt": "Solve: 1 + 2.", "max_tokens": 4}
    assert httpx.post(f"{server.url}/v1/generate", json=body).is_success
    deadline = time.monotonic() + 30
    while True:
        lines = httpx.get(f"{server.url}/metrics").text
        live = set(re.findall(r"^([\w:]+)\{", lines, re.MULTILINE))
        if asked <= live or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert asked <= live, asked - live
    ours = {name for name in live if name.startswith(("vllm_dllm:", "vllm:diffusion_"))}
    families = {re.sub(r"_(total|bucket|sum|count|created)$", "", n) for n in ours}
    assert all(name in text for name in families)


def test_dashboard_panels_do_not_overlap() -> None:
    """Prevents panels that Grafana moves or hides, and shared ids."""
    panels = json.loads((EXAMPLES / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_the_readme_lists_every_file() -> None:
    """Prevents an example that nobody finds."""
    listed = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text()))
    assert listed | {"README.md"} == {path.name for path in EXAMPLES.iterdir()}
