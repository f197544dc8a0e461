"""`SyncJobManager`: from several threads at once, inside a running loop, under Flask, after a fork; and what it leaves behind."""

import asyncio
import gc
import signal
import threading
import time
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Iterator

import pytest
import sample_plugins
from harness import alive, children, finish, gone, nothing_left, said_json, script, wait_until  # noqa: F401

from cjm_worker_protocols import BaseJobManager, JobCancelled, JobError, JobManager, SyncJobManager, WorkerConfig
from cjm_worker_protocols.core.errors import ConfigError, ManagerClosedError, StreamOverflowError, UnknownPluginError
from cjm_worker_protocols.core.jobs import was_read
from cjm_worker_protocols.managers.sync import LoopThreadError, SyncJob, WaitTimeout

NAMES = ("echo", "pause", "count", "fail", "stuck", "endless", "pid")


def make(**settings: Any) -> SyncJobManager:
    """A manager of a few plugins."""
    config = WorkerConfig(**{"standby": False, "grace_timeout": 2.0, **settings})
    plugins = {name: getattr(sample_plugins, name) for name in NAMES}
    return SyncJobManager("test", "tests", worker_config=config, plugins=plugins)


def running(job: SyncJob) -> SyncJob:
    """Wait until a job runs."""
    wait_until(lambda: job.status == "running")
    return job


def test_results_streams_and_failures() -> None:
    """What `await job` and `async for` give and raise, without either."""
    with make() as m:
        assert m.start_job("echo", x={"a": 1}).result() == {"a": 1}
        job = m.start_job("count", n=5)
        assert list(job.stream()) == list(range(5)) and list(job.stream(start=3)) == [3, 4] and job.result() == "counted to 5"
        failing = m.start_job("fail", message="no")
        with pytest.raises(JobError, match="no"):
            list(failing.stream())
        with pytest.raises(JobError, match="no"):
            failing.result()
        assert failing.wait() is failing and failing.error.category == "exception" and m.get_job(failing.id) == failing
        with pytest.raises(ConfigError):
            list(job.stream(start=-1))
        with pytest.raises(UnknownPluginError):
            m.start_job("nothing")
        with pytest.raises(ConfigError):
            m.start_job("echo", timeout=-1)
    assert job.result() == "counted to 5" and list(job.stream()) == list(range(5))  # also when the loop is gone

    async def in_a_loop() -> "list[int]":  # as in Jupyter
        return list(job.stream())

    assert asyncio.run(in_a_loop()) == list(range(5))
    with pytest.raises(ManagerClosedError):
        m.start_job("echo")


async def test_a_stream_is_read_where_a_loop_runs() -> None:
    """As in a notebook: the loop of the caller is not the manager's, before the job's end and after it."""
    with make() as m:
        job = m.start_job("count", n=5)
        assert list(job.stream()) == list(job.wait().stream()) == list(range(5))


def test_a_wait_may_be_limited_and_the_job_goes_on() -> None:
    """`WaitTimeout` is a `TimeoutError`; cancelling is another matter."""
    with make() as m:
        job = running(m.start_job("stuck"))
        with pytest.raises(TimeoutError) as caught:
            job.result(timeout=0.05)
        assert isinstance(caught.value, WaitTimeout) and not job.done
        assert job.cancel() and not job.cancel() and not m.call("cancel_job", job.id)
        for timeout in (0, 1, None):
            with pytest.raises(JobCancelled):
                job.result(timeout)


