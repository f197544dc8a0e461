"""Workers on this machine: how they start, what they take over, how their end is noticed, and what they leave behind."""

import asyncio
import contextlib
import contextvars
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import (  # noqa: F401
    TESTS,
    alive,
    end,
    finish,
    first_chunk,
    gone,
    gone_soon,
    guardians,
    manager,
    nothing_left,
    run,
    said_json,
    script,
    until,
    wait_until,
)

from cjm_worker_protocols import JobManager, WorkerConfig
from cjm_worker_protocols.core.frames import HEADER, Frame, Kind, encode, outgoing
from cjm_worker_protocols.engines import guardian as guarding
from cjm_worker_protocols.engines.base import Exit
from cjm_worker_protocols.engines.connection import FrameReceiver, unread
from cjm_worker_protocols.engines.guardian import Guardian, GuardianProcess, KeptGuardian
from cjm_worker_protocols.engines.launch import NoInterpreterError
from cjm_worker_protocols.engines.local import LocalEngine
from cjm_worker_protocols.worker.plugins import PluginTable, pack

with_proc = pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs /proc")


class Told:
    """What a worker says, for tests without a manager."""

    def __init__(self) -> None:
        self.kinds: "list[int]" = []
        self.output: "list[str]" = []
        self.contexts: "set[str]" = set()
        self.gone = asyncio.Event()
        self.exit = Exit()

    def on_frame(self, frame: Any) -> None:
        self.kinds.append(frame.kind)
        self.contexts.add(request.get())

    def on_output(self, stream: str, text: str) -> None:
        self.output.append(text)
        self.contexts.add(request.get())

    def on_waiting(self, reason: str, competes: Any = None) -> None:
        raise AssertionError("a worker on this machine waits for nothing")

    def on_exit(self, exit: Exit) -> None:
        self.exit = exit
        self.contexts.add(request.get())
        self.gone.set()

    async def says(self, kind: Kind) -> None:
        """Wait until the worker has said something of a kind."""
        while kind not in self.kinds:
            assert not self.gone.is_set(), self.exit
            await asyncio.sleep(0.01)


request = contextvars.ContextVar("request", default="none")


class One:
    """An engine with one worker of one plugin."""

    def __init__(self, plugin: Any, **config: Any) -> None:
        self.engine, self.told = LocalEngine(), Told()
        self.worker = self.engine.start_worker(WorkerConfig(**config), self.told)
        self.worker.send(encode(Kind.INIT, 0, (sys.path, pack("loader", PluginTable({"p": plugin})), logging.WARNING)))

    def run(self, tag: int = 1, **parameters: Any) -> None:
        """Give it a job."""
        self.worker.give(tag, outgoing(Kind.RUN, tag, ("p", "p", {}, False, parameters)))

    async def __aenter__(self) -> "One":
        return self

    async def __aexit__(self, *error: object) -> None:
        self.worker.kill()
        await asyncio.wait_for(self.told.gone.wait(), 20)
        await self.engine.close()

    async def exit(self) -> Exit:
        """Run the plugin, and wait for the worker's end."""
        self.run()
        await asyncio.wait_for(self.told.gone.wait(), 20)
        return self.told.exit


def waits() -> "Iterator[int]":
    """A plugin that is busy until it is killed."""
    yield os.getpid()
    time.sleep(1000)


# What a worker takes over


def look() -> "dict[str, Any]":
    """What a plugin sees of its interpreter."""
    flags = (sys.flags.optimize, sys.flags.no_user_site, sys.flags.dev_mode, sys.flags.utf8_mode)
    return {"argv": sys.argv, "flags": flags, "warn": sys.warnoptions, "x": sorted(sys._xoptions)}


def safe_path() -> "tuple[str | None, bool]":
    """What keeps the working directory off the import path, and whether it is on it."""
    return os.environ.get("PYTHONSAFEPATH"), "" in sys.path


