"""What code of the app raises, calls back or leaves behind keeps no job from its one end."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from contextvars import copy_context
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import end, finish, first_chunk, manager, script, until, wait_until

from cjm_worker_protocols import Job, JobCancelled, JobError, JobManager, WorkerConfig
from cjm_worker_protocols.core.errors import ConfigError, WrongLoopError
from cjm_worker_protocols.core.events import json_safe
from cjm_worker_protocols.engines.local import LocalEngine
from cjm_worker_protocols.managers.hooks import HookAnswers, HookCaller, Hooks
from cjm_worker_protocols.managers.integrations import ResourceClient
from cjm_worker_protocols.managers.process import Deadline
from cjm_worker_protocols.managers.broadcast import BroadcastCaller, BroadcastQueue
from cjm_worker_protocols.managers.serial import Call, CallQueue, CallThread, SerialExecutor
from cjm_worker_protocols.managers.writer import StoreWriter


class Panic(BaseException):
    """What extension modules raise when they panic: no `Exception`."""


def panic(*arguments: Any) -> None:
    """Raise it."""
    raise Panic(*arguments)


class Unreadable:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return panic, ("unpickled",)


class Shy:
    """Cannot be displayed."""

    def __repr__(self) -> str:
        raise Panic("displayed")


class PanickyFilter(logging.Filter):
    """A logging filter that raises."""

    def filter(self, record: logging.LogRecord) -> bool:
        raise Panic("filtered")


def talks(n: int) -> int:
    """Log much."""
    import logging

    for i in range(n):
        logging.getLogger("plugin").warning("line %d", i)
    return n


def naps(seconds: float) -> float:
    """Take a while."""
    import time

    time.sleep(seconds)
    return seconds


def yields_unreadable() -> Any:
    """Yield what the manager cannot unpickle."""
    yield Unreadable()
    return "done"


def yields_shy() -> Any:
    """Yield what cannot be displayed."""
    yield Shy()
    yield 1
    return "done"


def polite() -> "Iterator[str]":
    """Run until it is cancelled, and see that after a while."""
    import time

    from cjm_worker_protocols import check_cancel

    check_cancel()
    yield "asked once"
    time.sleep(0.5)
    while True:
        check_cancel()
        time.sleep(0.01)


# What code of the app raises


@pytest.fixture
def panicking_log() -> Any:
    """All loggers of the package have a filter that raises."""
    names = [name for name in logging.Logger.manager.loggerDict if name.startswith("cjm_worker_protocols")]
    loggers = [logging.getLogger(name) for name in {*names, "cjm_worker_protocols.worker"}]
    panics = PanickyFilter()
    for logger in loggers:
        logger.addFilter(panics)
    yield
    for logger in loggers:
        logger.removeFilter(panics)


@pytest.mark.usefixtures("panicking_log")
async def test_whatever_a_logging_filter_raises_all_is_delivered() -> None:
    async with manager(talks) as m:
        assert await (await m.start_job("talks", n=50)) == 50
        jobs = [await m.start_job("talks", n=1) for _ in range(3)]
        os.kill(m.workers[0].pid, signal.SIGKILL)
        for job in jobs:
            await end(job)
        assert await (await m.start_job("talks", n=2)) == 2


async def test_a_chunk_that_panics_when_it_is_read_fails_its_job() -> None:
    async with manager(yields_unreadable, talks) as m:
        with pytest.raises(JobError) as failed:
            await (await m.start_job("yields_unreadable"))
        assert failed.value.category == "serialization"
        assert await (await m.start_job("talks", n=1)) == 1


async def test_a_chunk_that_panics_when_it_is_displayed_has_its_event() -> None:
    async with manager(yields_shy) as m:
        events = m.events()
        assert await (await m.start_job("yields_shy")) == "done"
        await m.shutdown()
        chunks = [event.data["chunk"] async for event in events if event.type == "job:chunk"]
        assert chunks == ["<Shy>", 1]
        assert not m.integration_errors


def test_what_ends_the_app_is_not_taken_for_a_failure() -> None:
    class Exits:
        def __repr__(self) -> str:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        json_safe([Exits()])


# Calls from within the handling of what a worker says


async def test_a_hook_may_cancel_the_job_that_its_worker_begins_just_then() -> None:
    """As with an eager task factory: the call runs at once, up to its first suspension."""

    class Cancels(JobManager):
        others: "list[Job]" = []
        calls: "list[asyncio.Task[bool]]" = []

        def extract_job_result(self, job: Job, result_data: Any) -> Any:
            while self.others:
                call: Any = self.cancel_job(self.others.pop().id)
                call.send(None)
                self.calls.append(asyncio.get_running_loop().create_task(call))
            return result_data

    async with manager(naps, cls=Cancels) as m:
        await (await m.start_job("naps", seconds=0.0))
        first = await m.start_job("naps", seconds=0.2)
        second, third = await m.start_job("naps", seconds=20.0), await m.start_job("naps", seconds=0.0)
        m.others.append(second)
        assert await first == 0.2
        await end(second)
        assert isinstance(second.error, JobCancelled)
        assert await third == 0.0
        assert second.status == "cancelled"
        assert await asyncio.gather(*m.calls) == [True]


# What has been said before a limit counts


async def test_a_deadline_reads_first() -> None:
    called: "list[str]" = []
    deadline = Deadline(lambda: heard.pop()() if heard else None)
    heard = [lambda: deadline.clear()]
    deadline.set(0.0, called.append, "cleared")
    await until(lambda: not heard)
    heard.append(lambda: deadline.set(0.0, called.append, "set anew"))
    deadline.set(0.0, called.append, "late")
    await until(lambda: called)
    assert called == ["set anew"]


async def test_shutdown_reads_first(tmp_path: Path) -> None:
    def leaves(path: str) -> str:
        open(path, "w").close()
        return path

    async with manager(naps, leaves) as m:
        await (await m.start_job("naps", seconds=0.0))
        job = await m.start_job("leaves", path=str(mark := tmp_path / "mark"))
        wait_until(lambda: mark.exists())  # the app blocks its loop
        time.sleep(0.3)  # the worker ends the job
    assert (job.status, job.result) == ("completed", str(mark))


async def test_shutdown_while_a_job_is_being_cancelled() -> None:
    async with manager(polite, grace_timeout=10.0) as m:
        job = await m.start_job("polite")
        await first_chunk(job)
        cancelling = asyncio.ensure_future(m.cancel_job(job.id))
        await asyncio.sleep(0)  # it has begun
        await asyncio.wait_for(m.shutdown(), 8)
        assert await cancelling
        assert m.workers == []


# Admission


class SlowToAdmit:
    """A resource manager that takes a while to admit."""

    asked = False

    def register_worker(self, pid: int, worker_type: str) -> None: ...
    def unregister_worker(self, pid: int) -> None: ...
    def update_worker_state(self, pid: int, **state: Any) -> None: ...
    def can_ever_start(self, plugin_id: str, config: Any, estimate: Any = None) -> None: ...

    def can_start(self, plugin_id: str, config: Any, estimate: Any = None) -> None:
        self.asked = True
        time.sleep(0.2)


@pytest.mark.parametrize("begun", [False, True])
async def test_an_app_that_cancels_all_tasks_leaves_no_job_without_an_end(begun: bool) -> None:
    """Also one that cancels a task before its first step, of which nothing runs then."""
    async with manager(naps, resource_manager=(room := SlowToAdmit())) as m:
        job = await m.start_job("naps", seconds=0.0)
        asking: "list[asyncio.Task[Any]]" = []
        while not asking:
            await asyncio.sleep(0)
            asking = [task for task in asyncio.all_tasks() if "Admission" in repr(task.get_coro())]
        if begun:
            await until(lambda: room.asked)
        for task in asking:
            task.cancel()
        assert (await end(job)).status == "completed"


async def test_an_estimate_that_panics_is_no_estimate() -> None:
    class Panics(JobManager):
        def estimate_resources(self, plugin_id: str, plugin_config: "dict[str, Any]") -> "dict[str, int] | None":
            raise Panic("estimated")

    async with manager(naps, cls=Panics, resource_manager=SlowToAdmit()) as m:
        assert (await end(await m.start_job("naps", seconds=0.0))).status == "completed"
        assert m.integration_errors["hooks.estimate_resources"] > 0


# Threads


async def test_a_question_waits_for_a_thread_that_can_be_had_later(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = threading.Thread.start, [1, 1]

    def start(thread: threading.Thread) -> None:
        if thread.name == "serial-test" and refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    monkeypatch.setattr(CallThread, "AGAIN", 0.02)
    executor = SerialExecutor("test", 10, errors := Counter(), 5.0)
    assert await executor.ask("add", lambda: 1 + 1) == 2
    assert errors == {"test.thread": 2}
    await executor.close()


def test_two_threads_that_ask_first_share_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if thread.name == "serial-test":
            started.append(thread)
            time.sleep(0.05)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    executor = SerialExecutor("test", 10, Counter(), 5.0)
    callers = [threading.Thread(target=executor.ask_blocking, args=("add", lambda: 2)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(started) == 1
    executor.abandon()
    started[0].join(5)
    assert not started[0].is_alive()


async def test_an_executor_that_was_closed_leaves_no_descriptor() -> None:
    before = len(os.listdir("/dev/fd"))
    for how in (SerialExecutor.close, SerialExecutor.abandon):
        executor = SerialExecutor("test", 10, Counter(), 5.0)
        assert await executor.ask("add", lambda: 1 + 1) == 2
        ended = how(executor)
        if ended is not None:
            await ended
        await until(lambda: len(os.listdir("/dev/fd")) <= before)


async def test_nothing_keeps_an_answer_that_its_caller_has_dropped() -> None:
    """A result of many megabytes must not wait for the garbage collector."""
    executor, answers = SerialExecutor("test", 10, Counter(), 5.0), list["weakref.ref[Any]"]()

    def make() -> Any:
        time.sleep(0.01)  # so that the loop is woken for it
        answers.append(weakref.ref(answer := {"large"}))
        return answer

    gc.disable()
    try:
        for _ in range(3):
            await executor.ask("make", make)
        assert len(answers) == 3 and await until(lambda: not any(answer() for answer in answers))
    finally:
        gc.enable()
    await executor.close()


async def test_a_state_comes_before_what_is_posted_or_asked_after_it() -> None:
    executor, made = SerialExecutor("test", 10, Counter(), 5.0), list[str]()
    for name in ("first", "second"):
        executor.post_state(1, partial(Call, "update", partial(made.append, name), key=1))
    executor.post("unregister", partial(made.append, "third"))
    executor.post_state(2, partial(Call, "update", partial(made.append, "fourth"), key=2))
    assert await executor.ask("look", made.copy) == ["first", "second", "third", "fourth"]
    await executor.close()


async def test_what_is_posted_waits_no_longer_because_a_state_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SerialExecutor, "STATES_DELAY", 60.0)
    executor, made = SerialExecutor("test", 10, Counter(), 5.0), list[str]()
    executor.post_state(1, partial(Call, "update", partial(made.append, "idle"), key=1))
    executor.post("unregister", partial(made.append, "gone"))
    await until(lambda: made == ["idle", "gone"])
    await executor.close()


async def test_of_states_that_wait_for_each_other_the_newest_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many of each worker as may wait in the queue, and no others: neither a slow loop nor a busy worker makes a long queue."""
    monkeypatch.setattr(SerialExecutor, "STATES_DELAY", 60.0)
    executor, made = SerialExecutor("test", 1000, Counter(), 5.0), list[int]()

    def state(worker: int, n: int) -> Call:
        made.append(n)
        return Call("update", lambda: None, key=worker)

    for n in range(SerialExecutor.NEW - 1):
        executor.post_state(n % 2, partial(state, n % 2, n))
    assert not made
    await executor.ask("look", lambda: None)
    assert made == [*range(SerialExecutor.NEW - 1)][-2 * CallQueue.STATES :]
    made.clear()
    for n in range(SerialExecutor.NEW):
        executor.post_state(0, partial(state, 0, n))
    assert made == [*range(SerialExecutor.NEW)][-CallQueue.STATES :]
    await executor.close()


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_an_app_that_is_ended_in_the_resource_hook_loses_no_state(how: "type[BaseException]") -> None:
    """Neither of this worker nor of those whose states come with it; as in a notebook, the loop goes on."""
    heard = list[Any]()

    class Named(Hooks):
        def _extract_plugin_resource_identifier(self, config: "dict[str, Any]") -> "str | None":
            if config["model"] == "second":
                raise how
            return super()._extract_plugin_resource_identifier(config)

    class Keeps(SlowToAdmit):
        def update_worker_state(self, pid: int, **state: Any) -> None:
            heard.append((pid, state["loaded_plugin_resource"]))

    loop, named, caller = asyncio.new_event_loop(), Named(), HookCaller(10, Counter(), 1.0)
    client = ResourceClient(Keeps(), "t", SerialExecutor("test", 10, Counter(), 5.0))
    answers = HookAnswers(lambda: named, caller)

    async def report() -> None:
        for pid, model in enumerate(["first", "second", "third"]):
            holds = "p", "p", {"model": model}
            client.executor.post_state(pid, partial(client.state, pid, "idle", None, holds, answers.resource))

    try:
        loop.run_until_complete(report())
        with pytest.raises(how):
            loop.run_forever()
        loop.run_until_complete(until(lambda: len(heard) == 3))
        assert heard == [(0, "first"), (1, None), (2, "third")]
        loop.run_until_complete(client.executor.close())
    finally:
        loop.close()