def test_map_in_order_and_as_completed() -> None:
    """No more are started ahead than allowed; a failure, and closing the iterator, cancel what was started."""
    with make(max_workers=2) as m:
        items = [{"seconds": 0.3}, {"seconds": 0.0}]
        assert list(m.map("pause", items)) == [None, None]
        assert list(m.map("echo", ({"x": n} for n in range(50)), ahead=3)) == list(range(50))
        assert sorted(m.map("echo", ({"x": n} for n in range(50)), ordered=False, ahead=3)) == list(range(50))
        assert list(m.map("echo", [])) == []
        assert all(was_read(job) for job in m.call("get_all_jobs"))  # so that it is no loss when they are forgotten
        taken = []
        results = m.map("echo", (taken.append(n) or {"x": n} for n in range(50)), ahead=3)
        assert next(results) == 0 and len(taken) <= 4
        results.close()
        with pytest.raises(JobError):
            list(m.map("fail", [{}, {}, {}]))
        stuck = m.map("stuck", [{}] * 5)

        def fails() -> None:
            with pytest.raises(JobCancelled):
                next(stuck)

        thread = threading.Thread(target=fails, daemon=True)
        before = len(m.call("get_all_jobs"))
        thread.start()
        wait_until(lambda: len(m.call("get_all_jobs")) >= before + 5)
        m.call("cancel_job", m.call("get_all_jobs")[before].id)  # the first: its failure cancels the others
        thread.join(15)
        for job in m.call("get_all_jobs")[before:]:
            assert m.get_job(job.id).wait(15).status == "cancelled"
        with pytest.raises(ConfigError):
            m.map("echo", [], ahead=0)


def test_as_completed_gives_the_quick_one_first() -> None:
    """The order is that of the ends; closing the iterator cancels the other."""
    with make(max_workers=2) as m:
        results = m.map("pause", [{"seconds": 600}, {"seconds": 0}], ordered=False)
        next(results)
        assert [job.done for job in m.call("get_all_jobs")] == [False, True]
        results.close()


def test_several_threads_at_once() -> None:
    """Each gets the results of its own jobs; the thread and the workers are shared."""
    with make(max_workers=2) as m, ThreadPoolExecutor(16) as pool:

        def work(n: int) -> "list[Any]":
            jobs = [m.start_job("echo", x=(n, k)) for k in range(20)]
            stream = list(m.start_job("count", n=50).stream())
            return [*(job.result() for job in jobs), stream, list(m.map("echo", [{"x": (n, "m")}] * 3))]

        for n, found in enumerate(pool.map(work, range(16))):
            assert found == [*((n, k) for k in range(20)), list(range(50)), [(n, "m")] * 3]
        assert len([t for t in threading.enumerate() if t.name == "sync-manager"]) == 1
        assert len({job.worker_pid for job in m.call("get_all_jobs")}) <= 2


def test_the_first_calls_of_many_threads_start_one_thread() -> None:
    """All at the same moment."""
    with make() as m, ThreadPoolExecutor(8) as pool:
        barrier = threading.Barrier(8)

        def first(n: int) -> int:
            barrier.wait()
            return m.start_job("echo", x=n).result()  # type: ignore[no-any-return]

        assert list(pool.map(first, range(8))) == list(range(8))
        assert len([t for t in threading.enumerate() if t.name == "sync-manager"]) == 1


async def test_inside_a_running_loop() -> None:
    """As in a notebook, or a handler of an app that is called on its loop."""
    with make() as m:
        assert m.start_job("echo", x=1).result() == 1 and list(m.start_job("count", n=3).stream()) == [0, 1, 2]
        assert await asyncio.to_thread(m.start_job("echo", x=2).result) == 2


def test_context_variables_are_those_of_the_caller() -> None:
    """A hook runs in the context of `start_job`, as with a `JobManager`."""
    user: "ContextVar[str]" = ContextVar("user")

    class Noting(JobManager):
        def create_job(self, plugin_id: str, /, **parameters: Any) -> Any:
            job = super().create_job(plugin_id, **parameters)
            job.metadata["user"] = user.get()
            return job

    with SyncJobManager("test", "tests", plugins={"echo": sample_plugins.echo}, manager_class=Noting) as m:
        user.set("ada")
        job = m.start_job("echo")
        assert job.metadata["user"] == "ada" and job.result() is None


