"""In CI nothing may be skipped: whatever a test needs, .ci/run installs, save for what `MAY_LACK` names."""

import gc
import inspect
import os
import signal
import sys
from typing import Any, Generator, Iterator

import engines
import psutil
import pytest

# Thousands of processes import what is tested: none compiles what another has compiled
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# In the background, as under nohup, these are ignored, and programs that tests start inherit that; a handler is not inherited
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

# Markers of tests that need what CI does not have everywhere
MAY_LACK = ("needs_gpu", "needs_torch", "needs_cgroup", "needs_gradio", "needs_streamlit")

# Files that take longest: they begin first, so that where each file goes to a process no process is left alone with one at the end
LONG = ("test_jupyter", "test_ray", "test_more", "test_notebooks", "test_faults", "test_registry", "test_jobs")


def _no_skip(report: Any) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CJM_WORKERS_NO_SKIPS"):
        report.outcome, report.longrepr = "failed", f"skipped, though CI skips nothing: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> "Generator[None, Any, None]":
    """Turn a skipped test into a failed one when CJM_WORKERS_NO_SKIPS is set, unless it is marked as one that may be skipped."""
    report = (yield).get_result()
    if not any(map(item.get_closest_marker, MAY_LACK)):
        _no_skip(report)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> "Generator[None, Any, None]":
    """The same for a file that skips itself whole."""
    _no_skip((yield).get_result())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> "bool | None":
    """Run an async test on a loop of its own, for 30 s at most, or as long as `@pytest.mark.limit(seconds)` says."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    from harness import run

    wanted = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    marker = pyfuncitem.get_closest_marker("limit")
    run(pyfuncitem.obj(**wanted), *(marker.args if marker else ()))
    return True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what `engines.ON_RAY` lists with each engine."""
    if engines.both(metafunc.function.__name__):
        metafunc.parametrize("engine", [pytest.param("local"), pytest.param("ray", marks=pytest.mark.slow)], indirect=True)


def pytest_collection_modifyitems(items: "list[pytest.Item]") -> None:
    """Of a test with more parameters only those that are listed run on Ray; these come last in their file, and long files first."""
    items[:] = sorted(filter(_runs_here, items), key=_turn)


def _on_ray(item: pytest.Item) -> bool:
    case = getattr(item, "callspec", None)
    return case is not None and case.params.get("engine") == "ray"


def _runs_here(item: pytest.Item) -> bool:
    return not _on_ray(item) or engines.listed(item.function.__name__, item.callspec.id)


def _turn(item: pytest.Item) -> "tuple[int, str, bool]":
    long = LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG)
    return long, str(item.path), _on_ray(item)


@pytest.fixture(autouse=True, scope="module")
def earlier() -> "Iterator[None]":
    """What an earlier file has left is not looked at in this one: neither processes nor objects. A Ray ends with its file.

    All test files together hold so many objects that a full collection, as after each test of a manager, takes a third of a second.
    """
    import harness

    harness.already = {*psutil.Process().children(recursive=True)}
    gc.collect()
    gc.freeze()
    yield
    engines.stop_ray()


@pytest.fixture(autouse=True)  # pytest drops a fixture that no test asks for, also when it is parametrized
def engine(request: pytest.FixtureRequest) -> "Iterator[None]":
    """Managers of the harness get the engine of this test."""
    if getattr(request, "param", "local") == "ray":
        if not engines.installed():
            pytest.skip("ray is not installed: pip install 'cjm-worker-protocols[ray]'")
        engines.start_ray()
        from cjm_worker_protocols.engines.ray import RayEngine

        engines.make = RayEngine
    yield
    engines.make = None
