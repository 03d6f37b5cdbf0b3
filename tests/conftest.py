"""Fixtures for engines and servers, and the order in which tests use them."""

import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import settings

from tests.engines import Engine, OneAtATime
from tests.servers import Server
from tests.specs import OFFLINE, SERVERS, EngineSpec

# vLLM reads them when it is imported, which happens later.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Seconds: on a busy machine a small grammar takes longer than the five of vLLM.
os.environ.setdefault("VLLM_REGEX_COMPILATION_TIMEOUT_S", "120")
# Tests ask the workers of offline engines what they hold.
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"

# Machines that run tests are busy ones.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# The references' tensors are tiny: more threads only wait for each other.
torch.set_num_threads(1)


ON_DEMAND = "on_demand"
GROUP = "group"
SHARED: Mapping[str, dict[str, EngineSpec]] = {"engine": OFFLINE, "server": SERVERS}
"""What a fixture starts for all tests that name it."""


def shared_by(item: pytest.Item) -> tuple[str, str] | None:
    """The fixture and the name of the engine or server that a test shares."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return next(((kind, params[kind]) for kind in SHARED if kind in params), None)


def group_of(item: pytest.Item) -> str | None:
    """Tests of a group run in one process, one after the other: those that share an
    engine or start their own in one file; and all whose engines take every core."""
    if shared := shared_by(item):
        kind, name = shared
        return "ranks" if SHARED[kind][name].ranks > 1 else f"{kind}-{name}"
    starts = any(map(item.get_closest_marker, SHARED))
    return item.path.stem if starts else None


def place_of(item: pytest.Item) -> tuple[int, int]:
    """Tests without an engine first; then those of each engine in one run."""
    if shared := shared_by(item):
        kind, name = shared
        return 2 + list(SHARED).index(kind), list(SHARED[kind]).index(name)
    return int(group_of(item) is not None), 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--on-demand",
        action="store_true",
        help="also what takes minutes, and computes what other tests do",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Mark, choose, sort and group them: pytest-xdist begins with the largest group."""
    for item in items:
        if shared := shared_by(item):
            kind, name = shared
            item.add_marker(kind)
            if SHARED[kind][name].on_demand:
                item.add_marker(ON_DEMAND)
        if group := group_of(item):
            item.add_marker(pytest.mark.xdist_group(group))
    if not config.getoption("--on-demand"):
        left_out = {item for item in items if item.get_closest_marker(ON_DEMAND)}
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=place_of)


@pytest.fixture(scope="session")
def running() -> Iterator[OneAtATime]:
    slot = OneAtATime()
    yield slot
    slot.close()


@pytest.fixture
def engine(request: pytest.FixtureRequest, running: OneAtATime) -> Iterator[Engine]:
    """The engine named by `@uses`, with an empty prefix cache.

    After every test all of its pages and slots must be free again, but for one that has
    ended it.
    """
    engine = running.engine(OFFLINE[request.param])
    try:
        engine.forget_prefixes()
        yield engine
        if running.current is engine:
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
    return running.server(SERVERS[request.param], tmp_path_factory.mktemp("server"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say which group a test is of, and show the end of a server's log if it failed."""
    report = yield
    report.user_properties.append((GROUP, group_of(item) or "no engine"))
    server: Any = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(server, Server):
        report.sections.append(("vllm serve", server.log_tail()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each engine or server took, its start included."""
    seconds: Counter[str] = Counter()
    for report in chain.from_iterable(terminalreporter.stats.values()):
        properties = dict(getattr(report, "user_properties", ()))
        if GROUP in properties:
            seconds[properties[GROUP]] += report.duration
    terminalreporter.section("seconds of each group")
    for group, spent in seconds.most_common():
        terminalreporter.write_line(f"{spent:7.1f} {group}")
