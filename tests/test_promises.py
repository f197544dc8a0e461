"""What the first pages of the site promise, where no other test holds it."""

import asyncio
import copy
import logging
import pickle
import re
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from harness import Seen, end, first_chunk, manager, nothing_left, until, wait_until  # noqa: F401
from repo import ROOT

from cjm_worker_protocols import Job, JobCancelled, JobError, JobManager
from cjm_worker_protocols.core.errors import RegistryUnavailableError
from cjm_worker_protocols.managers.serial import CallOutcome, CallQueue

pytestmark = pytest.mark.filterwarnings("error")
request_id: "ContextVar[str]" = ContextVar("request_id", default="none")


def fails_with_secrets() -> None:
    """Leave a secret in the traceback and on stderr."""
    import sys

    print("password=s3cret", file=sys.stderr)
    raise ValueError("no")


def long_failure(length: int) -> None:
    """Raise an exception whose message has `length` characters."""
    raise ValueError("x" * length)


def writes_past_python(length: int) -> None:
    """Write a line of `length` bytes to the descriptor of stdout, then another."""
    import os

    os.write(1, b"x" * length + b"\nshort\n")


def touches(path: str) -> str:
    """Make a file, and return."""
    import pathlib

    pathlib.Path(path).touch()
    return "done"


def warns(text: str) -> str:
    """Log a warning, and report progress."""
    import logging

    from cjm_worker_protocols import report_progress

    logging.getLogger("plugin").warning(text)
    report_progress(0.5, text)
    return text


async def test_events_of_a_failed_job_have_four_facts() -> None:
    """`job:failed` has category, message, exit code and signal; the traceback and stderr are on `job.error` alone."""
    async with manager(fails_with_secrets, "crash") as m:
        seen = Seen(m)
        for plugin, facts in (("fails_with_secrets", ("exception", None)), ("crash", ("crash", 9))):
            job = await end(await m.start_job(plugin))
            event = await seen.until("job:failed", job_id=job.id)
            assert set(event.data["error"]) == {"category", "message", "exit_code", "signal"}
            assert (event.data["error"]["category"], event.data["error"]["signal"]) == facts
            assert "s3cret" not in str(event)
            assert job.error is not None and (plugin == "crash" or "fails_with_secrets" in (job.error.traceback or ""))


async def test_each_await_raises_a_copy() -> None:
    """No awaiter sees another's traceback, and `job.error` keeps none alive."""
    async with manager("fail", "stuck") as m:
        failed, cancelled = await end(await m.start_job("fail")), await m.start_job("stuck")
        await first_chunk(cancelled)
        await m.cancel_job(cancelled.id)
        for job, kind in ((failed, JobError), (cancelled, JobCancelled)):
            raised = await asyncio.gather(asyncio.ensure_future(job), asyncio.ensure_future(job), return_exceptions=True)
            for error in raised:
                assert type(error) is kind and error is not job.error and error.args == job.error.args
            assert raised[0] is not raised[1] and job.error.__traceback__ is None


async def test_a_job_that_has_ended_is_plain_data() -> None:
    """It can be pickled and copied; one that has not ended cannot."""
    async with manager("echo", "fail", "stuck") as m:
        jobs = [await end(await m.start_job("echo", x=[1])), await end(await m.start_job("fail"))]
        for job in jobs:
            for again in (pickle.loads(pickle.dumps(job)), copy.copy(job), copy.deepcopy(job)):
                assert (again.id, again.status, again.result, again.params) == (job.id, job.status, job.result, job.params)
                assert repr(again.error) == repr(job.error) and again.done
        running = await m.start_job("stuck")
        await first_chunk(running)
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=running.id):
                call(running)