def test_a_manager_class_of_your_own() -> None:
    """A subclass of `BaseJobManager`, with arguments of its own."""

    class Mine(BaseJobManager):
        def __init__(self, name: str) -> None:
            super().__init__(name, "tests", worker_config=WorkerConfig(standby=False))

        def get_plugin_loader(self) -> Any:
            return "sample_plugins:loader"

    with SyncJobManager("mine", manager_class=Mine) as m:
        assert m.call("check_streaming_support", "echo") is False and "mine" in repr(m)
        assert m.call("unload_plugin", "echo") is False and m.call("clear_completed_jobs") == 0
    with pytest.raises(ConfigError):
        SyncJobManager("test", "tests", plugins={}, worker_config=3)


def test_a_blocking_call_in_a_hook_is_an_error() -> None:
    """It would wait for itself."""
    caught = []

    class Recursive(JobManager):
        def create_job(self, plugin_id: str, /, **parameters: Any) -> Any:
            for wrong in (m.shutdown, lambda: m.start_job("echo"), lambda: m.call("unload_plugin", "echo")):
                try:
                    wrong()
                except LoopThreadError as e:
                    caught.append(e)
            return super().create_job(plugin_id, **parameters)

    m = SyncJobManager("test", "tests", plugins={"echo": sample_plugins.echo}, manager_class=Recursive)
    try:
        m.start_job("echo")
    except ManagerClosedError:
        pass  # a shutdown on the thread itself is begun all the same
    m.shutdown()
    assert len(caught) >= 1


def test_shutdown_ends_what_others_wait_for() -> None:
    """A thread that waits gets the end of its job, whatever it waits for; a call that comes later is refused."""
    m = make(max_workers=2)
    ends: "list[BaseException]" = []

    def wait(job: SyncJob, how: str) -> None:
        try:
            job.result() if how == "result" else list(job.stream(start=10**9))
        except (JobCancelled, ManagerClosedError) as e:
            ends.append(e)

    threads = [threading.Thread(target=wait, args=(running(m.start_job("stuck")), how)) for how in ("result", "stream")]
    for thread in threads:
        thread.start()
    time.sleep(0.05)  # both wait by then
    closing = [threading.Thread(target=m.shutdown) for _ in range(3)]
    for thread in closing:
        thread.start()
    for thread in (*closing, *threads):
        thread.join(15)
        assert not thread.is_alive()
    assert len(ends) == 2 and not children()
    with pytest.raises(ManagerClosedError):
        m.start_job("echo")
    m.shutdown()


def test_a_slow_thread_loses_nothing() -> None:
    """The plugin waits for it, as for an async reader; a stream that is left releases the plugin."""
    with make(stream_buffer=10, stall_timeout=60) as m:
        job = m.start_job("count", n=2000)
        for n, chunk in enumerate(job.stream()):
            assert n == chunk
            if n % 500 == 0:
                time.sleep(0.01)
        assert n == 1999
        job = m.start_job("count", n=5000)
        try:
            next(iter(job.stream()))
        except StreamOverflowError:
            pass  # the plugin was quicker than this thread
        assert job.wait(15).status == "completed"
        with pytest.raises(StreamOverflowError):
            list(job.stream())


def test_one_that_is_never_used_starts_nothing() -> None:
    """Neither a thread nor a process."""
    before = threading.active_count()
    with make() as m:
        assert m.workers == [] and m.get_job("x") is None and "SyncJobManager" in repr(m)
        assert threading.active_count() == before


def test_one_that_is_dropped_warns_and_ends() -> None:
    """As a `JobManager` does."""
    m = make()
    m.start_job("echo").result()
    (thread,) = (t for t in threading.enumerate() if t.name == "sync-manager")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        del m
        gc.collect()
    assert any(issubclass(w.category, ResourceWarning) and "was not shut down" in str(w.message) for w in found)
    thread.join(15)
    assert not thread.is_alive()


SETUP = """
import os, sys, json, time
from cjm_worker_protocols import SyncJobManager, WorkerConfig

def double(n): return 2 * n
def nap():
    while True: time.sleep(1)

def make(): return SyncJobManager("test", "tests", plugins={"double": double, "nap": nap}, worker_config=WorkerConfig(standby=False))
def say(value): print(json.dumps(value), flush=True)
"""


