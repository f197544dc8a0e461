"""An app with a job store, to be killed: `python durable_app.py FILE` does what stdin says, a line each, and prints what came of it."""

import asyncio
import sys
import time
from typing import Any, Iterator

from cjm_worker_protocols import JobManager, WorkerConfig
from cjm_worker_protocols.integrations.store import SQLiteJobStore


def echo(value: Any = None) -> Any:
    """Give back what it is given."""
    return value


def nap(seconds: float, result: Any = "rested") -> Any:
    """Sleep."""
    time.sleep(seconds)
    return result


def count(stop: int, pause: float = 0.0) -> "Iterator[int]":
    """Stream numbers."""
    for n in range(stop):
        yield n
        time.sleep(pause)


def status_of(path: str, job_id: str = "", worker_type: str = "test") -> "list[str]":
    """In a worker: what the store says of all jobs, while this one runs."""
    store = SQLiteJobStore(path)
    return [f"{job.plugin_id} {job.status}" for job in store.select(worker_type)]


PLUGINS: "dict[str, Any]" = {"echo": echo, "nap": nap, "count": count, "status_of": status_of}


def manager(path: Any, *, settings: "dict[str, Any] | None" = None, **config: Any) -> JobManager:
    """A manager with a store on a file."""
    store = SQLiteJobStore(path, **(settings or {}))
    return JobManager(
        "test", "durable", worker_config=WorkerConfig(standby=False, **config), plugins=PLUGINS, job_store=store
    )


async def main() -> None:
    """Start what each line asks for: `PLUGIN {options}`."""
    loop = asyncio.get_running_loop()
    async with manager(sys.argv[1]) as here:
        print("ready", len(here.recovered), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            plugin, _, options = line.strip().partition(" ")
            if plugin == "await":
                print(await (await here.find_job(options)), flush=True)  # type: ignore[misc]
                continue
            job = await here.start_job(plugin, **eval(options or "{}"))
            print(job.id, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
