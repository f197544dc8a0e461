"""A random mix of everything at once, and then the books: every job has one end, every run and every worker is accounted for."""

import asyncio
import os
import random
import signal
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from harness import Seen, end, manager, nothing_left, run  # noqa: F401

from cjm_worker_protocols import Job, JobManager

pytestmark = pytest.mark.filterwarnings("error")

ENDS = {"job:completed": "completed", "job:failed": "failed", "job:cancelled": "cancelled"}
SECONDS = float(os.environ.get("CJM_WORKERS_CHAOS_SECONDS", "2"))
FIRST_SEED = int(os.environ.get("CJM_WORKERS_CHAOS_SEED", "0"))
SEEDS = range(FIRST_SEED, FIRST_SEED + int(os.environ.get("CJM_WORKERS_CHAOS_RUNS", "6")))
QUICK = SEEDS[:2]  # The others are slow

FOLLOWS = {"new": {"job:queued"}, "queued": {"job:started"}, "started": {"job:progress", "job:chunk", "job:queued"}}


class Noted(Job):
    """A job that notes what could be read of it at the moment of its end."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "status" and value in ENDS.values():
            self.__dict__.setdefault("ends", []).append((value, self.result, self.error, self.completed_at))
        super().__setattr__(name, value)


class Chaos(JobManager):
    """Makes such jobs, and hears of completions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard: "list[str]" = []

    def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
        return Noted(plugin_id, parameters)

    def _on_job_completed(self, job_id: str) -> None:
        self.heard.append(job_id)


class Books:
    """A resource manager and a broadcaster that write everything down."""

    def __init__(self) -> None:
        self.workers: "defaultdict[int, list[str]]" = defaultdict(list)
        self.states: "list[tuple[int, dict[str, Any]]]" = []
        self.events: "list[tuple[str, dict[str, Any]]]" = []

    def register_worker(self, pid: int, worker_type: str) -> None:
        """Write it down."""
        self.workers[pid].append("register")

    def unregister_worker(self, pid: int) -> None:
        """Write it down."""
        self.workers[pid].append("unregister")

    def update_worker_state(self, pid: int, **state: Any) -> None:
        """Write it down."""
        self.workers[pid].append("update")
        self.states.append((pid, state))

    async def broadcast(self, event_type: str, data: "dict[str, Any]") -> None:
        """Write it down."""
        self.events.append((event_type, data))


