"""Fixtures of the tests of the page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.servers import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium, until its module's tests are over: playwright's event loop counts as
    running all the while, and no asynchronous test could follow in this process."""
    from tests.pages import api, chromium_path

    with api.sync_playwright() as playwright:
        path = chromium_path(playwright)
        if path is None:
            pytest.skip("no chromium: apt-get install chromium, or set CHROMIUM")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser", server: Server) -> Iterator["Page"]:
    """The page in its own window; it may not fail, nor ask any other host."""
    from tests.pages import expect

    context = browser.new_context(viewport={"width": 1100, "height": 720})
    page = context.new_page()
    page.set_default_timeout(30_000)
    expect.set_options(timeout=30_000)
    errors, urls = [], []
    page.on("pageerror", lambda error: errors.append(error))
    page.on("request", lambda request: urls.append(request.url))
    page.goto(f"{server.url}/dllm")
    expect(page.locator("#model-name")).to_have_text(Server.MODEL)
    yield page
    context.close()
    assert not errors
    assert all(url.startswith(server.url) for url in urls)
