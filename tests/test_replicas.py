"""The files of examples/replicas: an nginx in front of a server, and manifests."""

import argparse
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

from tests.engines import uses_server
from tests.servers import Server

REPLICAS = Path(__file__).parents[1] / "examples" / "replicas"


@pytest.fixture
def front(server: Server, tmp_path: Path) -> Iterator[str]:
    """The address of an nginx in front of a server and of one that is down."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/bin:/usr/bin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as down, socket.socket() as probe:
        for each in (down, probe):
            each.bind(("127.0.0.1", 0))
        port, nobody = probe.getsockname()[1], down.getsockname()[1]
        probe.close()
        text = (REPLICAS / "nginx.conf").read_text()
        text = text.replace("listen 8000", f"listen 127.0.0.1:{port}")
        text = text.replace("127.0.0.1:8001", f"127.0.0.1:{nobody}")
        text = text.replace("127.0.0.1:8002", server.url.removeprefix("http://"))
        config = tmp_path / "nginx.conf"
        config.write_text(text)
        command = [nginx, "-p", tmp_path, "-c", config, "-g", "daemon off;"]
        process = subprocess.Popen([str(word) for word in command])
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 20
            while not answers(url):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False


@uses_server("tiny-llada2")
def test_nginx_passes_over_a_server_that_is_down(front: str) -> None:
    """A replica that is started again would be an error for half of the clients, and
    a stream that is held back until its end is none."""
    body: dict[str, Any] = {
        "model": Server.MODEL,
        "messages": [{"role": "user", "content": "Solve: 12 + 30."}],
        "dllm_algorithm": "sequential",
        "stream": True,
    }
    for number in range(12):
        session = {"x-session-id": f"conversation {number}"}
        url = f"{front}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=session) as response:
            assert response.status_code == 200
            pieces = [
                choice["delta"].get("content") or ""
                for line in response.iter_lines()
                if line.startswith("data: {")
                for choice in json.loads(line.removeprefix("data: "))["choices"]
            ]
        assert "".join(pieces).strip() == "12 + 30 = 42"
        assert len([piece for piece in pieces if piece]) > 4
    refused = httpx.post(url, json=body | {"dllm_threshold": 7})
    assert refused.status_code == 400 and "dllm_threshold=7" in refused.text


def manifests() -> dict[str, Any]:
    documents = yaml.safe_load_all((REPLICAS / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def parsed(words: list[str]) -> argparse.Namespace:
    """What vLLM's own parser makes of the words behind `vllm serve`."""
    load_general_plugins()
    parser = FlexibleArgumentParser(prog="vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


def test_kubernetes_gives_answers_their_time() -> None:
    """A pod would be killed while it ends its answers, or be sent new ones."""
    found = manifests()
    pod = found["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    args = parsed(container["args"])
    [_, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert grace >= args.shutdown_timeout + int(seconds) + 10
    assert {"name": "VLLM_PLUGINS", "value": "dllm"} in container["env"]
    probes = [
        container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")
    ]
    assert all(probe["httpGet"]["path"] == "/health" for probe in probes)
    names = {port["name"] for port in container["ports"]}
    assert {probe["httpGet"]["port"] for probe in probes} <= names
    assert found["Service"]["spec"]["ports"][0]["targetPort"] in names
    wanted = found["Service"]["spec"]["selector"].items()
    assert wanted <= pod["metadata"]["labels"].items()
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_values_of_the_production_stack_are_flags_of_vllm() -> None:
    """A flag that vLLM does not know ends every pod at its start."""
    text = (REPLICAS / "production-stack.yaml").read_text()
    [model] = yaml.safe_load(text)["servingEngineSpec"]["modelSpec"]
    args = parsed([model["modelURL"], *model["vllmConfig"]["extraArgs"]])
    assert args.shutdown_timeout <= 20, "Kubernetes kills after 30 seconds"
    assert {"name": "VLLM_PLUGINS", "value": "dllm"} in model["env"]
