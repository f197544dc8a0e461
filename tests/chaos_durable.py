"""Two apps on one job store, killed at random moments, their workers too; then every promise is checked.

python tests/chaos_durable.py --jobs 10000 --deaths 50 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil

from cjm_worker_protocols import Job, JobError, JobManager, WorkerConfig
from cjm_worker_protocols.core.errors import ManagerClosedError
from cjm_worker_protocols.integrations.store import SQLiteJobStore

KINDS: dict[str, dict[str, Any]] = {"once": {}, "restartable": {"restartable": True}, "retried": {"retries": 1}}


def note(log: str, *words: object) -> None:
    """Append a line, in one write: what is there survives the death of the process."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(file)


def work(log: str, number: str, seconds: float) -> str:
    """In a worker: note that the job runs."""
    note(log, "run", number)
    time.sleep(seconds)
    return number


# An app


async def app(path: str, log: str, limit: int, seed: int) -> None:
    """Accept jobs until so many are noted, and note each end that is shown; with a limit of 0, finish what is there."""
    rng, last = random.Random(seed), not limit
    config = WorkerConfig(max_workers=1, standby=False, integration_timeout=30, backoff_base=0.01)
    store = SQLiteJobStore(path, lock_timeout=20, keep_ended=10**6)
    async with JobManager("chaos", "chaos", worker_config=config, plugins={"work": work}, job_store=store) as manager:

        async def follow(job: Job) -> None:
            try:
                await job
            except (JobError, ManagerClosedError):
                pass
            if job.done:
                note(log, "ended", job.id, job.status, job.error.category if job.error else "")

        async def start(number: int) -> None:
            kind, priority = rng.choice(tuple(KINDS)), rng.choice((0, 0, 1))
            name = f"{os.getpid()}-{number}"
            options = {**KINDS[kind], "priority": priority, "key": name if rng.random() < 0.1 else None}
            job = await manager.start_job("work", log=log, number=name, seconds=rng.choice((0, 0, 0.002, 0.03)), **options)
            note(log, "accepted", job.id, kind, name, priority)
            if rng.random() < 0.3:
                following.add(asyncio.ensure_future(follow(job)))

        following = {asyncio.ensure_future(follow(job)) for job in manager.recovered[:50]}
        number = 0
        while not last:
            if sum(not job.done for job in manager.jobs.values()) > 400:
                await asyncio.sleep(0.01)
                continue
            await asyncio.gather(*[start(number + n) for n in range(20)])
            number += 20
            if rng.random() < 0.1 and (open_jobs := await manager.list_jobs(status="pending", limit=5)):
                await manager.cancel_job(rng.choice(open_jobs).id)
            await asyncio.sleep(rng.choice((0, 0.01)))
        while [job for job in manager.jobs.values() if not job.done]:
            await asyncio.sleep(0.05)
        await asyncio.gather(*following)


# The chaos


def begin(path: str, log: str, limit: int, seed: int) -> subprocess.Popen[bytes]:
    """Start an app."""
    command = [sys.executable, __file__, "--app", path, log, str(limit), str(seed)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def accepted(log: str) -> int:
    """How many jobs were accepted so far."""
    return Path(log).read_text().count("accepted ") if os.path.exists(log) else 0


def chaos(folder: str, jobs: int, deaths: int, seed: int) -> tuple[str, str, int]:
    """Kill apps and workers until so many jobs were accepted and so many apps have died; then let one finish everything."""
    path, log, rng = os.path.join(folder, "jobs.db"), os.path.join(folder, "log"), random.Random(seed)
    apps, died, number = [begin(path, log, 1, seed + n) for n in range(2)], 0, 2
    while died < deaths or accepted(log) < jobs:
        time.sleep(rng.random() * 3)
        victim = rng.randrange(2)
        if rng.random() < 0.2:
            for child in psutil.Process(apps[victim].pid).children(recursive=True)[:2]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            continue
        apps[victim].kill()
        apps[victim].wait()
        died, number = died + 1, number + 1
        apps[victim] = begin(path, log, 1, seed + number)
    for each in apps:
        each.kill()
        each.wait()
    return path, log, died + 2


def finish(path: str, log: str) -> list[str]:
    """Let a last app finish everything; gives the jobs that waited for it, in the order in which they have to begin."""
    store = SQLiteJobStore(path)
    pending = [job for job in store.select("chaos", status="pending", limit=10**6) if not job.attempts]
    store.close(store.open("look"))  # closes its files
    note(log, "last")
    assert begin(path, log, 0, 0).wait(timeout=900) == 0
    return [job.id for job in sorted(pending, key=lambda job: (-job.priority, job.place))]


def check(path: str, log: str, expected: list[str]) -> Counter[str]:
    """Raise `AssertionError` for a promise that was broken."""
    store = SQLiteJobStore(path)
    stored = {job.id: job for job in store.select("chaos", limit=10**6)}
    store.close(store.open("look"))  # closes its files
    runs: Counter[str] = Counter()
    ends: defaultdict[str, set[tuple[str, ...]]] = defaultdict(set)
    kinds, names, order, last = dict[str, str](), dict[str, str](), list[str](), False
    for line in Path(log).read_text().splitlines():
        what, *facts = line.split(" ")
        last = last or what == "last"
        if what == "accepted":
            kinds[facts[0]], names[facts[2]] = facts[1], facts[0]
        elif what == "run":
            runs[facts[0]] += 1
            if last:
                order.append(facts[0])
        elif what == "ended":
            ends[facts[0]].add(tuple(facts[1:]))
    assert not (lost := kinds.keys() - stored.keys()), f"{len(lost)} accepted jobs are lost"
    assert not (left := [job for job in stored.values() if job.ended is None]), f"{len(left)} jobs have no end"
    for job_id, shown in ends.items():
        assert len(shown) == 1 and next(iter(shown))[0] == stored[job_id].status, (job_id, shown, stored[job_id])
    for name, job_id in names.items():
        kind = kinds[job_id]
        assert kind == "restartable" or runs[name] <= 1 + (kind == "retried"), (
            f"{kind} job {job_id} ran {runs[name]} times"
        )
        assert stored[job_id].status != "completed" or runs[name] >= 1, f"{job_id} is completed and never ran"
    known = [names[name] for name in order if name in names]
    waited = [job_id for job_id in expected if job_id in set(known)]
    assert [job_id for job_id in dict.fromkeys(known) if job_id in set(expected)] == waited, "the order was not kept"
    return Counter(job.status for job in stored.values()) + Counter(
        accepted=len(kinds), rerun=sum(count > 1 for count in runs.values())
    )


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--deaths", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        path, log, died = chaos(folder, asked.jobs, asked.deaths, asked.seed)
        print(f"{accepted(log)} jobs accepted, {died} deaths, {time.monotonic() - began:.0f} s", flush=True)
        print(dict(check(path, log, finish(path, log))), f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--app"]:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asyncio.run(app(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
    else:
        main()
