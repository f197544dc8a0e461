"""In CI nothing may be skipped: whatever a test needs, .ci/run installs."""

import os
from typing import Any, Generator

import pytest


def _no_skip(report: Any) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CJM_WORKERS_NO_SKIPS"):
        report.outcome, report.longrepr = "failed", f"skipped, though CI skips nothing: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> "Generator[None, Any, None]":
    """Turn a skipped test into a failed one when CJM_WORKERS_NO_SKIPS is set."""
    _no_skip((yield).get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> "Generator[None, Any, None]":
    """The same for a file that skips itself whole."""
    _no_skip((yield).get_result())
