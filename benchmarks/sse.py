"""Events to browsers: how many, how late, at what price, and what does one stuck client do?"""

import json
import resource
import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from typing import Any, Optional

import psutil
from bench import Row, Target, compare, interleave, main, peer

from cjm_worker_protocols.integrations.sse import SSEBroadcaster

PEERS = {"bare": "bare asyncio server", "sse-starlette": "sse-starlette", "fasthtml": "FastHTML `EventStream`", "redis": "ours over Redis"}
if not peer("sse-starlette", "sse_starlette"):
    del PEERS["sse-starlette"]
REQUEST = b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n"


def free_port() -> int:
    """Find a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """One of `sse_servers.py`, and its clients: all in this one thread, reading as fast as they can."""

    def __init__(self, name: str) -> None:
        self.name, self.port, self.clients = name, free_port(), {}  # type: str, int, dict[int, socket.socket]
        self._buffer = bytearray(1 << 20)
        command = [sys.executable, str(Path(__file__).with_name("sse_servers.py")), name, str(self.port)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._poll = select.epoll()
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{name} did not start")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        children = psutil.Process(self._process.pid).children()  # a redis-server
        self._process.kill()
        self._process.wait()
        for child in children:
            child.kill()
        self._poll.close()
        for sock in self.clients.values():
            sock.close()

    def connect(self, count: int) -> None:
        """So many clients, each of which has got the beginning of its response."""
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", self.port), 10)
            sock.sendall(REQUEST)
            got = b""
            while b"\r\n\r\n" not in got:
                got += sock.recv(4096)
            assert b" 200 " in got, got
            sock.setblocking(False)
            self.clients[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)
        time.sleep(0.2)

    def stuck(self) -> socket.socket:
        """A client that never takes anything."""
        sock = socket.create_connection(("127.0.0.1", self.port), 10)
        sock.sendall(REQUEST)
        time.sleep(0.2)
        return sock

    def order(self, **what: Any) -> None:
        """Tell the server what to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        self._process.stdin.flush()

    def done(self) -> None:
        """Wait until it has done so."""
        assert self._process.stdout is not None and self._process.stdout.readline() == b"done\n"

    def memory(self) -> int:
        """What it holds now, in bytes."""
        self.order(collect=True)
        self.done()
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def receive(self, events: int, delays: "list[float] | None" = None, limit: float = 60) -> None:
        """Read until each client has had so many events."""
        left, end, buffer = events * len(self.clients) * 2, time.monotonic() + limit, self._buffer
        while left > 0:
            for fd, _ in self._poll.poll(1):
                got = self.clients[fd].recv_into(buffer)
                if not got:
                    raise RuntimeError(f"{self.name} put a client out")
                left -= (tildes := buffer.count(b"~", 0, got))
                if delays is not None and tildes:
                    at = buffer.rfind(b"~", 0, got)
                    delays.append(time.monotonic() - float(buffer[at - 20 : at]))
            if time.monotonic() > end:
                raise RuntimeError(f"{self.name}: {left // 2} events did not come")

    def throughput(self, events: int) -> float:
        """Events delivered per second, of a burst."""
        start = time.perf_counter()
        self.order(events=events, rate=0)
        self.receive(events)
        took = time.perf_counter() - start
        self.done()
        return events * len(self.clients) / took

    def delay(self, events: int, rate: float) -> float:
        """The 99th percentile of what passes until a client has an event, in seconds."""
        delays: "list[float]" = []
        self.order(events=events, rate=rate)
        self.receive(events, delays)
        self.done()
        return quantiles(delays, n=100)[98] if len(delays) > 1 else delays[0]



class Fleet:
    """A server of each kind, each with so many clients; they are asked in turn."""

    def __init__(self, servers: "dict[str, Server]", clients: int) -> None:
        self.servers, self.clients = servers, clients
        self.per_client: "dict[str, list[float]]" = {}
        for name, server in servers.items():
            server.connect(1)  # with the first a server makes what it has only once
            before = server.memory()
            server.connect(clients - 1)
            self.per_client[name] = [(server.memory() - before) / max(1, clients - 1)]

    def ask(self, rounds: int, question: str, *how: Any) -> "dict[str, list[float]]":
        """Each server's answers, after a round that does not count."""
        found: "dict[str, list[float]]" = {name: [] for name in self.servers}
        for number in range(rounds + 1):
            for name, server in self.servers.items():
                answer = getattr(server, question)(*how)
                if number:
                    found[name].append(answer)
        return found