@pytest.mark.parametrize("value", [None, "1", "cjm"])
async def test_the_working_directory_is_on_the_import_path_as_elsewhere(value: "str | None") -> None:
    """For an interpreter of its own, and unless the app has set `PYTHONSAFEPATH`, which plugins find as it was."""
    env = {"PYTHONPATH": f"{TESTS}", **({"PYTHONSAFEPATH": value} if value else {})}
    async with JobManager("t", "t", plugins={"safe_path": safe_path}, worker_config=WorkerConfig(python=sys.executable, env=env)) as m:
        assert await (await m.start_job("safe_path")) == (value, value is None or sys.version_info < (3, 11))


def looks_beside() -> "list[str]":
    """What processes that a plugin starts import from the working directory."""
    import multiprocessing
    import subprocess

    code = "import sys; assert not getattr(sys.flags, 'safe_path', False); import beside; print(beside.NAME)"
    run = [subprocess.run([sys.executable, *how], capture_output=True, text=True) for how in (["-c", code], ["-m", "beside"])]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return [*(done.stdout.strip() for done in run), pool.apply(eval, ("__import__('beside').NAME",))]


async def test_processes_of_a_plugin_find_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps it off the worker's own until the worker has started is not passed on."""
    (tmp_path / "beside.py").write_text("NAME = 'beside'\nif __name__ == '__main__': print(NAME)\n")
    monkeypatch.chdir(tmp_path)
    config = WorkerConfig(python=sys.executable, env={"PYTHONPATH": f"{TESTS}"})
    async with JobManager("t", "t", plugins={"looks_beside": looks_beside}, worker_config=config) as m:
        assert await (await m.start_job("looks_beside")) == ["beside"] * 3


APP = """
import asyncio, json, sys
from test_engine_local import look
from cjm_worker_protocols import JobManager, WorkerConfig

async def main():
    for python in (None, sys.argv[1]):
        config = WorkerConfig(python=python, standby=False, env={"PYTHONPATH": sys.argv[2]})
        async with JobManager("t", "t", plugins={"look": look}, worker_config=config) as m:
            print(json.dumps([look(), await (await m.start_job("look"))]), flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["-O", "-W", "error::UserWarning", "-X", "utf8", "-X", "dev", "-s"], ["-OO", "-I"]])
def test_a_worker_takes_over_the_flags_and_arguments_of_the_app(tmp_path: Path, flags: "list[str]") -> None:
    """As processes of multiprocessing do; an interpreter that was named takes over the arguments alone."""
    app = tmp_path / "app.py"
    start = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    app.write_text(start + APP)
    arguments = [sys.executable, str(TESTS), "--model=tiny"]
    done = subprocess.run([sys.executable, *flags, str(app), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (ours, same), (_, other) = map(json.loads, done.stdout.splitlines())
    assert same == ours and ours["argv"] == [str(app), *arguments]
    assert other["argv"] == ours["argv"] and other["flags"][0] == 0


def test_a_worker_imports_nothing_from_the_working_directory(tmp_path: Path) -> None:
    """An app elsewhere does not look there, and neither do its workers, whatever the files there are named like."""
    there, hits = tmp_path / "there", tmp_path / "hits"
    there.mkdir()
    shadow = f"open({str(hits)!r}, 'a').write(__name__ + ' ')\nraise SystemError(__name__)\n"
    for name in sorted(sys.stdlib_module_names | {"cloudpickle", "psutil", "fastcore", "sitecustomize", "usercustomize", "guardian"}):
        (there / f"{name}.py").write_text(shadow)
    app = tmp_path / "app.py"
    start = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}\n"
    app.write_text(start + APP.replace("(None, sys.argv[1])", "(None,)"))
    done = subprocess.run([sys.executable, str(app), "", str(TESTS)], cwd=there, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not hits.exists(), (done.stderr[-500:], hits.exists() and hits.read_text())


# Apps whose sys.executable is the app


async def test_a_frozen_app_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an interpreter that it names it has workers, and a guardian that runs it too; without one it is told so at once."""
    app, started = tmp_path / "app", tmp_path / "started"
    app.write_text(f"#!/bin/sh\necho again >> {started}\n")
    app.chmod(0o755)
    python = sys.executable
    monkeypatch.setattr(sys, "executable", str(app))
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    async with JobManager("t", "t", plugins={"words": "string:capwords"}, worker_config=WorkerConfig(python=python)) as m:
        assert await (await m.start_job("words", s="hello world")) == "Hello World"
        (guardian,) = guardians()
        assert not started.exists() and guardian.cmdline()[0] == python
    async with manager("echo") as m:
        job = await end(await m.start_job("echo", x=1))
        assert job.error.category == "start" and NoInterpreterError.__name__ in job.error.message
    assert not started.exists()


