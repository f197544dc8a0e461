"""What the tests of server-sent events share: the rules of the event stream format, a raw client, and apps under a real uvicorn."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cjm_worker_protocols.integrations.sse import EventStreams


class Got(NamedTuple):
    """An event as a browser would dispatch it."""

    type: str
    data: str
    id: str

    def json(self) -> Any:
        """Its data."""
        return json.loads(self.data)


class Parser:
    """The parsing rules of the WHATWG, line by line. Written from the standard, not from our encoder."""

    def __init__(self) -> None:
        self.events: "list[Got]" = []
        self.comments: "list[str]" = []
        self.retry: "int | None" = None
        self.last_id = ""
        self._rest, self._bytes = "", b""
        self._type, self._data, self._id = "", "", ""

    def feed(self, data: bytes) -> None:
        """Take some bytes, cut anywhere."""
        self._bytes += data
        end = len(self._bytes)
        while end and end > len(self._bytes) - 4:
            try:
                text = self._bytes[:end].decode()
                break
            except UnicodeDecodeError:
                end -= 1
        else:
            return
        self._rest, self._bytes = self._rest + text, self._bytes[end:]
        while True:
            ends = [i for i in (self._rest.find("\r"), self._rest.find("\n")) if i >= 0]
            if not ends or (self._rest[min(ends)] == "\r" and min(ends) == len(self._rest) - 1):
                return
            at = min(ends)
            width = 2 if self._rest[at : at + 2] == "\r\n" else 1
            line, self._rest = self._rest[:at], self._rest[at + width :]
            self._line(line)

    def _line(self, line: str) -> None:
        if not line:
            self.last_id = self._id
            if self._data:
                self.events.append(Got(self._type or "message", self._data.removesuffix("\n"), self.last_id))
            self._type = self._data = ""
            return
        name, colon, value = line.partition(":")
        if colon and not name:
            self.comments.append(value)
            return
        value = value.removeprefix(" ")
        if name == "event":
            self._type = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until_served(port: int, limit: float = 10) -> None:
    """Wait until something listens on a port of loopback."""
    end = time.monotonic() + limit
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < end, f"nothing listens on port {port}"
            time.sleep(0.01)


class Client:
    """A socket to a stream: what it gets is put through the chunks of HTTP/1.1 and the parser."""

    def __init__(self, port: int, path: str = "/events", method: str = "GET", **headers: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
        self.sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{''.join(lines)}\r\n".encode())
        self.parser, self.ended, self.body = Parser(), False, b""
        self._raw = b""
        while b"\r\n\r\n" not in self._raw:
            got = self.sock.recv(65536)
            assert got, "no answer"
            self._raw += got
        head, self._raw = self._raw.split(b"\r\n\r\n", 1)
        first, *rest = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in rest)}
        self._unchunk()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def _unchunk(self) -> None:
        while b"\r\n" in self._raw and not self.ended:
            size, rest = self._raw.split(b"\r\n", 1)
            length = int(size, 16)
            if len(rest) < length + 2:
                return
            self.body += rest[:length]
            self.parser.feed(rest[:length])
            self._raw = rest[length + 2 :]
            self.ended = length == 0

    def read(self, timeout: float = 5) -> bool:
        """Read something; false at the end of the stream."""
        self.sock.settimeout(timeout)
        try:
            got = self.sock.recv(1 << 20)
        except ConnectionError:
            got = b""
        self._raw += got
        self._unchunk()
        if not got:
            self.ended = True
        return not self.ended

    def until(self, count: int = 1, type: "str | None" = None, limit: float = 15) -> "list[Got]":
        """Wait for so many events (of a type), and give all events."""
        end = time.monotonic() + limit
        while sum(type in (None, e.type) for e in self.parser.events) < count:
            assert self.read(max(0.01, end - time.monotonic())), f"the stream ended after {self.parser.events}"
        return self.parser.events

    def until_end(self, limit: float = 10) -> None:
        """Wait until the stream is over."""
        end = time.monotonic() + limit
        while not self.ended and self.read(max(0.01, end - time.monotonic())):
            pass


def starlette_app(broadcaster: Any, *middleware: Any) -> Any:
    """In Starlette, as a route."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    return Starlette(routes=[Route("/events", broadcaster)], middleware=list(middleware))


