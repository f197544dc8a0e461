"""Everything that can go wrong in a plugin, a process, an integration or the app itself, done for real; and what holds all the same."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import zipfile
from collections import Counter
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, AsyncIterator, Callable

import psutil
import pytest
import sample_plugins
from harness import (  # noqa: F401
    Gate,
    Seen,
    alive,
    children,
    ctrl_c,
    descriptors,
    end,
    finish,
    first_chunk,
    gate,
    gone,
    gone_soon,
    guardians,
    least_stall,
    manager,
    nothing_left,
    run,
    said_json,
    script,
    ticking,
    under_way,
    until,
    wait_until,
)
from repo import LIB, PACKAGE, ROOT

from cjm_worker_protocols import Job, JobCancelled, JobError, JobManager, RestartPolicy, WorkerConfig
from cjm_worker_protocols.core import errors
from cjm_worker_protocols.engines.local import LocalEngine
from cjm_worker_protocols.core.frames import Kind
from cjm_worker_protocols.core.jobs import request_cancel

pytestmark = pytest.mark.filterwarnings("error")
WORKER_LOG = "cjm_worker_protocols.worker"
SMOOTH = 0.1  # seconds: the loop never stalls longer


async def works(m: Any, **kwargs: Any) -> None:
    """Fail the test unless a job runs now."""
    job = await end(await m.start_job("echo", x="still works", **kwargs))
    assert job.result == "still works", job.error


# A worker that dies


CRASHES: "dict[str, dict[str, Any]]" = {
    "kill": {"signal": signal.SIGKILL},
    "os._exit": {"exit_code": 3},
    "SystemExit": {"exit_code": 4},
    "sys.exit": {"exit_code": 1},
    "KeyboardInterrupt": {"exit_code": 130},
    "segfault": {"signal": signal.SIGSEGV},
    "faulthandler": {"signal": signal.SIGSEGV},
    "abort": {"signal": signal.SIGABRT},
    "SIGTERM": {"exit_code": 143},
}


@pytest.mark.parametrize("how", CRASHES)
async def test_a_plugin_that_ends_its_worker(how: str) -> None:
    """The job fails at once as `crash`, with how it ended and the tail of stderr; only that job; the next one runs."""
    async with manager("crash", "echo", backoff_base=0.01) as m:
        seen = Seen(m)
        await works(m)
        job = await m.start_job("crash", how=how)
        waiting = await m.start_job("echo", x="still works")
        await end(job)
        assert job.status == "failed" and job.error.category == "crash", job.error
        assert {k: getattr(job.error, k) for k in CRASHES[how]} == CRASHES[how]
        assert (job.error.signal is None) != (job.error.exit_code is None)
        assert f"about to end by {how}" in job.error.stderr_tail and f"about to end by {how}" in str(job.error)
        for number in (n for n in (job.error.signal, job.error.exit_code) if n is not None):
            assert str(int(number)) in job.error.message
        assert await waiting == "still works" and waiting.worker_pid != job.worker_pid
        exited = await seen.until("worker:exited", pid=job.worker_pid)
        assert (exited.data["exit_code"], exited.data["signal"]) == (job.error.exit_code, job.error.signal)


async def test_what_a_crash_leaves_on_stderr_is_shown() -> None:
    """The message of sys.exit and Python's own dump of a segfault are in the error."""
    async with manager("crash", backoff_base=0.01) as m:
        left = await end(await m.start_job("crash", how="sys.exit"))
        assert "a message for the exit" in left.error.stderr_tail
        broken = await end(await m.start_job("crash", how="segfault"))
        assert "Segmentation fault" in broken.error.stderr_tail and "in crash" in broken.error.stderr_tail
        interrupted = await end(await m.start_job("crash", how="KeyboardInterrupt"))
        assert "KeyboardInterrupt" in interrupted.error.stderr_tail


async def test_a_worker_killed_from_outside_is_noticed_at_once() -> None:
    """kill -9 in the middle of a job ends the job within a moment, not at some poll."""
    async with manager("stuck", "echo", backoff_base=0.01) as m:
        job = await m.start_job("stuck")
        pid = await first_chunk(job)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        await end(job)
        assert time.monotonic() - killed < 1.0
        assert (job.error.category, job.error.signal, job.worker_pid) == ("crash", signal.SIGKILL, pid)
        await works(m)


def at_claim(do: str = "", folder: str = "") -> "Iterator[str] | int":
    """Count how often this ran; or have the worker killed when it has next `looked` at a claim or has `taken` one.

    Or have it wait for the file `go` `between` the two, and killed then."""
    if not do:
        with open(folder + "/ran", "a") as file:
            return file.write("x") and file.tell()
    return spoil(do, folder)


def spoil(do: str, folder: str) -> "Iterator[str]":
    """Change what the worker does when it claims the next job."""
    receive = socket.socket.recv

    def recv(sock: socket.socket, size: int, flags: int = 0) -> bytes:
        looks = flags == socket.MSG_DONTWAIT | socket.MSG_PEEK
        got = receive(sock, size, flags)
        if got and flags & socket.MSG_DONTWAIT and (do == "looked" or not looks):
            os.kill(os.getpid(), signal.SIGKILL)
        if got and looks and do == "between":
            open(folder + "/looked", "w").close()
            while not os.path.exists(folder + "/go"):
                time.sleep(0.005)
        return got

    yield "begun"
    while not os.path.exists(folder + "/end"):
        time.sleep(0.005)
    socket.socket.recv = recv  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize("ahead", [False, True], ids=["given later", "prefetched"])
@pytest.mark.parametrize("do", ["looked", "taken"])
async def test_a_worker_that_dies_while_it_claims_a_job(tmp_path: Path, do: str, ahead: bool) -> None:
    """Up to the claim the job was never begun, and runs once elsewhere; from then on it is the worker's, and crashes with it."""
    async with manager(at_claim, backoff_base=0.01) as m:
        assert await (await m.start_job("at_claim", folder=str(tmp_path))) == 1
        first = await m.start_job("at_claim", do=do, folder=str(tmp_path))
        await first_chunk(first)
        if not ahead:
            (tmp_path / "end").touch()
            await first
        second = await m.start_job("at_claim", folder=str(tmp_path))
        await asyncio.sleep(0)
        assert not ahead or second.position == 1
        (tmp_path / "end").touch()
        await end(first)
        await end(second)
        assert first.status == "completed" and second.attempts == 1
        if do == "taken":
            assert second.error is not None and second.error.category == "crash" and (tmp_path / "ran").read_text() == "x"
        else:
            assert second.result == 2 and (tmp_path / "ran").read_text() == "xx"


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_claim_that_takes_the_place_of_another_is_the_workers_once_it_is_read(tmp_path: Path, retries: int) -> None:
    """Between the worker's look and its read, its next job is cancelled and another one given. Whichever side reads a claim has the job."""
    async with manager(at_claim, backoff_base=0.01) as m:
        assert await (await m.start_job("at_claim", folder=str(tmp_path))) == 1
        first = await m.start_job("at_claim", do="between", folder=str(tmp_path))
        await first_chunk(first)
        cancelled = await m.start_job("at_claim", folder=str(tmp_path))
        await asyncio.sleep(0.1)  # it is sent ahead
        (tmp_path / "end").touch()
        wait_until(lambda: (tmp_path / "looked").exists())  # the loop does not hear that the first job has ended
        assert first.status == "running"
        request_cancel(cancelled)
        assert cancelled.status == "cancelled"
        second = await m.start_job("at_claim", folder=str(tmp_path), retries=retries)
        await first
        (tmp_path / "go").touch()
        await end(second)
        assert second.attempts == 1 + retries
        if retries:
            assert second.result == 2 and (tmp_path / "ran").read_text() == "xx"
        else:
            assert second.error is not None and second.error.category == "crash" and (tmp_path / "ran").read_text() == "x"


@pytest.mark.parametrize("how", ["KeyboardInterrupt", "SystemExit"])
async def test_a_thread_that_never_ends_does_not_keep_a_dying_worker(how: str) -> None:
    """A worker whose plugin left a non-daemon thread ends all the same."""
    async with manager("crash_with_thread", "echo", backoff_base=0.01) as m:
        job = await end(await m.start_job("crash_with_thread", how=how))
        assert job.error.category == "crash"
        await works(m)


async def test_an_exit_handler_that_waits_does_not_keep_a_dying_worker() -> None:
    """sys.exit in a plugin whose child multiprocessing would wait for at exit: the job ends, and so does the child."""
    async with manager("exit_with_child", "echo", backoff_base=0.01) as m:
        job = await end(await m.start_job("exit_with_child"), limit=10)
        assert job.error.category == "crash"
        await works(m)


async def test_a_resource_manager_without_the_methods_hurts_no_job(caplog: pytest.LogCaptureFixture) -> None:
    """What is missing is logged and counted, as what raises; the worker is ready all the same."""
    async with manager("echo", resource_manager=object()) as m:
        await works(m)
    missing = ("register_worker", "update_worker_state", "unregister_worker")
    assert all(m.integration_errors[f"resource_manager.{method}"] for method in missing)
    assert "'object' object has no attribute 'register_worker'" in caplog.text


async def test_a_plugin_that_exits_shows_where() -> None:
    """`sys.exit` ends the worker, as it ends a program; Python itself would not say where it was called."""

    def leave(code: Any) -> None:
        sys.exit(code)

    async with manager(plugins={"leave": leave}, backoff_base=0.001) as m:
        for code in (3, None, "enough"):
            job = await end(await m.start_job("leave", code=code))
            assert job.error.category == "crash" and job.error.exit_code == {3: 3, None: 0, "enough": 1}[code]
            assert "sys.exit(code)\nSystemExit" + f": {code}" * (code is not None) in job.error.stderr_tail


async def test_an_idle_worker_that_is_killed_costs_no_job() -> None:
    """A job that starts just after its worker was killed has not run, so it is not failed: it waits for another worker."""
    async with manager("echo", "pid", backoff_base=0.001, max_restarts=100) as m:
        pids = set()
        for _ in range(8):
            pid = await (await m.start_job("pid"))
            pids.add(pid)
            os.kill(pid, signal.SIGKILL)
            await works(m)
        assert len(pids) == 8


async def test_an_idle_worker_that_is_killed_is_noticed() -> None:
    """Its end is an event, it is unregistered once, and it is not shown any longer."""
    pool = Ledger()

    async with manager("pid", resource_manager=pool, backoff_base=0.01) as m:
        seen = Seen(m)
        pid = await (await m.start_job("pid"))
        os.kill(pid, signal.SIGKILL)
        await seen.until("worker:exited", pid=pid, signal=9)
        assert m.workers == []
        other = await (await m.start_job("pid"))
        assert other != pid
    assert pool.balance() == {pid: ("register", "unregister"), other: ("register", "unregister")}


async def test_a_standby_that_is_killed_is_replaced() -> None:
    """The running job does not notice, and another standby comes."""
    async with manager("wait_at", "pid", standby=True, backoff_base=0.01) as m:
        seen = Seen(m)
        mine = await (await m.start_job("pid"))
        spare = (await seen.when(lambda e: e.type == "worker:ready" and e.data["pid"] != mine)).data["pid"]
        os.kill(spare, signal.SIGKILL)
        await seen.until("worker:exited", pid=spare)
        await seen.when(lambda e: e.type == "worker:ready" and e.data["pid"] not in (mine, spare))
        assert await (await m.start_job("pid")) == mine


async def test_a_standby_that_cannot_be_started_comes_later() -> None:
    """A start that the system refuses for a moment is tried again; jobs run meanwhile."""

    class Moody(LocalEngine):
        starts = 0

        def start_worker(self, config: WorkerConfig, events: Any, needs: Any = None) -> Any:
            self.starts += 1
            if 1 < self.starts < 4:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return super().start_worker(config, events, needs)

    engine = Moody()
    async with manager("echo", engine=engine, standby=True, backoff_base=0.01) as m:
        await works(m)
        await until(lambda: [w.status for w in m.workers] == ["idle", "standby"])
        await works(m)
        assert engine.starts == 4


# What cannot be sent, said or read


async def test_text_that_is_not_ascii_comes_through() -> None:
    """Any text in an exception, lone surrogates too, is in the error, in the result as text, and in the JSON of the event."""
    texts = ["Überraschung – 💥", "日本語", "half a pair: \ud83d", "\x00 and \x1b[31m"]

    async with manager("fail", "echo") as m:
        seen = Seen(m)
        for text in texts:
            job = await end(await m.start_job("fail", message=text))
            assert text in job.error.message and text in m.get_job_result(job.id)["error"], job.error
            assert await (await m.start_job("echo", x=text)) == text
    for event in await seen.rest():
        json.dumps(event.data, allow_nan=False, ensure_ascii=False).encode("utf-8")


async def cancels_its_own_task() -> None:
    """A coroutine that awaits what it has cancelled."""
    task = asyncio.ensure_future(asyncio.sleep(60))
    task.cancel()
    await task


