"""The page in a browser: what its tests do with it."""

import os
import shutil
from pathlib import Path

import pytest

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = api.expect

SUM, ANSWER = "Solve: 12 + 30.", "12 + 30 = 42"


def chromium_path(playwright: "api.Playwright") -> str | None:
    """A system's chromium, or the one that `playwright install` puts away."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, names)]
    own = playwright.chromium.executable_path
    return next((path for path in [*found, own] if path and Path(path).exists()), None)


def column(page: "api.Page", name: str = "A") -> "api.Locator":
    return page.get_by_role("region", name=f"Column {name}")


def choose(column: "api.Locator", rule: str, **fields: str) -> None:
    column.get_by_label("Decoding rule").select_option(rule)
    for label, value in fields.items():
        column.get_by_label(label.replace("_", " "), exact=True).fill(value)


def ask(page: "api.Page", text: str) -> None:
    """Send a message and wait for the end of all answers."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    finished(page)


def finished(page: "api.Page") -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".answer.running")).to_have_count(0)


def counter(answer: "api.Locator", name: str) -> float:
    return float(answer.locator(f"[data-counter={name}]").inner_text())
