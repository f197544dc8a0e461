"""When a server that has the HTTP API mounted is to stop: clients hear how jobs end, what is open ends, and the process too."""

import asyncio
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import finish, script
from sse_kit import free_port, wait_until_served
from web_kit import Client

APP = """
import sys, time
from contextlib import asynccontextmanager
import uvicorn
from {framework} import {name}
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.web import WorkersApp

def count():
    n = 0
    while True:
        yield (n := n + 1)
        time.sleep(0.01)

def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "rested"

manager = JobManager("test", "stop", plugins={{"count": count, "nap": nap}})

@asynccontextmanager
async def lifespan(app):
    async with manager: yield

app = {name}(lifespan=lifespan)
app.mount("/workers", WorkersApp(manager, drain_timeout=float(sys.argv[2])))
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical")
"""


@asynccontextmanager
async def mounted(path: Path, framework: str = "starlette.applications", name: str = "Starlette", drain_timeout: float = 0.0) -> Any:
    """A server with the app under `/workers/`: its process, and a client."""
    port = free_port()
    with script(path / "app.py", APP.format(framework=framework, name=name), str(port), str(drain_timeout)) as process:
        await asyncio.to_thread(wait_until_served, port, 20)
        async with Client(base_url=f"http://127.0.0.1:{port}/workers/", timeout=15) as client:
            yield process, client


async def ended(process: Any) -> None:
    """The server has ended by itself."""
    await asyncio.to_thread(finish, process, 15)


@pytest.mark.limit(60)
@pytest.mark.parametrize(
    "framework, name", [("starlette.applications", "Starlette"), pytest.param("fastapi", "FastAPI", marks=pytest.mark.slow)]
)
async def test_a_page_hears_the_end_of_jobs_before_its_stream_ends(framework: str, name: str, tmp_path: Path) -> None:
    """The outer app has the lifespan, which ends after all requests; the events of the end come all the same."""
    async with mounted(tmp_path, framework, name) as (process, client):
        async with client.events("api/events") as events:
            job = await client.start("count")
            async for event in events:
                if event.type == "job" and event.data["status"] == "running":
                    break
            process.send_signal(signal.SIGTERM)
            left = [event async for event in events]
        assert [event.data["status"] for event in left if event.type == "job" and event.data["id"] == job["id"]][-1] == "cancelled"
        await ended(process)


@pytest.mark.limit(60)
async def test_a_job_that_runs_may_end_meanwhile(tmp_path: Path) -> None:
    """Its stream and a request that waits get the result; what was asked later is refused; nothing keeps the server."""
    async with mounted(tmp_path, drain_timeout=15.0) as (process, client):
        body = {"plugin_id": "nap", "params": {"seconds": 1.0}}
        waiting = asyncio.ensure_future(client.post("api/jobs?wait=true", json=body))
        running = await client.when("api/jobs?status=running", lambda found: found["jobs"])
        async with client.events(f"api/jobs/{running[0]['id']}/stream") as events:
            process.send_signal(signal.SIGTERM)
            seen = [event async for event in events]
        assert seen[-1].type == "end" and seen[-1].data["result"] == "rested"
        assert (await waiting).json()["result"] == "rested"
        await ended(process)


@pytest.mark.slow
@pytest.mark.limit(60)
async def test_a_request_that_waits_for_long_does_not_keep_the_server(tmp_path: Path) -> None:
    """It is answered when its job has been cancelled; a stream of the job ends as well."""
    async with mounted(tmp_path) as (process, client):
        waiting = asyncio.ensure_future(client.post("api/jobs?wait=true", json={"plugin_id": "count"}))
        running = await client.when("api/jobs?status=running", lambda found: found["jobs"])
        async with client.events(f"api/jobs/{running[0]['id']}/stream") as events:
            await events.__anext__()
            process.send_signal(signal.SIGTERM)
            assert [event async for event in events][-1].data["status"] == "cancelled"
        assert (await waiting).json()["status"] == "cancelled"
        await ended(process)


@pytest.mark.slow
@pytest.mark.limit(60)
async def test_a_form_that_is_still_being_sent_does_not_keep_the_server(tmp_path: Path) -> None:
    """Its client gets 503, since nothing new is accepted."""
    async with mounted(tmp_path) as (process, client):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = "POST /workers/api/jobs HTTP/1.1", "Host: localhost", "Sec-Fetch-Site: same-origin", "Content-Length: 99"
        writer.write("\r\n".join([*head, "Content-Type: multipart/form-data; boundary=x", "Expect: 100-continue", "", ""]).encode())
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")  # the form is being read
        process.send_signal(signal.SIGTERM)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.close()
        await ended(process)
