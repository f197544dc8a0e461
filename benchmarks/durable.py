"""What does it cost that jobs outlive their app? Huey and DBOS keep theirs in SQLite too."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

from bench import Row, Target, compare, interleave, main, peer, timed
from workloads import noop

from cjm_worker_protocols import JobManager
from cjm_worker_protocols.extensions.store import NewJob
from cjm_worker_protocols.integrations.store import SQLiteJobStore

HERE = Path(__file__).resolve().parent
HUEY, DBOS = peer("huey", "huey"), peer("dbos", "dbos")


def three_commits(path: str) -> "Callable[[], None]":
    """Gives what makes a commit; the first makes the table."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL")
    db.execute("CREATE TABLE jobs(id INTEGER PRIMARY KEY, status TEXT, params BLOB)")
    count = 0

    def commit() -> None:
        nonlocal count
        count += 1
        db.execute("BEGIN IMMEDIATE")
        if count % 3 == 1:
            db.execute("INSERT INTO jobs VALUES (?, 'pending', x'00')", (count,))
        else:
            db.execute("UPDATE jobs SET status = 'running' WHERE id = ?", (count - (count - 1) % 3,))
        db.execute("COMMIT")

    return commit


@contextmanager
def huey(folder: str) -> "Iterator[Callable[[], Any]]":
    """A consumer with the shortest poll; gives what runs one task and waits for its result."""
    os.environ["RIVALS_BASE"] = folder
    from rival_apps.in_huey import tasks

    consume = [sys.executable, "-m", "huey.bin.huey_consumer", "rival_apps.in_huey.app"]
    command = [*consume, "-k", "process", "-d", "0.001", "-m", "0.001", "-q"]
    with subprocess.Popen(command, cwd=HERE, env=os.environ, stderr=subprocess.DEVNULL) as consumer:
        try:
            yield lambda: tasks["noop"]()(blocking=True, backoff=1, max_delay=0.001)
        finally:
            consumer.terminate()


@contextmanager
def dbos(folder: str) -> "Iterator[Callable[[], Any]]":
    """DBOS on SQLite; gives what runs one workflow."""
    url = f"sqlite:///{folder}/dbos.db"
    DBOS.DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR", "run_admin_server": False})

    @DBOS.DBOS.workflow()  # type: ignore[untyped-decorator]
    def durable_noop() -> int:
        return 1

    DBOS.DBOS.launch()
    try:
        yield durable_noop
    finally:
        DBOS.DBOS.destroy()


async def round_trips(folder: str, rounds: int, jobs: int) -> "list[Row]":
    """One job after the other, and many at once."""
    loop, commit = asyncio.get_running_loop(), three_commits(os.path.join(folder, "bare.db"))
    plain = JobManager("bench", "plain", plugins={"noop": noop})
    kept = JobManager("bench", "kept", plugins={"noop": noop}, job_store=SQLiteJobStore(os.path.join(folder, "jobs.db")))

    async def run(manager: JobManager) -> None:
        for _ in range(jobs):
            await (await manager.start_job("noop"))

    async def limit(commits: int) -> None:
        for _ in range(jobs):
            for _ in range(commits):
                await loop.run_in_executor(None, commit)
        await run(plain)

    async def bare() -> None:
        for _ in range(jobs):
            for _ in range(3):
                commit()

    async def pipelined(manager: JobManager) -> None:
        for job in await asyncio.gather(*[manager.start_job("noop") for _ in range(jobs * 5)]):
            await job

    def off_loop(call: "Callable[[], Any]") -> Any:
        async def work() -> None:
            for _ in range(max(1, jobs // 10)):
                await loop.run_in_executor(None, call)

        return lambda: timed(work)

    with ExitStack() as stack:
        peers = {name: stack.enter_context(begin(folder)) for name, module, begin in (("huey", HUEY, huey), ("dbos", DBOS, dbos)) if module}
        async with plain, kept:
            times = await interleave(
                rounds,
                kept=lambda: timed(lambda: run(kept)),
                plain=lambda: timed(lambda: run(plain)),
                limit=lambda: timed(lambda: limit(3)),
                least=lambda: timed(lambda: limit(2)),
                bare=lambda: timed(bare),
                many_kept=lambda: timed(lambda: pipelined(kept)),
                many=lambda: timed(lambda: pipelined(plain)),
                **{name: off_loop(call) for name, call in peers.items()},
            )
    each = {name: [t / jobs for t in took] for name, took in times.items()}
    each.update({name: [t / max(1, jobs // 10) for t in times[name]] for name in peers})
    rates = {name: [jobs * 5 / t for t in times[name]] for name in ("many_kept", "many")}
    what = "durable no-op round trip"
    rows = [
        compare(what, each["kept"], "three commits by `run_in_executor` and ours without a store", each["limit"], Target("at most", 1.3)),
        compare(what, each["kept"], "three bare commits", each["bare"]),
        compare(what, each["kept"], "ours without a store", each["plain"]),
        compare("durable no-op jobs, pipelined", rates["many_kept"], "undurable ones", rates["many"], Target("at least", 0.4), rates=True),
    ]
    names = {"huey": ("Huey on SQLite", 0.5), "dbos": ("DBOS on SQLite", 0.1)}
    rows += [compare(what, each["kept"], names[name][0], each[name], Target("at most", names[name][1])) for name in peers]
    least = "two commits by `run_in_executor` and ours without a store"  # so many a durable job takes
    return rows + [compare(least, each["least"], names[name][0], each[name]) for name in peers if name == "dbos"]


async def taking_over(folder: str, pending: int) -> "list[Row]":
    """So many jobs that wait, taken over by the next app, beside reading their rows."""
    path = os.path.join(folder, "pending.db")
    store = SQLiteJobStore(path)
    first = store.open("bench")
    for start in range(0, pending, 10_000):
        count = min(10_000, pending - start)
        store.write(first, [NewJob(f"job-{start + n}", "noop", b"\x80\x05}}\x86." + b"x" * 100, 0.0) for n in range(count)], [], [], [])
    store.close(first)
    began = time.perf_counter()
    db = sqlite3.connect(path)
    assert len(db.execute("SELECT * FROM jobs").fetchall()) == pending
    read = time.perf_counter() - began
    db.close()
    manager = JobManager("bench", "taking over", plugins={"noop": noop}, job_store=SQLiteJobStore(path))
    began = time.perf_counter()
    await manager.__aenter__()
    took = time.perf_counter() - began
    assert len(manager.recovered) == pending
    await manager.shutdown()
    return [compare("100,000 pending jobs taken over", [took], "`fetchall` of their rows", [read], Target("at most", 3))]


async def measure(rounds: int, jobs: int, pending: int) -> "list[Row]":
    """Durable no-op jobs, and taking over those of an app that has died."""
    with tempfile.TemporaryDirectory() as folder:
        return await round_trips(folder, rounds, jobs) + await taking_over(folder, pending)


if __name__ == "__main__":
    main(measure, full={"rounds": 10, "jobs": 100, "pending": 100_000}, tiny={"rounds": 1, "jobs": 3, "pending": 20}, limit=300)
