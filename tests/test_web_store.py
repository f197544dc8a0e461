"""HTTP over a job store: every process that shares the file shows all jobs, and a new one finds what an earlier one had."""

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import manager, script
from sse_kit import free_port, wait_until_served
from test_web import look, shout, spin, until
from test_web_files import SAME
from web_kit import Client, problem, serving

from cjm_worker_protocols.integrations.store import SQLiteJobStore
from cjm_worker_protocols.web import WorkersApp

pytestmark = pytest.mark.slow


def slowly(to: int) -> Any:
    """A plugin that streams until it is cancelled."""
    import time

    for n in range(to):
        yield n
        time.sleep(0.02)
    return to


def durable(path: Path, *plugins: Any) -> Any:
    """A manager on a file."""
    return manager(*plugins, job_store=SQLiteJobStore(path / "jobs.db", keep_chunks=100))


async def test_each_process_shows_all_jobs_at_most_a_second_late(tmp_path: Path) -> None:
    """A job of one manager is listed, shown, followed and cancelled through the app of another; its events come there too."""
    async with durable(tmp_path, slowly, spin) as one, durable(tmp_path, slowly, spin) as two:
        async with serving(WorkersApp(one)) as first, serving(WorkersApp(two)) as second:
            async with second.events("api/events") as events:
                job = await first.start("slowly", to=5)
                seen = [event async for event in until(events, job["id"], "completed")]
                assert seen[-1].data["plugin_id"] == "slowly"
            assert [found["id"] for found in (await second.get("api/jobs?status=completed")).json()["jobs"]] == [job["id"]]
            assert (await second.get(f"api/jobs/{job['id']}/result")).json() == 5
            async with second.events(f"api/jobs/{job['id']}/stream") as events:
                assert [event.data async for event in events][:-1] == [0, 1, 2, 3, 4]
            running = await first.start("spin")
            await second.when(f"api/jobs/{running['id']}", lambda job: job["status"] == "running")
            assert (await second.post(f"api/jobs/{running['id']}/cancel", json={})).status_code == 200
            assert (await first.get(f"api/jobs/{running['id']}")).json()["status"] == "cancelled"
            assert problem(await second.get("api/jobs/unknown")) == (404, "not-found", None)


async def test_a_new_app_finds_jobs_and_their_files(tmp_path: Path) -> None:
    """Also what was uploaded, which lies beside the store; what the store has forgotten goes."""
    files: "list[Any]" = [("image", ("a.txt", b"content"))]
    async with durable(tmp_path, look) as one, serving(WorkersApp(one)) as client:
        answer = await client.post("api/jobs?wait=true", data={"plugin_id": "look"}, files=files, headers=SAME)
        job = answer.json()
        assert job["result"] == "content"
        kept = one.get_job(job["id"]).params["image"]
    assert kept.exists() and tmp_path / "jobs.db.uploads" in kept.parents
    async with durable(tmp_path, look) as two, serving(WorkersApp(two)) as client:
        assert (await client.get(f"api/jobs/{job['id']}")).json()["result"] == "content"
        again = (await client.post(f"api/jobs/{job['id']}/retry", json={})).json()
        assert (await client.ended(again["id"]))["result"] == "content" and again["retried_from"] == job["id"]
        two.job_store.forget([job["id"]])  # the job that it repeats
        assert two.job_store.prune() == 0 and kept.exists()
    assert SQLiteJobStore(tmp_path / "jobs.db").prune(keep_ended=0) == 1 and not kept.exists()


async def test_a_key_is_one_job(tmp_path: Path) -> None:
    """The same request again gives the same job; another with the same key is 409; without a store there is no such field."""
    async with durable(tmp_path, shout) as one, serving(WorkersApp(one)) as client:
        body = {"plugin_id": "shout", "params": {"text": "hi"}, "key": "a-1"}
        first = (await client.post("api/jobs?wait=true", json=body)).json()
        second = (await client.post("api/jobs?wait=true", json=body)).json()
        assert first["id"] == second["id"] and second["key"] == "a-1"
        answer = await client.post("api/jobs", json={**body, "params": {"text": "other"}})
        assert problem(answer) == (409, "conflict", "key")
    async with manager(shout) as one, serving(WorkersApp(one)) as client:
        assert problem(await client.post("api/jobs", json=body))[:2] == (422, "invalid")