@pytest.mark.parametrize("executable", ["", None])
async def test_an_app_without_an_interpreter_is_told_so(executable: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded Python may have no `sys.executable` at all."""
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(NoInterpreterError) as caught:
        LocalEngine().start_worker(WorkerConfig(), Told())
    assert isinstance(caught.value, OSError) and caught.value.executable == ""


# The guardian


class Log(logging.Handler):
    """Counts the records of each level."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: "list[str]" = []

    def emit(self, record: logging.LogRecord) -> None:
        self.levels.append(record.levelname)


@pytest.fixture
def log() -> "Iterator[Log]":
    """What the engine's guardian logs."""
    handler, logger = Log(), logging.getLogger(guarding.__name__)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def test_a_guardian_that_always_ends_is_given_up(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is started a few times, later and later, and then the log says that there is none."""
    monkeypatch.setattr(KeptGuardian, "BACKOFF", 0.001)
    kept = KeptGuardian(str)
    kept.start("true")
    await until(lambda: "ERROR" in log.levels)
    kept.start("true")
    assert kept.process is None and log.levels == (KeptGuardian.ENDS - 1) * ["WARNING"] + ["ERROR"]
    await kept.close()


async def test_a_guardian_that_has_lived_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only ends in a row count."""
    monkeypatch.setattr(KeptGuardian, "CALM", 0.0)
    monkeypatch.setattr(KeptGuardian, "BACKOFF", 1000.0)
    kept = KeptGuardian(str)
    kept.start(sys.executable)
    for _ in range(KeptGuardian.ENDS + 1):
        process = kept.process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: kept.process not in (None, process))
    await kept.close()


async def test_a_guardian_that_cannot_be_started_marks_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker ends with the failed start, and nothing would be killed in its name later."""

    def refuse(*args: Any, **options: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    guard = Guardian()
    monkeypatch.setattr(GuardianProcess, "__init__", refuse)
    with pytest.raises(BlockingIOError):
        guard.start(sys.executable)
    assert guard.guarded == []
    before = set(psutil.Process().children())
    with pytest.raises(BlockingIOError):
        LocalEngine().start_worker(WorkerConfig(), Told())
    assert set(psutil.Process().children()) <= before


async def test_a_guardian_that_is_stopped_holds_up_nothing() -> None:
    """Lines for it wait, but no more than a few: then it is replaced, and its successor knows the workers that there are."""
    guard, earlier = Guardian(), set(guardians())
    sleeper = subprocess.Popen(["sleep", "100"], start_new_session=True)
    first = psutil.Process(guard.start(sys.executable))
    guard.add(sleeper.pid, "0123456789abcdef")
    first.suspend()
    start = time.monotonic()
    for pid in range(10**7, 10**7 + 5000):
        guard.add(pid, "fedcba9876543210")
        guard.remove(pid)
    assert time.monotonic() - start < 30
    assert await gone_soon([first.pid], 5)
    await until(lambda: first not in guardians() and set(guardians()) - earlier)
    assert guard.guarded == [sleeper.pid]
    guard.remove(sleeper.pid)
    sleeper.wait(5)
    await guard.close()


ORPHANS = """
import asyncio, json, os, signal, subprocess, sys, time
from cjm_worker_protocols import JobManager, WorkerConfig
import psutil

def busy():
    yield [os.getpid(), subprocess.Popen(["sleep", "1000"]).pid]
    while True: time.sleep(0.01)

async def main():
    async with JobManager("t", "t", plugins={"busy": busy}, worker_config=WorkerConfig(standby=False)) as m:
        job = await m.start_job("busy")
        async for pids in job.stream(): break
        print(json.dumps(pids), flush=True)
        [guardian] = [p for p in psutil.Process().children() if any("guardian" in a for a in p.cmdline())]
        sys.stdin.readline()
        guardian.kill()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs F_SETSIG")
def test_a_guardian_and_an_app_that_are_killed_together_leave_no_orphans(tmp_path: Path) -> None:
    """The kernel itself ends the worker and the children in its group."""
    with script(tmp_path / "app.py", ORPHANS) as process:
        pids = said_json(process)
        assert alive(pids) == pids
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert gone(pids, 2), alive(pids)


# How an end is noticed


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
async def test_an_end_that_another_part_of_the_app_has_reaped_is_unknown(how: str) -> None:
    """An app that reaps all its children, as the first process of a container should: unknown is unknown, and no exit code 0."""

    def reap(*_: object) -> None:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass

    def dies(how: str) -> None:
        exec(f"import os; {how}")

    before = signal.signal(signal.SIGCHLD, reap)
    try:
        async with One(dies) as one:
            one.run(how=how)
            await asyncio.wait_for(one.told.gone.wait(), 20)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (one.told.exit.exit_code, one.told.exit.signal) == (None, None) and "reaped" in one.told.exit.reason


def closes_all() -> None:
    """What code that makes daemons does."""
    os.closerange(3, 1024)
    time.sleep(0.3)


def closes_and_stays() -> None:
    """The same, and it goes on for long."""
    os.closerange(3, 1024)
    time.sleep(1000)


def closes_even_stdio() -> None:
    """The same, and no descriptor is left."""
    os.closerange(0, 1024)
    time.sleep(0.3)


@with_proc
@pytest.mark.parametrize("plugin", [closes_all, closes_and_stays, closes_even_stdio])
async def test_a_plugin_that_closes_the_connection_is_named(plugin: Any) -> None:
    """A worker whose socket was closed under it does not look as if the system had killed it."""
    async with One(plugin) as one:
        exit = await one.exit()
    assert exit.signal is None and "file descriptors" in exit.reason


async def test_a_plain_end_has_no_reason() -> None:
    """Exit codes and signals speak for themselves."""

    def leaves() -> None:
        os._exit(3)

    async with One(leaves) as one:
        assert await one.exit() == Exit(3)
    async with One(waits) as one:
        one.run()
        await one.told.says(Kind.CHUNK)
        one.worker.kill()
        await one.told.gone.wait()
        assert one.told.exit == Exit(signal=9)


async def test_a_result_that_this_process_cannot_hold_is_named() -> None:
    """The end of the worker is the end that this process has put to it, and why: its own memory."""

    def large(size: int) -> bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))  # so that it crosses the socket
        return bytes(size)

    async with One(large) as one:
        await one.told.says(Kind.READY)
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 100_000_000, hard))
        try:
            one.run(size=400_000_000)
            await asyncio.wait_for(one.told.gone.wait(), 20)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert one.told.exit.signal is None and "memory" in one.told.exit.reason and MemoryError.__name__ in one.told.exit.reason