async def test_a_coroutine_that_is_cancelled_by_itself_fails_its_job() -> None:
    """A `CancelledError` out of a coroutine is an exception like any other, and the same worker goes on."""
    async with manager(cancels_its_own_task, "pid") as m:
        job = await end(await m.start_job("cancels_its_own_task"))
        assert job.status == "failed" and job.error.category == "exception"
        assert "cancelled, by itself" in job.error.message and "CancelledError" in job.error.traceback
        assert await (await m.start_job("pid")) == job.worker_pid


async def test_a_result_that_cannot_be_pickled_fails_its_job() -> None:
    """The error is `serialization`, and says what could not be sent and why; the same worker goes on."""
    async with manager("unpicklable", "pid") as m:
        job = await end(await m.start_job("unpicklable"))
        assert job.error.category == "serialization" and "lock" in job.error.message
        assert job.error.message.startswith("the result cannot be sent: TypeError: ")
        assert await (await m.start_job("pid")) == job.worker_pid


async def test_a_chunk_that_cannot_be_pickled_fails_its_job() -> None:
    """What was streamed before can be read; the error is `serialization`; the same worker goes on."""
    async with manager("unpicklable_chunk", "pid") as m:
        job = await end(await m.start_job("unpicklable_chunk"))
        assert job.error.category == "serialization" and "lock" in job.error.message
        assert job.error.message.startswith("a chunk cannot be sent: TypeError: ")
        assert await first_chunk(job) == 1
        assert await (await m.start_job("pid")) == job.worker_pid


async def test_a_parameter_that_cannot_be_pickled_is_refused() -> None:
    """start_job raises an error that names the parameter; no job exists, no worker was started."""
    async with manager("echo", "anything") as m:
        with pytest.raises(errors.ParametersNotSendableError, match="'bad'.*'anything'.*lock") as refusal:
            await m.start_job("anything", good=1, bad=threading.Lock())
        assert refusal.value.parameter == "bad" and isinstance(refusal.value, TypeError)
        with pytest.raises(errors.ParametersNotSendableError):
            await m.start_job("echo", x=(i for i in range(3)))
        assert m.jobs == {} and m.workers == []
        await works(m)


class Unwelcome:
    """Pickled here, and cannot be read in a worker."""

    def __reduce__(self) -> "tuple[Any, ...]":
        return eval, ("1/0",)


async def test_a_parameter_that_the_worker_cannot_read_fails_its_job() -> None:
    """The error is `serialization` with the reason, and the worker goes on."""
    async with manager("echo") as m:
        job = await end(await m.start_job("echo", x=Unwelcome()))
        assert job.error.category == "serialization"
        assert job.error.message.startswith("the parameters, or the config, cannot be read in the worker: ZeroDivisionError")
        await works(m)


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError, GeneratorExit], ids=lambda e: e.__name__)
async def test_a_result_that_the_manager_cannot_read_fails_its_job(error: "type[BaseException]") -> None:
    """Whatever unpickling raises in this process, the job fails as `serialization`, and both processes go on."""
    async with manager("only_here", "pid") as m:
        job = await end(await m.start_job("only_here", error=error))
        assert job.error.category == "serialization" and error.__name__ in job.error.message
        assert await (await m.start_job("pid")) == job.worker_pid


async def test_a_chunk_that_the_manager_cannot_read_fails_its_job() -> None:
    """The job is stopped and fails as `serialization`."""
    async with manager("only_here_chunk", "echo") as m:
        job = await end(await m.start_job("only_here_chunk"))
        assert job.error.category == "serialization" and "only there" in job.error.message
        await works(m)


async def test_a_result_that_cannot_be_shown_does_not_hurt_its_job() -> None:
    """A result that raises when an event wants to show it: the job completes, has its one end event, and its hook is called."""
    heard = []

    class Listening(JobManager):
        def _on_job_completed(self, job_id: str) -> None:
            heard.append(job_id)

    async with manager("grumpy", cls=Listening) as m:
        seen = Seen(m)
        job = await end(await m.start_job("grumpy"))
        assert job.status == "completed" and type(job.result) is sample_plugins.Grumpy
    await seen.rest()
    assert seen.types(job) == ["job:queued", "job:started", "job:completed"] and heard == [job.id]


async def test_a_hundred_megabytes_there_and_back() -> None:
    """A parameter and a result of 100 MB arrive whole, also with everything plugged in."""
    size = 100_000_000

    async with manager("large", "measure", "echo", event_broadcaster=Recorder(), resource_manager=Ledger()) as m:
        result = await (await m.start_job("large", size=size))
        assert (len(result), result[:1], result[-1:]) == (size, b"a", b"z")
        assert await (await m.start_job("measure", data=result)) == (size, b"a", b"z")
        await works(m)


async def test_a_job_can_be_cancelled_while_its_parameters_travel() -> None:
    """A large parameter that is still on its way is no reason to wait, and the next worker gets nothing of it."""
    async with manager("measure", "echo") as m:
        job = await m.start_job("measure", data=bytes(50_000_000))
        while job.status == "pending":
            await asyncio.sleep(0)
        assert await m.cancel_job(job.id) and job.status == "cancelled"
        await works(m)


def test_a_large_result_does_not_stall_the_loop() -> None:
    """A nested result of a million numbers, which a listener of events is shown, holds up the loop only for as long as reading it takes."""
    row = [0.5] * 1000

    async def scenario() -> float:
        async with manager("echo") as m:
            seen = Seen(m)
            await works(m)
            job = await m.start_job("echo", x=[row] * 1000)  # small on its way, large when it is walked
            async with ticking() as stall:
                await job
            await seen.until("job:completed", job_id=job.id)
            return stall.worst

    assert least_stall(scenario, SMOOTH) < SMOOTH


# Integrations that misbehave


class Recorder:
    """A broadcaster that does something odd, then keeps the event."""

    def __init__(self, how: str = "", delay: float = 0.0) -> None:
        self.how, self.delay, self.types = how, delay, list[str]()

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        """Misbehave, as told."""
        if self.how == "raise":
            raise OSError("the hub is down")
        if self.how == "cancelled":
            raise asyncio.CancelledError
        if self.how == "exit":
            sys.exit("the hub exits")
        if self.how == "panic":
            raise BaseException("the hub panics")
        if self.how == "hang":
            await asyncio.Event().wait()
        for _ in range(2 if self.how == "swallow" else 0):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass
        if self.how == "change":
            data.clear()
        await asyncio.sleep(self.delay)
        self.types.append(event_type)


class Ledger:
    """A resource manager that keeps books, and raises or waits where it is told to."""

    def __init__(self, *bad: str, wait: "threading.Event | None" = None) -> None:
        self.bad, self.wait, self.calls = bad, wait, list[tuple[str, int]]()

    def _call(self, name: str, pid: int) -> None:
        self.calls.append((name, pid))
        if self.wait is not None:
            self.wait.wait()
        if name in self.bad:
            raise OSError(f"no {name} today")

    def register_worker(self, pid: int, worker_type: str) -> None:
        """Keep it."""
        self._call("register_worker", pid)

    def unregister_worker(self, pid: int) -> None:
        """Keep it."""
        self._call("unregister_worker", pid)

    def update_worker_state(self, pid: int, **state: Any) -> None:
        """Keep it."""
        self._call("update_worker_state", pid)

    def balance(self) -> "dict[int, tuple[str, ...]]":
        """Registrations and unregistrations, in order, by pid."""
        found: "dict[int, tuple[str, ...]]" = {}
        for name, pid in self.calls:
            if name != "update_worker_state":
                found[pid] = (*found.get(pid, ()), name.partition("_")[0])
        return found


@pytest.mark.parametrize("how", ["raise", "cancelled", "exit", "panic"])
async def test_a_broadcaster_that_raises(how: str) -> None:
    """Jobs and listeners do not notice; every failure is counted."""
    async with manager("echo", "crash", event_broadcaster=Recorder(how), backoff_base=0.01) as m:
        seen = Seen(m)
        await works(m)
        assert (await end(await m.start_job("crash"))).error.category == "crash"
        await works(m)
    events = await seen.rest()
    assert m.integration_errors == {"event_broadcaster.broadcast": len(events)}


