"""The page in a real browser, against a server of the bundled model."""

import pytest

from tests.engines import uses_server
from tests.pages import (
    ANSWER,
    SUM,
    api,
    ask,
    choose,
    column,
    counter,
    expect,
    finished,
)
from tests.servers import Server
from vllm_dllm.decoding.registry import BUFFERED, NAMES, get_rule
from vllm_dllm.params import BUFFER_FIELDS, DllmParams

pytestmark = uses_server("tiny-llada2")

HOLD_AFTER_FIRST_DRAFT = r"""
const released = new Promise((release) => { window.release = release; });
const ask = window.fetch;
window.fetch = async (...asked) => {
    const response = await ask(...asked);
    if (!response.url.endsWith("/v1/generate")) return response;
    let text = "";
    const held = new TransformStream({
        async transform(part, out) {
            text += part;
            const first = /^[^]*?"type": "draft"[^]*?\n\n/.exec(text)?.[0];
            if (first === undefined) return;
            out.enqueue(first);
            await released;
            out.enqueue(text.slice(first.length));
            text = "";
        },
        flush: (out) => out.enqueue(text),
    });
    const body = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(held);
    return new Response(body.pipeThrough(new TextEncoderStream()), response);
};
"""
"""A server is often faster than the screen: its events wait for `release()`."""


def test_answer_is_seen_denoising_and_can_be_replayed(page: "api.Page"):
    """Prevents a page that shows the end of an answer and nothing of its way."""
    page.evaluate(HOLD_AFTER_FIRST_DRAFT)
    choose(column(page), "low_confidence", Steps="32")
    page.get_by_label("Message", exact=True).fill(SUM)
    page.keyboard.press("Enter")
    answer = page.locator(".answer")
    canvas = answer.locator(".canvas")
    expect(canvas.locator(".mask").nth(3)).to_be_visible()
    page.evaluate("release()")
    finished(page)
    expect(canvas).to_have_text(ANSWER)
    assert counter(answer, "tokens") == 9
    forwards = counter(answer, "forwards")
    assert forwards > 3
    assert counter(answer, "perForward") == pytest.approx(9 / forwards, abs=0.006)
    assert counter(answer, "perSecond") > 0
    slider = answer.get_by_label("Step shown")
    slider.fill("0")
    expect(canvas.locator(".mask").first).to_be_visible()
    assert counter(answer, "forwards") < forwards
    slider.press("End")
    expect(canvas).to_have_text(ANSWER)
    slider.fill("0")
    answer.get_by_role("button", name="Replay").click()
    expect(canvas).to_have_text(ANSWER)
    expect(canvas.locator(".mask")).to_have_count(0)


def test_conversation_goes_with_each_message(page: "api.Page"):
    """Prevents turns, a system text or a key that never reach the server."""
    page.locator("#setup summary").click()
    page.get_by_label("System text").fill("Be short.")
    page.get_by_label("API key").fill("secret")
    ask(page, SUM)
    with page.expect_request("**/tokenize") as caught:
        ask(page, "Reverse: 12 30 77.")
    expect(page.locator(".answer .canvas").last).to_have_text("77 30 12")
    sent = caught.value
    assert sent.headers["authorization"] == "Bearer secret"
    messages = sent.post_data_json["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "Be short."),
        ("user", SUM),
        ("assistant", ANSWER),
        ("user", "Reverse: 12 30 77."),
    ]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".answer")).to_have_count(0)


def test_stop_ends_the_request(page: "api.Page", server: Server):
    """Prevents an abandoned answer that goes on using the server."""

    def without_end(route: "api.Route") -> None:
        long = {"ignore_eos": True, "max_tokens": 1900}
        slow = {"temperature": 1, "top_k": 20, "repetition_penalty": 1.1, "seed": 1}
        route.continue_(post_data=route.request.post_data_json | long | slow)

    before = server.metric("generation_tokens_total")
    page.route("**/v1/generate", without_end)
    # Its own events would keep a busy browser from the button.
    page.evaluate(HOLD_AFTER_FIRST_DRAFT)
    choose(column(page), "sequential")
    page.get_by_label("Message", exact=True).fill(SUM)
    page.keyboard.press("Enter")
    answer = page.locator(".answer")
    expect(answer.locator(".mask").first).to_be_visible()
    # A click waits for frames of a busy browser; a key does not.
    page.get_by_role("button", name="Stop").press("Enter")
    page.evaluate("release()")
    finished(page)
    expect(answer.get_by_text("Stopped.")).to_be_visible()
    assert counter(answer, "tokens") < 1900
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    assert not server.held()
    assert server.metric("generation_tokens_total") - before < 1900


