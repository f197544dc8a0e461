"""What the tests of the worker system share: a loop with a limit, a manager of plugins, and a look at what is left behind."""

import asyncio
import gc
import inspect
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import engines
import psutil
import pytest
import sample_plugins
from repo import ROOT

from cjm_worker_protocols import Job, JobManager, WorkerConfig
from cjm_worker_protocols.core.events import Event

TESTS = Path(__file__).resolve().parent
_INJECTED = ("plugins", "supports_streaming", "plugin_registry", "resource_manager", "event_broadcaster", "engine", "job_store")


def run(scenario: "Coroutine[Any, Any, Any]", limit: float = 30) -> Any:
    """Run a scenario on a loop of its own, and fail when it has not ended within its limit."""

    async def limited() -> Any:
        task = asyncio.ensure_future(scenario)
        if (await asyncio.wait({task}, timeout=limit * engines.patience()))[0]:
            return task.result()
        task.cancel()
        await asyncio.wait({task}, timeout=15)
        raise AssertionError(f"not done within {limit:g} s")

    return asyncio.run(limited())


def manager(*plugins: Any, cls: Any = JobManager, worker_type: str = "test", category: Any = "tests", **settings: Any) -> Any:
    """A manager of these plugins (names stand for those of sample_plugins), by default with one worker and no standby."""
    given = {name: settings.pop(name) for name in _INJECTED if name in settings}
    config = WorkerConfig(**{"standby": False, "grace_timeout": 2.0, **settings})
    found = [getattr(sample_plugins, p) if isinstance(p, str) else p for p in plugins]
    if engines.make is not None:
        given.setdefault("engine", engines.make())
    if found:
        given["plugins"] = {**given.get("plugins", {}), **{p.__name__: p for p in found}}
    return cls(worker_type, category, worker_config=config, **given)


async def end(job: Job, limit: float = 15) -> Job:
    """Wait for a job's end; a job that has none within the limit fails the test."""
    await asyncio.wait({waiting := asyncio.ensure_future(job.wait())}, timeout=limit * engines.patience())
    if not waiting.done():
        waiting.cancel()
        raise AssertionError(f"{job} has no end after {limit:g} s")
    return job


async def until(condition: "Callable[[], Any]", limit: float = 20) -> Any:
    """Wait until something is true, and give what it is; the loop goes on meanwhile. What tells it may be a coroutine function."""

    async def look() -> Any:
        found = condition()
        return await found if inspect.isawaitable(found) else found

    end = time.monotonic() + limit * engines.patience()
    while not (found := await look()):
        assert time.monotonic() < end, f"not so within {limit:g} s"
        await asyncio.sleep(0.01)
    return found


def wait_until(condition: "Callable[[], Any]", limit: float = 20) -> Any:
    """The same on a thread that waits meanwhile, perhaps that of a loop."""
    end = time.monotonic() + limit * engines.patience()
    while not (found := condition()):
        assert time.monotonic() < end, f"not so within {limit:g} s"
        time.sleep(0.01)
    return found


async def under_way(seen: "Seen", job: Job) -> int:
    """Wait until a plugin has reported or yielded for the first time; gives its worker's pid."""
    await seen.when(lambda e: e.type in ("job:progress", "job:chunk") and e.data["job_id"] == job.id)
    assert job.worker_pid is not None
    return job.worker_pid


async def first_chunk(job: Job) -> Any:
    """Wait until a plugin has yielded for the first time: then it runs."""
    async for chunk in job.stream():
        return chunk
    raise AssertionError(f"{job} ended without a chunk")


class Seen:
    """A manager's events, read when a test waits for one of them."""

    def __init__(self, manager: Any) -> None:
        self.events: "list[Event]" = []
        self.listener = manager.events()

    def __iter__(self) -> "Iterator[Event]":
        return iter(self.events)

    async def until(self, event_type: str, limit: float = 15, **data: Any) -> Event:
        """The first event of this type with this data, seen already or to come."""
        return await self.when(lambda e: e.type == event_type and data.items() <= e.data.items(), limit)

    async def when(self, match: "Callable[[Event], bool]", limit: float = 15) -> Event:
        """The first event that matches, seen already or to come."""
        for event in self.events:
            if match(event):
                return event
        deadline = time.monotonic() + limit * engines.patience()
        while True:
            event = await asyncio.wait_for(self.listener.__anext__(), max(0.001, deadline - time.monotonic()))
            self.events.append(event)
            if match(event):
                return event

    async def rest(self) -> "list[Event]":
        """All events, once the manager has been shut down."""
        async for event in self.listener:
            self.events.append(event)
        return self.events

    def types(self, job: "Job | None" = None) -> "list[str]":
        """The types of the events that were seen, of one job or of all, less those about waiting, which depend on the engine."""
        return [e.type for e in self.events if (job is None or e.data.get("job_id") == job.id) and "waiting_for" not in e.data]


# The loop's health


class Stall:
    """How long the loop was held up, at worst, in seconds."""

    worst = 0.0


@asynccontextmanager
async def ticking() -> "AsyncIterator[Stall]":
    """Measure how late a task gets its turn, again and again."""
    stall = Stall()

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            stall.worst = max(stall.worst, time.perf_counter() - before - 0.002)

    task = asyncio.ensure_future(tick())
    await asyncio.sleep(0)
    try:
        yield stall
    finally:
        await asyncio.sleep(0.003)  # a stall that has just begun counts too
        task.cancel()


