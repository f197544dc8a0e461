"""Jobs in a store when something goes wrong around them: the app, another manager, the registry, the file, what was pickled."""

import asyncio
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import durable_app
import pytest
from durable_app import manager
from harness import nothing_left, ticking, until  # noqa: F401
from test_durable import app, begun, path, said, stored  # noqa: F401

from cjm_worker_protocols import Job, JobError, JobManager, WorkerConfig
from cjm_worker_protocols.core.errors import JobStoreError, ManagerDrainingError, StreamOverflowError
from cjm_worker_protocols.core.jobs import request_cancel
from cjm_worker_protocols.integrations.store import (
    SQLiteJobStore,
    StoreDamagedError,
    StoreFullError,
    StoreLockedError,
    StoreLockingError,
    StoreReadOnlyError,
)

pytestmark = pytest.mark.usefixtures("nothing_left")


class Slow:
    """A registry that answers for one plugin only when it may."""

    def __init__(self, plugin_id: str) -> None:
        self.plugin_id, self.asked, self.may = plugin_id, threading.Event(), threading.Event()

    def get_plugins_by_category(self, category: Any) -> "list[Any]":
        return []

    def get_plugin(self, plugin_id: str) -> Any:
        if plugin_id == self.plugin_id:
            self.asked.set()
            self.may.wait(60)
        return {"id": plugin_id, "name": plugin_id}

    def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
        return {}


def with_registry(path: str, registry: Any, **config: Any) -> JobManager:
    """A manager with a store and a registry."""
    config = {"standby": False, "integration_timeout": 60, **config}
    given: "dict[str, Any]" = {"worker_config": WorkerConfig(**config), "plugins": durable_app.PLUGINS, "plugin_registry": registry}
    return JobManager("test", "durable", job_store=SQLiteJobStore(path), **given)


async def left(path: str, *plugins: str) -> "list[str]":
    """Jobs that an earlier app has left."""
    async with manager(path) as here:
        await here.drain(0)
        await here.shutdown()
    async with manager(path) as here:
        blocking = await here.start_job("nap", seconds=60)
        await until(lambda: blocking.status == "running")
        return [(await here.start_job(plugin, params={"stop": 3} if plugin == "count" else {})).id for plugin in plugins]


# What the app does


@pytest.mark.limit(60)
async def test_a_claim_that_is_cancelled_loses_no_job(path: str) -> None:  # noqa: F811
    """The first call is cancelled while the registry is asked about jobs that this manager holds already."""
    (waiting,), registry = await left(path, "echo"), Slow("echo")
    here = with_registry(path, registry)
    entering = asyncio.ensure_future(here.__aenter__())
    await until(registry.asked.is_set)
    entering.cancel()
    await asyncio.wait({entering})
    registry.may.set()
    async with here:
        await until(lambda: waiting in here.jobs)
        assert await here.jobs[waiting] is None and here.recovered == [here.jobs[waiting]]


@pytest.mark.limit(60)
async def test_an_app_that_cancels_all_tasks_still_hears_of_other_processes(path: str) -> None:  # noqa: F811
    """The tasks that look into the store begin again: they follow jobs, hear what is to be cancelled, and take over."""
    async with manager(path) as here, manager(path) as there:
        mine, theirs = await here.start_job("nap", seconds=60), await there.start_job("nap", seconds=0.5)
        ours = [task for task in asyncio.all_tasks() if "cjm_worker_protocols" in str(task.get_stack(limit=1))]
        assert len(ours) >= 4 and all(task.cancel() for task in ours)
        followed = await here.find_job(theirs.id)
        assert followed is not None and await asyncio.wait_for(followed, 20) == "rested"
        assert await asyncio.wait_for(there.cancel_job(mine.id), 20)
        await there.drain(0)
        waiting = await left(path, "echo")
        assert await until(lambda: waiting[0] in here.jobs) and await here.jobs[waiting[0]] is None


@pytest.mark.limit(60)
async def test_no_cancel_waits_for_the_registry(path: str) -> None:  # noqa: F811
    """A manager that takes over jobs of a plugin, about which its registry does not answer, hears what is to be cancelled."""
    registry = Slow("count")
    async with with_registry(path, registry) as here:
        try:
            running = await here.start_job("nap", seconds=60)
            await until(lambda: running.status == "running")
            async with manager(path) as other:
                await other.start_job("nap", seconds=60)
                await other.start_job("count", stop=1)
            await until(registry.asked.is_set)
            async with manager(path) as there:
                assert await asyncio.wait_for(there.cancel_job(running.id), 20) and running.status == "cancelled"
        finally:
            registry.may.set()


