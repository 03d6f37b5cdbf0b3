"""A chat in the terminal that shows an answer being denoised.

    make serve                                   # in another terminal
    pip install rich
    python examples/terminal_chat.py
    python examples/terminal_chat.py --once "Sort: 77 12 30." --steps 8 --delay 0.2

Plain text is final, yellow text is a draft, what the last step wrote is reversed, and a
shade is a mask. `--delay` slows the display down, not the server.
"""

import argparse
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cache
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

MASK = -1
SPECIAL = re.compile(r"<\|.*\|>")  # as in <|endoftext|>, which fills the last block


class Server:
    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self.text_of = cache(self.text_of)

    def post(self, route: str, body: dict[str, Any]) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, self.headers)
        return urllib.request.urlopen(request)

    def tokenize(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation in the model's chat template."""
        with self.post("/tokenize", {"messages": messages}) as reply:
            return json.load(reply)["tokens"]

    def text_of(self, token: int) -> str:
        """One token of a draft; a character of several tokens looks broken."""
        with self.post("/detokenize", {"tokens": [token]}) as reply:
            return json.load(reply)["prompt"]

    def denoise(self, prompt: list[int], **fields: Any) -> Iterator[dict[str, Any]]:
        """The events of an answer: append, draft, and finish at the end."""
        body = {"prompt": prompt, "stream": True, "stream_mode": "denoise", **fields}
        with self.post("/v1/generate", body) as reply:
            for line in reply:
                data = line.decode().removeprefix("data: ").strip()
                if not data or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                yield event


def draw(server: Server, final: str, draft: dict[str, Any] | None) -> Text:
    """What is final, then the rest of the block under denoising."""
    text = Text(final)
    if draft is None:
        return text
    changed = set(draft["changed"])
    for position, token in enumerate(draft["token_ids"], start=draft["offset"]):
        if token == MASK:
            text.append("░", "dim")
            continue
        piece = SPECIAL.sub("·", server.text_of(token))
        text.append(piece, "reverse yellow" if position in changed else "yellow")
    return text


def answer(server: Server, console: Console, prompt: list[int], **options: Any) -> str:
    """Show one answer while it is made, and return it."""
    delay = options.pop("delay")
    final, draft, end = "", None, {}
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for event in server.denoise(prompt, **options):
            if event["type"] == "append":
                final, draft = final + event["text"], None
                continue  # the step's draft follows, and is shown together with it
            if event["type"] == "draft":
                draft = event
            else:
                end = event
                break
            live.update(draw(server, final, draft), refresh=True)
            time.sleep(delay)
    tokens, forwards = end["usage"]["completion_tokens"], end["nfe"]
    console.print(Text(final))
    console.print(f"[dim]{tokens} tokens, {forwards} forwards", highlight=False)
    return final


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--api-key", help="`vllm serve --api-key`")
    parser.add_argument("--once", metavar="QUESTION", help="ask this and end")
    parser.add_argument("--algorithm", help="decoding rule (default: the server's)")
    parser.add_argument("--steps", type=int, help="steps of a block")
    parser.add_argument("--threshold", type=float)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--delay", type=float, default=0.05, help="seconds per step")
    args = parser.parse_args()

    server, console = Server(args.url, args.api_key), Console()
    options = {
        "dllm_algorithm": args.algorithm,
        "dllm_steps": args.steps,
        "dllm_threshold": args.threshold,
        "max_tokens": args.max_tokens,
        "delay": args.delay,
    }
    messages: list[dict[str, str]] = []
    while True:
        try:
            question = args.once or console.input("[bold]> [/bold]")
            messages.append({"role": "user", "content": question})
            prompt = server.tokenize(messages)
            said = answer(server, console, prompt, **options)
            messages.append({"role": "assistant", "content": said})
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{error}: {error.read().decode()}") from None
        except urllib.error.URLError as error:
            raise SystemExit(f"no server at {args.url}: {error.reason}") from None
        except (EOFError, KeyboardInterrupt):
            return
        if args.once:
            return


if __name__ == "__main__":
    main()