class Requests(JobManager):
    """Notes for which request each hook is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: "list[tuple[str, str]]" = []

    def _note(self, hook: str) -> None:
        self.seen.append((hook, request_id.get()))

    def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
        self._note("create_job")
        return super().create_job(plugin_id, **parameters)

    def extract_job_result(self, job: Job, result_data: Any) -> Any:
        self._note("extract_job_result")
        return result_data

    def _on_job_completed(self, job_id: str) -> None:
        self._note("_on_job_completed")


class RequestHub:
    """Notes for which request each event of a job is broadcast."""

    def __init__(self) -> None:
        self.seen: "list[tuple[str, str, str]]" = []

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        await asyncio.sleep(0)
        self.seen.append((event_type, data.get("job_id", ""), request_id.get()))


async def test_what_belongs_to_a_job_runs_in_the_context_of_its_start() -> None:
    """Its hooks, events and log records see the context variables of its `start_job`; events of workers see those of no job."""
    records: "list[tuple[str | None, str]]" = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append((getattr(record, "job_id", None), request_id.get()))

    log, note, hub = logging.getLogger("cjm_worker_protocols.worker"), Note(), RequestHub()

    async def request(name: str) -> Job:
        request_id.set(name)
        job: Job = await m.start_job("warns", text=name)
        return job

    log.addHandler(note)
    try:
        async with manager(warns, cls=Requests, event_broadcaster=hub) as m:
            jobs = {name: await asyncio.create_task(request(name)) for name in ("a", "b", "c")}
            for job in jobs.values():
                await end(job)
    finally:
        log.removeHandler(note)
    for name, job in jobs.items():
        assert [(hook, name) in m.seen for hook in ("create_job", "extract_job_result", "_on_job_completed")] == [True] * 3
        events = [(kind, seen) for kind, job_id, seen in hub.seen if job_id == job.id]
        assert events == [(f"job:{kind}", name) for kind in ("queued", "started", "progress", "completed")]
        assert (job.id, name) in records
    assert {seen for kind, _, seen in hub.seen if kind.startswith("worker:")} == {"none"}


class Held:
    """A resource manager whose first call returns only when it is released."""

    def __init__(self) -> None:
        self.released, self.calls = threading.Event(), list[str]()

    def register_worker(self, pid: int, worker_type: str) -> None:
        self.released.wait(20)
        self.calls.append("register")

    def update_worker_state(self, pid: int, **state: Any) -> None:
        self.calls.append(state["status"])

    def unregister_worker(self, pid: int) -> None:
        self.calls.append("unregister")


async def test_registrations_are_never_dropped() -> None:
    """The resource manager hears of each worker's start and end.

    However few calls may wait, and though the manager was shut down meanwhile.
    """
    held = Held()
    try:
        async with manager("crash", "echo", resource_manager=held, event_buffer=1, integration_timeout=0.2, backoff_base=0.01) as m:
            for plugin in ("echo", "crash", "echo"):
                await end(await m.start_job(plugin))
        assert m.integration_errors["resource_manager.update_worker_state.dropped"] > 0 and not held.calls
    finally:
        held.released.set()
    await until(lambda: held.calls.count("unregister") >= 2)
    assert [call for call in held.calls if call.endswith("register")] == ["register", "unregister"] * 2


async def test_the_newest_states_of_a_slow_resource_manager_are_kept() -> None:
    """At most `STATES` of one worker wait, and the newest is the last that it gets."""
    held = Held()
    async with manager("echo", resource_manager=held) as m:
        for n in range(CallQueue.STATES + 4):
            await end(await m.start_job("echo", x=n))
        held.released.set()
    assert held.calls[0] == "register" and held.calls[-2:] == ["idle", "unregister"]
    assert len(held.calls) == CallQueue.STATES + 2 and not m.integration_errors


def test_no_wait_for_an_answer_is_longer_than_its_timeout() -> None:
    """Also where the thread is stopped in the middle of it, which is rare: with a `SimpleQueue` it takes some thousands of waits."""
    took = threading.Event()

    def wait() -> None:
        for timeout in (0.0, 0.000002) * 10_000:
            assert CallOutcome().take(timeout) is None
        took.set()

    threading.Thread(target=wait, daemon=True).start()
    assert took.wait(60)


async def test_of_states_with_large_configs_one_waits() -> None:
    """A slow resource manager holds one large config of a worker, and not sixteen."""
    held = Held()
    async with manager("echo", resource_manager=held) as m:
        for n in range(CallQueue.STATES):
            await m.reload_plugin("echo", {"prompt": f"{n}" * 100_000})
            await end(await m.start_job("echo", x=n))
        held.released.set()
    assert held.calls == ["register", "idle", "unregister"] and not m.integration_errors


async def test_a_further_call_of_a_slow_hook_is_dropped_and_counted() -> None:
    """A completion hook that hangs holds up no job; what it misses is counted."""
    release = threading.Event()

    class Slow(JobManager):
        def _on_job_completed(self, job_id: str) -> None:
            release.wait(20)

    async with manager("echo", cls=Slow, event_buffer=1) as m:
        for n in range(5):
            assert await (await m.start_job("echo", x=n)) == n
        assert m.integration_errors["hooks._on_job_completed.dropped"] >= 3
        release.set()


async def test_too_many_questions_to_a_registry_are_refused() -> None:
    """Where `max_pending` questions wait, `start_job` raises `RegistryUnavailableError` at once, and no job exists."""
    release = threading.Event()

    class Slow:
        def get_plugins_by_category(self, category: Any) -> "list[Any]":
            return []

        def get_plugin(self, plugin_id: str) -> "dict[str, str]":
            release.wait(20)
            return {"name": plugin_id}

        def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
            return {}

    async with manager("echo", plugin_registry=Slow(), max_pending=1) as m:
        asked = [asyncio.create_task(m.start_job("echo", x=n)) for n in range(5)]
        refused, _ = await asyncio.wait(asked, timeout=2, return_when=asyncio.FIRST_COMPLETED)
        assert refused and all(isinstance(task.exception(), RegistryUnavailableError) for task in refused) and not m.get_all_jobs()
        release.set()
        jobs = [job for job in await asyncio.gather(*asked, return_exceptions=True) if isinstance(job, Job)]
        assert jobs and [job.params["x"] for job in jobs] == [await job for job in jobs]


async def test_a_registry_that_was_quick_and_then_hangs_does_not_stop_the_loop() -> None:
    """The loop waits for a quick registry itself, and goes on when it hangs. One thread makes all calls."""
    release, entered, threads, released = threading.Event(), threading.Event(), set(), list[bool]()

    class Quick:
        hangs = False

        def get_plugins_by_category(self, category: Any) -> "list[Any]":
            return []

        def get_plugin(self, plugin_id: str) -> "dict[str, str]":
            threads.add(threading.get_ident())
            if self.hangs:
                entered.set()
                released.append(release.wait(20))
            return {"name": plugin_id}

        def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
            return {}

    async with manager("echo", plugin_registry=(registry := Quick())) as m:
        for n in range(100):
            assert await (await m.start_job("echo", x=n)) == n
        registry.hangs = True
        asked = asyncio.create_task(m.start_job("echo", x=100))
        await until(lambda: entered.is_set())
        release.set()  # by the loop, which a call on it would have stopped
        assert await (await asked) == 100
        assert released == [True] and len(threads) == 1 and threading.get_ident() not in threads
        assert await (await m.start_job("echo", x=101)) == 101 and not m.integration_errors


async def test_a_job_whose_result_has_arrived_completes(tmp_path: Path) -> None:
    """`cancel_job` changes no end, also where the loop has not yet read the result."""
    async with manager(touches) as m:
        await end(await m.start_job("touches", path=str(tmp_path / "first")))
        job = await m.start_job("touches", path=str(tmp_path / "second"))
        wait_until(lambda: (tmp_path / "second").exists())  # the loop reads nothing meanwhile
        time.sleep(0.3)  # the worker ends the job
        assert not job.done and await m.cancel_job(job.id) is False
        assert (job.status, job.result) == ("completed", "done")


async def test_long_messages_and_lines_are_cut() -> None:
    """An exception's message has at most 131,072 characters; a line that is written past Python at most 8,192 bytes."""
    lines: "list[str]" = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, note, level = logging.getLogger("cjm_worker_protocols.worker"), Note(), logging.getLogger("cjm_worker_protocols.worker").level
    log.addHandler(note)
    log.setLevel(logging.INFO)
    try:
        async with manager(long_failure, writes_past_python) as m:
            job = await end(await m.start_job("long_failure", length=300_000))
            assert job.error is not None and 100_000 < len(job.error.message) <= 131_072 and len(job.error.traceback or "") <= 131_072
            await (await m.start_job("writes_past_python", length=20_000))
    finally:
        log.removeHandler(note)
        log.setLevel(level)
    assert lines == ["x" * 8192, "short"]


# What pages say about tests


def test_the_tests_that_a_page_names_exist() -> None:
    """Each is there under its name; the page on security names one for each promise."""
    named: "dict[str, list[tuple[str, str]]]" = {}
    for page in sorted((ROOT / "nbs").rglob("*.ipynb")):
        found = re.findall(r"(tests/test_\w+\.py)::(test_\w+)", page.read_text(encoding="utf-8"))
        if found:
            named[page.name] = found
    tests = [(page, file, test) for page, found in named.items() for file, test in found]
    gone = [
        f"{page}: {file}::{test}"
        for page, file, test in tests
        if not re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.M)
    ]
    assert len(named["security.ipynb"]) > 20 and not gone, gone