def fastapi_app(inner: Any, path: str = "/events") -> Any:
    """In FastAPI, mounted, as its own documentation has it."""
    from fastapi import FastAPI

    app = FastAPI()
    app.mount(path, inner)
    return app


def fasthtml_app(inner: Any, path: str = "/events") -> Any:
    """In FastHTML, mounted."""
    from fasthtml.common import FastHTML

    app = FastHTML(secret_key="of no use")
    app.mount(path, inner)
    return app


APPS = {"starlette": starlette_app, "fastapi": fastapi_app, "fasthtml": fasthtml_app}
PATHS = {"starlette": "/events", "fastapi": "/events/", "fasthtml": "/events/"}


class Served:
    """A broadcaster under uvicorn, on a loop and a thread of its own."""

    def __init__(self, broadcaster: Any, loop: asyncio.AbstractEventLoop, port: int) -> None:
        self.broadcaster, self.loop, self.port = broadcaster, loop, port

    def call(self, coroutine: Any, limit: float = 20) -> Any:
        """Run something on the loop that serves."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(limit)

    def broadcast(self, event_type: str, **data: Any) -> None:
        """Broadcast on the loop that serves."""
        self.call(self.broadcaster.broadcast(event_type, data))

    def broadcast_many(self, count: int, event_type: str = "tick", start: int = 0, **data: Any) -> None:
        """So many, in one go."""

        async def many() -> None:
            for n in range(start, start + count):
                await self.broadcaster.broadcast(event_type, {"n": n, **data})

        self.call(many(), 60)

    def wait_for(self, clients: int, limit: float = 5) -> None:
        """Wait until there are so many clients."""
        end = time.monotonic() + limit
        while self.broadcaster.counters.clients != clients:
            assert time.monotonic() < end, f"{self.broadcaster.counters} instead of {clients} clients"
            time.sleep(0.005)


@contextmanager
def serve(broadcaster: Any, app: Any = None, port: "int | None" = None, **config: Any) -> "Iterator[Served]":
    """Serve an app (by default Starlette with the broadcaster at /events) until the block ends."""
    from uvicorn import Config, Server

    port = port or free_port()
    app = starlette_app(broadcaster) if app is None else app
    server = Server(Config(app, port=port, timeout_graceful_shutdown=5, **{"log_level": "error", "loop": "asyncio", **config}))
    loops: "list[asyncio.AbstractEventLoop]" = []

    def run() -> None:
        async def main() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve()

        asyncio.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        end = time.monotonic() + 10
        while not server.started and time.monotonic() < end:
            time.sleep(0.005)
        assert server.started
        yield Served(broadcaster, loops[0], port)
    finally:
        broadcaster.close()
        server.should_exit = True
        thread.join(15)
        assert not thread.is_alive()


class InProcess:
    """The kit's client, as a subscription."""

    def __init__(self, broadcaster: EventStreams) -> None:
        self.subscription, self.got = broadcaster.subscribe(), list[Any]()

    def received(self) -> "list[Any]":
        """What came."""
        self.got += [(e.type, e.json()) for e in self.subscription.take()]
        return self.got

    def close(self) -> None:
        """Leave."""
        self.subscription.close()


class OverAsgi:
    """The kit's client, as a browser behind an ASGI server. It takes no more than a socket would until somebody reads."""

    def __init__(self) -> None:
        self.parser, self.left, self.room = Parser(), asyncio.Event(), asyncio.Event()
        self.size = 0

    @classmethod
    async def connect(cls, broadcaster: EventStreams) -> "OverAsgi":
        """Connect, and wait until the stream is open."""
        self = cls()
        scope = {"type": "http", "method": "GET", "query_string": b"", "headers": []}
        self.task = asyncio.ensure_future(broadcaster(scope, self.receive, self.send))
        while self.parser.retry is None:
            await asyncio.sleep(0)
        return self

    async def receive(self) -> "dict[str, Any]":
        """What a server says of a client."""
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """What a server takes for a client."""
        while self.size > 1000:
            self.room.clear()
            await self.room.wait()
        self.size += len(message.get("body", b""))
        self.parser.feed(message.get("body", b""))

    def received(self) -> "list[Any]":
        """What came."""
        self.size = 0
        self.room.set()
        return [(e.type, e.json()) for e in self.parser.events]

    async def close(self) -> None:
        """Leave."""
        self.left.set()
        await asyncio.wait({self.task})