def test_a_fork_before_the_first_call_is_fine_and_after_it_a_clear_error(tmp_path: Path) -> None:
    """Parent and child each have a manager, or the child gets a clear error; leaving the block in the child ends nothing of the parent."""
    source = SETUP + """
manager = make()
if (child := os.fork()) == 0:
    say(manager.start_job("double", n=1).result())
    manager.shutdown()
    os._exit(0)
os.waitpid(child, 0)
with manager:
    done = manager.start_job("double", n=2)
    say(done.result())
    results = manager.map("double", [{"n": 1}, {"n": 1}, {"n": 1}], ordered=False)
    next(results)
    job = manager.start_job("nap")
    if (child := os.fork()) == 0:
        for call in (lambda: manager.start_job("double", n=3), job.result, job.cancel, lambda: list(job.stream()), lambda: list(results)):
            try: call()
            except RuntimeError as e: say(type(e).__name__)
        say(done.result())
        manager.shutdown()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    say(job.done)
    job.cancel()
    say(manager.start_job("double", n=4).result())
"""
    with script(tmp_path / "app.py", source) as process:
        said = [said_json(process) for _ in range(10)]
        code, _, err = finish(process)
    assert said == [2, 4, *["ForkedManagerError"] * 5, 4, False, 8] and code == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["the end of the script", "an exception", "Ctrl-C"])
def test_a_script_without_a_block_ends_and_leaves_no_process(how: str, tmp_path: Path) -> None:
    """The thread does not keep the process alive."""
    source = SETUP + f"""
manager = make()
job = manager.start_job("nap")
while job.status != "running": time.sleep(0.01)
say(job.worker_pid)
if {how == "an exception"}: raise ValueError("no")
if {how == "Ctrl-C"}: job.result()
"""
    with script(tmp_path / "app.py", source) as process:
        pid = said_json(process)
        if how == "Ctrl-C":
            time.sleep(0.1)  # it waits for the result by then
            process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert gone([pid], 5) and (code == 0) == (how == "the end of the script"), err
    assert "was not shut down" not in err and err.count("Traceback") == (how != "the end of the script"), err


@pytest.mark.slow
def test_ctrl_c_in_a_block_cancels_and_ends(tmp_path: Path) -> None:
    """The block is left as on any exception."""
    source = SETUP + """
with make() as manager:
    job = manager.start_job("nap")
    while job.status != "running": time.sleep(0.01)
    say(job.worker_pid)
    try: job.result()
    except KeyboardInterrupt: print("interrupted", job.done)
print(job.status)
"""
    with script(tmp_path / "app.py", source) as process:
        pid = said_json(process)
        time.sleep(0.1)  # it waits for the result by then
        process.send_signal(signal.SIGINT)
        code, out, err = finish(process)
    assert code == 0 and out.split() == ["interrupted", "False", "cancelled"] and not alive([pid]), err


@pytest.fixture
def flask() -> "Iterator[str]":
    """An app of Flask, served with threads."""
    pytest.importorskip("flask")
    from flask import Flask, Response
    from werkzeug.serving import make_server

    app, manager = Flask(__name__), make(max_workers=2)

    @app.get("/echo/<int:n>")
    def echo(n: int) -> "dict[str, Any]":
        return {"result": manager.start_job("echo", x=n).result()}

    @app.get("/count/<int:n>")
    def count(n: int) -> Response:
        job = manager.start_job("count", n=n)
        return Response((f"{chunk}\n" for chunk in job.stream()), mimetype="text/plain")

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
    manager.shutdown()


def test_under_flask(flask: str) -> None:
    """Many requests at once, each on a thread; a response streams."""

    def get(path: str) -> bytes:
        with urllib.request.urlopen(flask + path, timeout=30) as response:
            return response.read()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: get(f"/echo/{n}"), range(30))) == [b'{"result":%d}\n' % n for n in range(30)]
        assert set(pool.map(lambda _: get("/count/100"), range(4))) == {b"".join(b"%d\n" % n for n in range(100))}
