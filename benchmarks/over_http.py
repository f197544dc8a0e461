"""What does a job cost over HTTP, beside a server that only echoes, and how fast is a stream?"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import Row, Target, compare, interleave, main, peer, timed

from cjm_worker_protocols import JobManager

BODY = json.dumps({"plugin_id": "noop", "params": {"text": "hi"}}).encode()
HEADERS = {"Content-Type": "application/json"}


def noop(text: str) -> str:
    """A plugin that does nothing."""
    return text


class Server:
    """One of `over_http_servers.py`, with one connection that stays open."""

    def __init__(self, name: str, path: str) -> None:
        self.path = path
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        script = Path(__file__).with_name("over_http_servers.py")
        quiet = subprocess.DEVNULL
        command = [sys.executable, str(script), name, str(self.port)]
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            self.connection = self.connect()
        except RuntimeError:
            self.close()
            raise

    def connect(self) -> http.client.HTTPConnection:
        """A connection, as soon as the server listens."""
        for _ in range(600):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                connection.connect()
            except OSError:
                time.sleep(0.05)
            else:
                return connection
        raise RuntimeError(f"nothing listens on port {self.port}")

    def ask(self, path: str = "", body: bytes = BODY) -> Any:
        """The JSON that is answered to a POST."""
        self.connection.request("POST", path or self.path, body, HEADERS)
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.status in (200, 202), (answer.status, text)
        return json.loads(text)

    async def ask_often(self, count: int) -> None:
        """So many requests, one after another."""
        for _ in range(count):
            self.ask()

    def events(self, path: str) -> Any:
        """The lines of a stream, as they come."""
        connection = self.connect()
        connection.request("GET", path)
        return connection.getresponse()

    def close(self) -> None:
        """End the server with its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def read(stream: Any, count: int) -> None:
    """Read so many chunks of a stream."""
    mark, found, rest = b"event: chunk\n", 0, b""
    while found < count:
        part = stream.read1(1 << 16)
        assert part, f"the stream has ended after {found} chunks"
        found += (rest + part).count(mark)
        rest = part[1 - len(mark) :]


async def measure(rounds: int, requests: int, chunks: int) -> "list[Row]":
    """Seconds of a request that waits for its job; chunks per second to one client.

    What ours adds is judged by the sum of its two parts, a bare echo and our round trip, which this process does one after the other: so a
    client, a server and a worker are awake on each side, and each of them has been idle for as long and finds its caches as cold. Each part
    again and again by itself keeps two processes hot, and takes less time for the same work: a row says how much."""
    echo, parts = "bare endpoint that echoes through the same job", "bare echo and our round trip, one after the other"
    paths = {"ours": "/api/jobs?wait=true", "echo": "/predict"}
    if peer("litserve", "litserve"):
        paths["litserve"] = "/predict"
    servers: "dict[str, Server]" = {}

    async def trip() -> None:
        await (await manager.start_job("noop", text="hi"))

    async def trips() -> None:
        for _ in range(requests):
            await trip()

    async def in_turn() -> None:
        for _ in range(requests):
            servers["echo"].ask()
            await trip()

    async def bare() -> None:
        for _ in range(requests):
            ours.ask("/bare")

    async def stream() -> None:
        body = json.dumps({"plugin_id": "pieces", "params": {"count": chunks}}).encode()
        job = ours.ask("/api/jobs", body)
        read(ours.events(f"/api/jobs/{job['id']}/stream"), chunks)

    async def broadcast() -> None:
        events = ours.events("/events/")
        events.readline()
        ours.ask(f"/burst?count={chunks}", b"")
        read(events, chunks)

    try:
        for name, path in paths.items():
            servers[name] = Server(name, path)
        ours = servers["ours"]
        async with JobManager("bench", "http", plugins={"noop": noop}) as manager:
            works = {name: lambda server=server: timed(lambda: server.ask_often(requests)) for name, server in servers.items()}
            others = {"bare": lambda: timed(bare), "in_turn": lambda: timed(in_turn), "trips": lambda: timed(trips)}
            times = await interleave(rounds, **works, **others)
        streams = await interleave(rounds, ours=lambda: timed(stream), sse=lambda: timed(broadcast))
    finally:
        for server in servers.values():
            server.close()
    each = {name: [took / requests for took in found] for name, found in times.items()}
    apart = [a + b for a, b in zip(each["echo"], each["trips"])]
    rows, question, goal = [], "no-op job over HTTP", Target("at most", 1.3)
    rows.append(compare(question, each["ours"], parts, each["in_turn"], goal))
    rows.append(compare(question, each["ours"], echo, each["bare"], goal))
    if "litserve" in each:
        rows.append(compare(question, each["ours"], "LitServe", each["litserve"], Target("at most", 1)))
    rows.append(compare(parts, each["in_turn"], "each by itself", apart))
    rates = {name: [chunks / took for took in found] for name, found in streams.items()}
    rows.append(compare("chunks of a job over HTTP", rates["ours"], "our broadcaster", rates["sse"], Target("at least", 0.5), rates=True))
    return rows


if __name__ == "__main__":
    main(measure, full={"rounds": 9, "requests": 100, "chunks": 20_000}, tiny={"rounds": 1, "requests": 2, "chunks": 50}, limit=120)