async def test_a_manager_that_drains_is_not_ready(tmp_path: Path) -> None:
    """Nothing new is accepted; what is there can be looked at."""
    async with durable(tmp_path, shout) as one, serving(WorkersApp(one)) as client:
        job = await client.start("shout", "?wait=true", text="hi")
        assert (await client.get("readyz")).status_code == 200
        await one.drain(timeout=1)
        assert (await client.get("readyz")).status_code == 503 and (await client.get("healthz")).status_code == 200
        body = {"plugin_id": "shout", "params": {"text": "hi"}}
        assert problem(await client.post("api/jobs", json=body))[:2] == (503, "unavailable")
        assert (await client.get(f"api/jobs/{job['id']}")).json()["result"] == "HI"


SERVER = """
import sys, time
from contextlib import asynccontextmanager
import uvicorn
from starlette.applications import Starlette
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.integrations.store import SQLiteJobStore
from cjm_worker_protocols.web import WorkersApp

def spin():
    while True: time.sleep(0.01)

manager = JobManager("test", "store", plugins={"spin": spin}, job_store=SQLiteJobStore(sys.argv[2]))

@asynccontextmanager
async def lifespan(app):
    async with manager: yield

app = Starlette(lifespan=lifespan)
app.mount("/workers", WorkersApp(manager))
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical")
"""


@asynccontextmanager
async def server(path: Path) -> Any:
    """A process that serves the jobs of a store: the process, and a client."""
    port = free_port()
    with script(path / f"server_{port}.py", SERVER, str(port), str(path / "jobs.db")) as process:
        await asyncio.to_thread(wait_until_served, port, 20)
        async with Client(base_url=f"http://127.0.0.1:{port}/workers/", timeout=15) as client:
            yield process, client


async def busy(client: Client) -> "dict[str, int]":
    """The pids of the workers that run a job, by its id, once there are some."""

    def pids(found: Any) -> "dict[str, int]":
        return {worker["job_id"]: worker["pid"] for worker in found["workers"] if worker["job_id"]}

    found: "dict[str, int]" = await client.when("api/workers", pids)
    return found


@pytest.mark.limit(90)
async def test_two_servers_show_the_workers_and_the_counts_of_both(tmp_path: Path) -> None:
    """Also what they use, and in events; those of a server that was killed are gone, and a new one finds its jobs."""
    async with server(tmp_path) as (_, one):
        async with server(tmp_path) as (process, two):
            mine = await two.start("spin")
            async with one.events("api/events") as events:
                seen = [event.data async for event in first(events, lambda event: event.data.get("job_id") == mine["id"])]
            workers = await busy(one)
            assert workers == {mine["id"]: seen[-1]["pid"]} == await busy(two)
            (used,) = [worker for worker in (await one.get("api/workers")).json()["workers"] if worker["job_id"]]
            assert used["memory"] > 1 << 20 and used["pid"] == workers[mine["id"]]
            await one.when("api/jobs", lambda found: found["counts"]["running"] == 1)
            process.kill()
            await asyncio.to_thread(process.wait)
        await one.when("api/workers", lambda found: not any(worker["job_id"] for worker in found["workers"]))
    async with server(tmp_path) as (_, again):
        assert (await again.ended(mine["id"]))["error"]["category"] == "interrupted"
        assert [job["id"] for job in (await again.get("api/jobs")).json()["jobs"]] == [mine["id"]]
        assert (await again.get("api/jobs")).json()["counts"]["failed"] == 1


WORKER = """
import asyncio, sys, time
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.integrations.store import SQLiteJobStore

def nap(): time.sleep(60)

async def main():
    async with JobManager("test", "store", plugins={"nap": nap}, job_store=SQLiteJobStore(sys.argv[1])) as manager:
        await (await manager.start_job("nap"))

asyncio.run(main())
"""


@pytest.mark.limit(60)
async def test_workers_are_shown_of_a_process_that_has_served_no_request(tmp_path: Path) -> None:
    """It has no HTTP API at all: the worker of its own job is in the list, and gone when the process is killed."""
    async with durable(tmp_path, spin) as one, serving(WorkersApp(one)) as client:

        def theirs(found: Any) -> "list[str]":
            return [worker["plugin_id"] for worker in found["workers"] if worker["job_id"]]

        with script(tmp_path / "other.py", WORKER, str(tmp_path / "jobs.db")) as process:
            await client.when("api/workers", lambda found: theirs(found) == ["nap"])
            process.kill()
            await client.when("api/workers", lambda found: not theirs(found))


async def first(events: Any, wanted: Any) -> Any:
    """Events of workers up to one that is wanted."""
    async for event in events:
        if event.type == "worker":
            yield event
            if wanted(event):
                return
