"""What the tests of the HTTP API share: a real server on a free port, and a client that reads its streams."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvicorn
from harness import until
from repo import ROOT

TOKEN = "a-token-for-the-tests-1234"


class Sent(NamedTuple):
    """An event of a stream."""

    type: str
    data: Any
    id: str


class Client(httpx.AsyncClient):
    """A client of one server."""

    async def start(self, plugin_id: str, query: str = "", **params: Any) -> "dict[str, Any]":
        """Start a job, and give its document."""
        answer = await self.post(f"api/jobs{query}", json={"plugin_id": plugin_id, "params": params})
        assert answer.status_code in (200, 202), answer.text
        found: "dict[str, Any]" = answer.json()
        return found

    async def ended(self, job_id: str) -> "dict[str, Any]":
        """The document of a job once it has ended."""
        found: "dict[str, Any]" = await self.when(f"api/jobs/{job_id}", lambda job: job["status"] not in ("pending", "running") and job)
        return found

    async def when(self, path: str, condition: "Callable[[Any], Any]") -> Any:
        """Ask for a document until it meets a condition; gives what the condition gave."""

        async def look() -> Any:
            return condition((await self.get(path)).json())

        return await until(look)

    @asynccontextmanager
    async def events(self, path: str, **headers: str) -> "AsyncIterator[AsyncIterator[Sent]]":
        """A stream of events."""
        async with self.stream("GET", path, headers=headers, timeout=15) as answer:
            assert answer.status_code == 200, await answer.aread()
            yield read_events(answer)


async def read_events(answer: httpx.Response) -> "AsyncIterator[Sent]":
    """The events of a stream, comments left out."""
    fields: "dict[str, str]" = {}
    last = ""
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
            continue
        last = fields.get("id", last)
        if "event" in fields:
            yield Sent(fields["event"], json.loads(fields["data"]), last)
        fields = {}


def problem(answer: httpx.Response) -> "tuple[int, str, str | None]":
    """Status, type and field of a problem document."""
    assert answer.headers["content-type"] == "application/problem+json", (answer.status_code, answer.text)
    document = answer.json()
    assert document["status"] == answer.status_code and document["title"] and document["detail"]
    return answer.status_code, document["type"].partition("#")[2], document.get("field")


@asynccontextmanager
async def serving(app: Any, prefix: str = "/", **headers: str) -> "AsyncIterator[Client]":
    """A client of an app on a real server; the server stops at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="auto", timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        task = asyncio.ensure_future(server._serve([listener]))
        while not server.started:
            assert not task.done(), task
            await asyncio.sleep(0.005)
        try:
            async with Client(base_url=f"http://127.0.0.1:{port}{prefix}", headers=headers, timeout=15) as client:
                yield client
        finally:
            server.should_exit = True
            await task


MINE = """
from cjm_worker_protocols import JobManager
def shout(text: str) -> str: return text.upper()
def make(): return JobManager("mine", "tests", plugins={"shout": shout})
"""


@asynccontextmanager
async def served(
    tmp_path: Path, *arguments: str, source: str = MINE, target: str = "mine:make", **environment: str
) -> "AsyncIterator[tuple[Any, str]]":
    """`cjm-workers serve` with the manager that a module makes, and the address that it prints. In the end it is killed.

    Without a target all installed plugins are served."""
    (tmp_path / "mine.py").write_text(source)
    command = [sys.executable, "-m", "cjm_worker_protocols", "serve", *filter(None, [target]), "--port", "0", *arguments]
    pipe = asyncio.subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe)
    try:
        assert process.stdout is not None
        yield process, (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