def test_refusal_is_shown_in_the_words_of_the_server(page: "api.Page"):
    """Prevents an error that is swallowed, and one that costs the message."""
    choose(column(page), "threshold", Threshold="3")
    ask(page, SUM)
    expect(
        page.get_by_role("alert").filter(has_text="dllm_threshold=3")
    ).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_have_value(SUM)
    column(page).get_by_role("button", name="Reset").click()
    page.keyboard.press("Control+Home")
    page.get_by_label("Message", exact=True).press("Enter")
    expect(page.locator(".answer .canvas").last).to_have_text(ANSWER)


def test_columns_answer_side_by_side(page: "api.Page"):
    """Prevents columns that share settings, and answers that get mixed up."""
    ask(page, SUM)
    page.get_by_role("button", name="Compare").click()
    expect(column(page, "B").get_by_text(ANSWER)).to_be_visible()
    choose(column(page, "A"), "threshold", Threshold="0.5")
    choose(column(page, "B"), "sequential", Max_tokens="64")
    bodies = []
    page.on(
        "request",
        lambda request: (
            bodies.append(request.post_data_json)
            if request.url.endswith("/v1/generate")
            else None
        ),
    )
    ask(page, "Reverse: 12 30 77.")
    for name in "AB":
        canvas = column(page, name).locator(".answer .canvas").last
        expect(canvas).to_have_text("77 30 12")
    assert bodies[0].pop("prompt") == bodies[1].pop("prompt")
    common = {"model": Server.MODEL, "stream": True, "stream_mode": "denoise"}
    first = {"dllm_algorithm": "threshold", "dllm_threshold": 0.5}
    second = {"dllm_algorithm": "sequential", "max_tokens": 64}
    bodies.sort(key=lambda body: body["dllm_algorithm"], reverse=True)
    assert bodies == [common | first, common | second]
    page.get_by_role("button", name="Compare").click()
    expect(column(page, "B")).to_be_hidden()


FOCUS = """() => {
    const element = document.activeElement;
    const name = element.labels?.[0] ?? element;
    const { outlineStyle } = getComputedStyle(element);
    return [element.ariaLabel ?? name.textContent.trim(), outlineStyle !== "none"];
}"""


def test_keyboard_is_enough(page: "api.Page"):
    """Prevents controls that Tab does not reach, or reaches unseen."""
    message = page.get_by_label("Message", exact=True)
    expect(message).to_be_focused()
    page.keyboard.type("Solve: 12")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("+ 30.")
    expect(message).to_have_value("Solve: 12\n+ 30.")
    message.fill("")
    page.keyboard.type(SUM)
    page.keyboard.press("Enter")
    finished(page)
    expect(page.get_by_role("status")).to_contain_text(ANSWER)
    page.locator("#setup summary").focus()
    stops = []
    while "Send" not in stops and len(stops) < 30:
        name, is_seen = page.evaluate(FOCUS)
        assert is_seen, f"the focus on {name!r} cannot be seen"
        stops.append(name)
        page.keyboard.press("Tab")
    assert stops[:4] == [Server.MODEL, "Compare", "New chat", "Server's rule"]
    for name in ("Decoding rule", "Steps", "Max tokens", "Temperature", "Seed"):
        assert name in stops
    assert stops[-2:] == ["Message", "Send"]
    page.get_by_role("button", name="Compare").press("Space")
    expect(column(page, "B")).to_be_visible()


def test_phone_needs_no_sideways_scroll(page: "api.Page"):
    """Prevents a layout that only fits a desktop; and motion that nobody wants."""
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    page.set_viewport_size({"width": 360, "height": 640})
    page.reload()
    expect(page.locator("#model-name")).to_have_text(Server.MODEL)
    ask(page, "Sort: 77 12 30 54 91 23.")
    column(page).locator(".settings > summary").click()
    page.locator("#setup summary").click()
    choose(column(page), "credit")
    for step in ("one column", "two columns"):
        width = page.evaluate(
            """() => Math.max(document.documentElement.scrollWidth,
                ...[...document.querySelectorAll("body *:not(.unseen)")]
                .map((element) => element.getBoundingClientRect().right))"""
        )
        assert width <= 360, step
        page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Compare").click()
    for name in "AB":
        log = page.get_by_role("region", name=f"Conversation {name}")
        assert log.bounding_box()["height"] > 150
    bar = page.locator(".answer .blocks i").first
    assert bar.evaluate("bar => getComputedStyle(bar).transitionDuration") == "0s"


