"""The servers that `sse.py` compares. Each is a program that reads orders from stdin, one JSON line after another.

`python sse_servers.py NAME PORT` serves `/events` on loopback. `{"events": 200, "rate": 0}` broadcasts so many events, as fast as
that goes or so many per second, and says `done`. Every event has the time at which it was broadcast, between two tildes."""

import asyncio
import gc
import json
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, Awaitable, Callable

Broadcast = Callable[[str, "dict[str, Any]"], Awaitable[None]]


def data(now: float) -> "dict[str, Any]":
    """What a job's progress looks like."""
    at = f"~{now:020.9f}~"
    return {"worker_type": "speech", "job_id": "0123456789abcdef", "progress": 0.5, "message": "halfway", "at": at}


async def obey(broadcast: Broadcast) -> None:
    """Do what stdin says."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        if order.get("collect"):
            gc.collect()
        start = time.perf_counter()
        for number in range(order.get("events", 0)):
            if order["rate"]:
                await asyncio.sleep(max(0, start + number / order["rate"] - time.perf_counter()))
            await broadcast("job:progress", data(time.monotonic()))
            if order.get("pause") and not number % order["pause"]:
                await asyncio.sleep(0.001)
        print("done", flush=True)


async def bare(port: int) -> None:
    """asyncio's own server: pre-encoded bytes, one write for each event and client."""
    writers: "list[asyncio.StreamWriter]" = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n: connected\n\n")
        writers.append(writer)

    async def broadcast(event_type: str, facts: "dict[str, Any]") -> None:
        block = b"id: 0123abcd-100000\nevent: job:progress\ndata: " + facts["at"].encode() + PADDING + b"\n\n"
        for writer in writers:
            writer.write(block)

    async with await asyncio.start_server(connected, "127.0.0.1", port, backlog=2048):
        print("ready", flush=True)
        await obey(broadcast)


PADDING = b" " * (len(json.dumps(data(0), separators=(",", ":"))) - 22)


async def uvicorn(app: Any, port: int, broadcast: Broadcast) -> None:
    """An ASGI app under uvicorn on asyncio's own loop."""
    from uvicorn import Config, Server

    server = Server(Config(app, port=port, log_level="error", access_log=False, loop="asyncio", backlog=2048))
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await obey(broadcast)
    serving.cancel()


async def ours(port: int) -> None:
    """A ring, mounted in Starlette."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    from cjm_worker_protocols.integrations.sse import SSEBroadcaster

    broadcaster = SSEBroadcaster()
    await uvicorn(Starlette(routes=[Route("/events", broadcaster)]), port, broadcaster.broadcast)


async def redis(port: int) -> None:
    """The same, with a stream of a Redis of its own in between."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    from cjm_worker_protocols.integrations.redis import RedisBroadcaster

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        where = sock.getsockname()[1]
    settings = ["--bind", "127.0.0.1", "--port", str(where), "--dir", tempfile.gettempdir(), "--save", "", "--appendonly", "no"]
    with subprocess.Popen(["redis-server", *settings], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:
        try:
            broadcaster = RedisBroadcaster(f"redis://127.0.0.1:{where}")
            await broadcaster.ready()
            await uvicorn(Starlette(routes=[Route("/events", broadcaster)]), port, broadcaster.broadcast)
        finally:
            server.kill()


class Queues:
    """A queue for each client, as tutorials have it."""

    def __init__(self) -> None:
        self.all: "set[asyncio.Queue[Any]]" = set()

    async def broadcast(self, event_type: str, facts: "dict[str, Any]") -> None:
        """Put an event into each."""
        for queue in self.all:
            queue.put_nowait((event_type, facts))

    async def each(self, write: Callable[[str, Any], Any]) -> Any:
        """All events for one client."""
        queue: "asyncio.Queue[Any]" = asyncio.Queue()
        self.all.add(queue)
        try:
            while True:
                yield write(*await queue.get())
        finally:
            self.all.discard(queue)


async def sse_starlette(port: int) -> None:
    """sse-starlette's response."""
    from sse_starlette import EventSourceResponse, ServerSentEvent
    from starlette.applications import Starlette
    from starlette.routing import Route

    queues = Queues()

    def write(event_type: str, facts: "dict[str, Any]") -> Any:
        return ServerSentEvent(json.dumps(facts), event=event_type)

    async def events(request: Any) -> Any:
        return EventSourceResponse(queues.each(write))

    await uvicorn(Starlette(routes=[Route("/events", events)]), port, queues.broadcast)


async def fasthtml(port: int) -> None:
    """FastHTML's response."""
    from fasthtml.common import EventStream, FastHTML, sse_message

    queues, app = Queues(), FastHTML(secret_key="loopback")  # without a key it writes one into a file

    def write(event_type: str, facts: "dict[str, Any]") -> Any:
        return sse_message(json.dumps(facts), event=event_type)

    @app.get("/events")  # type: ignore[misc]
    async def events() -> Any:
        return EventStream(queues.each(write))

    await uvicorn(app, port, queues.broadcast)


if __name__ == "__main__":
    servers = {"bare": bare, "ours": ours, "redis": redis, "sse-starlette": sse_starlette, "fasthtml": fasthtml}
    asyncio.run(servers[sys.argv[1]](int(sys.argv[2])))