class Run:
    """One run of chaos, from a seed."""

    def __init__(self, seed: int, log: Path) -> None:
        self.random, self.log = random.Random(seed), log
        self.books = Books()
        self.jobs: "list[Any]" = []
        self.cancelled: "set[str]" = set()  # ids of the jobs that somebody asked to cancel
        self.killed: "set[int]" = set()  # pids of the workers that somebody killed
        self.claims: "list[tuple[Any, bool]]" = []  # what cancel_job said
        self.m: Any = manager(
            "chaotic",
            "chaotic_function",
            cls=Chaos,
            max_workers=1 + seed % 3,
            standby=bool(seed % 2),
            resource_manager=self.books,
            event_broadcaster=self.books,
            backoff_base=0.001,
            backoff_max=0.02,
            max_restarts=1_000_000,
            grace_timeout=5.0,
            keep_finished=1_000_000,
            event_buffer=1_000_000,
        )

    async def start(self) -> None:
        """Start a few jobs of some kind, unless many wait already."""
        rng = self.random
        if sum(not job.done for job in self.jobs[-60:]) > 30:
            return
        how = rng.choices(
            ["ok", "stream", "polite", "raise", "kill", "os._exit", "SystemExit", "slow", "stuck"], [30, 8, 2, 6, 1, 1, 1, 8, 1]
        )[0]
        plugin = "chaotic" if how in ("stream", "polite") or rng.random() < 0.5 else "chaotic_function"
        seconds = {"slow": rng.random() * 0.05, "stuck": 1000.0}.get(how, 0.0)
        for _ in range(rng.choice([1, 1, 2, 10]) if how in ("ok", "stream", "raise") else 1):
            job = await self.m.start_job(
                plugin,
                priority=rng.choice([0, 0, 0, 1, -1]),
                retries=rng.choice([0, 0, 1, 3]),
                timeout=rng.choice([None, None, 0.02, 0.5]) if how not in ("polite", "stuck") else rng.choice([0.05, 0.3]),
                log=str(self.log),
                tag=len(self.jobs),
                how=how,
                seconds=seconds,
            )
            job.metadata["how"] = how
            self.jobs.append(job)

    async def cancel(self) -> None:
        """Cancel one of the newest jobs, whatever it does, and sometimes do not wait."""
        if not self.jobs:
            return
        job = self.random.choice(self.jobs[-15:])
        if not job.done:
            self.cancelled.add(job.id)

        async def cancel() -> None:
            self.claims.append((job, await self.m.cancel_job(job.id)))

        task = asyncio.ensure_future(cancel())
        self.tasks.append(task)
        if self.random.random() < 0.5:
            await asyncio.wait({task}, timeout=10)

    async def kill(self) -> None:
        """Kill a worker, whatever it does."""
        if workers := self.m.workers:
            pid = self.random.choice(workers).pid
            self.killed.add(pid)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    async def read(self) -> None:
        """Read a job's stream for a while."""
        if not self.jobs:
            return
        job, patience = self.random.choice(self.jobs[-5:]), self.random.randrange(60)

        async def read() -> None:
            got = []
            try:
                async for chunk in job.stream():
                    got.append(chunk)
                    if len(got) > patience:
                        break
            except Exception as e:
                assert e.to_dict() == job.error.to_dict(), e
            assert not job.attempts == 1 or got == list(range(len(got)))

        self.tasks.append(asyncio.ensure_future(read()))

    async def unload(self) -> None:
        """Unload or reload a plugin in the midst of it all."""
        plugin = self.random.choice(["chaotic", "chaotic_function"])
        call = self.m.unload_plugin(plugin) if self.random.random() < 0.5 else self.m.reload_plugin(plugin, {})
        self.tasks.append(asyncio.ensure_future(call))

    async def rampage(self) -> None:
        """Do all of it at random, then wait for the end, or shut down in the middle."""
        self.tasks: "list[asyncio.Future[Any]]" = []
        loop, rng = asyncio.get_running_loop(), self.random
        actions = [self.start, self.cancel, self.kill, self.read, self.unload]
        async with self.m as m:
            self.seen = Seen(m)
            until = loop.time() + SECONDS
            while loop.time() < until:
                await rng.choices(actions, [10, 3, 1, 2, 0.3])[0]()
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.random() * 0.02)
            self.finished = rng.random() < 0.7
            if self.finished:
                for job in self.jobs:
                    await end(job, limit=20)
        await self.seen.rest()
        if self.tasks:
            _, late = await asyncio.wait(self.tasks, timeout=10)
            assert not late, late
        for task in self.tasks:
            if task.exception() is not None:
                raise AssertionError("a call failed") from task.exception()

    def check(self) -> None:
        """Balance the books."""
        runs = Counter(map(int, self.log.read_text().split())) if self.log.exists() else Counter()
        stories: "defaultdict[str, list[Any]]" = defaultdict(list)
        for event in self.seen:
            if "job_id" in event.data:
                stories[event.data["job_id"]].append(event)
        assert len({job.id for job in self.jobs}) == len(self.jobs) > 20
        assert {job.id: job for job in self.m.get_all_jobs()} == {job.id: job for job in self.jobs}
        for tag, job in enumerate(self.jobs):
            self.check_job(job, runs[tag], stories[job.id])
        completed = [job_id for job_id, story in stories.items() if story[-1].type == "job:completed"]
        assert sorted(self.m.heard) == sorted(completed) == sorted(j.id for j in self.jobs if j.status == "completed")
        for job, claimed in self.claims:
            assert not claimed or job.status == "cancelled", f"cancel_job said True of {job}"
        self.check_workers()
        assert self.books.events == [tuple(event) for event in self.seen] and self.m.integration_errors == {}

    def check_job(self, job: Any, runs: int, story: "list[Any]") -> None:
        """One end, in order, with a reason."""
        what, types = f"{job} ran {runs} times: {[e.type for e in story]}", [e.type for e in story]
        assert len(job.ends) == 1, what
        status, result, error, completed_at = job.ends[0]
        assert (status, result, error, completed_at) == (job.status, job.result, job.error, job.completed_at), what
        assert completed_at is not None and (error is None) == (status == "completed") and (result is None or status == "completed"), what

        assert [ENDS[t] for t in types if t in ENDS] == [job.status] and types[-1] in ENDS and types[0] == "job:queued", what
        state = "new"
        for kind in types[:-1]:
            assert kind in FOLLOWS[state], what
            state = {"job:queued": "queued", "job:started": "started"}.get(kind, state)
        assert state == "started" or job.status in ("cancelled", "failed"), what
        indexes = [e.data["index"] for e in story if e.type == "job:chunk"]
        assert indexes == list(range(len(indexes))), what

        assert runs <= job.attempts <= 1 + job.retries and job.attempts <= types.count("job:started"), what
        how = job.metadata["how"]
        if job.status == "completed":
            assert job.result == job.params["tag"] and runs >= 1 and how in ("ok", "stream", "slow"), what
            assert how != "stream" or job.attempts > 1 or len(indexes) == 50, what
        elif job.status == "cancelled":
            assert job.id in self.cancelled or not self.finished, what
        elif error.category == "exception":
            assert how == "raise" and error.message == f"ValueError: {job.params['tag']}" and runs >= 1, what
        elif error.category == "timeout":
            assert job.timeout is not None, what
        else:
            assert error.category == "crash" and job.attempts == 1 + job.retries, what
            assert how in ("kill", "os._exit", "SystemExit") or job.worker_pid in self.killed, what
            assert (error.signal is None) != (error.exit_code is None), what

    def check_workers(self) -> None:
        """Each process was registered once and unregistered once, and nothing was said of it outside of that."""
        pids = {kind: [e.data["pid"] for e in self.seen if e.type == f"worker:{kind}"] for kind in ("started", "ready", "exited")}
        assert sorted(pids["started"]) == sorted(pids["exited"]) and len(set(pids["started"])) == len(pids["started"])
        assert sorted(self.books.workers) == sorted(pids["ready"])
        for pid, calls in self.books.workers.items():
            assert calls[0] == "register" and calls[-1] == "unregister" and set(calls[1:-1]) <= {"update"}, (pid, calls)
        assert self.m.workers == [] and all(len(state) == 6 for _, state in self.books.states)
        known = {job.id for job in self.jobs} | {None}
        assert {state["job_id"] for _, state in self.books.states} <= known


