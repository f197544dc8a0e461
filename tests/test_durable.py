"""Managers with a job store: what is on disk when, what another process sees, and what the next app finds."""

import asyncio
import json
import os
import pickle
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any, Iterator

import chaos_durable
import durable_app
import pytest
from durable_app import manager
from harness import nothing_left, ticking, until  # noqa: F401

from cjm_worker_protocols import JobCancelled, JobError, JobManager, RestartPolicy, WorkerConfig
from cjm_worker_protocols.core.errors import (
    ConfigError,
    JobStoreError,
    KeyConflictError,
    ManagerClosedError,
    ManagerDrainingError,
    QueueFullError,
)
from cjm_worker_protocols.extensions.store import JobStoreProtocol
from cjm_worker_protocols.managers.broadcast import begin_in
from cjm_worker_protocols.managers.given import Pace
from cjm_worker_protocols.managers.serial import SerialExecutor
from cjm_worker_protocols.integrations.store import SQLiteJobStore, StoreDamagedError, StoreLockedError, retry_job

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The file of a store."""
    return str(tmp_path / "jobs.db")


def stored(path: str) -> "dict[str, str]":
    """What is on disk."""
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT id, status FROM jobs ORDER BY place").fetchall())


@contextmanager
def app(path: str) -> "Iterator[subprocess.Popen[str]]":
    """Another process with a manager on the same file."""
    command = [sys.executable, str(Path(durable_app.__file__)), path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def said(process: "subprocess.Popen[str]", *lines: str) -> "list[str]":
    """What it answers, a line for each of these."""
    assert process.stdin is not None and process.stdout is not None
    loop = asyncio.get_running_loop()
    answers = []
    for line in lines:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        answers.append((await loop.run_in_executor(None, process.stdout.readline)).strip())
    return answers


async def begun(process: "subprocess.Popen[str]") -> str:
    """Its first line."""
    assert process.stdout is not None
    return (await asyncio.get_running_loop().run_in_executor(None, process.stdout.readline)).strip()


# On disk first


async def test_accepted_started_and_ended_are_on_disk_first(path: str) -> None:
    """Before `start_job` returns, before the plugin runs, before the end is shown in any way."""
    async with manager(path) as here:
        events = here.events()
        job = await here.start_job("status_of", params={"path": path})
        assert stored(path)[job.id] in ("pending", "running")
        assert await job == ["status_of running"]
        assert stored(path)[job.id] == "completed"
        kinds = [(await events.__anext__()).type for _ in range(2)]
        async for event in events:
            kinds.append(event.type)
            if event.type == "job:completed":
                break
        assert kinds[0] == "job:queued" and kinds[-1] == "job:completed" and "job:started" in kinds


async def test_a_hook_may_drain_with_an_eager_task(path: str) -> None:
    """The first step of `drain` is made within the hook: jobs that the worker begins at that moment have their end all the same."""
    draining: "list[asyncio.Task[None]]" = []

    class Drains(JobManager):
        def extract_job_result(self, job: Any, result_data: Any) -> Any:
            async def rest() -> None:
                if begun is not None:
                    await begun

            if result_data == "drain":
                time.sleep(0.2)  # the next job ends meanwhile, and the loop does not hear it
                begun = begin_in(copy_context(), self.drain, 5)
                draining.append(asyncio.ensure_future(rest()))
            return result_data

    async with Drains("test", "durable", plugins={"echo": durable_app.echo}, job_store=SQLiteJobStore(path)) as here:
        assert await (await here.start_job("echo", value=0)) == 0
        started = await asyncio.gather(*[here.start_job("echo", value="drain" if n == 4 else n) for n in range(9)], return_exceptions=True)
        jobs = [job for job in started if not isinstance(job, ManagerDrainingError)]
        await until(lambda: draining and draining[0].done())
        draining[0].result()
    assert set(stored(path).values()) <= {"completed", "pending"}
    assert all(job.done or stored(path)[job.id] == "pending" for job in jobs)


async def test_ctrl_c_while_a_job_is_written_keeps_no_later_job_waiting(path: str) -> None:
    """It comes when the batch is handed to the store's thread: the next batch is written all the same."""

    def interrupt(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code is SerialExecutor.call.__code__ and frame.f_locals["label"] == "write":
            sys.settrace(None)
            raise KeyboardInterrupt

    async with manager(path) as here:
        assert await (await here.start_job("echo", value=1)) == 1
        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                await here.start_job("echo", value=2)
        finally:
            sys.settrace(before)
        assert await asyncio.wait_for(await asyncio.wait_for(here.start_job("echo", value=3), 15), 15) == 3


async def test_an_app_that_cancels_all_tasks_keeps_no_job_from_its_worker(path: str) -> None:
    """A job of an earlier app whose parameters are being read: the task that reads them is cancelled before it has begun."""
    async with manager(path) as here:
        job_id = (await here.start_job("echo", value=1)).id
        await here.drain(timeout=0)
    async with manager(path) as here:
        job, reading = await here.find_job(job_id), []
        assert job is not None and not job.done
        while not reading:
            await asyncio.sleep(0)
            reading = [task for task in asyncio.all_tasks() if "Marker" in repr(task.get_coro())]
        assert all(task.cancel() for task in reading)
        assert await asyncio.wait_for(job, 15) == 1


@pytest.mark.parametrize(("error", "status"), [('{"category": "load", "message": "elsewhere"}', "failed"), ("{}", "completed")])
async def test_an_app_that_cancels_all_tasks_leaves_no_second_end_unseen(path: str, error: str, status: str) -> None:
    """Of a job that has ended in the store already: the task that looks there is cancelled before it has begun.

    If what is there cannot be read, the job has its own end, and says why."""
    async with manager(path) as here:
        job, looking = await here.start_job("nap", seconds=0.5), list[Any]()
        await until(lambda: job.status == "running")
        with closing(sqlite3.connect(path, isolation_level=None)) as shell:
            shell.execute("UPDATE jobs SET status = 'failed', ended = 2.0, error = ? WHERE id = ?", (error, job.id))
        while not looking:
            await asyncio.sleep(0)
            looking = [task for task in asyncio.all_tasks() if "SecondEnds" in repr(task.get_coro())]
        assert all(task.cancel() for task in looking)
        assert (await asyncio.wait_for(job.wait(), 15)).status == status and bool(job.unsaved) == (error == "{}")


async def test_ends_of_every_kind_are_kept(path: str) -> None:
    """Status, result and error are the same in the next app."""
    async with manager(path) as here:
        done = await here.start_job("echo", value={"a": [1]}, metadata={"file": "a.wav"}, owner="ada", priority=3)
        broken = await here.start_job("nap", seconds="x")
        cancelled = await here.start_job("nap", seconds=60)
        assert await done == {"a": [1]}
        with pytest.raises(JobError):
            await broken
        assert await here.cancel_job(cancelled.id)
    async with manager(path) as here:
        assert here.recovered == [] and here.jobs == {}
        again = await here.find_job(done.id)
        assert again is not None and await again == {"a": [1]}
        assert (again.metadata, again.owner, again.priority, again.params) == (
            {"file": "a.wav"},
            "ada",
            3,
            {"value": {"a": [1]}},
        )
        assert (again.created_at, again.completed_at is not None, again.attempts) == (done.created_at, True, 1)
        failed = await here.find_job(broken.id)
        assert failed is not None and failed.error is not None and failed.error.to_dict() == broken.error.to_dict()  # type: ignore[union-attr]
        ended = await here.find_job(cancelled.id)
        assert ended is not None and isinstance(ended.error, JobCancelled)
        assert [job.id for job in await here.list_jobs()] == [cancelled.id, broken.id, done.id]
        assert [job.id for job in await here.list_jobs(status="failed")] == [broken.id]
        assert [job.id for job in await here.list_jobs(owner="ada")] == [done.id]
        assert [job.id for job in await here.list_jobs(before=broken.id, limit=5)] == [done.id]
        assert await here.find_job("unknown") is None and not await here.cancel_job("unknown")


async def test_many_at_once_share_a_commit(path: str) -> None:
    """A hundred jobs at once take few commits, and each job by itself takes two."""
    async with manager(path) as here:
        await (await here.start_job("echo"))
        batches: "list[int]" = []
        store = here.job_store
        assert store is not None
        write = store.write

        def counted(name: str, added: Any, *more: Any) -> Any:
            batches.append(len(added))
            return write(name, added, *more)

        store.write = counted  # type: ignore[method-assign]
        jobs = await asyncio.gather(*[here.start_job("echo", value=n) for n in range(100)])
        assert sum(map(bool, batches)) <= 20
        assert [await job for job in jobs] == list(range(100))
        batches.clear()
        assert [await (await here.start_job("echo", value=n)) for n in range(10)] == list(range(10))
        assert len(batches) == 20  # accepted and started in one, ended in the other


async def test_the_next_job_is_sent_ahead(path: str) -> None:
    """A job is marked while its predecessor runs, also when that had to wait for its own mark."""
    async with manager(path) as here:
        *_, blocking, following = [await here.start_job("nap", seconds=n) for n in (0, 0, 60, 0)]
        await until(lambda: stored(path)[following.id] == "running")
        assert (blocking.status, following.status) == ("running", "pending")
        assert await here.cancel_job(blocking.id) and await following == "rested"


async def test_jobs_keep_their_order_when_they_are_marked_late(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight are to be prefetched, and their predecessor has ended, and was not quick, before the store has them as started."""
    monkeypatch.setattr(Pace, "QUICK", 0.4)
    written = threading.Event()
    async with manager(path) as here:
        for _ in range(3):
            await (await here.start_job("nap", seconds=0))
        store = here.job_store
        assert store is not None
        write = store.write

        def late(name: str, added: Any, moved: Any, *more: Any) -> Any:
            if len([move for move in moved if move.status == "running"]) > 2:
                written.wait(20)
            return write(name, added, moved, *more)

        store.write = late  # type: ignore[method-assign]
        blocking = await here.start_job("nap", seconds=0.5)
        await until(lambda: blocking.status == "running")
        jobs = await asyncio.gather(*[here.start_job("nap", seconds=0) for _ in range(12)])
        await until(lambda: here.workers[0].status == "idle")
        written.set()
        assert [await job for job in jobs] == ["rested"] * 12
        begun = [job.started_at or 0.0 for job in jobs]
        assert begun == sorted(begun)


# Keys


async def test_a_key_stands_for_one_job(path: str, tmp_path: Path) -> None:
    """Of its owner, whatever became of it, in this app and the next."""
    upload = tmp_path / "a.wav"
    upload.write_bytes(b"sound")
    async with manager(path) as here:
        first, same = await asyncio.gather(
            *[here.start_job("echo", value={"b": 1, "a": upload}, key="k") for _ in range(2)]
        )
        assert first is same
        await first
        assert await here.start_job("echo", value={"a": upload, "b": 1}, key="k") is first
        with pytest.raises(KeyConflictError):
            await here.start_job("echo", value=2, key="k")
        with pytest.raises(KeyConflictError):
            await here.start_job("nap", seconds=1, key="k")
        other = await here.start_job("echo", value=2, key="k", owner="ada")
        assert other is not first and len(stored(path)) == 2
    async with manager(path) as here:
        again = await here.start_job("echo", value={"a": upload, "b": 1}, key="k")
        assert again.id == first.id and again.done
        upload.write_bytes(b"another sound")
        with pytest.raises(KeyConflictError):
            await here.start_job("echo", value={"a": upload, "b": 1}, key="k")


# Stopping and going on


async def test_a_shutdown_empties_no_queue(path: str) -> None:
    """Running jobs that may run twice and jobs that wait are pending, in order; others are interrupted; the next app goes on."""
    async with manager(path) as here:
        once = await here.start_job("nap", seconds=60)
        await until(lambda: once.status == "running")
        late = [await here.start_job("echo", value=n, priority=n % 2) for n in range(4)]
        waiting = asyncio.ensure_future(late[0].wait())
        await asyncio.sleep(0)
    assert once.status == "failed" and once.error is not None and once.error.category == "interrupted"
    with pytest.raises(ManagerClosedError):
        await waiting
    assert list(stored(path).values()) == ["failed", *["pending"] * 4] and late[0].status == "pending"
    async with manager(path) as here:
        assert [job.id for job in here.recovered] == [job.id for job in late]
        for job in here.recovered:
            await job
        started = sorted(here.recovered, key=lambda job: job.started_at)  # type: ignore[arg-type, return-value]
        assert [await job for job in started] == [1, 3, 0, 2]


async def test_a_restartable_job_runs_again(path: str) -> None:
    """From the start, after a shutdown in its middle."""
    async with manager(path) as here:
        job = await here.start_job("nap", seconds=1.0, restartable=True)
        await until(lambda: job.status == "running")
    assert stored(path) == {job.id: "pending"} and job.status == "pending"
    async with manager(path) as here:
        (again,) = here.recovered
        assert await again == "rested" and again.attempts == 2


async def test_drain(path: str) -> None:
    """What runs gets its time, what waits stays; nothing new is accepted; cancelling works meanwhile."""
    async with manager(path) as here:
        running = await here.start_job("nap", seconds=0.5)
        waiting, wanted_not = await here.start_job("echo", value=1), await here.start_job("echo", value=2)
        await until(lambda: running.status == "running")
        assert here.ready
        draining = asyncio.ensure_future(here.drain(20))
        await until(lambda: not here.ready)
        with pytest.raises(ManagerDrainingError):
            await here.start_job("echo")
        assert await here.cancel_job(wanted_not.id)
        await draining
        assert await running == "rested" and waiting.status == "pending"
        assert stored(path) == {running.id: "completed", waiting.id: "pending", wanted_not.id: "cancelled"}
        async with manager(path) as there:
            assert [job.id for job in there.recovered] == [waiting.id] and await there.recovered[0] == 1


async def test_drain_without_a_store() -> None:
    """It waits for everything, then cancels."""
    async with JobManager("test", "durable", plugins=durable_app.PLUGINS) as here:
        jobs = [await here.start_job("echo", value=n) for n in range(3)]
        await here.drain(20)
        assert [job.status for job in jobs] == ["completed"] * 3
    async with JobManager("test", "durable", plugins=durable_app.PLUGINS) as here:
        jobs = [await here.start_job("nap", seconds=60) for _ in range(2)]
        await here.drain(0.1)
        assert [job.status for job in jobs] == ["cancelled"] * 2
        with pytest.raises(ManagerDrainingError):
            await here.start_job("echo")


async def test_without_a_store_a_key_is_an_error() -> None:
    """And the rest has no effect."""
    async with JobManager("test", "durable", plugins=durable_app.PLUGINS) as here:
        with pytest.raises(ConfigError):
            await here.start_job("echo", key="k")
        job = await here.start_job("echo", value=1, restartable=True, keep_chunks=5)
        assert (
            await job == 1
            and await here.find_job(job.id) is job
            and await here.list_jobs() == [job]
            and here.recovered == []
        )
        assert await here.list_jobs(status="failed") == [] and await here.list_jobs(before=job.id) == []


# Other processes


@pytest.mark.limit(60)
async def test_an_app_that_was_killed(path: str) -> None:
    """Its jobs go on in a manager that lives: in order, those that ran are interrupted, unless they may run again."""
    async with manager(path) as here:
        with app(path) as other:
            assert await begun(other) == "ready 0"
            (running,) = await said(other, "nap {'seconds': 60}")
            await until(lambda: stored(path)[running] == "running")
            rest = await said(
                other, "echo {'value': 1}", "echo {'value': 2, 'priority': 1}", "nap {'seconds': 0, 'owner': 'ada'}"
            )
            job = await here.find_job(rest[0])
            assert job is not None and job.status == "pending"
            assert {each.id for each in await here.list_jobs()} == {running, *rest}
            other.kill()
            other.wait()
        began = time.monotonic()
        assert await asyncio.wait_for(job.wait(), 60) is job and job.result == 1
        assert time.monotonic() - began < 60 and here.jobs[rest[0]] is job
        lost = await here.find_job(running)
        assert lost is not None and lost.error is not None and lost.error.category == "interrupted"
        assert [(await here.jobs[each].wait()).status for each in rest] == ["completed"] * 3
        assert here.jobs[rest[1]].started_at < here.jobs[rest[0]].started_at < here.jobs[rest[2]].started_at  # type: ignore[operator]


@pytest.mark.limit(60)
async def test_retries_outlive_the_app(path: str) -> None:
    """The death of the app is a crash of the job."""
    with app(path) as other:
        assert await begun(other) == "ready 0"
        (once,) = await said(other, "nap {'seconds': 0.7, 'retries': 1}")
        await until(lambda: stored(path)[once] == "running")
        other.kill()
    async with manager(path) as here:
        (job,) = here.recovered
        assert job.status == "pending" and job.attempts == 1 and await job == "rested" and job.attempts == 2


@pytest.mark.limit(60)
async def test_a_job_of_another_process(path: str) -> None:
    """It is found, streamed, awaited and cancelled from here."""
    async with manager(path) as here:
        with app(path) as other:
            assert await begun(other) == "ready 0"
            streams, long = await said(
                other, "count {'stop': 8, 'pause': 0.1, 'keep_chunks': 100}", "nap {'seconds': 60}"
            )
            job = await here.find_job(streams)
            assert job is not None and here.get_job(streams) is None and await here.find_job(streams) is job
            assert [chunk async for chunk in job.stream()] == list(range(8)) and job.status == "completed"
            napping = await here.find_job(long)
            assert napping is not None
            await until(lambda: stored(path)[long] == "running")
            began = time.monotonic()
            assert await here.cancel_job(long)
            assert time.monotonic() - began < 10 and napping.status == "cancelled"
            assert not await here.cancel_job(long)
            (mine,) = [await here.start_job("echo", value=5, key="shared")]
            assert await said(other, "echo {'value': 5, 'key': 'shared'}", f"await {mine.id}") == [mine.id, "5"]


async def test_a_retried_job_is_a_new_one(path: str) -> None:
    """By one rule, whether the manager adds it or, as the command line, another process, which a living manager takes it from."""
    async with manager(path) as here:
        job = await here.start_job("echo", value=7, owner="ada", key="k", retries=2, restartable=True, metadata={"file": "a"})
        await job
        store = SQLiteJobStore(path)
        assert retry_job(store, *store.read("test", [job.id]), "again")
        await until(lambda: "again" in here.jobs)
        retried = await here.retry_job(job), here.jobs["again"]
        for again in retried:
            assert await again == 7 and again.key is None
            assert (again.retried_from, again.owner, again.metadata, again.retries) == (job.id, "ada", {"file": "a"}, 2)
        one, other = store.read("test", [again.id for again in retried])
        assert one._replace(id="", place=0, created=0, started=0, ended=0) == other._replace(
            id="", place=0, created=0, started=0, ended=0
        )


async def test_a_job_of_an_earlier_app_is_retried(path: str) -> None:
    """Its parameters are read for that; what cannot be read is not run without them."""
    async with manager(path, max_workers=1) as first:
        busy, waits, odd = [await first.start_job("nap", seconds=60), *[await first.start_job("echo", value=n) for n in (1, 2)]]
        await until(lambda: busy.status == "running")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE jobs SET params = x'00' WHERE id = ?", (odd.id,))
    async with manager(path, max_workers=1) as here:
        keeps = await here.start_job("nap", seconds=60, priority=1)
        waiting = {job.id: job for job in here.recovered}
        await here.cancel_job(waits.id)
        with pytest.raises(JobStoreError):
            await here.retry_job(waiting[odd.id])
        again = await here.retry_job(waiting[waits.id])
        await here.cancel_job(keeps.id)
        assert await again == 1 and again.retried_from == waits.id


async def test_streams_are_kept(path: str) -> None:
    """The newest chunks, of jobs that ask for it or of all."""
    async with manager(path, settings={"keep_chunks": 2}) as here:
        jobs = [await here.start_job("count", stop=5), await here.start_job("count", stop=5, keep_chunks=9)]
        for job in jobs:
            await job
    async with manager(path) as here:
        two, all_of_them = [await here.find_job(job.id) for job in jobs]
        assert two is not None and all_of_them is not None
        assert [chunk async for chunk in two.stream(3)] == [3, 4] and two.dropped_chunks == 3
        assert [chunk async for chunk in all_of_them.stream()] == [0, 1, 2, 3, 4]


# What changes meanwhile


async def test_a_plugin_that_is_gone(path: str) -> None:
    """Fails its job with `load`, and no other."""
    async with manager(path) as here:
        await here.start_job("nap", seconds=60, restartable=True)
        others = [await here.start_job("echo", value=1), await here.start_job("nap", seconds=0)]
    plugins = {name: plugin for name, plugin in durable_app.PLUGINS.items() if name != "nap"}
    async with JobManager("test", "durable", plugins=plugins, job_store=SQLiteJobStore(path)) as here:
        assert await here.jobs[others[0].id] == 1
        error = (await here.jobs[others[1].id].wait()).error
        assert error is not None and error.category == "load"


async def test_parameters_that_cannot_be_read(path: str) -> None:
    """Fail their job with the reason, and hurt no other."""
    async with manager(path) as here:
        blocking = await here.start_job("nap", seconds=60)
        await until(lambda: blocking.status == "running")
        jobs = [await here.start_job("echo", value=n) for n in range(2)]
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE jobs SET params = ? WHERE id = ?", (b"cgone\nGone\n.", jobs[0].id))
    async with manager(path) as here:
        first, second = [here.jobs[job.id] for job in jobs]
        error = (await first.wait()).error
        assert error is not None and error.category == "serialization" and "gone" in error.message
        assert await second == 1


async def test_large_ones(path: str) -> None:
    """Parameters and results of megabytes."""
    async with manager(path) as here:
        blocking = await here.start_job("nap", seconds=60)
        await until(lambda: blocking.status == "running")
        job = await here.start_job("echo", value=b"x" * 3_000_000)
        assert os.path.getsize(path) < 1_000_000
    async with manager(path) as here:
        assert len(await here.jobs[job.id]) == 3_000_000
    async with manager(path) as here:
        again = await here.find_job(job.id)
        assert again is not None and again.result == b"x" * 3_000_000


async def test_max_pending_does_not_count_what_was_taken_over(path: str) -> None:
    """They are accepted already."""
    async with manager(path) as here:
        blocking = await here.start_job("nap", seconds=60, restartable=True)
        await until(lambda: blocking.status == "running")
        for n in range(5):
            await here.start_job("echo", value=n)
    async with manager(path, max_pending=2) as here:
        jobs = [await here.start_job("echo", value=n) for n in range(2)]
        with pytest.raises(QueueFullError):
            for n in range(3):
                await here.start_job("echo", value=n)
        assert await here.cancel_job(blocking.id) and [await job for job in jobs] == [0, 1]


async def test_max_pending_while_parameters_are_loaded(path: str) -> None:
    """A job that a worker has been given, and whose parameters cannot be read yet, makes no room for another."""
    async with manager(path) as here:
        blocking = await here.start_job("nap", seconds=60)
        await until(lambda: blocking.status == "running")
        waiting = await here.start_job("echo", value=0)
    unreadable = True

    class Blind(SQLiteJobStore):
        def payload(self, job_id: str) -> "tuple[bytes, bytes | None] | None":
            if unreadable:
                raise JobStoreError("Blind", "not now")
            return super().payload(job_id)

    config = WorkerConfig(standby=False, max_pending=2)
    async with JobManager("test", "durable", worker_config=config, plugins=durable_app.PLUGINS, job_store=Blind(path)) as here:
        await until(lambda: here.jobs[waiting.id].waiting_for)
        jobs = [await here.start_job("echo", value=n) for n in (1, 2)]
        with pytest.raises(QueueFullError):
            await here.start_job("echo")
        unreadable = False
        assert [await job for job in (here.jobs[waiting.id], *jobs)] == [0, 1, 2]


async def test_very_many_are_taken_over_without_tickets(path: str) -> None:
    """Each can be found, awaited and cancelled, knows its place in line, and runs in the old order; the rest waits for the next app."""
    async with manager(path, max_workers=1) as here:
        first = await here.start_job("nap", seconds=60, restartable=True)
        await until(lambda: first.status == "running")
        for n in range(300):
            await here.start_job("nap", seconds=0, priority=n % 2)
    async with manager(path, max_workers=1) as here:
        nap, *jobs = here.recovered
        assert nap.id == first.id and [job.params for job in jobs] == [{}] * 300  # nothing was unpickled
        assert here.get_job(jobs[250].id) is jobs[250] is await here.find_job(jobs[250].id)
        await until(lambda: nap.status == "running" or jobs[1].status != "pending")
        assert jobs[299].position is not None and jobs[298].position is not None and jobs[299].position < jobs[298].position
        last, beside = asyncio.ensure_future(jobs[298].wait()), asyncio.ensure_future(jobs[297].wait())
        assert await here.cancel_job(jobs[200].id) and jobs[200].position is None
        newer = await here.start_job("nap", seconds=0)
        await until(lambda: nap.status == "running")  # the jobs of priority 1 come before it
        assert (await beside).result == "rested" and not last.done() and newer.status == jobs[0].status == "pending"
        ends = [job.completed_at for job in jobs[1::2]]
        assert all(job.status == "completed" for job in jobs[1::2]) and ends == sorted(ends)  # type: ignore[type-var]
    with pytest.raises(ManagerClosedError):
        await last
    with pytest.raises(ManagerClosedError):
        await jobs[100]
    assert list(stored(path).values()).count("pending") == 1 + 149 + 1 and stored(path)[jobs[200].id] == "cancelled"


SERVED = """
from contextlib import asynccontextmanager
from durable_app import manager
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
import os

jobs = manager(os.environ["JOBS"], max_workers=1)

@asynccontextmanager
async def lifespan(app):
    async with jobs:
        yield

async def start(request):
    plugin = request.path_params["plugin"]
    job = await jobs.start_job(plugin, restartable=True, params={"seconds": 60} if plugin == "nap" else None)
    return JSONResponse(job.id)

async def show(request):
    return JSONResponse((await jobs.find_job(request.path_params["id"])).status)

app = Starlette(routes=[Route("/start/{plugin}", start, methods=["POST"]), Route("/show/{id}", show)], lifespan=lifespan)
"""


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_sigterm_under_uvicorn(path: str, tmp_path: Path) -> None:
    """uvicorn leaves the lifespan: what waits stays pending, and so does what runs and is restartable; the next server goes on."""
    httpx = pytest.importorskip("httpx")
    (tmp_path / "served.py").write_text(SERVED)
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "JOBS": path, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(durable_app.__file__).parent)])}
    command = [sys.executable, "-m", "uvicorn", "served:app", "--port", str(port), "--log-level", "error"]

    async def answer(client: Any, method: str, where: str) -> Any:
        while True:
            try:
                return (await client.request(method, f"http://127.0.0.1:{port}/{where}")).json()
            except httpx.TransportError:
                await asyncio.sleep(0.05)

    async def reaches(client: Any, job_id: str, status: str) -> None:
        while await answer(client, "GET", f"show/{job_id}") != status:
            await asyncio.sleep(0.05)

    ended: "list[int]" = []
    async with httpx.AsyncClient() as client:
        for _ in range(2):
            with subprocess.Popen(command, env=env) as server:
                try:
                    if not ended:
                        nap = await answer(client, "POST", "start/nap")
                        waiting = await answer(client, "POST", "start/echo")
                    await reaches(client, nap, "running")
                    server.terminate()
                    ended.append(await asyncio.get_running_loop().run_in_executor(None, server.wait))
                finally:
                    server.kill()
            assert stored(path) == {nap: "pending", waiting: "pending"}
    assert all(code in (0, -signal.SIGTERM) for code in ended)


# Faults


async def test_a_store_that_cannot_be_used(tmp_path: Path, path: str) -> None:
    """`async with` raises what is wrong, and so does a later call."""
    Path(path).write_bytes(b"junk")
    os.chmod(path, 0o600)
    here = manager(path)
    with pytest.raises(StoreDamagedError):
        await here.__aenter__()
    with pytest.raises(StoreDamagedError):
        await here.start_job("echo")
    await here.shutdown()
    assert Path(path).read_bytes() == b"junk"
    with pytest.raises(ConfigError):
        JobManager("test", "durable", plugins=durable_app.PLUGINS, job_store=object())  # type: ignore[arg-type]


@pytest.mark.limit(60)
async def test_a_store_that_fails_for_a_while(path: str) -> None:
    """New jobs are refused by name; a running one finishes, and says that its end could not be written, until it is; the loop goes on."""
    async with manager(path, settings={"lock_timeout": 0.1}) as here:
        running = await here.start_job("nap", seconds=0.3)
        waiting = await here.start_job("echo", value=1)
        await until(lambda: running.status == "running")
        with closing(sqlite3.connect(path, isolation_level=None)) as shell:
            shell.execute("BEGIN IMMEDIATE")
            async with ticking() as stall:
                with pytest.raises(StoreLockedError):
                    await here.start_job("echo")
                await running.wait()
            assert stall.worst < 5 and running.result == "rested" and "jobs.db" in running.unsaved
            assert not waiting.done and stored(path)[running.id] == "running"
            shell.execute("ROLLBACK")
        assert await waiting == 1
        await until(lambda: running.unsaved == "")
        assert set(stored(path).values()) == {"completed"} and len(stored(path)) == 2
        assert here.integration_errors["job_store.write"] > 0


class EndsWorkers:
    """A registry that is asked about the plugin `count` for so long that no worker is left meanwhile."""

    manager: Any = None

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return []

    def get_plugin(self, plugin_id: str) -> Any:
        if self.manager is not None and plugin_id == "count":
            for worker in self.manager.workers:
                os.kill(worker.pid, signal.SIGKILL)
            while self.manager.workers:
                time.sleep(0.01)
        return {"id": plugin_id, "name": plugin_id}

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        return {}


@pytest.mark.limit(60)
async def test_jobs_that_are_taken_over_while_the_last_worker_ends_fail(path: str) -> None:
    """Also those whose plugin was looked up before."""
    registry, config = EndsWorkers(), WorkerConfig(standby=False, restart=RestartPolicy.NEVER)
    here = JobManager("test", "durable", worker_config=config, plugin_registry=registry, plugins=durable_app.PLUGINS,
                      job_store=SQLiteJobStore(path))
    async with here, manager(path) as other:
        assert await (await here.start_job("echo", value=1)) == 1
        await other.start_job("nap", seconds=60)
        waiting = {(await other.start_job(plugin_id, **given)).id for plugin_id, given in (("echo", {}), ("count", {"stop": 1}))}
        registry.manager = here
        await other.drain(timeout=0)
        await until(lambda: waiting <= here.jobs.keys())
        taken = [here.jobs[job_id] for job_id in waiting]
        await asyncio.wait_for(asyncio.gather(*[job.wait() for job in taken]), 15)
        assert [job.error.category for job in taken if job.error is not None] == ["start", "start"]


async def test_a_start_that_is_cancelled_leaves_no_job(path: str) -> None:
    """Whether its job was written already or not."""
    async with manager(path) as here:
        for pause in (0, 0.001, 0.003):
            starting = asyncio.ensure_future(here.start_job("nap", seconds=60))
            await asyncio.sleep(pause)
            if not starting.cancel():
                await here.cancel_job(starting.result().id)
            await asyncio.wait({starting})
        await (await here.start_job("echo"))
        await until(lambda: "pending" not in stored(path).values() and "running" not in stored(path).values())
        assert not [job for job in here.jobs.values() if not job.done]


def _raises(store: Any, *arguments: Any, **more: Any) -> Any:
    raise KeyError("no store of ours raises this")


METHODS = [name for name in dir(JobStoreProtocol) if not name.startswith("_")]
Strange = type("Strange", (), {"__doc__": "A store that raises what no store of ours would.", **dict.fromkeys(METHODS, _raises)})


async def test_whatever_a_store_raises_is_a_job_store_error() -> None:
    """It has a name."""
    strange = Strange()
    assert isinstance(strange, JobStoreProtocol)
    here = JobManager("test", "durable", plugins=durable_app.PLUGINS, job_store=strange)
    with pytest.raises(JobStoreError, match="Strange"):
        await here.start_job("echo")
    await here.shutdown()


# The command line


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


async def test_the_command_line(path: str, tmp_path: Path) -> None:
    """It lists, shows, cancels, retries and prunes, and unpickles nothing."""

    def cli(*arguments: str) -> "tuple[int, list[Any]]":
        command = [sys.executable, "-m", "cjm_worker_protocols", "jobs", *arguments, "--store", path, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    assert cli()[0] == 2 and not os.path.exists(path)
    loop = asyncio.get_running_loop()
    async with manager(path) as here:
        napping = await here.start_job("nap", seconds=60, owner="ada")
        done = await here.start_job("echo", value=1)
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(
                "UPDATE jobs SET result = ? WHERE id = ?", (pickle.dumps(Trap(str(tmp_path / "trapped"))), done.id)
            )
        await until(lambda: napping.status == "running")
        code, listed = await loop.run_in_executor(None, lambda: cli("list"))
        assert code == 0 and [(job["id"], job["status"]) for job in listed] == [
            (done.id, "pending"),
            (napping.id, "running"),
        ]
        assert [job["id"] for job in (await loop.run_in_executor(None, lambda: cli("list", "--owner", "ada")))[1]] == [
            napping.id
        ]
        code, (shown,) = await loop.run_in_executor(None, lambda: cli("show", done.id))
        assert (
            code == 0
            and shown["params_bytes"] > 0
            and shown["result_bytes"] > 0
            and not (tmp_path / "trapped").exists()
        )
        assert (await loop.run_in_executor(None, lambda: cli("cancel", napping.id)))[0] == 0
        assert (await napping.wait()).status == "cancelled" and await done == 1
        code, (again,) = await loop.run_in_executor(None, lambda: cli("retry", done.id))
        await until(lambda: again["new_job"] in here.jobs)
        assert await here.jobs[again["new_job"]] == 1
    assert cli("show", "unknown")[0] == 1 and cli("cancel")[0] == 2 and cli("nonsense")[0] == 2
    assert [cli(*wrong)[0] for wrong in (("prune", "--keep", "-1"), ("list", "--limit", "-1"), ("list", "--status", "x"))] == [2, 2, 2]
    assert cli("prune", "--keep", "1") == (0, [{"removed": 2}]) and len(cli("list")[1]) == 1


@pytest.mark.slow
@pytest.mark.limit(300)
def test_chaos(tmp_path: Path) -> None:
    """Two apps and their workers are killed at random moments; `python tests/chaos_durable.py` does it 50 times with 10,000 jobs."""
    file, log, _ = chaos_durable.chaos(str(tmp_path), 400, 4, seed=os.getpid())
    counts = chaos_durable.check(file, log, chaos_durable.finish(file, log))
    assert counts["accepted"] >= 400