async def test_a_worker_that_sends_no_frames_is_named() -> None:
    """Bytes that are no frame end the worker, with a reason."""

    nonsense = HEADER.pack(99, 0, 0, 0, 0) * 10

    def babbles() -> None:
        import socket

        for fd in range(3, 100):
            try:
                socket.socket(fileno=os.dup(fd)).send(nonsense)
            except OSError:
                pass
        time.sleep(1000)

    async with One(babbles) as one:
        exit = await one.exit()
    assert exit.signal is None and "not a frame" in exit.reason


# The context of callbacks


async def test_what_a_worker_says_is_heard_in_no_requests_context() -> None:
    """Whichever request starts the worker, gives it a job, resumes or drains it: the callbacks run in an empty context."""

    def talks() -> "Iterator[int]":
        os.write(2, b"written\n")
        yield 1
        os._exit(0)

    request.set("A")
    one = One(talks)
    async with one:
        await one.told.says(Kind.READY)
        one.worker.pause()
        one.run()
        one.worker.resume()
        while Kind.CHUNK not in one.told.kinds:
            one.worker.drain()
            await asyncio.sleep(0.01)
        await asyncio.wait_for(one.told.gone.wait(), 20)
    assert "written" in one.told.output and one.told.contexts == {"none"}


# What waits to be sent