def least_stall(scenario: "Callable[[], Coroutine[Any, Any, float]]", enough: float, attempts: int = 5) -> float:
    """The smallest stall of a few attempts: a busy machine may hold up any one of them."""
    least = float("inf")
    for _ in range(attempts):
        least = min(least, run(scenario()))
        if least < enough:
            break
    return least


# Processes


def alive(pids: "Iterable[int]") -> "list[int]":
    """Which of these processes have not ended; one that waits to be reaped has."""
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            pass
    return found


def gone(pids: "Iterable[int]", within: float) -> bool:
    """Wait until these processes have ended, whoever reaps them."""
    deadline = time.monotonic() + within
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
        finally:
            os.close(fd)
    return True


async def gone_soon(pids: "Iterable[int]", within: float) -> bool:
    """The same while the loop goes on."""
    return await asyncio.get_running_loop().run_in_executor(None, gone, list(pids), within)


already: "set[psutil.Process]" = set()  # Processes of earlier test files, as the resource tracker of multiprocessing


def children() -> "list[psutil.Process]":
    """All processes since this test file began, those that are not reaped yet among them; of Ray's only the workers on it."""
    found = [p for p in psutil.Process().children(recursive=True) if p not in already]
    return [p for p in found if _ours(p)] if engines.started else found


def _ours(process: psutil.Process) -> bool:
    """Whether a process is one of ours, and not of Ray."""
    try:
        above = [process, *process.parents()]
        if not any(p.name().startswith(("raylet", "gcs_server", "ray::")) or "/ray/" in " ".join(p.cmdline()) for p in above):
            return True
        return any("cjm_worker_protocols.worker.main" in argument for p in above for argument in p.cmdline())
    except psutil.NoSuchProcess:
        return False


def guardians(pid: "int | None" = None) -> "list[psutil.Process]":
    """The guardian processes below a process."""
    found = []
    for process in psutil.Process(pid).children():
        try:
            if any("import guardian" in arg for arg in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            pass
    return found


@contextmanager
def script(path: Path, source: str, *args: str, **popen: Any) -> "Iterator[subprocess.Popen[str]]":
    """Run a script in a process group of its own; whatever is left of it at the end is killed."""
    path.write_text(source, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)])}
    process = subprocess.Popen(
        [sys.executable, str(path), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=path.parent,
        start_new_session=True,
        **popen,
    )
    below: "list[psutil.Process]" = []
    try:
        yield process
    finally:
        try:
            below = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            pass
        for victim in (*below, process):
            try:
                victim.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                pass
        process.communicate()


def said_json(process: "subprocess.Popen[str]", within: float = 20) -> Any:
    """The next line of a script, as JSON."""
    assert process.stdout is not None and process.stderr is not None
    if not select.select([process.stdout], [], [], within)[0]:
        raise AssertionError(f"the script said nothing within {within:g} s")
    line = process.stdout.readline()
    if not line:
        raise AssertionError("the script ended:\n" + process.stderr.read())
    return json.loads(line)


def finish(process: "subprocess.Popen[str]", within: float = 20) -> "tuple[int, str, str]":
    """The exit status of a script that ends, and the rest of what it wrote."""
    out, err = process.communicate(timeout=within)
    return process.returncode, out, err


# What is left behind


def descriptors() -> "dict[int, str]":
    """What this process has open."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass
    return found


class _Complaints(logging.Handler):
    """Keeps what asyncio and the manager complain about: a callback that raised, a task that nobody waited for."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: "list[str]" = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio" or record.getMessage().startswith("handling "):
            self.found.append(self.format(record))


@pytest.fixture(autouse=True)
def nothing_left() -> "Iterator[None]":
    """After each test: no thread, no descriptor, no process more than before, and no complaint of the event loop."""
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)
    fds, threads, processes = descriptors(), set(threading.enumerate()), set(children())
    yield
    logging.getLogger().removeHandler(complaints)
    gc.collect()
    new_processes = [p for p in children() if p not in processes]
    what = []
    for process in new_processes:
        try:
            zombie = process.status() == psutil.STATUS_ZOMBIE
            what.append(f"process {process.pid} {'that nobody waited for' if zombie else ' '.join(process.cmdline())[:100]}")
            process.kill()
        except psutil.NoSuchProcess:
            pass
    for thread in set(threading.enumerate()) - threads:
        if isinstance(thread, threading._DummyThread):
            continue  # a thread of C++ that called back
        thread.join(0.5)  # its last steps
        if thread.is_alive():
            what.append(f"thread {thread.name}")
    new = {fd: target for fd, target in descriptors().items() if fd not in fds}
    of_ray = ("socket:", "anon_inode:") if engines.used else ()
    what += [f"descriptor {fd} {target}" for fd, target in new.items() if not target.startswith(of_ray)]
    assert not what, "left behind: " + "; ".join(what)
    assert not complaints.found, "\n".join(complaints.found)


class Gate:
    """A place where plugins wait until a test lets them through, one by one."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)

    def open(self, count: int = 1) -> None:
        """Let so many through."""
        os.write(self._fd, b"x" * count)

    def close(self) -> None:
        """Nobody passes any more."""
        os.close(self._fd)


@pytest.fixture
def gate(tmp_path: Path) -> "Iterator[Gate]":
    """A gate for the plugin `wait_at`."""
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


def ctrl_c(process: "subprocess.Popen[str]") -> None:
    """What a terminal does on Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)