async def test_what_was_cancelled_before_an_app_lives_does_not_run(path: str) -> None:  # noqa: F811
    """As by the command line, while no manager was there to hear of it."""
    cancelled, other = await left(path, "echo", "echo")
    SQLiteJobStore(path).request_cancel(cancelled)
    async with manager(path) as here:
        assert await here.jobs[other] is None
        job = await here.find_job(cancelled)
        assert job is not None and (job.status, job.attempts) == ("cancelled", 0)


class Looked(SQLiteJobStore):
    """Counts how often its manager has looked for cancels."""

    looks = 0

    def cancellations(self, manager: str) -> "list[str]":
        self.looks += 1
        return super().cancellations(manager)


@pytest.mark.limit(60)
async def test_a_manager_that_drains_takes_nothing_over(path: str) -> None:  # noqa: F811
    """What it cannot run any more goes to another one."""
    given: "dict[str, Any]" = {"worker_config": WorkerConfig(standby=False), "plugins": durable_app.PLUGINS}
    async with JobManager("test", "durable", job_store=(store := Looked(path)), **given) as here:
        running = await here.start_job("nap", seconds=60)
        await until(lambda: running.status == "running")
        draining = asyncio.ensure_future(here.drain(60))
        await until(lambda: not here.ready)
        with app(path) as other:
            assert await begun(other) == "ready 0"
            blocking, waiting = await said(other, "nap {'seconds': 60}", "echo {'value': 1}")
            await until(lambda: stored(path)[blocking] == "running")
            other.kill()
            other.wait()
        looks = store.looks
        await until(lambda: store.looks > looks + 12)  # there are eight looks from one claim to the next
        assert waiting not in here.jobs
        async with manager(path) as there:
            assert await there.jobs[waiting] == 1 and await here.cancel_job(running.id)
        await draining


@pytest.mark.limit(60)
async def test_when_the_time_of_a_drain_is_over(path: str) -> None:  # noqa: F811
    """Restartable jobs wait again, others are interrupted; running ones can be cancelled until then; waiting ones stay."""
    async with manager(path, max_workers=3) as here:
        kinds: "tuple[dict[str, Any], ...]" = ({}, {"restartable": True}, {})
        once, again, cancelled = [await here.start_job("nap", seconds=60, **kind) for kind in kinds]
        await until(lambda: {job.status for job in (once, again, cancelled)} == {"running"})
        waiting = await here.start_job("nap", seconds=0)
        draining = asyncio.ensure_future(here.drain(3))
        await until(lambda: not here.ready)
        with pytest.raises(ManagerDrainingError):
            await here.retry_job(once)
        assert await here.cancel_job(cancelled.id) and not draining.done()
        await draining
        assert once.error is not None and once.error.category == "interrupted"
        ends = {once.id: "failed", again.id: "pending", cancelled.id: "cancelled", waiting.id: "pending"}
        assert stored(path) == ends and (again.status, waiting.status) == ("pending", "pending")
        async with manager(path) as there:
            assert [job.id for job in there.recovered] == [again.id, waiting.id] and await there.cancel_job(again.id)
            assert await there.jobs[waiting.id] == "rested"


# What was pickled


async def test_what_cannot_be_read_of_one_job_hurts_no_other(path: str) -> None:  # noqa: F811
    """A chunk of a class that is gone, and files beside the database that are lost: of parameters and of a result."""
    async with manager(path, max_workers=1) as first:
        streamed, large = await first.start_job("count", stop=4, keep_chunks=9), await first.start_job("echo", value=b"x" * 2_000_000)
        await large
        blocking = await first.start_job("nap", seconds=60)
        await until(lambda: blocking.status == "running")
        lost, last = await first.start_job("echo", value=b"y" * 2_000_000), await first.start_job("echo", value=1)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE chunks SET data = ? WHERE number = 1", (b"cgone\nGone\n.",))
    for file in Path(f"{path}-files").iterdir():
        file.unlink()
    async with manager(path, max_workers=1) as here:
        assert [job.id for job in await here.list_jobs()] == [job.id for job in (last, lost, blocking, large, streamed)]
        assert await here.jobs[last.id] == 1
        for job_id in (lost.id, large.id):
            job = await here.find_job(job_id)
            with pytest.raises(JobError, match="serialization"):
                await job  # type: ignore[misc]
        found = await here.find_job(streamed.id)
        assert found is not None
        stream = found.stream(2)
        assert [chunk async for chunk in stream] == [2, 3] and here.integration_errors["job_store.chunks"]
        with pytest.raises(StreamOverflowError):
            await found.stream().__anext__()