async def test_what_a_busy_worker_was_given_and_lost_again_is_dropped() -> None:
    """Jobs are given and taken back many times while the worker is busy: what waits to be sent does not grow."""
    async with One(waits) as one:
        one.run()
        await one.told.says(Kind.CHUNK)
        body = outgoing(Kind.RUN, 2, ("p", "p", {}, False, {"body": bytes(1_000_000)}))
        held = [sys.getrefcount(piece) for piece in body.pieces]
        for tag in range(2, 302):
            one.worker.give(tag, body)
            assert one.worker.withdraw() == {tag}
        assert max(sys.getrefcount(piece) - count for piece, count in zip(body.pieces, held)) <= 2


# What is left on the machine


def named(prefix: str) -> "list[str]":
    """The shared memory and semaphores of this name."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)] if os.path.isdir("/dev/shm") else []


@pytest.mark.parametrize("how", ["kill", "exit", "withpool"])
async def test_nothing_named_outlives_a_worker(how: str) -> None:
    """Python's resource tracker has the time to remove the shared memory of a worker.

    Whether it is killed, ends, or has children that use the memory.
    """

    def shares(how: str) -> "Iterator[Any]":
        from multiprocessing import get_context
        from multiprocessing.shared_memory import SharedMemory

        memory = SharedMemory(create=True, size=8)
        process = get_context("spawn").Process(target=time.sleep, args=(1000,))
        if how == "withpool":
            process.start()
        yield memory.name, process.pid
        if how == "exit":
            os._exit(0)
        time.sleep(1000)

    async with manager(shares) as m:
        job = await m.start_job("shares", how=how)
        name, child = await first_chunk(job)
        if how != "exit":
            assert named(name) or not os.path.isdir("/dev/shm")
            await asyncio.sleep(0.5 if child else 0)  # it is an interpreter of its own by then
            assert job.worker_pid is not None
            os.kill(job.worker_pid, signal.SIGKILL)
        await end(job)
        if child:
            assert await gone_soon([child], 2)
    assert not named(name)


@with_proc
def test_nothing_named_outlives_an_app_that_is_killed(tmp_path: Path) -> None:
    """Its workers are gone within a second or so, and what they shared with them."""
    code = """
import asyncio, os
from cjm_worker_protocols import JobManager

def shares():
    import time
    from multiprocessing.shared_memory import SharedMemory
    memory = SharedMemory(create=True, size=8)
    time.sleep(0.3)
    yield memory.name, os.getpid()
    time.sleep(1000)

async def main():
    async with JobManager("t", "c", plugins={"shares": shares}) as m:
        async for name, pid in (await m.start_job("shares")).stream():
            print(name, pid, flush=True)

asyncio.run(main())
"""
    with script(tmp_path / "app.py", code) as app:
        assert app.stdout is not None
        name, pid = app.stdout.readline().split()
        assert named(name)
        app.kill()
        wait_until(lambda: not psutil.pid_exists(int(pid)) and not named(name))


@with_proc
async def test_a_resource_tracker_that_never_ends_is_ended() -> None:
    """It has a moment, and no more; the engine's end waits for it."""

    def leaves_tracker() -> "Iterator[int]":
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); 'resource_tracker'; time.sleep(1000)"
        yield subprocess.Popen([sys.executable, "-c", code]).pid
        time.sleep(1000)

    async with manager(leaves_tracker) as m:
        job = await m.start_job("leaves_tracker")
        pid = await first_chunk(job)
        assert await m.cancel_job(job.id)
    assert not alive([pid])


# An app that forks


