"""Fixtures for engines and servers, and the order in which tests use them."""

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.engines import OFFLINE, SERVERS, Engine, OneAtATime, Server

# vLLM reads them when it is imported, which happens later.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests ask the workers of offline engines what they hold.
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"

# Machines that run tests are busy ones.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# The references' tensors are tiny: more threads only wait for each other.
torch.set_num_threads(1)


FIXTURES = {"engine": list(OFFLINE), "server": list(SERVERS)}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without an engine first; then those of each engine in one run."""

    def place(item: pytest.Item) -> tuple[int, int]:
        params = getattr(getattr(item, "callspec", None), "params", {})
        for rank, (fixture, names) in enumerate(FIXTURES.items(), start=1):
            if fixture in params:
                item.add_marker(fixture)
                return rank, names.index(params[fixture])
        return 0, 0

    items.sort(key=place)


@pytest.fixture(scope="session")
def running() -> Iterator[OneAtATime]:
    slot = OneAtATime()
    yield slot
    slot.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest, running: OneAtATime) -> Iterator[Engine]:
    """The engine named by `@uses`, with an empty prefix cache.

    After every test all of its pages and slots must be free again.
    """
    engine = running.engine(request.param)
    try:
        engine.forget_prefixes()
        yield engine
        engine.check_idle()
    except BaseException:
        running.close()
        raise


@pytest.fixture
def server(
    request: pytest.FixtureRequest,
    running: OneAtATime,
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:
    """The server named by `@uses_server`."""
    return running.server(request.param, tmp_path_factory.mktemp("server"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the server's log with a failed test."""
    report = yield
    server: Any = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(server, Server):
        report.sections.append(("vllm serve", server.log_tail()))
    return report