class Bomb:
    """Unpickling it would end the process."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


async def read_all(job: Job) -> "tuple[list[int], int]":
    """Read a job's stream to its end: the chunks, and how many it says were dropped."""
    stream, seen, dropped = job.stream(), list[int](), 0
    while True:
        try:
            seen.append(await stream.__anext__())
        except StreamOverflowError as e:
            dropped += e.dropped
        except StopAsyncIteration:
            return seen, dropped


@pytest.mark.limit(60)
async def test_last_chunks_that_cannot_be_read_are_a_gap_and_counted_once(path: str) -> None:  # noqa: F811
    """Its stream says so before the end, no look reads them again, and other jobs are followed."""
    async with manager(path) as here, manager(path) as there:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            bomb = pickle.dumps(Bomb()).hex()
            db.execute(f"""CREATE TRIGGER mine AFTER INSERT ON chunks WHEN new.number >= 3
                           BEGIN UPDATE chunks SET data = x'{bomb}' WHERE job = new.job AND number = new.number; END""")
        job = await here.find_job((await there.start_job("count", stop=9, pause=0.2, keep_chunks=9)).id)
        other = await here.find_job((await there.start_job("nap", seconds=0.5)).id)
        assert job is not None and other is not None
        seen, dropped = await read_all(job)
        assert dropped + len(seen) == 9 and here.integration_errors["job_store.chunks"] == 6
        assert await asyncio.wait_for(other, 20) == "rested"


class Forgetful(SQLiteJobStore):
    """Its first request to cancel fails."""

    asked = 0

    def request_cancel(self, job_id: str) -> None:
        self.asked += 1
        if self.asked == 1:
            raise StoreLockedError(self.path, "by another program")
        super().request_cancel(job_id)


@pytest.mark.limit(60)
async def test_a_wish_to_cancel_outlives_a_store_that_fails(path: str) -> None:  # noqa: F811
    """As `watch` has it when Ctrl-C comes: the next look asks again."""
    given: "dict[str, Any]" = {"worker_config": WorkerConfig(standby=False), "plugins": durable_app.PLUGINS}
    async with JobManager("test", "durable", job_store=(store := Forgetful(path)), **given) as here, manager(path) as there:
        theirs = await there.start_job("nap", seconds=60)
        job = await here.find_job(theirs.id)
        assert job is not None
        request_cancel(job)
        assert (await asyncio.wait_for(job.wait(), 20)).status == "cancelled" and store.asked == 2


@pytest.mark.limit(60)
async def test_a_stream_that_loses_chunks_says_so(path: str) -> None:  # noqa: F811
    """Between two looks more chunks come than the store keeps. A followed job that is removed from the store fails."""
    async with manager(path) as here, manager(path) as there:
        job = await here.find_job((await there.start_job("count", stop=100, pause=0.02, keep_chunks=2)).id)
        assert job is not None
        seen, dropped = await read_all(job)
        assert seen == sorted(set(seen)) and seen[-1] == 99 and len(seen) + dropped == 100
        running = await there.start_job("nap", seconds=60)
        followed = await here.find_job(running.id)
        SQLiteJobStore(path).forget([running.id])
        assert followed is not None and (await asyncio.wait_for(followed.wait(), 20)).status == "failed"
        await there.cancel_job(running.id)


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


async def test_no_command_unpickles_what_a_stranger_wrote(path: str, tmp_path: Path) -> None:  # noqa: F811
    """Neither parameters, nor results, nor chunks, in the row or in a file."""
    async with manager(path) as here:
        done = await here.start_job("count", stop=2, keep_chunks=2)
        large = await here.start_job("echo", value=b"x" * 2_000_000)
        await asyncio.gather(done.wait(), large.wait())
    trap = pickle.dumps(Trap(str(tmp_path / "trapped")))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE jobs SET params = ?, result = ? WHERE id = ?", (trap, trap, done.id))
        db.execute("UPDATE chunks SET data = ?", (trap,))
    for file in Path(f"{path}-files").iterdir():
        file.write_bytes(trap)
    for action in (["list"], ["show", done.id, large.id], ["cancel", done.id], ["retry", done.id, large.id], ["prune", "--keep", "0"]):
        command = [sys.executable, "-m", "cjm_worker_protocols", "jobs", *action, "--store", path]
        assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0, action
        assert not (tmp_path / "trapped").exists()
    assert list(stored(path).values()) == ["pending"] * 2


KEYED = """
import asyncio, sys
from durable_app import manager

async def main():
    async with manager(sys.argv[1]) as here:
        params = {"value": [{"b", "a", "c"}, {"x": frozenset("xyz")}, (1, 2)]}
        print((await here.start_job("echo", params=params, key="k")).id)

asyncio.run(main())
"""