def test_a_broadcaster_is_told_what_is_wrong_with_it(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged with its traceback; a plain broadcast is told to be async."""

    class Plain:
        def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
            """Do nothing, and give nothing that can be awaited."""

    async def scenario() -> None:
        for hub in (Plain(), Recorder("raise")):
            async with manager("echo", event_broadcaster=hub) as m:
                await works(m)
            assert set(m.integration_errors) == {"event_broadcaster.broadcast"}

    with caplog.at_level(logging.WARNING):
        run(scenario())
    assert "expected an `async def broadcast` (got None from a plain one): write `async` before its `def`" in caplog.text
    assert 'raise OSError("the hub is down")' in caplog.text


@pytest.mark.parametrize("how", ["hang", "swallow"])
async def test_a_broadcaster_that_hangs(how: str) -> None:
    """It gets its time, jobs do not wait for it, also when it is deaf to being cancelled, and shutdown ends."""
    async with manager("echo", event_broadcaster=Recorder(how), integration_timeout=0.1) as m:
        await works(m)
        began = time.monotonic()
        for _ in range(20):
            await works(m)
        assert time.monotonic() - began < 2.0
        began = time.monotonic()
    assert time.monotonic() - began < 3.0 and sum(m.integration_errors.values()) > 0


async def test_a_broadcaster_that_swallowed_a_timeout_is_not_taken_for_cancelled() -> None:
    """The next call begins without a cancellation, and what that raises is its own."""

    class Swallows:
        calls, cancelling = 0, list[int]()

        async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
            self.calls += 1
            self.cancelling.append(getattr(asyncio.current_task(), "cancelling", int)())
            if self.calls == 1:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            if self.calls == 2:
                raise asyncio.CancelledError

    hub = Swallows()
    async with manager("echo", event_broadcaster=hub, integration_timeout=0.1) as m:
        seen = Seen(m)
        await works(m)
        await until(lambda: hub.calls >= max(3, len(seen.events)))
    assert hub.calls == len(await seen.rest()) == len(hub.cancelling) and not any(hub.cancelling)
    assert m.integration_errors == {"event_broadcaster.broadcast": 1}


async def test_a_broadcaster_that_is_slow() -> None:
    """At 300 ms an event, jobs are as fast as ever; it gets its events in order, and what is left at the end is counted as dropped."""
    hub = Recorder(delay=0.3)

    async with manager("echo", event_broadcaster=hub, integration_timeout=0.8) as m:
        seen = Seen(m)
        await works(m)
        began = time.monotonic()
        async with ticking() as stall:
            for _ in range(20):
                await works(m)
        assert time.monotonic() - began < 2.0 and stall.worst < 1.0
    events = [e.type for e in await seen.rest()]
    assert hub.types == events[: len(hub.types)] and 2 <= len(hub.types) < len(events)
    assert m.integration_errors["event_broadcaster.dropped"] == 1


async def test_a_broadcaster_that_is_given_time_misses_nothing() -> None:
    """Shutdown waits, within integration_timeout, for what a slow broadcaster has not got yet."""
    hub = Recorder(delay=0.02)

    async with manager("echo", event_broadcaster=hub) as m:
        seen = Seen(m)
        for _ in range(5):
            await works(m)
    assert hub.types == [e.type for e in await seen.rest()] and m.integration_errors == {}


async def test_a_broadcaster_far_behind_loses_the_oldest_and_it_is_counted() -> None:
    """At most `event_buffer` events wait."""
    hub = Recorder(delay=0.05)

    async with manager("echo", event_broadcaster=hub, event_buffer=5) as m:
        for _ in range(20):
            await works(m)
    assert m.integration_errors["event_broadcaster.dropped"] > 0 and hub.types[-1] == "worker:exited"


METHODS = ("register_worker", "update_worker_state", "unregister_worker")


@pytest.mark.parametrize("bad", [*((m,) for m in METHODS), METHODS], ids=lambda b: "+".join(b) if len(b) < 3 else "all")
async def test_a_resource_manager_that_raises(bad: "tuple[str, ...]") -> None:
    """Singly and all: jobs do not notice, every call is still made, every failure is counted by method."""
    pool = Ledger(*bad)

    async with manager("echo", "stuck", resource_manager=pool) as m:
        await works(m)
        job = await m.start_job("stuck")
        await first_chunk(job)
        assert await m.cancel_job(job.id)
        await works(m)
    calls = Counter(name for name, _ in pool.calls)
    assert m.integration_errors == {f"resource_manager.{name}": calls[name] for name in bad}
    assert calls["register_worker"] == calls["unregister_worker"] == 2 and calls["update_worker_state"] >= 6


async def test_a_resource_manager_that_is_async() -> None:
    """Nobody awaits it: every call is counted as a failure, and none is forgotten with a warning of Python's."""

    class Awaits:
        async def register_worker(self, pid: int, worker_type: str) -> None: ...
        async def unregister_worker(self, pid: int) -> None: ...
        async def update_worker_state(self, pid: int, **fields: Any) -> None: ...

    async with manager("echo", resource_manager=Awaits()) as m:
        await works(m)
    assert set(m.integration_errors) == {f"resource_manager.{name}" for name in METHODS}


async def test_a_resource_manager_that_raises_system_exit() -> None:
    """Not even SystemExit on the integrations' thread ends anything."""

    class Leaving(Ledger):
        def register_worker(self, pid: int, worker_type: str) -> None:
            sys.exit("bye")

    async with manager("echo", resource_manager=Leaving()) as m:
        await works(m)
    assert m.integration_errors == {"resource_manager.register_worker": 1}


def test_a_resource_manager_that_hangs() -> None:
    """Jobs run, cancel and end; shutdown gives up on it after integration_timeout, and says so."""
    release = threading.Event()
    pool = Ledger(wait=release)

    async def scenario() -> None:
        async with manager("echo", "stuck", resource_manager=pool, integration_timeout=0.2) as m:
            async with ticking() as stall:
                await works(m)
                job = await m.start_job("stuck")
                await first_chunk(job)
                assert await m.cancel_job(job.id)
                await works(m)
            assert stall.worst < 1.0
            began = time.monotonic()
        assert time.monotonic() - began < 3.0
        assert m.integration_errors["resource_manager.close"] == 1 and pool.calls == pool.calls[:1]

    try:
        run(scenario())
    finally:
        release.set()  # its thread ends


class Catalog:
    """A registry that raises, hangs or answers nonsense, method by method, until it is told to recover."""

    def __init__(self) -> None:
        self.bad: "set[str]" = set()
        self.nonsense: Any = None
        self.gate = threading.Event()
        self.hanging = False
        self.asked: "list[str]" = []

    def _call(self, name: str) -> None:
        self.asked.append(name)
        if self.hanging:
            self.gate.wait()
        if name in self.bad:
            raise OSError(f"no {name} today")

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        """All of them."""
        self._call("get_plugins_by_category")
        return [self.metadata("echo")]

    def get_plugin(self, plugin_id: str) -> Any:
        """One of them."""
        self._call("get_plugin")
        return self.metadata(plugin_id) if plugin_id in ("echo", "stuck") else None

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        """Its config."""
        self._call("load_plugin_config")
        return {} if self.nonsense is None else self.nonsense

    def metadata(self, plugin_id: str) -> Any:
        """What it knows."""
        return type("Metadata", (), {"id": plugin_id, "name": plugin_id})()


@pytest.mark.parametrize("method", ["get_plugin", "load_plugin_config"])
@pytest.mark.parametrize("decorated", [False, True])
async def test_a_registry_that_is_async(method: str, decorated: bool) -> None:
    """It does not answer, so start_job says why, and not even an id that it would not know is accepted."""

    class Awaits(Catalog):
        pass

    class Awaitable:
        def __await__(self) -> Any: ...

    async def answer(self: Any, plugin_id: str) -> Any: ...

    setattr(Awaits, method, (lambda self, plugin_id: Awaitable()) if decorated else answer)

    async with manager("echo", plugin_registry=Awaits()) as m:
        with pytest.raises(errors.RegistryUnavailableError, match=f"{method}.*expected a plain method.*async"):
            await m.start_job("echo")
        assert m.jobs == {} and m.integration_errors == {f"plugin_registry.{method}": 1}


@pytest.mark.parametrize("method", ["get_plugin", "load_plugin_config"])
async def test_a_registry_that_raises_then_recovers(method: str) -> None:
    """start_job raises an error that names the method and the reason, no job and no worker exist; when it recovers, all is well."""
    registry = Catalog()

    async with manager("echo", plugin_registry=registry) as m:
        registry.bad = {method}
        for _ in range(2):
            with pytest.raises(errors.RegistryUnavailableError, match=f"{method}.*no {method} today") as refusal:
                await m.start_job("echo")
            assert refusal.value.method == method
        assert m.jobs == {} and m.workers == []
        assert m.integration_errors == {f"plugin_registry.{method}": 2}
        registry.bad = set()
        await works(m)


async def test_a_registry_that_cannot_list_still_names_an_unknown_plugin() -> None:
    """get_plugins_by_category is needed only for help in a message, and reload_plugin raises its named error."""
    registry = Catalog()

    async with manager("echo", plugin_registry=registry) as m:
        registry.bad = {"get_plugins_by_category"}
        with pytest.raises(errors.UnknownPluginError, match="no plugin 'nope' in the plugin registry"):
            await m.start_job("nope")
        await works(m)
        with pytest.raises(errors.RegistryUnavailableError, match="get_plugins_by_category"):
            await m.reload_plugin("echo", {})
        with pytest.raises(errors.UnknownPluginError, match="Known ids: echo"):
            registry.bad = set()
            await m.start_job("nope")
        assert len(m.jobs) == 1


@pytest.mark.parametrize(
    ("nonsense", "reason"),
    [(None, r"expected a list of plugins \(got None that is a NoneType\)"), (7, "got 7 that is a int"), ([1, 0], "ZeroDivisionError")],
)
async def test_a_registry_whose_listing_is_none(nonsense: Any, reason: str) -> None:
    """What cannot be gone through is no list: reload_plugin raises its named error, an unknown plugin is still named, and jobs go on."""
    registry = Catalog()
    registry.get_plugins_by_category = lambda category: (1 // n for n in nonsense) if isinstance(nonsense, list) else nonsense  # type: ignore[method-assign]

    async with manager("echo", plugin_registry=registry) as m:
        with pytest.raises(errors.RegistryUnavailableError, match=reason):
            await m.reload_plugin("Echo, by its name", {})
        with pytest.raises(errors.UnknownPluginError, match="no plugin 'nope' in the plugin registry"):
            await m.start_job("nope")
        await works(m)
        assert m.integration_errors["plugin_registry.get_plugins_by_category"] >= 1


@pytest.mark.parametrize("nonsense", [[], '{"api_key": "hush"}', 7], ids=str)
async def test_a_registry_whose_config_is_none(nonsense: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A config that is no mapping is the registry's fault, and named as such; it is not shown, since it may have a secret in it."""
    registry = Catalog()
    registry.nonsense = nonsense

    async with manager("echo", plugin_registry=registry) as m:
        with pytest.raises(errors.RegistryUnavailableError, match="load_plugin_config.*expected a dict") as info:
            await m.start_job("echo")
        assert "hush" not in f"{info.value}{caplog.text}" and type(nonsense).__name__ in str(info.value)
        assert m.jobs == {} and m.workers == []


async def test_a_registry_whose_metadata_raises() -> None:
    """Metadata that cannot be read is the registry's fault, and named as such."""

    class Sour:
        id = "echo"

        @property
        def name(self) -> str:
            raise OSError("sour")

    registry = Catalog()
    registry.metadata = lambda plugin_id: Sour()  # type: ignore[method-assign]

    async with manager("echo", plugin_registry=registry) as m:
        with pytest.raises(errors.RegistryUnavailableError, match="sour"):
            await m.start_job("echo")
        assert m.jobs == {} and m.workers == []


async def test_a_config_that_cannot_be_sent() -> None:
    """A config that cannot be pickled is an error that speaks of the config, and no job exists."""
    registry = Catalog()
    registry.nonsense = {"lock": threading.Lock()}

    async with manager("echo", plugin_registry=registry) as m:
        with pytest.raises((errors.ParametersNotSendableError, errors.RegistryUnavailableError), match="config"):
            await m.start_job("echo")
        assert m.jobs == {} and m.workers == []
        registry.nonsense = None
        await works(m)


async def test_a_registry_that_hangs_then_recovers() -> None:
    """start_job raises after integration_timeout, the loop goes on, jobs that run are not disturbed; when it recovers, all is well."""
    registry = Catalog()

    async with manager("echo", "stuck", plugin_registry=registry, integration_timeout=0.3, max_workers=2) as m:
        running = await m.start_job("stuck")
        await first_chunk(running)
        registry.hanging = True
        async with ticking() as stall:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises(errors.RegistryUnavailableError, match="0.3 s"):
                    await m.start_job("echo")
                assert 0.3 <= time.monotonic() - began < 2.0
        assert stall.worst < 1.0 and running.status == "running" and len(m.jobs) == 1
        registry.hanging = False
        registry.gate.set()
        await works(m)
        assert await m.cancel_job(running.id)


async def test_an_unknown_plugin_costs_nothing() -> None:
    """A named error, no worker started, no job kept; with a registry and without."""
    for registry in (None, Catalog()):
        async with manager("echo", plugin_registry=registry) as m:
            seen = Seen(m)
            with pytest.raises(errors.UnknownPluginError, match="'nope'"):
                await m.start_job("nope")
            assert m.jobs == {} and m.workers == [] and m.get_job_result("nope") is None
        assert await seen.rest() == []


async def test_what_is_asked_after_the_shutdown_leaves_no_thread() -> None:
    """get_plugin_name answers, or refuses, after the shutdown, and starts nothing that stays."""
    async with manager("echo", plugin_registry=Catalog()) as m:
        assert m.get_plugin_name("echo") == "echo"
    try:
        assert m.get_plugin_name("echo") == "echo"
    except errors.ManagerClosedError:
        pass


# Hooks that misbehave


async def test_a_completion_hook_that_is_slow_or_raises() -> None:
    """It holds up no job, it is called for each completed job in order, what it raises is counted, and shutdown waits for it."""
    heard = []

    class Hooked(JobManager):
        def _on_job_completed(self, job_id: str) -> None:
            time.sleep(0.05)
            heard.append(job_id)
            raise OSError("the hook fails")

    async with manager("echo", cls=Hooked) as m:
        async with ticking() as stall:
            jobs = [await m.start_job("echo") for _ in range(10)]
            began = time.monotonic()
            for job in jobs:
                await job
        assert stall.worst < 1.0 and len(heard) < 10 and time.monotonic() - began < 5.0
    assert heard == [job.id for job in jobs] and m.integration_errors == {"hooks._on_job_completed": 10}


async def test_an_async_completion_hook_that_raises_or_hangs() -> None:
    """What it raises is counted, and one that hangs is given up at shutdown after integration_timeout."""

    class Hooked(JobManager):
        async def _on_job_completed(self, job_id: str) -> None:
            if len(self.jobs) == 1:
                raise OSError("the hook fails")
            await asyncio.Event().wait()

    async with manager("echo", cls=Hooked, integration_timeout=0.2) as m:
        await works(m)
        await works(m)
        began = time.monotonic()
    assert m.integration_errors["hooks._on_job_completed"] >= 1 and time.monotonic() - began < 3.0


def test_a_completion_hook_that_hangs() -> None:
    """It holds up nothing but itself; shutdown gives up on it after integration_timeout."""
    release = threading.Event()

    class Hooked(JobManager):
        def _on_job_completed(self, job_id: str) -> None:
            release.wait()

    async def scenario() -> None:
        async with manager("echo", cls=Hooked, integration_timeout=0.2) as m:
            for _ in range(3):
                await works(m)
            began = time.monotonic()
        assert m.integration_errors["hooks.close"] == 1 and time.monotonic() - began < 3.0

    try:
        run(scenario())
    finally:
        release.set()


class Mute(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [ValueError, Mute, asyncio.CancelledError, GeneratorExit, SystemExit], ids=lambda e: e.__name__)
async def test_extract_job_result_that_raises(error: "type[BaseException]") -> None:
    """The job fails with what it raised, whatever that is, and the worker goes on."""

    class Extracting(JobManager):
        def extract_job_result(self, job: Job, result_data: Any) -> Any:
            if result_data == "bad":
                raise error("cannot extract")
            return result_data

    async with manager("echo", cls=Extracting) as m:
        job = await end(await m.start_job("echo", x="bad"))
        assert job.status == "failed" and job.error.category == "exception" and error.__name__ in job.error.message
        assert job.result is None
        await works(m)


async def test_extract_job_result_may_cancel_other_jobs() -> None:
    """Also the one that the worker begins at that moment, and those that were prefetched after it: each has one end."""

    class Cancels(JobManager):
        def extract_job_result(self, job: Job, result_data: Any) -> Any:
            for other in self.get_all_jobs() if result_data == "cancel" else ():
                if not other.done:
                    request_cancel(other)
            return result_data

    async with manager("echo", "stuck", cls=Cancels) as m:
        await works(m)
        for n in range(1, 6):
            first, *others = [await m.start_job("echo", x="cancel" if not i else i) for i in range(8)]
            others.append(await m.start_job("stuck"))
            for job in (first, *others):
                await end(job)
            assert first.status == "completed" and {job.status for job in others} <= {"completed", "cancelled"}
            assert m.totals.total() == 1 + 9 * n and others[-1].status == "cancelled"
        await works(m)


async def test_extract_job_result_that_is_async() -> None:
    """Nobody awaits it, so the job fails with the reason: its result would be a coroutine."""

    class Extracting(JobManager):
        async def extract_job_result(self, job: Job, result_data: Any) -> Any:
            return result_data

    async with manager("echo", cls=Extracting) as m:
        job = await end(await m.start_job("echo"))
        assert job.status == "failed" and "extract_job_result failed: TypeError: expected a plain method" in job.error.message


# Loading and starting


async def test_load_that_raises() -> None:
    """The job fails as `load` with the reason and the traceback; the same worker goes on; a mended config is used by the next job."""
    async with manager("BadLoad", "echo") as m:
        await m.reload_plugin("BadLoad", {"load": "raise"})
        for _ in range(2):
            job = await end(await m.start_job("BadLoad"))
            assert job.error.category == "load" and "the model file is missing" in job.error.message
            assert "in load" in job.error.traceback and m.workers[0].plugin_id is None
        await works(m)
        assert m.workers[0].pid == job.worker_pid
        await m.reload_plugin("BadLoad", {})
        assert await (await m.start_job("BadLoad")) == "fine"


async def test_load_that_hangs() -> None:
    """After load_timeout the job fails as a timeout that speaks of loading; the next job runs."""
    async with manager("BadLoad", "echo", load_timeout=0.3, job_timeout=100) as m:
        await m.reload_plugin("BadLoad", {"load": "hang"})
        job = await end(await m.start_job("BadLoad"))
        assert job.error.category in ("timeout", "load") and "0.3 s" in job.error.message and "load" in job.error.message
        await works(m)


async def test_load_that_crashes() -> None:
    """The job fails as a crash that speaks of loading."""
    async with manager("BadLoad", "echo", backoff_base=0.01) as m:
        await m.reload_plugin("BadLoad", {"load": "os._exit"})
        job = await end(await m.start_job("BadLoad"))
        assert (job.error.category, job.error.exit_code) == ("crash", 3) and "load" in job.error.message
        await works(m)


@pytest.mark.parametrize("how", ["raise", "hang", "os._exit"])
async def test_reload_that_goes_wrong(how: str) -> None:
    """reload_plugin returns False, before long, and the worker, or another, goes on."""
    async with manager("BadLoad", "echo", load_timeout=1.0, backoff_base=0.01) as m:
        assert await (await m.start_job("BadLoad")) == "fine"
        assert not await asyncio.wait_for(m.reload_plugin("BadLoad", {"load": how}), 10)
        await works(m)


async def test_an_interpreter_that_does_not_exist() -> None:
    """The job fails as `start` and names the interpreter; nothing hangs, nothing stays, and a shutdown is clean."""
    async with manager("echo", python="/no/such/python") as m:
        for _ in range(2):
            job = await end(await m.start_job("echo"))
            assert job.error.category == "start" and "/no/such/python" in job.error.message
        assert m.workers == []


async def test_an_interpreter_that_exits_at_once() -> None:
    """After max_restarts crashes in a row the pending jobs fail as `start`, with how the last one ended and what it said."""
    async with manager("echo", python="/bin/false", max_restarts=2, backoff_base=0.01) as m:
        seen = Seen(m)
        jobs = [await m.start_job("echo") for _ in range(3)]
        for job in jobs:
            await end(job)
            assert job.error.category == "start" and "code 1" in job.error.message, job.error
    assert [e.type for e in await seen.rest()].count("worker:started") == 3


async def test_an_interpreter_that_cannot_import_the_worker() -> None:
    """What a worker wrote to stderr before it could even say hello is in the error."""
    async with manager("echo", max_restarts=0, env={"PYTHONHOME": "/no/such/home"}) as m:
        job = await end(await m.start_job("echo"))
        assert job.error.category == "start" and "encodings" in job.error.stderr_tail and job.error.stderr_tail in str(job.error), job.error


@pytest.mark.slow
async def test_an_interpreter_that_never_speaks(tmp_path: Path) -> None:
    """After start_timeout it is killed and counts as a crash."""
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nsleep 1000\n")
    mute.chmod(0o755)

    async with manager("echo", python=str(mute), start_timeout=0.2, max_restarts=1, backoff_base=0.01) as m:
        job = await end(await m.start_job("echo"))
        assert job.error.category == "start"
        assert m.workers == []


async def test_an_engine_that_recovers() -> None:
    """Jobs that found no worker failed; when workers can be started again, later jobs run."""

    class Moody(LocalEngine):
        works = False

        def start_worker(self, config: WorkerConfig, events: Any, needs: Any = None) -> Any:
            if not self.works:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return super().start_worker(config, events, needs)

    engine = Moody()
    async with manager("echo", engine=engine) as m:
        job = await end(await m.start_job("echo"))
        assert job.error.category == "start" and "temporarily" in job.error.message
        engine.works = True
        await works(m)


# Restart policies


async def _crash_twice(m: Any) -> "tuple[Job, Job]":
    """A job that crashes and one that waits behind it, both at their end."""
    first, second = await m.start_job("crash"), await m.start_job("echo", x="still works")
    return await end(first), await end(second)


async def test_restart_never() -> None:
    """After the only worker has crashed the pending jobs fail, and a new job is refused with the policy and the reason."""
    async with manager("crash", "echo", restart=RestartPolicy.NEVER) as m:
        await works(m)
        first, second = await _crash_twice(m)
        assert first.error.category == "crash" and second.error.category == "start"
        with pytest.raises(errors.WorkersUnavailableError, match="'never'.*SIGKILL|SIGKILL.*'never'"):
            await m.start_job("echo")
        assert len(m.jobs) == 3


async def test_restart_never_after_a_cancel() -> None:
    """A cancelled job takes its worker with it, for good; with two workers there is one left."""
    async with manager("stuck", "echo", restart=RestartPolicy.NEVER, max_workers=2) as m:
        for left in (1, 0):
            job = await m.start_job("stuck")
            await first_chunk(job)
            assert await m.cancel_job(job.id)
            if left:
                await works(m)
        with pytest.raises(errors.WorkersUnavailableError):
            await m.start_job("echo")


async def test_restart_on_cancellation() -> None:
    """A cancelled job's worker is replaced. After a crash the jobs that wait, and later ones, get a worker when they need one."""
    async with manager("crash", "stuck", "echo", restart=RestartPolicy.ON_CANCELLATION) as m:
        for _ in range(2):
            job = await m.start_job("stuck")
            await first_chunk(job)
            assert await m.cancel_job(job.id)
        await works(m)
        first, second = await _crash_twice(m)
        assert first.error.category == "crash" and second.result == "still works"
        await works(m)


async def test_restart_always() -> None:
    """A crashed worker is replaced at once, whatever the backoff."""
    async with manager("crash", "echo", restart=RestartPolicy.ALWAYS, backoff_base=100.0, max_restarts=100) as m:
        for _ in range(3):
            first, second = await _crash_twice(m)
            assert first.error.category == "crash" and second.result == "still works"


def test_restart_with_backoff() -> None:
    """The delay doubles with each crash in a row, and begins anew after a success."""
    base = 0.15

    async def scenario() -> "list[float]":

        async with manager("crash", "echo", backoff_base=base) as m:
            seen = Seen(m)
            for plugin in ("crash", "crash", "crash", "echo", "crash", "echo"):
                await end(await m.start_job(plugin))
        kinds = ("worker:started", "worker:exited")
        moments = [(e.type, datetime.fromisoformat(e.data["time"])) for e in await seen.rest() if e.type in kinds]
        return [(b - a).total_seconds() for (kind, a), (_, b) in zip(moments, moments[1:]) if kind == "worker:exited"]

    first, second, third, again = run(scenario())
    assert base <= first and 2 * base <= second and 4 * base <= third
    assert base <= again < 8 * base  # which would have been the next


async def test_backoff_has_a_longest_delay() -> None:
    """No delay is longer than backoff_max."""
    async with manager("crash", "echo", backoff_base=0.05, backoff_max=0.1, max_restarts=100) as m:
        began = time.monotonic()
        for _ in range(6):
            await end(await m.start_job("crash"))
        assert time.monotonic() - began < 5.0


async def test_jobs_that_crash_their_workers_fail_alone() -> None:
    """However many crash in a row: the jobs that wait behind them run."""
    async with manager("crash", "echo", max_restarts=2, backoff_base=0.01) as m:
        jobs = [await m.start_job("crash", retries=n % 2) for n in range(5)] + [await m.start_job("echo", x=n) for n in range(5)]
        for job in jobs:
            await end(job)
        assert [job.error.category for job in jobs[:5]] == ["crash"] * 5
        assert [job.result for job in jobs[5:]] == list(range(5))


@pytest.mark.limit(60)
async def test_a_retried_job_waits_behind_the_others() -> None:
    """A job that crashes its worker again and again holds up none that waits."""
    async with manager("crash", "echo", backoff_base=0.01) as m:
        poison = await m.start_job("crash", retries=10)
        others = [await m.start_job("echo", x=n) for n in range(20)]
        for job in others:
            assert await job in range(20)
        assert poison.attempts <= 2
        assert (await end(poison)).error.category == "crash" and poison.attempts == 11


async def test_cancels_do_not_count_as_crashes() -> None:
    """However many jobs are cancelled, with or without force, or run out of time, no crash is counted."""
    async with manager("stuck", "stuck_quietly", "deaf", "echo", max_restarts=0, backoff_base=100.0, grace_timeout=0.1) as m:
        seen = Seen(m)
        for plugin in ("stuck", "deaf", "stuck"):
            job = await m.start_job(plugin)
            await under_way(seen, job)
            assert await m.cancel_job(job.id)
        assert (await end(await m.start_job("stuck_quietly", timeout=0.1))).error.category == "timeout"
        await works(m)


async def test_a_retried_job_is_one_job_with_one_end(tmp_path: Path) -> None:
    """After a crash a job with retries waits for another worker; it keeps its id and has one end, with all its attempts counted."""
    async with manager("crash_first", backoff_base=0.01) as m:
        seen = Seen(m)
        job = await end(await m.start_job("crash_first", marker=str(tmp_path / "a"), times=2, retries=2))
        assert (job.status, job.result, job.attempts, job.error) == ("completed", 2, 3, None)
        bad = await end(await m.start_job("crash_first", marker=str(tmp_path / "b"), times=2, retries=1))
        assert (bad.status, bad.error.category, bad.attempts) == ("failed", "crash", 2)
        assert len(m.jobs) == 2
    await seen.rest()
    assert seen.types(job) == ["job:queued", "job:started"] * 3 + ["job:completed"]
    assert seen.types(bad) == ["job:queued", "job:started"] * 2 + ["job:failed"]
    assert [e.data["attempt"] for e in seen if e.type == "job:started"] == [1, 2, 3, 1, 2]


async def test_only_crashes_are_retried() -> None:
    """An exception, a timeout, an unpicklable result and a cancel end a job, however many retries it has."""
    async with manager("fail", "stuck_quietly", "unpicklable", "stuck") as m:
        ends = (("fail", {}, "exception"), ("stuck_quietly", {"timeout": 0.1}, "timeout"), ("unpicklable", {}, "serialization"))
        for plugin, settings, category in ends:
            job = await end(await m.start_job(plugin, retries=5, **settings))
            assert (job.error.category, job.attempts) == (category, 1)
        job = await m.start_job("stuck", retries=5)
        await first_chunk(job)
        assert await m.cancel_job(job.id) and job.attempts == 1


async def test_a_job_that_waits_for_its_retry_can_be_cancelled(tmp_path: Path) -> None:
    """Between two attempts a job is pending, and a cancel is its end."""
    async with manager("crash_first", "echo", backoff_base=0.3) as m:
        seen = Seen(m)
        job = await m.start_job("crash_first", marker=str(tmp_path / "a"), retries=3)
        await seen.until("worker:exited")
        assert job.status == "pending" and job.worker_pid is None and not job.done
        assert await m.cancel_job(job.id) and job.status == "cancelled" and job.attempts == 1
        await works(m)


# Queued jobs, and cancelling


@pytest.mark.parametrize("other", ["echo", "wait_at"], ids=["another plugin", "the same plugin"])
async def test_the_second_of_two_jobs_waits_and_can_be_cancelled(other: str, gate: Gate) -> None:
    """Two jobs at once on one worker: the second is pending; cancelling it touches nothing else, and it never runs."""
    async with manager("wait_at", "echo") as m:
        seen = Seen(m)
        first = await m.start_job("wait_at", gate=gate.path, tag="first")
        await seen.until("job:progress", job_id=first.id)
        second, third = [await m.start_job(other, **({"gate": gate.path, "tag": i} if other == "wait_at" else {"x": i})) for i in (2, 3)]
        assert (first.status, second.status, third.status) == ("running", "pending", "pending")
        assert await m.cancel_job(second.id)
        assert (first.status, second.status, third.status) == ("running", "cancelled", "pending")
        assert second.started_at is None and second.attempts == 0
        gate.open(2)
        pid, tag = await first
        await end(third)
        assert tag == "first" and third.status == "completed" and third.worker_pid == pid
    await seen.rest()
    assert seen.types(second) == ["job:queued", "job:cancelled"]
    assert [e.type for e in seen if e.type.startswith("worker:")] == ["worker:started", "worker:ready", "worker:exited"]


async def test_the_highest_priority_is_next_also_when_another_was_next(gate: Gate) -> None:
    """A job that comes late with a higher priority runs before those of the same plugin that wait already."""
    async with manager("wait_at") as m:
        seen = Seen(m)
        jobs = [await m.start_job("wait_at", gate=gate.path)]
        await seen.until("job:progress")
        jobs += [await m.start_job("wait_at", gate=gate.path, priority=p) for p in (0, 0, 5, 9)]
        gate.open(5)
        for job in jobs:
            await job
    started = [e.data["job_id"] for e in await seen.rest() if e.type == "job:started"]
    assert started == [jobs[i].id for i in (0, 4, 3, 1, 2)]


async def test_a_crash_fails_only_the_job_that_ran(tmp_path: Path) -> None:
    """Jobs of the same plugin that wait behind a crash run all the same, each once."""
    async with manager("crash_first", backoff_base=0.01) as m:
        marker = str(tmp_path / "runs")
        jobs = [await m.start_job("crash_first", marker=marker) for _ in range(5)]
        for job in jobs:
            await end(job)
        assert [job.status for job in jobs] == ["failed", *["completed"] * 4] and [job.result for job in jobs[1:]] == [1, 2, 3, 4]


async def test_every_other_of_many_waiting_jobs_is_cancelled(gate: Gate) -> None:
    """Cancels that race with the jobs' turns end each job one way: it was cancelled and never ran, or it ran and was not cancelled."""
    async with manager("echo", "wait_at") as m:
        seen = Seen(m)
        first = await m.start_job("wait_at", gate=gate.path)
        jobs = [await m.start_job("echo", x=i) for i in range(300)]
        gate.open()
        cancelled = {job.id for job in jobs[::-2] if not await asyncio.sleep(0) and await m.cancel_job(job.id)}
        await end(first)
        for i, job in enumerate(jobs):
            await end(job)
            assert (job.status, job.result) == (("cancelled", None) if job.id in cancelled else ("completed", i))
        assert len(cancelled) > 50
    await seen.rest()
    for job in jobs:
        types = seen.types(job)
        assert types == (
            ["job:queued", "job:started", "job:completed"] if job.status == "completed" else ["job:queued", "job:cancelled"]
        ) or types == ["job:queued", "job:started", "job:cancelled"]


@pytest.mark.parametrize("plugin", [pytest.param("stuck", marks=pytest.mark.slow), "cooperative"])
async def test_twenty_cancels_in_a_row_leak_nothing(plugin: str) -> None:
    """No thread, no descriptor and no process more after 20 cancels than after one."""
    async with manager(plugin, "echo", standby=True) as m:
        seen = Seen(m)

        async def settled() -> "tuple[int, set[threading.Thread], int]":
            await works(m)
            while sorted(w.status for w in m.workers) != ["idle", "standby"]:
                seen.events.append(await asyncio.wait_for(seen.listener.__anext__(), 10))
            return len(descriptors()), set(threading.enumerate()), len(children())

        async def cancel_one() -> None:
            job = await m.start_job(plugin)
            await first_chunk(job)
            assert await m.cancel_job(job.id)

        await cancel_one()
        before = await settled()
        for _ in range(20):
            await cancel_one()
        assert await settled() == before


@pytest.mark.parametrize("busy", [False, True], ids=["asleep", "busy"])
def test_a_plugin_deaf_to_sigterm_is_killed_and_the_loop_never_stalls(busy: bool) -> None:
    """It dies after grace_timeout and not before; all the while the loop is held up for less than 100 ms."""

    async def scenario() -> float:
        async with manager("deaf", "echo", grace_timeout=0.3) as m:
            job = await m.start_job("deaf", busy=busy)
            pid = await under_way(Seen(m), job)
            async with ticking() as stall:
                began = time.monotonic()
                assert await m.cancel_job(job.id)
                assert 0.3 <= time.monotonic() - began < 3.0 and job.status == "cancelled"
                await works(m)
            assert gone([pid], 1.0)
            return stall.worst

    assert least_stall(scenario, SMOOTH) < SMOOTH


async def test_a_plugin_that_changed_the_handler_for_sigterm() -> None:
    """It is killed after grace_timeout, and its handler dies with it."""
    async with manager("ignores_sigterm", "stuck", grace_timeout=0.3) as m:
        job = await m.start_job("ignores_sigterm")
        await under_way(Seen(m), job)
        began = time.monotonic()
        assert await m.cancel_job(job.id) and time.monotonic() - began >= 0.3
        gentle = await m.start_job("stuck")
        await first_chunk(gentle)
        assert await m.cancel_job(gentle.id)


async def test_a_plugin_that_holds_the_gil_is_killed() -> None:
    """C code that lets no Python run, not even a signal handler, ends with SIGKILL."""
    async with manager("holds_the_gil", "echo", grace_timeout=0.3) as m:
        job = await m.start_job("holds_the_gil")
        pid = await under_way(Seen(m), job)
        assert await m.cancel_job(job.id) and gone([pid], 1.0)
        await works(m)


async def test_a_stopped_worker_is_killed() -> None:
    """A worker that somebody has stopped with SIGSTOP can be cancelled all the same."""
    async with manager("stuck", "echo", grace_timeout=0.2) as m:
        job = await m.start_job("stuck")
        os.kill(await first_chunk(job), signal.SIGSTOP)
        assert await m.cancel_job(job.id)
        await works(m)


async def test_cancelling_twice_at_once() -> None:
    """Every caller waits for the same end, and all are told that it was a cancel."""
    async with manager("stuck", "echo") as m:
        job = await m.start_job("stuck")
        await first_chunk(job)
        assert await asyncio.gather(*(m.cancel_job(job.id) for _ in range(3))) == [True] * 3
        await works(m)


async def test_cancelling_a_job_whose_worker_is_still_starting() -> None:
    """Whatever moment of a job's young life a cancel hits, the job is cancelled and the next one runs."""
    for turns in (0, 1, 5, 50):
        async with manager("stuck_quietly", "echo") as m:
            job = await m.start_job("stuck_quietly")
            for _ in range(turns):
                await asyncio.sleep(0.002)
            assert await m.cancel_job(job.id) and job.status == "cancelled"
            await works(m)


async def test_max_pending_counts_every_job_that_waits(gate: Gate) -> None:
    """Also one that is next on a busy worker."""
    async with manager("wait_at", max_pending=3) as m:
        seen = Seen(m)
        jobs = [await m.start_job("wait_at", gate=gate.path)]
        await under_way(seen, jobs[0])
        jobs += [await m.start_job("wait_at", gate=gate.path) for _ in range(3)]
        with pytest.raises(errors.QueueFullError):
            await m.start_job("wait_at", gate=gate.path)
        gate.open(4)
        for job in jobs:
            await job


async def test_a_worker_that_dies_between_two_jobs_costs_none() -> None:
    """A process that is killed just after it has given a result: the next job has not begun, so it is not failed."""
    async with manager("dies_after_its_result", backoff_base=0.001, max_restarts=1000) as m:
        jobs = [await m.start_job("dies_after_its_result", x=i) for i in range(10)]
        for i, job in enumerate(jobs):
            assert (await end(job)).result == i, job.error


async def test_words_spoken_while_dying_do_not_confuse_the_manager() -> None:
    """A worker that is stopped in the middle of a message, and logs a lot in `finally`, is cancelled like any other, and leaves nothing."""
    async with manager("logs_at_its_end", "echo", stream_buffer=3) as m:
        for _ in range(3):
            seen = Seen(m)
            job = await m.start_job("logs_at_its_end", size=60_000)
            reader = job.stream()
            await seen.until("job:chunk", index=2, job_id=job.id)
            process, asleep = psutil.Process(job.worker_pid), 0
            while asleep < 5:  # it sleeps when it can write no more
                asleep = asleep + 1 if process.status() == psutil.STATUS_SLEEPING else 0
                await asyncio.sleep(0.01)
            assert await m.cancel_job(job.id) and job.status == "cancelled"
            await reader.aclose()
            await works(m)


@pytest.mark.limit(90)
async def test_an_exception_in_the_middle_of_a_message_is_a_crash() -> None:
    """A plugin's own signal handler raises while a frame is being sent: the job ends, says why, and the next one runs elsewhere."""
    async with manager("interrupts_itself", "echo", backoff_base=0.01) as m:
        for _ in range(20):
            job = await end(await m.start_job("interrupts_itself"))
            if job.status == "failed" and job.error.category == "crash":
                break
            assert job.status in ("completed", "failed"), job
        else:
            pytest.skip("the alarm never came in the middle of a frame")
        await works(m)


@pytest.mark.parametrize("how", ["KeyboardInterrupt", "SystemExit"])
async def test_an_end_in_the_middle_of_a_message_is_an_end(how: str) -> None:
    """What ends a process comes while a frame is being sent: the worker leaves at once, though a thread of the plugin's stays."""
    async with manager("interrupted", "echo", backoff_base=0.01, stream_buffer=2, stall_timeout=60) as m:
        job = await m.start_job("interrupted", how=how)
        reader = job.stream()
        await reader.__anext__()
        assert (await end(job)).error.category == "crash", job.error
        await reader.aclose()
        await works(m)


async def test_a_signal_handler_may_speak() -> None:
    """It reports progress while a frame is being sent: nothing is torn, and what it says comes next."""
    async with manager("reports_on_a_timer") as m:
        assert (await end(await m.start_job("reports_on_a_timer"), limit=25)).result == 20_000


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_a_signal_handler_may_raise_where_the_job_asks() -> None:
    """Amid the reading of a frame, which may be the next job's: every job reaches its end."""
    async with manager("asks_on_a_timer", backoff_base=0.001, max_restarts=1000) as m:
        for _ in range(5):
            jobs = [await m.start_job("asks_on_a_timer") for _ in range(100)]
            for job in jobs:
                await end(job)
                assert job.result == "asked" or job.error.category in ("exception", "crash"), job


async def test_a_forked_child_that_comes_back_ends() -> None:
    """It returns from the plugin's function, while the thread that sends was somewhere in the middle: no child hangs."""
    async with manager("forks_while_it_reports") as m:
        assert (await end(await m.start_job("forks_while_it_reports"), limit=25)).result == 0


@pytest.mark.parametrize("where", ["fork hooks", "__del__"])
@pytest.mark.limit(90)
async def test_sigterm_is_heard_wherever_the_plugin_is(where: str, tmp_path: Path) -> None:
    """Where Python throws exceptions away the signal comes once more: `finally` runs, and the grace period is not used up."""
    async with manager("loses_exceptions", grace_timeout=10.0, standby=True) as m:
        for n in range(10):
            path = tmp_path / str(n)
            job = await m.start_job("loses_exceptions", path=str(path), where=where)
            await first_chunk(job)
            await asyncio.sleep(0.02)  # it is where an exception is lost, most of the time
            assert await m.cancel_job(job.id) and path.exists(), n


@pytest.mark.parametrize("how", sample_plugins.UNWOUND)
@pytest.mark.limit(15)
async def test_a_plugin_that_goes_on_after_sigterm_is_told_again(how: str, tmp_path: Path) -> None:
    """It catches the first `SystemExit`, and gets another; then no clean-up is disturbed, and the grace period is not used up."""
    async with manager("shrugs", "echo", grace_timeout=20.0) as m:
        job = await m.start_job("shrugs", marker=str(tmp_path / "marker"), how=how)
        pid = await under_way(Seen(m), job)
        assert await m.cancel_job(job.id) and (tmp_path / "marker").read_text() == "cleaned up"
        assert gone([pid], 1.0)
        await works(m)


@pytest.mark.limit(15)
async def test_a_signal_that_comes_just_before_a_system_call_is_not_lost(tmp_path: Path) -> None:
    """Python notices it when that call ends, which may wait for ever: the worker is woken, and the grace period is not used up."""
    async with manager("waits_twice_in_c", "echo", grace_timeout=20.0) as m:
        job = await m.start_job("waits_twice_in_c", marker=str(tmp_path / "marker"))
        process = psutil.Process(await under_way(Seen(m), job))
        await until(lambda: process.status() == psutil.STATUS_SLEEPING)
        assert await m.cancel_job(job.id) and (tmp_path / "marker").read_text() == "cleaned up"
        assert gone([process.pid], 1.0)
        await works(m)


async def test_a_chunk_that_cannot_be_read_fails_its_job() -> None:
    """Also when the job's result came right behind it."""
    async with manager("yields_what_cannot_be_read", "echo", backoff_base=0.001, max_restarts=1000) as m:
        for _ in range(10):
            job = await end(await m.start_job("yields_what_cannot_be_read"))
            assert job.status == "failed" and job.error.category == "serialization", job
        await works(m)


async def test_a_forked_child_takes_nothing_from_its_parent() -> None:
    """A process that a plugin forked asks `check_cancel`: jobs that were sent ahead still reach the worker, and nothing is read twice."""
    async with manager("forks_and_asks") as m:
        jobs = [await m.start_job("forks_and_asks", n=n) for n in range(20)]
        assert [(await end(job)).result for job in jobs] == list(range(20))


@pytest.mark.slow
async def test_a_thread_that_outlives_its_job_takes_nothing_from_the_next() -> None:
    """It goes on asking `check_cancel`, and a thousand short jobs after it all reach their end."""
    async with manager("leaves_a_thread_that_asks") as m:
        jobs = [await m.start_job("leaves_a_thread_that_asks", n=n) for n in range(1000)]
        assert [(await end(job)).result for job in jobs] == list(range(1000))


@pytest.mark.slow
@pytest.mark.limit(60)
async def test_a_plugin_that_forks_all_the_time_is_unwound(tmp_path: Path) -> None:
    """SIGTERM that comes in the middle of a fork is not lost: `finally` runs, and the grace period is not used up."""
    async with manager("forks_on", grace_timeout=10.0, standby=True) as m:
        for n in range(20):
            path = tmp_path / str(n)
            job = await m.start_job("forks_on", path=str(path))
            await first_chunk(job)
            assert await m.cancel_job(job.id) and path.exists(), n


async def test_a_worker_that_hangs_up_is_ended() -> None:
    """A plugin closes the worker's socket and lives on: nothing can be heard of it any more, so it is killed, and its job has crashed."""
    async with manager("hangs_up", "echo", backoff_base=0.01) as m:
        job = await end(await m.start_job("hangs_up"))
        assert (job.status, job.error.category) == ("failed", "crash")
        assert await gone_soon([job.worker_pid], 1.0)
        await works(m)


@pytest.mark.parametrize("kind", [Kind.FAILED, Kind.RESULT, Kind.CHUNK])
async def test_a_frame_that_cannot_be_read_ends_its_job(kind: Kind) -> None:
    """Whatever a plugin writes to the worker's socket, its job reaches one end."""
    async with manager("speaks_for_itself", "echo") as m:
        await works(m)
        job = await end(await m.start_job("speaks_for_itself", kind=int(kind), body=b"junk", tag=2))
        assert job.status == "failed", job
        assert job.error.category == "serialization" and "cannot be read in this process" in job.error.message
        await works(m)


async def test_a_worker_is_ready_once() -> None:
    """A plugin that says so again: the worker is registered once all the same."""
    calls: "Counter[str]" = Counter()

    class Counts:
        def register_worker(self, pid: int, worker_type: str) -> None:
            calls["register"] += 1

        def unregister_worker(self, pid: int) -> None:
            calls["unregister"] += 1

        def update_worker_state(self, pid: int, **state: Any) -> None: ...

    async with manager("speaks_for_itself", resource_manager=Counts()) as m:
        assert await (await m.start_job("speaks_for_itself", kind=int(Kind.READY), body=b"", tag=0, times=3)) == "spoken"
    assert calls == {"register": 1, "unregister": 1}


def test_a_file_named_like_a_module_of_pythons_disturbs_no_worker(tmp_path: Path) -> None:
    """The app was started in a folder where one lies; it does not import it, so its workers don't either."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("socket", "logging", "pickle"):
        (folder / f"{name}.py").write_text("raise SystemExit('mine was imported')")
    source = """
import asyncio, os, sys
os.chdir(sys.argv[1])
from cjm_worker_protocols import JobManager

def shout(text): return text.upper()

async def main():
    async with JobManager("t", "c", plugins={"shout": shout}) as manager: print(await (await manager.start_job("shout", text="hi")))

asyncio.run(main())
"""
    with script(tmp_path / "app.py", source, str(folder)) as process:
        assert finish(process) == (0, "HI\n", "")


async def test_a_worker_runs_the_managers_own_copy_of_the_package(tmp_path: Path) -> None:
    """Another one comes first on its path; what a plugin imports from there is found all the same."""
    (tmp_path / "cjm_worker_protocols").mkdir()
    (tmp_path / "cjm_worker_protocols" / "__init__.py").write_text("raise SystemExit('another copy was imported')")
    (tmp_path / "beside.py").write_text("def where(): return __file__")

    config = WorkerConfig(standby=False, python=sys.executable, env={"PYTHONPATH": str(tmp_path)})
    async with JobManager("test", "tests", worker_config=config, plugins={"where": "beside:where"}) as m:
        assert await (await m.start_job("where")) == str(tmp_path / "beside.py")


def _zipped(to: Path) -> Path:
    """The package in a compressed archive."""
    with zipfile.ZipFile(to / "app.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in LIB.rglob("*.py"):
            archive.write(path, path.relative_to(ROOT))
    return to / "app.zip"


def _linked(to: Path) -> Path:
    """A link, to a folder of another name."""
    shutil.copytree(LIB, to / "store" / "version-1")
    (to / "site").mkdir()
    (to / "site" / PACKAGE).symlink_to(to / "store" / "version-1")
    return to / "site"


def _links(to: Path) -> Path:
    """A link for each file, to wherever it is kept."""
    (to / "store").mkdir()
    for number, path in enumerate(LIB.rglob("*.py")):
        shutil.copy(path, to / "store" / str(number))
        link = to / "site" / path.relative_to(ROOT)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(to / "store" / str(number))
    return to / "site"


@pytest.mark.parametrize("installed", [_zipped, _linked, _links])
def test_the_package_may_lie_anywhere(tmp_path: Path, installed: "Callable[[Path], Path]") -> None:
    """In an archive, behind a link, or made of links: its workers and their guardian find it."""
    source = """
import asyncio, sys
import psutil
sys.path[:] = [sys.argv[1], *(p for p in sys.path if p != sys.argv[2])]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f.__module__]
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.engines import local as engine

def where():
    import cjm_worker_protocols
    return cjm_worker_protocols.__file__

async def main():
    local = engine.LocalEngine()
    async with JobManager("t", "c", plugins={"where": where}, engine=local) as manager:
        print(await (await manager.start_job("where")))
        await asyncio.sleep(0.3)  # a guardian that finds nothing to import has ended by then
        print(next((None for p in psutil.Process().children() if "import guardian" in " ".join(p.cmdline())), "no guardian"))

asyncio.run(main())
"""
    where = installed(tmp_path)
    with script(tmp_path / "app.py", source, str(where), str(ROOT)) as process:
        assert finish(process) == (0, f"{where / PACKAGE / '__init__.py'}\nNone\n", "")


@pytest.mark.parametrize("how", ["asyncio.run", "close"])
def test_a_manager_that_was_never_shut_down_leaves_nothing_when_it_is_forgotten(how: str, tmp_path: Path) -> None:
    """Its loop has ended: its workers, their guardian and its threads end too, and no descriptor stays open."""
    source = """
import asyncio, gc, os, sys, threading, time, warnings
import psutil
from cjm_worker_protocols import JobManager

def shout(text): return text.upper()

class Resources:
    def register_worker(self, pid, worker_type): pass
    def unregister_worker(self, pid): pass
    def update_worker_state(self, pid, **state): pass

async def once():
    manager = JobManager("t", "c", plugins={"shout": shout}, resource_manager=Resources())
    return await (await manager.start_job("shout", text="hi"))

def closed(steps):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(steps)
    loop.close()

warnings.simplefilter("ignore")
run = asyncio.run if sys.argv[1] == "asyncio.run" else closed
before = len(os.listdir("/proc/self/fd"))
for _ in range(3): run(once())
gc.collect()
left = psutil.wait_procs(psutil.Process().children(recursive=True), 20)[1]
for thread in threading.enumerate()[1:]: thread.join(20)
print(len(os.listdir("/proc/self/fd")) - before, left, threading.active_count())
"""
    with script(tmp_path / "app.py", source, how) as process:
        code, out, err = finish(process)
    assert (code, out) == (0, "0 [] 1\n") and (not err or how == "close"), err


# Child processes


@pytest.mark.parametrize("deaf_child", [False, True], ids=["children", "children deaf to SIGTERM"])
@pytest.mark.parametrize("how", ["cancel", "timeout", "crash", "exit", "kill", "shutdown"])
def test_no_child_of_a_plugin_survives(how: str, deaf_child: bool) -> None:
    """However a worker ends, the processes that its plugin started end with it."""

    async def scenario() -> "list[int]":
        async with manager("with_children", backoff_base=0.01, grace_timeout=1.0) as m:
            told = "stuck" if how in ("cancel", "timeout", "kill", "shutdown") else how
            job = await m.start_job("with_children", how=told, deaf_child=deaf_child, timeout=1.0 if how == "timeout" else None)
            pids = list(await first_chunk(job))
            if how == "cancel":
                assert await m.cancel_job(job.id)
            elif how == "kill":
                os.kill(pids[0], signal.SIGKILL)
            if how != "shutdown":
                await end(job)
                assert await gone_soon(pids, 1.0), alive(pids)
        return pids

    pids = run(scenario())
    assert gone(pids, 1.0), alive(pids)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc, by which such children are found")
@pytest.mark.parametrize("how", ["cancel", "crash", "end", "kill"])
async def test_a_child_in_a_session_of_its_own_does_not_survive(how: str) -> None:
    """Nor does a daemon, which is no longer a child of anything that the worker started."""
    async with manager("with_session", "echo", backoff_base=0.01) as m:
        job = await m.start_job("with_session", how="stuck" if how in ("cancel", "kill") else how)
        pids = list(await first_chunk(job))
        if how == "cancel":
            assert len(alive(pids)) == 3 and await m.cancel_job(job.id)
        elif how == "kill":
            os.kill(pids[0], signal.SIGKILL)
        await end(job)
        if how == "end":
            assert len(alive(pids)) == 3  # they may serve the next job: the worker lives on
            os.kill(pids[0], signal.SIGKILL)
        assert await gone_soon(pids, 1.0), alive(pids)
        await works(m)


# Shutdown


async def test_shutdown_ends_what_runs_and_what_waits(gate: Gate) -> None:
    """One job running and one queued: both are cancelled, every process is gone, and their outcome can still be read."""
    async with manager("stuck", "echo", standby=True) as m:
        seen = Seen(m)
        running, waiting = await m.start_job("stuck"), await m.start_job("echo")
        pid = await first_chunk(running)
    assert (running.status, waiting.status) == ("cancelled", "cancelled") and m.workers == []
    assert "shut down" in running.error.message and "shut down" in waiting.error.message
    with pytest.raises(JobCancelled):
        await waiting
    assert m.get_job(running.id) is running and m.get_job_result(waiting.id) == {"status": "cancelled"}
    await seen.rest()
    assert seen.types(waiting) == ["job:queued", "job:cancelled"] and seen.types(running)[-1] == "job:cancelled"
    assert gone([pid], 1.0) and m.clear_completed_jobs() == 2


async def test_a_manager_that_was_shut_down_refuses_work() -> None:
    """start_job, cancel_job, unload_plugin, reload_plugin and `async with` raise ManagerClosedError that names the call."""
    async with manager("echo") as m:
        await works(m)
    for call in (m.start_job("echo"), m.cancel_job("x"), m.unload_plugin("echo"), m.reload_plugin("echo", {}), m.__aenter__()):
        with pytest.raises(errors.ManagerClosedError, match="shut down"):
            await call
    await m.shutdown()


async def test_a_job_that_is_being_accepted_when_the_manager_closes() -> None:
    """start_job that waits for a registry while the manager is shut down raises, and leaves no job and no worker."""

    class Slow(Catalog):
        asked = False

        def get_plugin(self, plugin_id: str) -> Any:
            self.asked = True
            time.sleep(0.2)
            return super().get_plugin(plugin_id)

    m = manager("echo", plugin_registry=(registry := Slow()))
    starting = asyncio.ensure_future(m.start_job("echo"))
    await until(lambda: registry.asked)
    await m.shutdown()
    with pytest.raises((errors.ManagerClosedError, errors.RegistryUnavailableError)):
        await starting
    assert m.jobs == {} and m.workers == []


async def test_shutdown_may_be_called_again_at_once_and_in_vain() -> None:
    """Concurrent shutdowns wait for the same end; cancelling one that waits does not undo it."""
    m = manager("deaf", grace_timeout=0.3)
    seen = Seen(m)
    job = await m.start_job("deaf")
    await under_way(seen, job)
    impatient = asyncio.ensure_future(m.shutdown())
    await until(lambda: not m.ready)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    began = time.monotonic()
    await asyncio.gather(m.shutdown(), m.shutdown())
    assert job.status == "cancelled" and m.workers == [] and time.monotonic() - began < 3.0
    began = time.monotonic()
    await m.shutdown()
    assert time.monotonic() - began < 0.3  # not the time that a worker is given


async def test_shutdown_of_a_manager_that_never_worked() -> None:
    """There is nothing to end, and it is closed all the same."""
    m = manager("echo")
    await m.shutdown()
    with pytest.raises(errors.ManagerClosedError):
        await m.start_job("echo")


async def test_two_managers_at_once() -> None:
    """They share nothing: each has its workers, and the end of one leaves the other at work."""
    async with manager("pid", "stuck", "echo") as one:
        async with manager("pid", "stuck", "echo") as two:
            pids = [await (await m.start_job("pid")) for m in (one, two)]
            assert len(set(pids)) == 2
            stuck = await two.start_job("stuck")
            await first_chunk(stuck)
            keeps = await one.start_job("stuck")
            await first_chunk(keeps)
        assert stuck.status == "cancelled" and keeps.status == "running"
        assert await one.cancel_job(keeps.id)
        await works(one)


def test_a_manager_belongs_to_one_loop() -> None:
    """From another loop every call raises WrongLoopError, and on its own loop the manager goes on."""
    first = asyncio.new_event_loop()
    m = manager("stuck", "echo", "count")

    async def begin() -> "tuple[Job, Job]":
        await end(ended := await m.start_job("count", n=2))
        job = await m.start_job("stuck")
        await first_chunk(job)
        return job, ended

    async def elsewhere(job: Job, ended: Job) -> None:
        calls: "list[Any]" = [m.start_job("echo"), m.cancel_job(job.id), m.unload_plugin("echo"), m.reload_plugin("echo", {}), m.shutdown()]
        calls += [m.drain(1.0), m.find_job(job.id), m.broadcast_event("mine", {}), m.__aenter__()]
        for call in (*calls, job.wait(), ended.wait(), *(first_chunk_from(j, start) for j in (job, ended) for start in (0, 1))):
            with pytest.raises(errors.WrongLoopError, match="another event loop"):
                await call

    async def first_chunk_from(job: Job, start: int) -> Any:
        return await job.stream(start).__anext__()

    async def finish(job: Job) -> None:
        assert await m.cancel_job(job.id)
        await works(m)
        await m.shutdown()

    try:
        job, ended = first.run_until_complete(begin())
        run(elsewhere(job, ended))
        first.run_until_complete(finish(job))
    finally:
        first.close()


# The app's own process


HELD = '''
import asyncio, json, os, signal, sys
import sample_plugins
from cjm_worker_protocols import JobManager, WorkerConfig
signal.signal(signal.SIGINT, signal.default_int_handler) # a shell that starts this in the background has it ignored

async def main():
    names = sys.argv[1:]
    config = WorkerConfig(max_workers=len(names), standby=True, grace_timeout=60)
    manager = JobManager("t", "c", worker_config=config, plugins={n: getattr(sample_plugins, n) for n in names})
    events, pids = manager.events(), []
    jobs = {(await manager.start_job(n)).id for n in names}
    while jobs:
        event = await events.__anext__()
        if event.type not in ("job:progress", "job:chunk"): continue
        jobs.discard(event.data["job_id"])
        if isinstance(event.data.get("chunk"), list): pids += event.data["chunk"]
    while "standby" not in [w.status for w in manager.workers]: await asyncio.sleep(0.01)
    print(json.dumps(pids + [w.pid for w in manager.workers]), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
'''


@pytest.mark.parametrize(
    "plugins",
    [["stuck"], ["deaf"], ["holds_the_gil"], ["with_children"], ["with_session"], ["cooperative", "stuck"]],
    ids=lambda p: "+".join(p),
)
def test_when_the_app_is_killed_its_workers_are_gone(plugins: "list[str]", tmp_path: Path) -> None:
    """kill -9 of the manager's own process: within a second no worker, no standby, no child of a plugin and no guardian is left."""
    with script(tmp_path / "held.py", HELD, *plugins) as process:
        pids = said_json(process)
        everything = {p.pid for p in psutil.Process(process.pid).children(recursive=True)} | set(pids)
        assert len(alive(pids)) == len(pids) and len(everything) > len(set(pids))
        process.kill()
        assert gone(everything, 1.0), [p for p in alive(everything)]


def test_when_the_app_exits_without_a_shutdown_its_workers_are_gone(tmp_path: Path) -> None:
    """os._exit of the manager's process, too, leaves nothing."""
    source = HELD.replace("await asyncio.Event().wait()", "sys.stdin.readline(); os._exit(7)")
    with script(tmp_path / "held.py", source, "stuck") as process:
        pids = said_json(process)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(10) == 7 and gone(pids, 1.0)


@pytest.mark.parametrize("entered", [True, False], ids=["async with", "no shutdown"])
def test_ctrl_c_leaves_no_process(entered: bool, tmp_path: Path) -> None:
    """Ctrl-C in a terminal interrupts the app; its workers end with it, and it complains of nothing but the interrupt."""
    source = HELD.replace("grace_timeout=60", "grace_timeout=2")
    if entered:
        entered = "    async with manager: await work(manager, names)\n\nasync def work(manager, names):\n    events, pids"
        source = source.replace("    events, pids", entered)
    with script(tmp_path / "held.py", source, "stuck", "cooperative") as process:
        pids = said_json(process)
        everything = {p.pid for p in psutil.Process(process.pid).children(recursive=True)} | set(pids)
        ctrl_c(process)
        out, err = process.communicate(timeout=15)
        assert gone(everything, 1.0) and out == ""
        assert err.rstrip().endswith("KeyboardInterrupt") and "never retrieved" not in err and "destroyed" not in err


def test_a_guardian_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """kill -9 of the process that guards against orphans: jobs do not notice, and the workers do not lose their guard."""
    with script(tmp_path / "held.py", HELD, "stuck") as process:
        pids = said_json(process)
        [guardian] = guardians(process.pid)
        guardian.kill()
        assert gone([guardian.pid], 1.0)
        wait_until(lambda: [g for g in guardians(process.pid) if g.pid != guardian.pid])
        assert alive(pids) == pids
        time.sleep(0.2)  # it has to hear of the workers first
        process.kill()
        assert gone(pids, 1.0), alive(pids)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc, by which such children are found")
async def test_a_guardian_that_is_killed_with_a_worker_forgets_nothing() -> None:
    """The worker and the guardian are killed while the loop is busy: the next guardian still kills what that worker left behind."""
    async with manager("with_session", "echo", backoff_base=0.01) as m:
        job = await m.start_job("with_session")
        pids = list(await first_chunk(job))
        watching = guardians()
        os.kill(pids[0], signal.SIGKILL)
        assert gone(pids[:1], 10)
        for guardian in watching:
            guardian.kill()
        assert gone([guardian.pid for guardian in watching], 10)
        await end(job)
        assert await gone_soon(pids, 2.0), alive(pids)
        await works(m)


async def test_a_guardian_that_is_killed_disturbs_no_job() -> None:
    """Jobs run, are cancelled and crash as before, and the shutdown is clean."""
    async with manager("stuck", "echo", "crash", backoff_base=0.01) as m:
        job = await m.start_job("stuck")
        await first_chunk(job)
        for guardian in guardians():
            guardian.kill()
        assert await m.cancel_job(job.id)
        await works(m)
        await end(await m.start_job("crash"))
        await works(m)
        assert len(guardians()) == 1


NO_PIDFD = '''
import asyncio, json, logging, os, threading
del os.pidfd_open
logging.disable(logging.CRITICAL)
import sample_plugins
from cjm_worker_protocols import JobManager, WorkerConfig

async def main():
    seen = []
    config = WorkerConfig(backoff_base=0.01, grace_timeout=2)
    plugins = {n: getattr(sample_plugins, n) for n in ("echo", "crash", "stuck")}
    async with JobManager("t", "c", worker_config=config, plugins=plugins) as m:
        for how in ("kill", "os._exit"):
            job = await (await m.start_job("crash", how=how)).wait()
            seen.append([job.error.category, job.error.signal, job.error.exit_code])
        job = await m.start_job("stuck")
        async for _ in job.stream(): break
        seen.append(await m.cancel_job(job.id))
        seen.append(await (await m.start_job("echo", x=1)))
    for thread in threading.enumerate():
        if thread is not threading.current_thread(): thread.join(1)
    seen.append(threading.active_count())
    print(json.dumps(seen), flush=True)

asyncio.run(main())
'''


NO_DESCRIPTORS = '''
import asyncio, json, logging, os, resource
logging.disable(logging.CRITICAL)
import sample_plugins
from cjm_worker_protocols import JobManager, WorkerConfig

def opened(): return len(os.listdir("/proc/self/fd"))

async def attempt(room):
    "One job with so many descriptors left; then one without that limit."
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = WorkerConfig(standby=False, backoff_base=0.01, start_timeout=5)
    async with JobManager("t", "c", worker_config=config, plugins={"echo": sample_plugins.echo}) as m:
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened() - 1 + room, hard))
        try: job = await asyncio.wait_for((await m.start_job("echo", x=1)).wait(), 10)
        finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        later = await asyncio.wait_for((await m.start_job("echo", x=2)).wait(), 10)
        return [job.status, job.error.category if job.error else None, later.status]

async def main():
    await attempt(1000)
    before = opened()
    outcomes = [await attempt(room) for room in range(0, 26)]
    print(json.dumps([outcomes, opened() - before]), flush=True)

asyncio.run(main())
'''


@pytest.mark.slow
def test_an_app_that_has_run_out_of_descriptors(tmp_path: Path) -> None:
    """At whichever step of starting a worker they run out: the job ends, nothing leaks, and later jobs run."""
    with script(tmp_path / "out.py", NO_DESCRIPTORS) as process:
        outcomes, leaked = said_json(process, 60)
        out, err = process.communicate(timeout=15)
    assert {tuple(o) for o in outcomes} == {("failed", "start", "completed"), ("completed", None, "completed")}, outcomes
    assert (leaked, out, err, process.returncode) == (0, "", "", 0)


def test_an_app_that_ignores_sigchld(tmp_path: Path) -> None:
    """Where the kernel reaps children unasked, the ends of workers are noticed just the same."""
    source = NO_PIDFD.replace("del os.pidfd_open", "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    with script(tmp_path / "sigchld.py", source) as process:
        crashes = said_json(process)
        assert [c[0] for c in crashes[:2]] == ["crash", "crash"] and crashes[2:] == [True, 1, 1]
        out, err = process.communicate(timeout=15)
    assert (out, err, process.returncode) == ("", "", 0)


def test_a_system_without_process_handles(tmp_path: Path) -> None:
    """Where the kernel has no pidfd, the ends of workers are noticed just the same, and no thread stays."""
    with script(tmp_path / "no_pidfd.py", NO_PIDFD) as process:
        assert said_json(process) == [["crash", 9, None], ["crash", None, 3], True, 1, 1]
        out, err = process.communicate(timeout=15)
    assert (out, err, process.returncode) == ("", "", 0)


# Streams under pressure


@pytest.mark.parametrize(("size", "buffer"), [(0, 10), (0, 1), (20_000, 10), (200_000, 2)], ids=str)
async def test_a_slow_reader_loses_nothing(size: int, buffer: int) -> None:
    """The plugin waits for its reader, whatever the size of chunks and buffer."""
    n = 2000 if not size else 60

    async with manager("count", stream_buffer=buffer) as m:
        job = await m.start_job("count", n=n, size=size)
        got = []
        async for chunk in job.stream():
            got.append(chunk)
            if len(got) % 20 == 0:
                await asyncio.sleep(0.002)
        assert (got if not size else [len(c) for c in got]) == (list(range(n)) if not size else [size] * n)
        assert await job == f"counted to {n}"


async def test_two_readers_get_the_same() -> None:
    """The plugin waits for the slower one."""
    async with manager("count", stream_buffer=10) as m:
        job = await m.start_job("count", n=500)

        async def read(pause: float) -> "list[int]":
            got = []
            async for chunk in job.stream():
                got.append(chunk)
                if len(got) % 50 == 0:
                    await asyncio.sleep(pause)
            return got

        assert await asyncio.gather(read(0.0), read(0.01)) == [list(range(500))] * 2


async def test_a_reader_that_stops_reading_does_not_stop_the_job() -> None:
    """After stall_timeout the job goes on without it; when it reads on it is told how much it has missed, and gets the rest."""
    async with manager("count", stream_buffer=10, stall_timeout=0.3) as m:
        job = await m.start_job("count", n=1000)
        reader = job.stream()
        assert await reader.__anext__() == 0
        await end(job)
        assert job.status == "completed" and job.dropped_chunks == 990
        with pytest.raises(errors.StreamOverflowError, match="989 chunks.*start=990") as overflow:
            await reader.__anext__()
        assert (overflow.value.dropped, overflow.value.next_index) == (989, 990)
        assert [chunk async for chunk in reader] == list(range(990, 1000))


@pytest.mark.parametrize("how", ["break", "aclose", "forgotten"])
async def test_a_reader_that_leaves_holds_nobody_up(how: str) -> None:
    """A reader that is closed, or that nobody holds any more, is not waited for."""
    async with manager("count", stream_buffer=10, stall_timeout=20.0) as m:
        job = await m.start_job("count", n=1000)
        if how == "break":
            async for _ in job.stream():
                break
        else:
            reader = job.stream()
            await reader.__anext__()
            if how == "aclose":
                await reader.aclose()
            else:
                del reader
        await end(job, limit=10)
        assert job.status == "completed"


async def test_a_late_reader_gets_what_is_kept() -> None:
    """After the end the newest chunks are there; a reader from the start is told what it missed."""
    async with manager("count", stream_buffer=10) as m:
        job = await m.start_job("count", n=25)
        await job
        with pytest.raises(errors.StreamOverflowError) as overflow:
            await job.stream().__anext__()
        assert overflow.value.next_index == 15
        assert [chunk async for chunk in job.stream(start=15)] == list(range(15, 25))


async def test_the_stream_of_a_job_that_fails_ends_with_its_error() -> None:
    """First every chunk, then the error; and for every reader."""
    async with manager("fail_after") as m:
        job = await m.start_job("fail_after", chunks=3)
        for _ in range(2):
            got = []
            with pytest.raises(JobError, match="no more"):
                async for chunk in job.stream():
                    got.append(chunk)
            assert got == [0, 1, 2]


async def test_the_stream_of_a_cancelled_or_crashed_job_ends() -> None:
    """A reader that waits is woken with JobCancelled, or with the crash."""
    async with manager("stuck", backoff_base=0.01) as m:
        for error in (JobCancelled, JobError):
            job = await m.start_job("stuck")
            reader = job.stream()
            pid = await reader.__anext__()
            waiting = asyncio.ensure_future(reader.__anext__())
            await asyncio.sleep(0)
            if error is JobCancelled:
                await m.cancel_job(job.id)
            else:
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(error):
                await waiting


@pytest.mark.parametrize("how", ["cancel", "timeout", "kill", "shutdown"])
async def test_a_worker_that_waits_for_its_reader_can_be_stopped(how: str) -> None:
    """Held up by a reader with a full buffer, a job can be cancelled, time out, crash or be shut down."""
    async with manager("count", "echo", stream_buffer=5, stall_timeout=60.0, backoff_base=0.01) as m:
        seen = Seen(m)
        job = await m.start_job("count", n=100_000, timeout=0.5 if how == "timeout" else None)
        reader = job.stream()
        await seen.until("job:chunk", index=4)
        if how == "cancel":
            assert await m.cancel_job(job.id)
        elif how == "kill":
            os.kill(job.worker_pid, signal.SIGKILL)
        if how != "shutdown":
            await end(job)
            await works(m)
    assert job.status == ("cancelled" if how in ("cancel", "shutdown") else "failed")
    await reader.aclose()


async def test_a_reader_held_up_once_does_not_let_the_next_job_lose_chunks() -> None:
    """What one job's stalled reader set going is over with that job."""
    async with manager("polite_count", "count", stream_buffer=5, stall_timeout=0.4) as m:
        seen = Seen(m)
        first = await m.start_job("polite_count")
        reader = first.stream()
        await seen.until("job:chunk", index=4)
        assert await m.cancel_job(first.id)
        second = await m.start_job("count", n=200)
        got = []
        async for chunk in second.stream():
            got.append(chunk)
            await asyncio.sleep(0.004)
        assert got == list(range(200)) and second.worker_pid == first.worker_pid
        await reader.aclose()


async def test_a_listener_that_is_too_slow_loses_the_oldest_events_and_can_tell() -> None:
    """At most `event_buffer` events wait for it; `dropped` counts the rest; jobs and other listeners do not notice."""
    async with manager("echo", event_buffer=10) as m:
        lazy = m.events()
        eager = Seen(m)
        for _ in range(10):
            job = await m.start_job("echo")
            await job
            await eager.until("job:completed", job_id=job.id)
    rest = [event async for event in lazy]
    assert len(rest) == 10 and lazy.dropped == len(await eager.rest()) - 10 and rest == eager.events[-10:]
    assert eager.listener.dropped == 0


# Output


async def test_the_tail_of_stderr_is_bounded() -> None:
    """However much a worker writes, its error shows the last of it, and no more than was asked for."""

    def writes_and_dies() -> None:
        for i in range(2_000):
            print(f"line {i}", file=sys.stderr)
        sys.stderr.write("x" * 100_000)
        sys.stderr.flush()
        os._exit(1)

    async with manager(writes_and_dies, stderr_tail=1000, backoff_base=0.01) as m:
        error = (await end(await m.start_job("writes_and_dies"))).error
        assert 500 <= len(error.stderr_tail) <= 1000 and error.stderr_tail.endswith("xxx")
    async with manager(writes_and_dies, stderr_tail=0, backoff_base=0.01) as m:
        assert (await end(await m.start_job("writes_and_dies"))).error.stderr_tail == ""


class Keeper(logging.Handler):
    """A handler that keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: "list[logging.LogRecord]" = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@asynccontextmanager
async def listening(level: int = logging.INFO) -> "AsyncIterator[list[logging.LogRecord]]":
    """Keep what workers say."""
    logger, handler = logging.getLogger(WORKER_LOG), Keeper()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield handler.records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@pytest.mark.slow
def test_a_flood_of_prints_does_not_stall_the_loop() -> None:
    """Every line arrives, in order, while the loop is never held up for 100 ms; another job runs at the same time."""
    lines = 30_000

    async def scenario() -> float:
        async with listening() as records:
            async with manager("flood", "echo", max_workers=2) as m:
                await works(m)
                async with ticking() as stall:
                    job = await m.start_job("flood", lines=lines)
                    for _ in range(5):
                        await works(m)
                    assert await job == lines
            flood = [int(r.getMessage().split()[1]) for r in records if r.name.endswith(".stdout")]
            assert flood == list(range(lines))
            return stall.worst

    assert least_stall(scenario, SMOOTH) < SMOOTH


async def test_a_flood_below_the_log_level_costs_the_worker_only() -> None:
    """With the log level above INFO nothing is kept of what is printed, and the job ends."""
    async with listening(logging.ERROR) as records:
        async with manager("flood", "echo") as m:
            assert await (await m.start_job("flood", lines=30_000)) == 30_000
        assert records == []


async def test_a_line_without_end_is_cut() -> None:
    """Megabytes without a newline arrive in pieces, and nothing grows without bound."""

    def endless() -> int:
        for _ in range(200):
            os.write(1, b"z" * 10_000)
        return 200

    async with listening() as records:
        async with manager(endless) as m:
            assert await (await m.start_job("endless")) == 200
        texts = [r.getMessage() for r in records]
        assert sum(map(len, texts)) == 2_000_000 and max(map(len, texts)) < 100_000


def test_what_is_printed_belongs_to_the_job_that_printed_it() -> None:
    """Of many jobs in a row on one worker, each has its own output."""

    def speak(i: int) -> None:
        print(f"print {i}")
        sys.stderr.write(f"stderr {i}\n")
        logging.getLogger("speak").warning("log %d", i)

    run(_own_output(speak, ["print", "stderr", "log"]))


def test_what_is_written_past_python_belongs_to_its_job() -> None:
    """The same for what C code, or a child process, writes straight to the descriptors."""

    def speak(i: int) -> None:
        os.write(1, f"raw {i}\n".encode())
        os.write(2, f"error {i}\n".encode())

    run(_own_output(speak, ["raw", "error"]))


async def _own_output(speak: Any, kinds: "list[str]") -> None:
    async with listening() as records:
        async with manager(speak) as m:
            jobs = {(await m.start_job("speak", i=i)).id: i for i in range(50)}
            for job_id in jobs:
                await end(m.get_job(job_id))
    said = [(r.getMessage(), jobs.get(r.job_id)) for r in records]  # type: ignore[attr-defined]
    assert sorted(text for text, _ in said) == sorted(f"{kind} {i}" for kind in kinds for i in range(50))
    assert [(text, i) for text, i in said if text.split()[1] != str(i)] == []


# Odd things that plugins do to their process


async def test_a_plugin_that_closes_stdout() -> None:
    """Its worker lives on; who prints there later gets Python's own error for it, and only then."""

    def prints() -> None:
        print("is anybody there?")

    async with manager("closes_stdout", "echo", prints) as m:
        job = await m.start_job("closes_stdout")
        assert await job == "closed"
        await works(m)
        late = await end(await m.start_job("prints"))
        assert late.status == "completed" or late.error.category == "exception"
        await works(m)
        assert [w.pid for w in m.workers] == [job.worker_pid]


async def test_a_plugin_that_replaces_the_standard_streams() -> None:
    """Its worker lives on, also when stderr is None, and ends cleanly."""
    async with manager("replaces_streams", "echo", "crash", backoff_base=0.01) as m:
        seen = Seen(m)
        job = await m.start_job("replaces_streams")
        assert await job == "replaced"
        await works(m)
    exited = [e.data for e in await seen.rest() if e.type == "worker:exited"]
    assert [(e["pid"], e["exit_code"]) for e in exited] == [(job.worker_pid, 0)]


async def test_a_plugin_that_forks_and_logs_in_the_child() -> None:
    """What the child logs does not get between the worker's words."""
    async with manager("forks", "echo") as m:
        for _ in range(3):
            await (await m.start_job("forks"))
            await works(m)
        assert len(m.workers) == 1


@pytest.mark.parametrize("how", ["return", "raise"])
async def test_a_forked_child_that_comes_back_is_no_second_worker(how: str) -> None:
    """A child that returns, or raises, out of the plugin ends there; it takes no job from its parent and ends no job of its own."""
    async with manager("forks_and_returns", "echo") as m:
        seen = Seen(m)
        jobs = [await m.start_job("forks_and_returns", how=how) for _ in range(3)]
        pids = [await job for job in jobs]
        for _ in range(30):
            await works(m)
        assert await gone_soon(pids, 5.0)
    await seen.rest()
    assert all(seen.types(job) == ["job:queued", "job:started", "job:completed"] for job in jobs)


async def test_a_child_can_be_ended_as_soon_as_it_is_there() -> None:
    """The worker's own handler for SIGTERM takes no signal away from a process that was forked just now."""
    async with manager("ends_what_it_forks", "echo") as m:
        assert (await end(await m.start_job("ends_what_it_forks", times=300))).result == [300, 0]
        await works(m)


async def test_a_plugin_that_uses_multiprocessing() -> None:
    """A pool of processes inside a plugin works, and ends when it is told to."""
    async with manager("multiprocesses", "echo") as m:
        for _ in range(8):
            assert (await end(await m.start_job("multiprocesses"))).result == 55
        await works(m)


async def test_a_thread_that_outlives_its_job(gate: Gate) -> None:
    """What it prints is still logged; its progress is nobody's; the jobs that follow are not disturbed."""
    async with listening() as records:
        async with manager("leaves_thread", "wait_at") as m:
            seen = Seen(m)
            job = await m.start_job("leaves_thread", gate=gate.path)
            pid = await job
            gate.open()
            await until(lambda: any(r.getMessage() == "from the thread that was left" for r in records))
            gate.open()
            other = await m.start_job("wait_at", gate=gate.path)
            assert (await other)[0] == pid and job.progress == 1.0
        await seen.rest()
        assert seen.types(job) == ["job:queued", "job:started", "job:completed"]


async def test_a_thread_that_never_ends_does_not_keep_an_idle_worker() -> None:
    """Shutdown is as quick as ever, and the worker ends by itself, with code 0."""
    async with manager("leaves_endless_thread", "echo", grace_timeout=5.0) as m:
        seen = Seen(m)
        await (await m.start_job("leaves_endless_thread"))
        await works(m)
        began = time.monotonic()
    assert time.monotonic() - began < 2.0
    assert [e.data["exit_code"] for e in await seen.rest() if e.type == "worker:exited"] == [0]


async def test_threads_that_report_at_once() -> None:
    """Progress and log records from several threads arrive whole."""
    async with listening() as records:
        async with manager("threads_report", event_buffer=10_000) as m:
            seen = Seen(m)
            assert await (await m.start_job("threads_report", threads=4, times=200)) == 800
        assert [e.type for e in await seen.rest()].count("job:progress") == 800
        assert [r.getMessage() for r in records if r.name.endswith(".thread")] == ["y" * 1000] * 800


async def test_a_plugin_that_takes_logging_into_its_own_hands() -> None:
    """After logging.basicConfig(force=True) what is logged still arrives, as lines of stderr."""
    async with listening() as records:
        async with manager("mutes_logging", "echo") as m:
            assert await (await m.start_job("mutes_logging")) == "mine"
            await works(m)
        assert any("by its own handler" in r.getMessage() for r in records)


async def test_a_plugin_that_reads_stdin() -> None:
    """There is nothing to read: it gets an end of file, not the app's terminal."""
    async with manager("reads_stdin") as m:
        assert await (await m.start_job("reads_stdin")) == ""


async def test_a_plugin_that_uses_a_manager_itself() -> None:
    """A manager inside a worker works, and when the outer job is cancelled nothing of the inner one is left."""
    async with manager("nested", "echo") as m:
        seen = Seen(m)
        assert await (await m.start_job("nested", plugin="echo")) is None
        job = await m.start_job("nested", plugin="stuck_quietly")
        pid = await under_way(seen, job)
        below = [p.pid for p in psutil.Process(pid).children(recursive=True)]
        assert len(below) >= 2
        assert await m.cancel_job(job.id)
        assert await gone_soon(below, 5.0)
        await works(m)


def test_a_plugin_that_changes_directory(tmp_path: Path) -> None:
    """The worker's directory is its own, and another plugin can still be imported there."""

    async def scenario() -> None:
        plugins = {"chdir": sample_plugins.chdir, "echo": "sample_plugins:echo"}
        async with JobManager("test", "tests", worker_config=WorkerConfig(standby=False), plugins=plugins) as m:
            assert Path(await (await m.start_job("chdir", path=str(tmp_path)))).resolve() == tmp_path.resolve()
            await works(m)

    here = os.getcwd()
    run(scenario())
    assert os.getcwd() == here
