"""In CI nothing may be skipped: whatever a test needs, .ci/run installs. A GPU is the one thing that it cannot install."""

import os
from typing import Any, Generator

import pytest


def _no_skip(report: Any) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CJM_WORKERS_NO_SKIPS"):
        report.outcome, report.longrepr = "failed", f"skipped, though CI skips nothing: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> "Generator[None, Any, None]":
    """Turn a skipped test into a failed one when CJM_WORKERS_NO_SKIPS is set, unless it is marked as one that needs a GPU."""
    report = (yield).get_result()
    if item.get_closest_marker("needs_gpu") is None:
        _no_skip(report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> "Generator[None, Any, None]":
    """The same for a file that skips itself whole."""
    _no_skip((yield).get_result())
