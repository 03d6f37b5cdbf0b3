"""Structured output on the page and in the stream that it reads."""

import json
from typing import Any

import httpx
import pytest

from tests.engines import uses_server
from tests.pages import ANSWER, SUM, api, ask, column, expect
from tests.servers import Server


@uses_server("tiny-llada2")
def test_a_schema_is_obeyed_and_can_be_left_again(page: "api.Page") -> None:
    """Prevents a schema that does not arrive, or that stays."""
    column(page).get_by_text("Structured output").click()
    column(page).get_by_label("Example schema").select_option("A number")
    expect(column(page).locator(".settings > summary")).to_contain_text("a schema")
    with page.expect_request("**/v1/generate") as caught:
        ask(page, f"{SUM} Answer in JSON.")
    schema = caught.value.post_data_json["structured_outputs"]["json"]
    assert schema["properties"] == {"result": {"type": "integer"}}
    assert json.loads(page.locator(".answer .canvas").inner_text()) == {"result": 42}
    column(page).get_by_label("JSON schema").fill("{")
    ask(page, SUM)
    alert = page.get_by_role("alert").filter(has_text="The schema is no JSON")
    expect(alert).to_be_visible()
    column(page).get_by_role("button", name="Reset").click()
    page.get_by_label("Message", exact=True).press("Enter")
    expect(page.locator(".answer .canvas").last).to_have_text(ANSWER)


@uses_server("tiny-llada2")
def test_the_answers_to_all_examples_end(page: "api.Page") -> None:
    """Prevents an example that shows a row of digits up to the limit of the server."""
    column(page).get_by_text("Structured output").click()
    box = column(page).get_by_label("Example schema")
    _, *names = box.locator("option").all_inner_texts()
    assert len(names) == 3
    for number, name in enumerate(names):
        box.select_option(name)
        ask(page, f"{SUM} Answer in JSON.")
        said = page.locator(".answer .canvas").nth(number).inner_text()
        assert json.loads(said).keys() == {"result"}


@uses_server("tiny-llada2")
def test_forced_text_is_told_from_what_was_decided(page: "api.Page") -> None:
    """Prevents braces that look like the model's own words, also when they are old."""
    shown = page.evaluate(
        """async () => {
            const { Answer } = await import("./answer.js");
            const answer = new Answer({ learn() {}, of: (token) => `${token}` });
            const part = { type: "append", token_ids: [1, 2, 3] };
            answer.take({ ...part, text: "{ab", token_texts: ["{", "a", "b"],
                          forced: [0] });
            answer.take({ ...part, text: "cde" });
            // A character of two tokens has no text in either.
            answer.take({ ...part, text: "é}", token_texts: ["?", "?", "}"],
                          forced: [6, 7, 8] });
            const draft = { type: "draft", changed: [], offset: 9, token_ids: [-1] };
            for (let step = 0; step < 9; step++)
                answer.take({ ...draft, step, block_ends: [10], nfe: step });
            answer.drawFrame(answer.denoising.last);
            const { element } = answer.canvas;
            return [element.textContent.trim(),
                    [...element.querySelectorAll(".forced")].map((e) => e.textContent)];
        }"""
    )
    assert shown == ["{abcdeé}", ["{"]]


@uses_server("llada")
@pytest.mark.parametrize("mode", ["denoise", "block_append"])
def test_a_stream_tells_what_a_grammar_forced(server: Server, mode: str) -> None:
    """A reader would have to guess it from the schema."""
    body: dict[str, Any] = {"prompt": [9, 11, 13], "max_tokens": 16, "stream": True}
    body |= {"stream_mode": mode, "temperature": 0, "block_length": 16}
    regex = {"regex": "w10w11(w12|w13)w14w15(w16|w17)w18"}
    tokens: list[int] = []
    forced: list[int] = []
    url = f"{server.url}/v1/generate"
    with httpx.stream("POST", url, json=body | {"sampling_params": regex}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            told = json.loads(line[6:]) if line.startswith("data: {") else {}
            if told.get("type") == "append":
                forced += told.get("forced", [])
                texts = told.get("token_texts", told["text"].split())
                assert [text for text in texts if text] == told["text"].split()
                tokens += told["token_ids"]
    end = len(tokens) - 1
    assert [tokens[i] for i in (0, 1, 3, 4, 6)] == [10, 11, 14, 15, 18] and end == 7
    assert tokens[2] in (12, 13) and tokens[5] in (16, 17)
    assert forced == ([0, 1, 3, 4, 6, end] if mode == "denoise" else [])