def test_settings_are_those_of_the_server(page: "api.Page"):
    """Prevents a rule or a parameter that the page knows and the server does not."""
    page_rules, buffered, fields = page.evaluate(
        """async () => {
            const all = await import("./settings.js");
            const { RULES, BUFFERED, OF_RULES, OF_BUFFERS, FULL_ATTENTION } = all;
            const fields = { ...OF_RULES, ...OF_BUFFERS, ...FULL_ATTENTION };
            return [RULES, BUFFERED, Object.keys(fields)];
        }"""
    )
    assert {name: set(used) for name, used in buffered.items()} == {
        name: {"buffer_size", *BUFFER_FIELDS}
        - (set() if name == "threshold" else {"semi_complete_threshold"})
        for name in BUFFERED
    }
    assert {name: set(used) for name, used in page_rules.items()} == {
        name: set(get_rule(name).parameters) for name in NAMES
    }
    names = {field.removeprefix("dllm_") for field in fields}
    assert names <= DllmParams.model_fields.keys()
    assert {name for used in page_rules.values() for name in used} <= names


def test_revised_positions_and_blocks_are_told_apart(page: "api.Page"):
    """Prevents a replaced token that looks like any other."""
    cells, blocks = page.evaluate(
        """async () => {
            const { Denoising } = await import("./denoising.js");
            const denoising = new Denoising();
            const draft = (offset, token_ids, step, nfe) => {
                const block_ends = [offset + token_ids.length];
                const event = { offset, token_ids, step, block_ends, nfe };
                denoising.take({ type: "draft", ...event });
            };
            draft(0, [5, -1, -1], 0, 1);
            draft(0, [6, 7, -1], 1, 2);
            const cells = denoising.last.cells.map((cell) => cell.revised);
            denoising.take({ type: "append", text: "abc", token_ids: [6, 7, 8] });
            draft(3, [-1, 9, -1, -1], 0, 3);
            return [cells, denoising.last.blocks];
        }"""
    )
    assert cells == [True, False, False]
    assert blocks == [
        {"size": 3, "masks": 0, "steps": 2},
        {"size": 4, "masks": 3, "steps": 1},
    ]


def test_blocks_behind_the_front_one_are_told_apart(page: "api.Page"):
    """Prevents tokens that are taken early from looking as sure as the others."""
    frames, classes, label = page.evaluate(
        """async () => {
            const { Answer } = await import("./answer.js");
            const answer = new Answer({ learn() {}, of: (token) => `${token}` });
            const frames = [];
            const take = (event) => {
                answer.take(event);
                const { blocks, ends, front } = answer.denoising.last;
                const counts = blocks.map(({ masks, steps }) => [masks, steps]);
                frames.push([counts, ends, front]);
            };
            const draft = { type: "draft", changed: [] };
            take({ ...draft, offset: 0, token_ids: [5, -1, -1, -1, -1, -1], step: 0,
                   block_ends: [2, 4, 6], nfe: 1 });
            take({ ...draft, offset: 1, token_ids: [-1, 7, -1, -1, -1], step: 1,
                   block_ends: [2, 4, 6], nfe: 2 });
            take({ type: "append", text: "57", token_ids: [5, 7] });
            take({ ...draft, offset: 2, token_ids: [7, -1, 8, -1, -1, -1], step: 2,
                   block_ends: [4, 6, 8], nfe: 3 });
            answer.drawFrame(answer.denoising.last);
            const cells = [...answer.canvas.element.querySelectorAll(".mask, .token")];
            return [frames, cells.map((cell) => cell.classList.contains("behind")),
                    answer.blocks.getAttribute("aria-label")];
        }"""
    )
    assert frames[0] == [[[1, 1], [2, 0], [2, 0]], [2, 4, 6], 0]
    assert frames[1] == [[[1, 2], [1, 1], [2, 0]], [2, 4, 6], 0]
    assert frames[3] == [[[0, 2], [1, 3], [1, 1], [2, 0]], [2, 4, 6, 8], 1]
    assert classes == [False, False, True, True, True, True]
    assert label == "block 2, 1 masks left; 2 behind it"


def test_fields_of_several_blocks_are_shown_with_a_buffer(page: "api.Page"):
    """Prevents thresholds that the server refuses, as they have no meaning."""
    fields = column(page)
    add_block = fields.get_by_label("Add-block threshold", exact=True)
    choose(fields, "threshold")
    expect(add_block).to_be_hidden()
    choose(fields, "threshold", Buffer_size="3")
    expect(add_block).to_be_visible()
    choose(fields, "margin")
    buffer_size = fields.get_by_label("Buffer size", exact=True)
    expect(buffer_size).to_be_hidden()
    expect(add_block).to_be_hidden()
    choose(fields, "d2f")
    expect(add_block).to_be_visible()
    expect(buffer_size).to_be_hidden()
