"""What holds for the whole suite: nothing is skipped, runs repeat, tests/system is marked."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

SYSTEM = Path(__file__).parent / "system"
PACKAGE = Path(__file__).parent / "package"

# No deadline: a busy machine is not a defect. Derandomised: the same commit gives the same result twice;
# `--hypothesis-profile=explore` looks further.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=2_000, print_blob=True)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="a test that is skipped or expected to fail is a failure"
    )
    parser.addoption("--package", action="store_true", help="test the Debian package, and nothing else")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    # Machines of their own, and minutes: `make test-package`.
    within = collection_path == PACKAGE or PACKAGE in collection_path.parents
    return True if within and not config.getoption("--package") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SYSTEM in item.path.parents:
            item.add_marker("system")


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped:
        return
    reason = getattr(report, "wasxfail", None)
    if reason is None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    else:
        del report.wasxfail  # type: ignore[union-attr]
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} did not run to its end, and --no-skips forbids that: {reason}"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    result = yield
    if item.config.getoption("--no-skips"):
        _forbid_skip(result.get_result())


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, None]:
    result = yield
    if collector.config.getoption("--no-skips"):
        _forbid_skip(result.get_result())
