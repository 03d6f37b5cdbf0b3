"""What a server can do, by asking it."""

import random
import re
from dataclasses import replace

import httpx

from tools.mix.kinds import COMPLETIONS, KINDS, Served
from tools.mix.servers import Kind

SPELLED = ("schema", "tools")
SUPPORTED = re.compile(r"unknown decoding rule.*?; supported: ([\w, ]+)")


def served_by(url: str, kind: Kind) -> Served:
    """Its models, and the rules and kinds of request that it does not refuse."""
    with httpx.Client(base_url=url, timeout=600) as http:
        models = [model["id"] for model in http.get("/v1/models").json()["data"]]

        def is_possible(path: str, body: dict[str, object]) -> bool:
            status = http.post(path, json={"model": models[0], **body}).status_code
            assert status in (200, 400), f"{status} for {body}"
            return status == 200

        short = {"prompt": kind.texts(random.Random(0)), "max_tokens": 4}
        body = {"model": models[0], **short, "dllm_algorithm": "?"}
        said = SUPPORTED.search(http.post(COMPLETIONS, json=body).text)
        assert said, "the server does not list its rules"
        rules = tuple(
            rule
            for rule in said[1].split(", ")
            if is_possible(COMPLETIONS, {**short, "dllm_algorithm": rule})
        )
        served = Served(kind.texts, kind.words, tuple(models), rules)
        asked = {
            name: make(random.Random(0), served)
            for name, make in KINDS.items()
            if kind.spells or name not in SPELLED
        }
        kinds = tuple(n for n, one in asked.items() if is_possible(one.path, one.body))
    return replace(served, kinds=kinds)