def test_a_forked_sibling_holds_up_no_shutdown(tmp_path: Path) -> None:
    """Its copies of the pipes stay open: the guardian is told to end, and does not wait for the pipe's end."""
    source = """
import asyncio, json, multiprocessing, time
from cjm_worker_protocols import JobManager, WorkerConfig

def shout(text): return text.upper()

async def main():
    m = JobManager("t", "t", plugins={"shout": shout}, worker_config=WorkerConfig(standby=False))
    await (await m.start_job("shout", text="a"))
    sibling = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,), daemon=True)
    sibling.start()
    start = time.monotonic()
    await m.shutdown()
    print(json.dumps(time.monotonic() - start), flush=True)
    sibling.kill()

asyncio.run(main())
"""
    with script(tmp_path / "app.py", source) as process:
        assert said_json(process) < 2.5
        assert finish(process)[0] == 0


def test_a_drain_takes_what_has_come_though_more_keeps_coming() -> None:
    """A worker that never stops writing holds up no one who reads what it has said."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    frame, stop = encode(Kind.RESULT, 1, bytes(10_000)), threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                theirs.sendall(frame)

    async def scenario() -> None:
        def on_frame(frame: Frame) -> None:
            seen.append(frame)
            assert len(seen) < 100_000, "it does not end"

        seen: "list[Frame]" = []
        receiver = FrameReceiver(asyncio.get_running_loop(), ours, on_frame, lambda error: None)
        receiver.pause()
        await until(lambda: unread(ours) >= 100_000)
        receiver.drain()
        assert len(seen) >= 10
        receiver.close()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        run(scenario())
    finally:
        stop.set()
        ours.close()
        thread.join(10)
        theirs.close()


# A service that is stopped

STOPPED = """
import asyncio, json, signal, sys, time
from cjm_worker_protocols import JobManager, JobError

def works():
    try:
        yield "begun"
        for _ in range(100): time.sleep(0.01)
        yield "half"
        time.sleep(1000)
    finally: open("cleaned up", "w").close()

async def main(retries):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    manager = JobManager("t", "c", plugins={"works": works})
    events = manager.events()
    job = await manager.start_job("works", retries=retries)
    stream = job.stream()
    await stream.__anext__()
    while len(manager.workers) < 2 or any(w.status == "starting" for w in manager.workers): await asyncio.sleep(0.01)
    print(json.dumps([w.pid for w in manager.workers]), flush=True)
    await stop.wait()
    if sys.argv[2] != "at once": await stream.__anext__()  # as a server finishes its requests first
    await manager.shutdown()
    types = [e.type async for e in events]
    print(json.dumps([job.status, job.attempts, types.count("worker:started"), types.count("worker:exited")]), flush=True)

asyncio.run(main(int(sys.argv[1])))
"""


@with_proc
@pytest.mark.parametrize("retries, when", [(0, "at once"), (0, "later"), (1, "later")])
def test_a_stop_of_the_whole_service_is_no_crash(tmp_path: Path, retries: int, when: str) -> None:
    """SIGTERM for each process: jobs go on until the app shuts down, which unwinds them; no other worker starts."""
    with script(tmp_path / "app.py", STOPPED, str(retries), when) as process:
        pids = said_json(process)
        app = psutil.Process(process.pid)
        everyone = [app, *app.children(recursive=True)]
        assert {p.pid for p in everyone} > {process.pid, *pids}
        for one in everyone:
            with suppress(psutil.NoSuchProcess):  # the app is ending them already
                one.terminate()
        assert said_json(process) == ["cancelled", 1, 2, 2]
        code, _, log = finish(process)
        assert code == 0 and (tmp_path / "cleaned up").exists() and "exited with" not in log
        assert not alive([p.pid for p in everyone])


@with_proc
async def test_a_sigterm_for_a_worker_alone_ends_it() -> None:
    """That its guardian got none says for whom it was."""
    async with manager(stays) as m:
        job = await m.start_job("stays")
        os.kill(await first_chunk(job), signal.SIGTERM)
        error = (await end(job)).error
    assert error is not None and error.category == "crash" and error.exit_code == 128 + signal.SIGTERM


def stays() -> "Iterator[int]":
    """Run for long."""
    yield os.getpid()
    time.sleep(1000)