def rows(question: str, found: "dict[str, list[float]]", targets: "dict[str, Target]", **kind: bool) -> "list[Row]":
    """Ours against each of the others."""
    return [compare(question, found["ours"], PEERS[name], found[name], targets.get(name), **kind) for name in PEERS if name in found]


def fan_out(rounds: int, label: str, clients: int, burst: int, few: int, rate: float) -> "list[Row]":
    """How many events come, how late they come, and what a client costs."""
    with ExitStack() as stack:
        fleet = Fleet({name: stack.enter_context(Server(name)) for name in ("ours", *PEERS)}, clients)
        many = label != "1"
        eight = Target("at least", 8)
        fast = {"bare": Target("at least", 4), "sse-starlette": eight, "fasthtml": eight} if many else {}
        found = rows(f"events delivered per second, clients: {label}", fleet.ask(rounds, "throughput", burst), fast, rates=True)
        late = fleet.ask(2 * rounds + 1, "delay", few, rate)
        found += rows(f"p99 delay at a low rate, clients: {label}", late, {"bare": Target("at most", 2)})
        if many:
            targets = {"sse-starlette": Target("at most", 0.333)}
            found += rows(f"memory per client, clients: {label}", fleet.per_client, targets, sizes=True)
        return found


def stuck(events: int) -> "list[Row]":
    """One client takes nothing while another gets all events: how long that takes, and what it leaves in memory."""
    took: "dict[str, list[float]]" = {}
    grown: "dict[str, list[float]]" = {}
    flat: "Optional[Row]" = None
    for name in ("ours", *PEERS):
        with Server(name) as server, server.stuck():
            server.connect(1)
            sizes = [server.memory()]
            start = time.perf_counter()
            for count in (events // 10, events - events // 10):
                server.order(events=count, rate=0, pause=100)
                server.receive(count)
                server.done()
                sizes.append(server.memory())
            took[name] = [time.perf_counter() - start]
            grown[name] = [max(1.0, sizes[2] - sizes[0])]
            if name == "ours":
                a, b = float(sizes[2]), float(sizes[1])
                what = "memory after 100,000 events, one client stuck"
                flat = compare(what, [a], "after 10,000", [b], Target("at most", 1.1), sizes=True)
    assert flat is not None
    question = "100,000 events, one client stuck"
    return [*rows(f"{question}: time", took, {}), flat, *rows(f"{question}: memory they take", grown, {}, sizes=True)]


async def no_client(rounds: int, calls: int) -> "list[Row]":
    """What a broadcast costs without a client."""
    from sse_servers import data

    facts, broadcaster = data(time.monotonic()), SSEBroadcaster()

    async def dumps() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            json.dumps(facts)
        return (time.perf_counter() - start) / calls

    async def broadcast() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            await broadcaster.broadcast("job:progress", facts)
        return (time.perf_counter() - start) / calls

    times = await interleave(rounds, dumps=dumps, ours=broadcast)
    return [compare("`broadcast` with no client", times["ours"], "`json.dumps`", times["dumps"], Target("at most", 3))]


async def measure(rounds: int, calls: int, sizes: "list[tuple[str, int, int, int, float]]", events: int) -> "list[Row]":
    """Ours against a server that only writes bytes, and against servers with a queue for each client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16384)), hard))
    found = await no_client(rounds * 3, calls)
    for size in sizes:
        found += fan_out(rounds, *size)
    return found + stuck(events)


# Bursts longer than the 256 events that may gather before a turn of the loop
FULL = [("1", 1, 2000, 100, 100.0), ("100", 100, 1000, 20, 20.0), ("1,000", 1000, 300, 12, 5.0)]
TINY = [("1", 1, 10, 2, 20.0), ("100", 2, 10, 2, 20.0), ("1,000", 3, 10, 2, 20.0)]

if __name__ == "__main__":
    full = {"rounds": 3, "calls": 5000, "sizes": FULL, "events": 100_000}
    main(measure, full=full, tiny={"rounds": 1, "calls": 10, "sizes": TINY, "events": 100}, limit=840)