@pytest.mark.limit(60)
def test_equal_parameters_are_equal_in_every_process(path: str) -> None:  # noqa: F811
    """Also sets, which each process has in an order of its own."""
    env = {**os.environ, "PYTHONPATH": str(Path(durable_app.__file__).parent)}
    ids = {subprocess.run([sys.executable, "-c", KEYED, path], env={**env, "PYTHONHASHSEED": str(n)}, capture_output=True, text=True,
                          timeout=60, check=True).stdout for n in (1, 2, 3)}
    assert len(ids) == 1


PRELOADED = """
import asyncio, os, sys
from durable_app import manager

here = manager(sys.argv[1])  # in the parent, as a server does that loads the app before it forks

async def main(number):
    async with here:
        print(number, await (await here.start_job("echo", value=number)), flush=True)

children = [os.fork() for _ in range(2) if os.getpid() == parent] if (parent := os.getpid()) else []
if os.getpid() == parent:
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))
asyncio.run(main(os.getpid()))
"""


@pytest.mark.limit(60)
def test_a_manager_may_be_made_before_a_server_forks(path: str) -> None:  # noqa: F811
    """Each child connects by itself."""
    env = {**os.environ, "PYTHONPATH": str(Path(durable_app.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", PRELOADED, path], env=env, capture_output=True, text=True, timeout=60)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(lines) == 2 and all(one == other for one, other in lines), done.stderr
    assert list(stored(path).values()) == ["completed"] * 2


# Faults of the file while a job runs


def full(store: SQLiteJobStore) -> "Iterator[None]":
    """SQLite may not make the file larger."""
    with store.database as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    yield
    with store.database as db:
        db.execute("PRAGMA max_page_count = 1000000")


def locked(store: SQLiteJobStore) -> "Iterator[None]":
    """A shell holds a transaction."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        yield
        shell.execute("ROLLBACK")


def read_only(store: SQLiteJobStore) -> "Iterator[None]":
    """As SQLite sees a file system that was remounted."""
    with store.database as db:
        db.execute("PRAGMA query_only = 1")
    yield
    with store.database as db:
        db.execute("PRAGMA query_only = 0")


def moved(store: SQLiteJobStore) -> "Iterator[None]":
    """The file is moved away."""
    os.rename(store.path, f"{store.path}-away")
    yield
    assert not os.path.exists(store.path)
    os.rename(f"{store.path}-away", store.path)


def without_locks(store: SQLiteJobStore) -> "Iterator[None]":
    """The file of the locks is moved away."""
    os.rename(f"{store.path}-locks", f"{store.path}-away")
    yield
    os.rename(f"{store.path}-away", f"{store.path}-locks")


def damaged(store: SQLiteJobStore) -> "Iterator[None]":
    """A table is gone."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as shell:
        shell.execute("ALTER TABLE jobs RENAME TO jobs_away")
        yield
        shell.execute("ALTER TABLE jobs_away RENAME TO jobs")


@pytest.mark.limit(90)
@pytest.mark.parametrize(
    "fault, kind",
    [
        (full, StoreFullError),
        (locked, StoreLockedError),
        (read_only, StoreReadOnlyError),
        (moved, StoreDamagedError),
        (without_locks, StoreLockingError),
        (damaged, StoreDamagedError),
    ],
)
async def test_a_fault_while_a_job_runs(fault: Any, kind: "type[JobStoreError]", path: str) -> None:  # noqa: F811
    """New jobs are refused by its name, the loop goes on, a running job ends and says why its end is not stored; then all goes on."""
    async with manager(path, settings={"lock_timeout": 0.1}) as here:
        running, waiting = await here.start_job("nap", seconds=0.3, result=b"r" * 500_000), await here.start_job("echo", value=1)
        await until(lambda: running.status == "running")
        store = here.job_store
        assert isinstance(store, SQLiteJobStore)
        steps = fault(store)
        next(steps)
        async with ticking() as stall:
            for key in (None, "k"):
                with pytest.raises(kind) as caught:
                    await here.start_job("echo", key=key, value=b"x" * 1_000_000)
                assert store.path in str(caught.value) and kind.remedy in str(caught.value)
            assert (await asyncio.wait_for(running.wait(), 30)).result == b"r" * 500_000
        assert stall.worst < 1 and store.path in running.unsaved and kind.remedy in running.unsaved
        assert not waiting.done
        assert next(steps, None) is None
        assert await asyncio.wait_for(waiting, 30) == 1
        await until(lambda: not running.unsaved)
        assert set(stored(path).values()) == {"completed"} and len(stored(path)) == 2