@pytest.mark.parametrize("seed", [*QUICK, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[len(QUICK) :])])
def test_chaos(seed: int, tmp_path: Path) -> None:
    """However jobs, crashes, cancels, timeouts, retries, kills and shutdowns are mixed, every job has one end, and the books balance."""
    chaos = Run(seed, tmp_path / "runs")
    run(chaos.rampage(), limit=60)
    chaos.check()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_nothing_runs_twice(workers: int, tmp_path: Path) -> None:
    """Hundreds of short jobs in bursts, every tenth cancelled: what completed ran once, what was cancelled at most once."""
    log = tmp_path / "runs"

    async def scenario() -> "list[Any]":
        rng, jobs, cancels = random.Random(workers), list[Any](), list[Any]()
        async with manager("chaotic_function", "chaotic", max_workers=workers) as m:
            for burst in range(60):
                for _ in range(rng.randrange(1, 12)):
                    plugin = "chaotic" if rng.random() < 0.2 else "chaotic_function"
                    how, seconds = rng.choice([("ok", 0.0), ("ok", 0.0), ("slow", 0.003)])
                    jobs.append(await m.start_job(plugin, log=str(log), tag=len(jobs), how=how, seconds=seconds))
                    if rng.random() < 0.1:
                        cancels.append(asyncio.ensure_future(m.cancel_job(rng.choice(jobs[-6:]).id)))
                if burst % 3:
                    await end(rng.choice(jobs[-3:]))
            for job in jobs:
                await end(job)
            await asyncio.gather(*cancels)
        return jobs

    jobs = run(scenario(), limit=60)
    runs = Counter(map(int, log.read_text().split()))
    assert {tag: runs[tag] for tag, job in enumerate(jobs) if job.status == "completed"} == {
        tag: 1 for tag, job in enumerate(jobs) if job.status == "completed"
    }
    assert all(runs[tag] <= job.attempts <= 1 for tag, job in enumerate(jobs)) and {j.status for j in jobs} <= {"completed", "cancelled"}