def _serial_threads() -> "set[threading.Thread]":
    return {thread for thread in threading.enumerate() if thread.name.startswith("serial-")}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_manager_that_outlives_its_loop_leaves_no_thread() -> None:
    before = _serial_threads()

    async def uses_one() -> Any:
        m = manager(naps, resource_manager=SlowToAdmit())
        await (await m.start_job("naps", seconds=0.0))
        return m

    kept = asyncio.run(uses_one())
    threads = _serial_threads() - before
    assert threads
    gone = weakref.ref(kept)
    del kept
    gc.collect()
    assert gone() is None
    for thread in threads:
        thread.join(5)
    assert not _serial_threads() - before


# Listeners, hooks and broadcasters


async def test_events_that_were_opened_first_belong_to_the_managers_loop() -> None:
    m = manager(naps)
    events = m.events()
    async with m:

        async def listens() -> None:
            await events.__anext__()

        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(asyncio.run, listens())


@pytest.mark.parametrize("then", ["nothing", "another hook", "the end"])
@pytest.mark.parametrize("begun", [False, True])
async def test_an_app_that_cancels_all_tasks_keeps_no_hook_from_being_called(
    begun: bool, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their task ends, as such an app expects; those that wait are called in order later, or before the manager ends."""
    called: "list[int]" = []
    if then == "the end":
        monkeypatch.setattr(StoreWriter, "RETRY", 60)

    class Hooked:
        async def hook(self, n: int) -> None:
            called.append(n)
            await asyncio.sleep(60 if begun and n == 0 else 0)

    caller = HookCaller(10, Counter(), 5.0)
    hook = Hooked().hook
    before = asyncio.all_tasks()
    for n in range(2):
        caller.call(hook, n, copy_context())
    (task,) = asyncio.all_tasks() - before
    if begun:
        await until(lambda: called)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.done()
    if hasattr(task, "cancelling") or not begun:  # before Python 3.11 a task does not say that it was cancelled
        assert called == [*range(begun)]
    wanted = [0, 1]
    if then == "another hook":
        wanted.append(2)
        caller.call(hook, 2, copy_context())
    if then != "the end":
        await until(lambda: called == wanted)
    await caller.close()
    assert called == wanted and asyncio.all_tasks() == before


def test_ctrl_c_in_a_hook_keeps_no_other_from_being_called() -> None:
    """As in a notebook, whose loop goes on."""
    called: "list[int]" = []

    class Hooked:
        async def hook(self, n: int) -> None:
            called.append(n)
            if n == 0:
                raise KeyboardInterrupt

    async def call() -> None:
        for n in range(2):
            caller.call(hook, n, copy_context())

    loop, caller, hook = asyncio.new_event_loop(), HookCaller(10, Counter(), 5.0), Hooked().hook
    try:
        loop.run_until_complete(call())
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        loop.run_until_complete(until(lambda: called == [0, 1]))
    finally:
        loop.close()


async def test_an_event_says_how_it_was_when_it_happened() -> None:
    """It is made later, when it is sent; what the app has changed meanwhile does not show."""
    seen = list[Any]()

    class Notes:
        async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
            seen.append((event_type, data))

    async with manager("echo", event_broadcaster=Notes()) as m:
        before = time.time()
        job = await m.start_job("echo", x=["a"], metadata={"file": "a.wav"})
        job.metadata["file"] = "b.wav"
        (await job).append("b")
    events = {kind: data for kind, data in seen if data.get("job_id") == job.id}
    assert events["job:queued"]["metadata"] == {"file": "a.wav"} and events["job:completed"]["result"] == ["a"]
    times = [datetime.fromisoformat(data["time"]).timestamp() for data in events.values()]
    assert times == sorted(times) and before - 0.001 <= times[0] <= times[-1] <= time.time()


async def test_a_call_that_was_given_up_is_not_mistaken_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broadcaster that hangs is given up; what it raises at once the next time is counted for what it is."""
    heard, reasons = list[int](), list[object]()
    monkeypatch.setattr(BroadcastCaller, "failed", lambda self, what, reason: reasons.append(reason))

    class Moody:
        async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
            heard.append(data["n"])
            if data["n"] == 0:
                await asyncio.sleep(60)
            if data["n"] == 1:
                raise asyncio.CancelledError

    async with manager("echo", event_broadcaster=Moody(), integration_timeout=0.05) as m:
        for n in range(3):
            await m.broadcast_event("custom", {"n": n})
        await until(lambda: heard == [0, 1, 2])
        assert reasons == ["no end after 0.05 s", "it was cancelled"]


async def test_a_broadcaster_that_never_suspends_leaves_the_loop_its_turns() -> None:
    class Works:
        calls = 0

        async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
            self.calls += 1
            time.sleep(0.002)

    works, between = Works(), []
    async with JobManager("test", "tests", plugins={"naps": naps}, worker_config=WorkerConfig(), event_broadcaster=works) as m:
        for n in range(60):
            await m.broadcast_event("custom", {"n": n})
        while works.calls < 60:
            before = works.calls
            await asyncio.sleep(0)
            between.append(works.calls - before)
    assert max(between) <= BroadcastQueue.TURN / 0.002 + 1


# Folders, and a shutdown that is cancelled


async def test_the_import_path_is_that_of_the_folder_where_the_manager_was_made(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text("def hello(): return 'hello'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    async with JobManager("test", "tests", plugins={"hello": "made_here:hello"}, worker_config=WorkerConfig(standby=False)) as m:
        os.chdir("/")
        assert await (await m.start_job("hello")) == "hello"


APP = """
from cjm_worker_protocols import BaseJobManager, JobManager
def shout(text): return text.upper()
def load(): return {"shout": shout}
class Own(BaseJobManager):
    def get_plugin_loader(self): return load
function = JobManager("t", "c", plugins={"shout": shout})
name = JobManager("t", "c", plugins={"shout": "app:shout", "len": len})
loader = Own("t", "c")
elsewhere = JobManager("t", "c", plugins={"words": "string:capwords"})
"""
SERVER = """
import asyncio, logging, sys
logging.basicConfig(level=logging.WARNING, format="%(args)s", stream=sys.stdout)
import app
def here(): pass
main = app.JobManager("t", "c", plugins={"here": here})
async def serve():
    inside = app.JobManager("t", "c", plugins={"shout": app.shout})
    for name, manager in (*vars(app).items(), ("main", main), ("inside", inside)):
        if not isinstance(manager, app.BaseJobManager): continue
        print(name)
        async with manager: pass
asyncio.run(serve())
"""


def test_plugins_beside_their_manager_are_warned_of(tmp_path: Path) -> None:
    """Under `uvicorn module:app`, each worker would import the whole app with them. What is in `__main__` is sent without its module."""
    (tmp_path / "app.py").write_text(APP)
    with script(tmp_path / "main.py", SERVER) as process:
        assert finish(process) == (0, "function\n('app',)\nname\n('app',)\nloader\n('app',)\nelsewhere\nmain\ninside\n", "")


def test_an_app_may_change_its_folder_before_it_makes_a_manager(tmp_path: Path) -> None:
    """What it found when it was started is found; what lies in the folder where it is now comes first, as in the app itself."""
    (tmp_path / "now").mkdir()
    for folder in (tmp_path, tmp_path / "now"):
        (folder / "both.py").write_text(f"def hello(): return {folder.name!r}")
    (tmp_path / "before.py").write_text("def hello(): return 'before'")
    source = """
import asyncio, os, sys
sys.path.insert(0, "")
from cjm_worker_protocols import JobManager
os.chdir("now")

async def main():
    async with JobManager("t", "c", plugins={"before": "before:hello", "both": "both:hello"}) as manager:
        print(await (await manager.start_job("before")), await (await manager.start_job("both")))

asyncio.run(main())
"""
    with script(tmp_path / "app.py", source) as process:
        assert finish(process) == (0, "before now\n", "")


async def test_a_manager_works_where_its_folder_was_removed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.setattr(sys, "path", ["", *sys.path, tmp_path])
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        async with manager(naps) as m:
            assert await (await m.start_job("naps", seconds=0.0)) == 0.0
    finally:
        os.chdir("/")


def test_a_shutdown_that_the_end_of_the_loop_cancels_leaves_no_process() -> None:
    managers = []

    async def leaves() -> "tuple[Job, int]":
        managers.append(m := manager(polite, grace_timeout=3.0))
        job = await m.start_job("polite")
        await until(lambda: job.status == "running")
        closing.append(asyncio.ensure_future(m.shutdown()))
        await asyncio.sleep(0)
        return job, m.workers[0].pid

    closing: "list[asyncio.Future[None]]" = []
    job, pid = asyncio.run(leaves())
    assert isinstance(job.error, JobCancelled)
    assert not psutil.pid_exists(pid)


async def test_what_can_never_start_is_not_tried_again_and_again() -> None:
    """While another worker serves, a start that can never succeed is not repeated by a timer; the job waits for that worker."""

    class Once(LocalEngine):
        starts = 0

        def start_worker(self, config: Any, events: Any, placement: Any = None) -> Any:
            self.starts += 1
            if self.starts > 1:
                raise FileNotFoundError(2, "No such file or directory", "python")
            return super().start_worker(config, events, placement)

    engine = Once()
    async with manager("echo", "stuck", engine=engine, max_workers=2) as m:
        busy = await m.start_job("stuck")
        await first_chunk(busy)
        waits = await m.start_job("echo", x=1)
        await asyncio.sleep(0.2)  # a timer would start many meanwhile
        assert engine.starts <= 3 and waits.status == "pending"


async def test_what_can_never_start_fails_its_own_jobs_at_once() -> None:
    """A worker whose placement the engine refuses for good, as a cluster does: jobs of other placements run on, and wait as before."""

    class Cluster(LocalEngine):
        def placement(self, config: Any, plugin_config: Any) -> Any:
            return plugin_config.get("place")

        def start_worker(self, config: Any, events: Any, placement: Any = None) -> Any:
            if placement == "nowhere":
                raise PermissionError(1, "refused for good")
            return super().start_worker(config, events, None)

    async with manager("echo", "pid", "stuck", engine=Cluster(), max_workers=3, max_restarts=50) as m:
        for plugin, place in (("pid", "nowhere"), ("stuck", "here")):
            assert await m.reload_plugin(plugin, {"place": place}) is False  # no worker has it
        assert await (await m.start_job("echo", x=1)) == 1
        refused = await end(await m.start_job("pid"))
        assert refused.error is not None and refused.error.category == "start"
        await first_chunk(stuck := await m.start_job("stuck"))
        waits = await m.start_job("stuck")
        refused = await end(await m.start_job("pid"))
        assert refused.error is not None and refused.error.category == "start" and not waits.done and stuck.status == "running"
        assert await (await m.start_job("echo", x=2)) == 2


async def test_a_reload_that_is_refused_changes_nothing() -> None:
    """A config that cannot be is not the plugin's from then on."""
    async with manager("echo") as m:
        for wrong in ({"worker_python": ""}, {"worker_python": 7}):
            with pytest.raises(ConfigError):
                await m.reload_plugin("echo", wrong)
            assert await (await m.start_job("echo", x=1)) == 1
        assert await m.reload_plugin("echo", {"good": 1})


async def test_a_config_that_a_hook_changes_is_that_of_its_job_alone() -> None:
    """Also where no registry makes a new one for each job."""
    seen: "list[dict[str, Any]]" = []

    class Checked(JobManager):
        async def _validate_resources(self, plugin_id: str, plugin_config: "dict[str, Any]") -> None:
            seen.append(dict(plugin_config))
            plugin_config["seen"] = len(seen)

    async with manager("echo", cls=Checked) as m:
        assert [await (await m.start_job("echo", x=n)) for n in (1, 2)] == [1, 2]
    assert seen == [{}, {}]


class Interrupts:
    """A value in a job's metadata that cannot be shown: Ctrl-C comes just then."""

    def __repr__(self) -> str:
        raise KeyboardInterrupt


async def test_ctrl_c_while_a_job_is_accepted_leaves_none_without_an_end() -> None:
    """It may be in the table already: then `shutdown` ends it."""
    async with manager("echo") as m:
        events = m.events()
        assert await (await m.start_job("echo", x=1)) == 1
        with pytest.raises(KeyboardInterrupt):
            await m.start_job("echo", x=2, metadata={"x": Interrupts()})
    assert events.closed and all(job.done for job in m.get_all_jobs())
