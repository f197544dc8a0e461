"""Events over Redis: a real redis-server, which is killed, held up and started again; real web processes, real clients."""

import asyncio
import contextlib
import importlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import pytest
from harness import finish, nothing_left, run, said_json, script, until, wait_until  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from redis_kit import REDIS, RedisServer
from repo import NBS, ROOT

pytest.importorskip("redis", reason="redis is not installed: pip install -e '.[dev]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[dev]'")

from sse_kit import APPS, PATHS, Client, InProcess, OverAsgi, free_port, serve, wait_until_served  # noqa: E402

from cjm_worker_protocols.conformance import check  # noqa: E402
from cjm_worker_protocols.core.errors import ConfigError  # noqa: E402
from cjm_worker_protocols.core.masking import Secret  # noqa: E402
from cjm_worker_protocols.extensions.protocols import EventBroadcasterProtocol  # noqa: E402
from cjm_worker_protocols.integrations.redis import (  # noqa: E402
    RedisAwayError,
    RedisBroadcaster,
    RedisExtraError,
    RedisUrlError,
    shown_url,
)
from cjm_worker_protocols.integrations.redis.connection import RedisLink  # noqa: E402
from cjm_worker_protocols.integrations.redis.reader import PageSize, RedisLog, RedisReader, StreamFollower  # noqa: E402
from cjm_worker_protocols.integrations.redis.writer import RedisWriter  # noqa: E402
from cjm_worker_protocols.integrations.sse import BroadcastLoopError, EventDataError, EventMarkError, EventTypeError, ServerSentEvent  # noqa: E402

pytestmark = pytest.mark.skipif(REDIS is None, reason="redis-server is not installed: apt-get install redis-server")
STREAM = "cjm-workers:events"
FAST: "dict[str, Any]" = {"timeout": 0.5, "longest_pause": 0.1}  # a test does not want to wait


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[RedisServer]":
    """A server for the tests that do nothing to it; each has a stream of its own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """A stream for one test."""
    return f"test:{request.node.name}"


@asynccontextmanager
async def broadcasting(*given: Any, **settings: Any) -> "AsyncIterator[RedisBroadcaster]":
    """A broadcaster that is closed in the end, and leaves no task."""
    broadcaster = RedisBroadcaster(*given, **settings)
    try:
        yield broadcaster
    finally:
        await asyncio.wait_for(broadcaster.aclose(), 20)
        assert ended(broadcaster)


def ended(broadcaster: RedisBroadcaster) -> bool:
    """Whether its tasks have."""
    return all(task is None or task.done() for task in (broadcaster.exchange.writer.task, broadcaster.exchange.reader.task))


async def take(subscription: Any, count: int, limit: float = 20) -> "list[ServerSentEvent]":
    """The next events of a subscription."""

    async def some() -> "list[ServerSentEvent]":
        return [await subscription.__anext__() for _ in range(count)]

    return await asyncio.wait_for(some(), limit)


async def written(broadcaster: RedisBroadcaster, limit: float = 20) -> None:
    """Wait until nothing waits to be written."""
    await until(lambda: not broadcaster.redis.waiting, limit)


def connections(server: RedisServer, most: int) -> None:
    """Wait until a server has no more than so many, that of who asks among them."""
    wait_until(lambda: server.ask("CLIENT", "LIST").strip().count("\n") < most)


def numbers(server: RedisServer, stream: str = STREAM, event_type: str = "tick") -> "list[int]":
    """What the stream has, as any program would read it."""
    return [json.loads(fields["data"])["n"] for _, fields in server.events(stream) if fields["type"] == event_type]


# In one process


def test_a_client_hears_over_the_stream(shared: RedisServer, stream: str) -> None:
    """Type, data and topic come as they were; the id of an event is that of its entry in the stream."""
    broadcaster = RedisBroadcaster(shared.url, stream, topic=lambda event_type, data: data.get("job_id"))
    with serve(broadcaster) as served, Client(served.port) as client, Client(served.port, "/events?topic=j2") as other:
        served.broadcast("job:started", job_id="j1", text="naïve\r\nlines\0")
        served.broadcast("job:started", job_id="j2")
        served.broadcast("no topic")
        served.broadcast("job:ended", job_id="j2")
        events = client.until(4)
        assert [e.json() for e in events] == [{"job_id": "j1", "text": "naïve\r\nlines\0"}, {"job_id": "j2"}, {}, {"job_id": "j2"}]
        assert [e.type for e in other.until(2)] == ["job:started", "job:ended"]
        entries = shared.events(stream)
        assert [e.id for e in events] == [event_id for event_id, _ in entries]
        assert [fields.get("topic") for _, fields in entries] == ["j1", "j2", None, "j2"]
        assert broadcaster.last_event_id == entries[-1][0]


@pytest.mark.parametrize("name", sorted(APPS))
def test_under_every_framework(name: str, shared: RedisServer) -> None:
    """Starlette, FastAPI and FastHTML."""
    broadcaster = RedisBroadcaster(shared.url, f"framework:{name}")
    with serve(broadcaster, APPS[name](broadcaster)) as served, Client(served.port, PATHS[name]) as client:
        served.broadcast("t", n=1)
        assert client.until()[0].json() == {"n": 1}


@pytest.mark.parametrize("probe", [InProcess, OverAsgi.connect])
def test_the_conformance_kit_finds_nothing(probe: Any, shared: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check passes: no finding, no waiver, nothing that could not be observed."""
    # For a busy machine: each event goes to a server and back
    monkeypatch.setattr("cjm_worker_protocols.conformance.checks.Limits.MANY", 20)
    made: "list[RedisBroadcaster]" = []

    def factory() -> RedisBroadcaster:
        made.append(RedisBroadcaster(shared.url, f"kit:{probe.__qualname__}:{len(made)}"))
        return made[-1]

    report = check(factory, "events", probe=probe)
    assert report.counts["passed"] == len(report.outcomes), str(report)
    assert isinstance(made[0], EventBroadcasterProtocol)


def test_who_subscribes_before_has_what_is_broadcast_after(shared: RedisServer, stream: str) -> None:
    """Even if the ring was not filled yet. Who comes back after an id gets the rest, and who comes late begins now."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream) as broadcaster:
            now = broadcaster.subscribe()
            for n in range(10):
                await broadcaster.broadcast("tick", {"n": n})
            events = await take(now, 10)
            assert [e.json()["n"] for e in events] == list(range(10))
            assert [e.json()["n"] for e in broadcaster.subscribe(last_event_id=events[3].id).take()] == list(range(4, 10))
            assert broadcaster.subscribe().take() == []

    run(scenario())


def test_who_subscribes_after_this_process_has_written_misses_nothing_either(shared: RedisServer, stream: str) -> None:
    """The writer works already when the first follower comes; it waits until the reader has taken its place."""

    async def scenario(busy: bool) -> None:
        async with broadcasting(shared.url, f"{stream}:{busy}") as broadcaster:
            await broadcaster.broadcast("before", {})
            if not busy:
                await written(broadcaster)
            await asyncio.sleep(0)
            now = broadcaster.subscribe()
            await broadcaster.broadcast("after", {})
            types = [(await take(now, 1))[0].type]
            if types == ["before"]:  # it was not written yet when the follower came
                types += [(await take(now, 1))[0].type]
            assert types[-1] == "after"

    for busy in (False, True):
        run(scenario(busy))


def test_a_history_of_one_survives_a_lost_stream(tmp_path: Path) -> None:
    """One reset, then what is new; the reader does not turn in circles."""
    with RedisServer(tmp_path) as server:

        async def scenario() -> None:
            async with broadcasting(server.url, history=1, **FAST) as broadcaster:
                client = broadcaster.subscribe()
                await broadcaster.broadcast("old", {})
                assert (await take(client, 1))[0].type == "old"
                server.restart()
                assert (await take(client, 1))[0].type == "reset"
                await broadcaster.broadcast("new", {})
                assert (await take(client, 1))[0].type == "new"
                head = broadcaster.log.ring.head
                await asyncio.sleep(0.3)  # nothing comes by itself
                assert broadcaster.log.ring.head == head

        run(scenario())


def test_a_process_that_only_writes_reads_nothing(shared: RedisServer, stream: str) -> None:
    """It has one connection, and no ring."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream) as broadcaster:
            for n in range(1000):
                await broadcaster.broadcast("tick", {"n": n})
            await written(broadcaster)
            assert broadcaster.redis.read == 0 and broadcaster.last_event_id == ""
        assert numbers(shared, stream) == list(range(1000))

    run(scenario())


def test_what_cannot_be_sent_is_refused(shared: RedisServer, stream: str) -> None:
    """With a named error, before anything is written; from a thread too."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream, topic=lambda t, d: d.get("topic"), key=lambda t, d: d.get("key")) as broadcaster:
            for event_type, data, error in (
                ("a\nb", {}, EventTypeError),
                ("t", {"v": float("nan")}, EventDataError),
                ("t", {"topic": 7}, EventMarkError),
                ("t", {"topic": "\\ud800".encode().decode("unicode_escape")}, EventMarkError),
            ):
                with pytest.raises(error):
                    await broadcaster.broadcast(event_type, data)
                with pytest.raises(error):
                    broadcaster.broadcast_from_thread(event_type, data)
            assert not broadcaster.redis.waiting and not broadcaster.redis.written

    run(scenario())


def test_only_the_newest_of_a_key_is_sent_to_who_is_behind(shared: RedisServer, stream: str) -> None:
    """Keys mean the same in another process than the one that gave them."""

    async def scenario() -> None:
        keyed = broadcasting(shared.url, stream, key=lambda t, d: (t, d["job_id"]))
        async with keyed as writer, broadcasting(shared.url, stream) as reader:
            await reader.ready()
            late = reader.subscribe()
            for n in range(3):
                for job_id in ("a", "b"):
                    await writer.broadcast("progress", {"job_id": job_id, "n": n})
            await until(lambda: reader.redis.read >= 6)
            assert [(e.json()["job_id"], e.json()["n"]) for e in late.take()] == [("a", 2), ("b", 2)]

    run(scenario())


def test_any_program_may_add_an_event_and_none_can_do_harm(shared: RedisServer, stream: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is no event, or would forge one, is passed over and counted."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream) as broadcaster:
            await broadcaster.ready()
            client = broadcaster.subscribe()
            with shared.client() as redis:
                redis.xadd(stream, {"type": "page", "data": '{"n":1}'})
                redis.xadd(stream, {"no": "event"})
                redis.xadd(stream, {"type": "a\n\nevent: forged", "data": ""})
                redis.xadd(stream, {"type": b"\xff", "data": ""})
                last = redis.xadd(stream, {"type": "page", "data": "two\nlines"})
            events = await take(client, 2)
            assert [(e.type, e.data) for e in events] == [("page", '{"n":1}'), ("page", "two\nlines")]
            assert events[1].id == last and broadcaster.redis.unreadable == 3
            assert "is not an event" in caplog.text

    run(scenario())


async def test_a_client_of_topics_gets_no_other_event(shared: RedisServer, stream: str) -> None:
    """As in one process: an event without a topic is for those who may see everything, at once and by replay; a `gap` is for all."""
    async with broadcasting(shared.url, stream, topic=lambda t, d: d.get("topic")) as writer, broadcasting(shared.url, stream) as reader:
        await reader.ready()
        now, every = reader.subscribe(topics={"a"}), reader.subscribe()
        for n, topic in enumerate((None, "b", "a")):
            await writer.broadcast("t", {"n": n, "topic": topic})
        await written(writer)
        with shared.client() as redis:
            redis.xadd(stream, {"type": "gap", "data": '{"missed":3}'})
        assert len(await take(every, 4)) == 4
        for client in (now, reader.subscribe(topics={"a"}, last_event_id="0")):
            assert [(event.type, event.json().get("n")) for event in client.take()] == [("t", 2), ("gap", None)]


@pytest.mark.parametrize("asked", ["0", "0-0"])
@pytest.mark.parametrize("events", [0, 3, 30])
async def test_zero_is_the_oldest_event_that_is_kept(asked: str, events: int, shared: RedisServer) -> None:
    """In the process that wrote them, and in one that came later; also when older ones are gone, and without a `reset`."""
    stream = f"zero:{asked}:{events}"
    async with broadcasting(shared.url, stream, history=10) as writer, broadcasting(shared.url, stream, history=10) as late:
        for n in range(events):
            await writer.broadcast("tick", {"n": n})
        await written(writer)
        want = list(range(events))[-10:]
        for broadcaster in (late, writer):
            await broadcaster.ready()
            assert [event.json()["n"] for event in broadcaster.subscribe(last_event_id=asked).take()] == want
            client = await _connect(broadcaster, asked)
            await until(lambda: len(client.received()) >= len(want))
            assert [data["n"] for _, data in client.received()] == want
            await client.close()


async def test_no_program_can_forge_what_a_broadcaster_says_of_itself(shared: RedisServer, stream: str) -> None:
    """Nor what `EventSource` says; and `broadcast` refuses these types here too. A `render` may leave an event out."""
    async with broadcasting(shared.url, stream, render=lambda t, d: None if t == "left out" else "x") as broadcaster:
        await broadcaster.ready()
        client = broadcaster.subscribe()
        with shared.client() as redis:
            for event_type in ("error", "open", "reset"):
                redis.xadd(stream, {"type": event_type, "data": "{}"})
        for event_type in ("error", "open", "reset", "gap"):
            with pytest.raises(EventTypeError):
                await broadcaster.broadcast(event_type, {})
        await broadcaster.broadcast("left out", {})
        await broadcaster.broadcast("last", {})
        assert [event.type for event in await take(client, 1)] == ["last"]
        assert broadcaster.redis.unreadable == 3 and broadcaster.redis.written == 1


async def test_browsers_hear_the_end_of_jobs_before_their_streams_end(shared: RedisServer, stream: str) -> None:
    """What is broadcast before the server stops goes to Redis and comes back, then streams end."""
    ended = [f"job:{n}" for n in range(100)]

    async def before_stop() -> None:
        for event_type in ended:
            await broadcaster.broadcast(event_type, {})

    async with broadcasting(shared.url, stream, before_stop=before_stop) as broadcaster:
        await broadcaster.ready()
        client = await _connect(broadcaster, "")
        await until(lambda: client.parser.retry)
        broadcaster.server.stop.hear()
        await until(lambda: client.received() is None or client.task.done())
        assert [event_type for event_type, _ in client.received()] == ended


# Loops and threads


def test_another_loop_is_an_error_and_another_thread_is_not(shared: RedisServer, stream: str) -> None:
    """`broadcast` on another loop raises; `broadcast_from_thread` wakes the writer, in the order of each thread."""
    broadcaster = RedisBroadcaster(shared.url, stream)
    broadcaster.broadcast_from_thread("early", {})
    assert broadcaster.redis.waiting == 1 and broadcaster.last_event_id == ""
    with serve(broadcaster) as served, Client(served.port) as client:
        served.wait_for(1)
        with pytest.raises(BroadcastLoopError, match="broadcast_from_thread"):
            asyncio.run(broadcaster.broadcast("t", {}))

        def work(who: int) -> None:
            for n in range(200):
                broadcaster.broadcast_from_thread("tick", {"who": who, "n": n})

        threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = [e.json() for e in client.until(800, "tick") if e.type == "tick"]
        for who in range(4):
            assert [e["n"] for e in events if e["who"] == who] == list(range(200))
    assert shared.events(stream)[0][1]["type"] == "early"


def test_a_loop_that_has_ended_makes_way_for_another(shared: RedisServer, stream: str) -> None:
    """What was not written yet is written by the next; the ring goes on where it was."""
    broadcaster = RedisBroadcaster(shared.url, stream)

    async def some(start: int, wait: bool) -> None:
        subscription = broadcaster.subscribe()
        for n in range(start, start + 5):
            await broadcaster.broadcast("tick", {"n": n})
        if wait:
            events = await take(subscription, 10 if start == 5 else 5)
            assert events[-1].json()["n"] == start + 4
            await written(broadcaster)

    asyncio.run(some(0, False))
    asyncio.run(some(5, True))
    assert numbers(shared, stream) == list(range(10))
    asyncio.run(some(10, True))
    assert numbers(shared, stream) == list(range(15))


@pytest.mark.slow
def test_a_forked_process_writes_as_itself(shared: RedisServer, stream: str) -> None:
    """It does not send what its parent was to send, and the two are not taken for one."""
    code = f"""
import asyncio, os, sys
from cjm_worker_protocols.integrations.redis import RedisBroadcaster
broadcaster = RedisBroadcaster({shared.url!r}, {stream!r})
broadcaster.broadcast_from_thread("before", {{}})
who = "child" if os.fork() == 0 else "parent"
async def main():
    for n in range(3): await broadcaster.broadcast(who, {{"n": n}})
    await broadcaster.aclose()
asyncio.run(main())
if who == "parent": os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.returncode == 0, done.stderr
    assert sorted(fields["type"] for _, fields in shared.events(stream)) == ["before"] + ["child"] * 3 + ["parent"] * 3


@pytest.mark.slow
def test_a_fork_in_a_running_loop_disturbs_neither(shared: RedisServer, stream: str) -> None:
    """The child writes on a loop of its own, the parent goes on, and neither ends what the other is in the midst of."""
    code = f"""
import asyncio, gc, os
from cjm_worker_protocols.integrations.redis import RedisBroadcaster
async def child(broadcaster):
    await broadcaster.broadcast("child", {{}})
    gc.collect()
    await broadcaster.aclose()
async def main():
    broadcaster = RedisBroadcaster({shared.url!r}, {stream!r})
    follower = broadcaster.subscribe()
    await broadcaster.broadcast("before", {{}})
    await follower.__anext__()
    if (pid := os.fork()) == 0:
        asyncio._set_running_loop(None)
        asyncio.new_event_loop().run_until_complete(child(broadcaster))
        print(broadcaster.redis.written, broadcaster.redis.lost, broadcaster.redis.failures, flush=True)
        os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)
    await broadcaster.broadcast("after", {{}})
    print([(await asyncio.wait_for(follower.__anext__(), 20)).type for _ in range(2)], broadcaster.redis.failures)
    await broadcaster.aclose()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.splitlines() == ["1 0 0", "['child', 'after'] 0"] and not done.stderr, done.stdout + done.stderr


def test_a_fork_of_a_closed_one_is_closed(shared: RedisServer, stream: str) -> None:
    """What comes too late in the child is counted there, and not written."""
    code = f"""
import os
from cjm_worker_protocols.integrations.redis import RedisBroadcaster
broadcaster = RedisBroadcaster({shared.url!r}, {stream!r})
broadcaster.close()
if (pid := os.fork()) == 0:
    broadcaster.broadcast_from_thread("late", {{}})
    print(broadcaster.closed, broadcaster.redis.waiting, broadcaster.redis.lost, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert done.stdout.split() == ["True", "0", "1"], done.stdout + done.stderr
    assert not shared.events(stream)


def test_a_broadcast_that_is_cancelled_leaves_all_in_order(shared: RedisServer, stream: str) -> None:
    """Wherever it was; the event is sent or not, and those after it are."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream, buffer=4) as broadcaster:
            for n in range(200):
                task = asyncio.ensure_future(broadcaster.broadcast("tick", {"n": n}))
                for _ in range(n % 4):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait({task})
            await broadcaster.broadcast("last", {})
            await written(broadcaster)
        found = numbers(shared, stream)
        assert found == sorted(set(found)) and shared.events(stream)[-1][1]["type"] == "last"

    run(scenario())


# Many processes

WEB = """
import os, sys
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from cjm_worker_protocols.integrations.redis import RedisBroadcaster
import uvicorn

broadcaster = RedisBroadcaster(sys.argv[1], timeout=0.5, longest_pause=0.1, retry=0.2)

@asynccontextmanager
async def lifespan(app):
    await broadcaster.ready()
    print(0, flush=True)
    yield
    await broadcaster.aclose()

async def send(request):
    for n in range(int(request.query_params["from"]), int(request.query_params["to"])):
        await broadcaster.broadcast("tick", {"n": n, "who": sys.argv[2]})
    return JSONResponse(broadcaster.redis._asdict())

routes = [Route("/events", broadcaster), Route("/send", send), Route("/", lambda request: HTMLResponse(os.environ.get("PAGE", "")))]
uvicorn.run(Starlette(routes=routes, lifespan=lifespan), port=int(sys.argv[2]), log_level="error")
"""


@contextlib.contextmanager
def web(folder: Path, server: RedisServer, port: "int | None" = None) -> "Iterator[tuple[int, subprocess.Popen[str]]]":
    """A web process: its port, and itself."""
    port = port or free_port()
    with script(folder / f"web{port}.py", WEB, server.url, str(port)) as process:
        assert said_json(process) == 0
        wait_until_served(port)
        yield port, process


def send(port: int, start: int, end: int) -> None:
    """Have a web process broadcast events, and wait until it has."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(f"GET /send?from={start}&to={end} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        got = b""
        while more := sock.recv(4096):
            got += more
    assert b" 200 " in got, got


def test_every_web_process_has_all_events_in_one_order(tmp_path: Path) -> None:
    """Two of three broadcast at the same time; all clients of all three get the same, each writer's events in its order."""
    with RedisServer(tmp_path / "redis") as server, contextlib.ExitStack() as stack:
        ports = [stack.enter_context(web(tmp_path, server))[0] for _ in range(3)]
        clients = [stack.enter_context(Client(port)) for port in ports for _ in range(2)]
        for client in clients:
            while not client.parser.last_id:
                assert client.read()
        threads = [threading.Thread(target=send, args=(port, 0, 300)) for port in ports[:2]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = clients[0].until(600)
        assert all(client.until(600) == events for client in clients)
        for port in ports[:2]:
            assert [e.json()["n"] for e in events if e.json()["who"] == str(port)] == list(range(300))
        assert len(server.events()) == 600, "three processes have begun the stream once"


def test_who_meets_another_process_misses_nothing(tmp_path: Path) -> None:
    """A client loses its web process, by kill -9, and goes on at another, and at one that was started afterwards."""
    with RedisServer(tmp_path / "redis") as server, web(tmp_path, server) as (other, _):
        with web(tmp_path, server) as (port, process):
            with Client(port) as client:
                while not client.parser.last_id:
                    assert client.read()
                begin = client.parser.last_id
                send(other, 0, 10)
                client.until(10)
                process.kill()
                client.until_end()
        send(other, 10, 20)
        with web(tmp_path, server, port) as (again, _):
            for end, where in ((20, other), (21, again)):
                with Client(where, Last_Event_ID=client.parser.last_id) as back, Client(where, f"/events?last_event_id={begin}") as late:
                    assert [e.json()["n"] for e in back.until(end - 10)] == list(range(10, end))
                    assert [e.json()["n"] for e in late.until(end)] == list(range(end))
                    send(again, end, end + 1)
                    assert back.until(end - 9)[-1].json()["n"] == late.until(end + 1)[-1].json()["n"] == end


@pytest.mark.parametrize("asked", ["1-0", "nonsense", "trimmed", "99999999999999-0"])
def test_an_id_that_was_trimmed_or_is_of_another_stream_gets_a_reset(asked: str, shared: RedisServer) -> None:
    """Once, with the id that was asked for; then events go on."""
    stream = f"reset:{asked}"

    async def scenario() -> None:
        async with broadcasting(shared.url, stream, history=10) as broadcaster:
            await broadcaster.ready()
            first = broadcaster.last_event_id if asked == "trimmed" else asked
            for _ in range(2):  # the first time the reader may still have been at that id when it was overtaken
                for n in range(300):
                    await broadcaster.broadcast("tick", {"n": n})
                await written(broadcaster)
                await until(lambda: broadcaster.last_event_id == shared.events(stream)[-1][0])
            client = broadcaster.subscribe(last_event_id=first)
            (reset,) = await take(client, 1)
            assert (reset.type, reset.json()) == ("reset", {"last_event_id": first})
            await broadcaster.broadcast("next", {})
            assert (await take(client, 1))[0].type == "next"

    run(scenario())


def test_an_id_that_another_process_was_faster_to_read_is_waited_for(shared: RedisServer, stream: str) -> None:
    """A client asks for what this process has not read yet: it is no reset, and nothing comes twice."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream) as broadcaster:
            await broadcaster.ready()
            broadcaster.log.LAG = 20
            soon = f"{int(time.time() * 1000) + 500}-0"
            subscription, client = broadcaster.subscribe(last_event_id=soon), await _connect(broadcaster, soon)
            await asyncio.sleep(0.1)  # neither gets anything yet
            with shared.client() as redis:
                redis.xadd(stream, {"type": "had", "data": "{}"}, id=soon)
                redis.xadd(stream, {"type": "new", "data": "{}"})
            assert (await take(subscription, 1))[0].type == "new"
            await until(lambda: client.received())
            assert [t for t, _ in client.received()] == ["new"]
            await client.close()

    run(scenario())


def test_who_comes_back_after_as_many_events_as_are_kept_misses_nothing(shared: RedisServer, stream: str) -> None:
    """At a process that has just started too, wherever the stream was trimmed."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream, history=100) as broadcaster:
            client = broadcaster.subscribe()
            ids: "list[str]" = []
            looked = 0
            for n in range(400):
                await broadcaster.broadcast("tick", {"n": n})
                ids += [event.id for event in await take(client, 1)]
                if n > 200 and shared.ask("XLEN", stream) <= 101:
                    looked += 1
                    async with broadcasting(shared.url, stream, history=100) as other:
                        assert (await take(other.subscribe(last_event_id=ids[-101]), 1))[0].type == "tick"
            assert looked

    run(scenario())


def test_an_id_that_no_process_has_read_gets_a_reset_soon(shared: RedisServer, stream: str) -> None:
    """It may be of a stream that is lost; also where nothing happens, and right after the ring was filled."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream) as broadcaster:
            await broadcaster.ready()
            start = time.monotonic()
            assert [e.type for e in await take(broadcaster.subscribe(last_event_id="9999999999999-0"), 1)] == ["reset"]
            assert time.monotonic() - start < broadcaster.exchange.BLOCK - 1

    run(scenario())


def test_who_subscribes_in_a_thread_does_nothing_to_the_loop(shared: RedisServer, stream: str) -> None:
    """Not even when it asks for an id that may still come; asyncio's debug mode would say so."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream) as broadcaster:
            await broadcaster.ready()
            subscription = await asyncio.to_thread(broadcaster.subscribe, last_event_id="9999999999999-0")
            assert [e.type for e in await take(subscription, 1)] == ["reset"]

    asyncio.run(scenario(), debug=True)


async def _connect(broadcaster: RedisBroadcaster, last_event_id: str) -> OverAsgi:
    client = OverAsgi()
    scope = {"type": "http", "method": "GET", "query_string": b"", "headers": [(b"last-event-id", last_event_id.encode())]}
    client.task = asyncio.ensure_future(broadcaster(scope, client.receive, client.send))
    return client


# Redis goes and comes


def test_redis_is_killed_and_started_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With `appendonly`: broadcasting goes on meanwhile, and every event comes once, in order, without a reset.

    To a client that stays and to one that comes back.
    """
    with RedisServer(tmp_path, appendonly=True) as server:
        broadcaster = RedisBroadcaster(server.url, **FAST)
        with serve(broadcaster) as served, Client(served.port) as client:
            served.broadcast_many(50)
            client.until(50)
            for start in (50, 100):
                server.kill()
                served.broadcast_many(50, start=start)
                assert broadcaster.redis.waiting
                served.call(until(lambda: broadcaster.redis.away))
                server.start()
                client.until(start + 50)
            assert [(e.type, e.json()["n"]) for e in client.parser.events] == [("tick", n) for n in range(150)]
            with Client(served.port, Last_Event_ID=client.parser.events[9].id) as back:
                assert [e.json()["n"] for e in back.until(140)] == list(range(10, 150))
            assert not broadcaster.redis.away and broadcaster.redis.lost == 0
        assert numbers(server) == list(range(150))
    assert "cannot reach" in caplog.text and "connected to" in caplog.text


def test_redis_loses_the_stream(tmp_path: Path) -> None:
    """Without `appendonly`: a client that is connected gets a reset, in its place, and then what is new.

    One that comes back with an old id gets a reset too.
    """
    with RedisServer(tmp_path) as server:
        broadcaster, other = RedisBroadcaster(server.url, **FAST), RedisBroadcaster(server.url, **FAST)
        with serve(broadcaster) as served, Client(served.port) as client:
            served.broadcast_many(10)
            old = client.until(10)[-1].id
            server.restart()
            client.until(type="reset")
            served.broadcast("new")
            events = client.until(type="new")
            assert [e.type for e in events] == ["tick"] * 10 + ["reset", "new"]
            assert events[10].json() == {"last_event_id": old} and events[10].id == old
            with Client(served.port, Last_Event_ID=old) as back:
                assert [e.type for e in back.until(2)] == ["reset", "new"]
            with serve(other) as elsewhere, Client(elsewhere.port, Last_Event_ID=old) as back:
                assert back.until()[0].type == "reset"
                served.broadcast("newer")
                assert [e.type for e in back.until(2)] == ["reset", "newer"]


def test_redis_loses_only_the_end_of_the_stream(tmp_path: Path) -> None:
    """As with `appendfsync everysec`: what is still there is not sent again, and a reset says that something is gone."""
    with RedisServer(tmp_path, appendonly=True) as server:
        broadcaster = RedisBroadcaster(server.url, **FAST)
        with serve(broadcaster) as served, Client(served.port) as client:
            served.broadcast_many(10)
            client.until(10)
            with server.client() as redis:
                redis.xdel(STREAM, *[e.id for e in client.parser.events[7:]])
            server.restart()
            served.broadcast_many(5, start=10)
            events = client.until(16)
            assert [e.type for e in events] == ["tick"] * 10 + ["reset"] + ["tick"] * 5
            assert [e.json()["n"] for e in events if e.type == "tick"] == list(range(15))


def test_a_reader_that_the_trimming_overtakes_says_so(shared: RedisServer, stream: str) -> None:
    """More comes at once than is kept: a reset stands before what is left, and nothing comes twice."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream, history=100) as broadcaster:
            await broadcaster.ready()
            client = broadcaster.subscribe()
            with shared.client() as redis:  # it is this loop that is held up
                for n in range(3000):
                    redis.xadd(stream, {"type": "tick", "data": json.dumps({"n": n})}, maxlen=100, approximate=True)
            events: "list[ServerSentEvent]" = []
            while not events or events[-1].data != '{"n": 2999}':
                events += await take(client, 1)
            found = [e.json()["n"] for e in events if e.type == "tick"]
            assert found == sorted(set(found)) and found[-99:] == list(range(2901, 3000))
            assert "reset" in [e.type for e in events]

    run(scenario())


def test_a_reader_hands_over_each_entry_once_and_says_what_does_not_follow(shared: RedisServer, stream: str) -> None:
    """The log learns where it begins, what is new, and after which entry something may be missing."""

    class Kept(RedisLog):
        def __init__(self) -> None:
            super().__init__(stream, 100, 1 << 20, rebound=lambda: None, follow=lambda: None)
            self.kept, self.skipped = list[str](), list[str]()

        def take(self, entries: Any) -> None:
            self.kept += [event_id.decode() for event_id, _ in entries]
            super().take(entries)

        def skip(self, cursor: str) -> None:
            self.skipped.append(self.cursor)
            super().skip(cursor)

    async def scenario() -> None:
        log = Kept()
        link = RedisLink(Secret(shared.url), "reading", 5, 5, 0.1)
        reader = RedisReader(StreamFollower(log, link, stream, "me", (100, 1 << 20), 0.2))
        with shared.client() as redis:
            added = [redis.xadd(stream, {"n": n}) for n in range(40)]
            await asyncio.wait_for(reader.begin(), 20)
            assert log.kept == added
            added += [redis.xadd(stream, {"n": n}) for n in range(40, 80)]
            await until(lambda: len(log.kept) == 80)
            assert not log.skipped
            lost = redis.pipeline()  # as one step
            lost.delete(stream)
            lost.xadd(stream, {"n": 80})
            added.append(lost.execute()[1])
            await until(lambda: len(log.kept) == 81)
            assert log.kept == added and log.skipped == [log.kept[79]]
        reader.end()
        assert reader.task is not None
        await asyncio.wait({reader.task})

    run(scenario())


def test_large_events_are_read_in_short_pages(shared: RedisServer, stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at once is bounded by bytes as well, when a ring is filled and when a reader is behind; nothing is missing for that."""
    large, few, read = "x" * 100_000, 120, list[int]()

    class Watched(PageSize):
        def learn(self, page: Any) -> int:
            read.append(super().learn(page))
            return read[-1]

    def add(redis: Any, start: int) -> None:
        for n in range(start, start + few):
            redis.xadd(stream, {"type": "tick", "data": json.dumps({"n": n, "text": large})})

    async def scenario() -> None:
        with shared.client() as redis:
            add(redis, 0)
            broadcaster = RedisBroadcaster(shared.url, stream, history_bytes=1 << 21)
            await broadcaster.ready()
            client = broadcaster.subscribe()
            assert max(read) < 17 * len(large) and sum(read[:-1]) <= 2 * (1 << 21)
            read.clear()
            add(redis, few)  # it is this loop that is held up
            events = await take(client, few)
            assert [e.json().get("n", e.type) for e in events] == list(range(few, 2 * few))
            assert max(read) < (1 << 21) / 4 + 1000
            await broadcaster.aclose()

    monkeypatch.setattr("cjm_worker_protocols.integrations.redis.reader.PageSize", Watched)
    run(scenario())


def test_a_process_has_one_reader_however_many_clients(shared: RedisServer, stream: str) -> None:
    """And one writer: two connections, and the entries are read once."""
    broadcaster = RedisBroadcaster(shared.url, stream)
    before = shared.ask("CLIENT", "LIST").count("\n")
    with serve(broadcaster) as served, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(served.port)) for _ in range(20)]
        served.wait_for(20)
        served.broadcast_many(10)
        for client in clients:
            assert [e.json()["n"] for e in client.until(10)] == list(range(10))
        assert shared.ask("CLIENT", "LIST").count("\n") <= before + 2
        assert broadcaster.redis.read == 10


def test_attempts_become_rarer_while_redis_is_away() -> None:
    """The pause between two doubles, up to the longest, and is never without chance."""

    async def scenario() -> None:
        broadcaster = RedisBroadcaster(f"redis://127.0.0.1:{free_port()}", longest_pause=0.4)
        broadcaster.subscribe()
        await asyncio.sleep(2)  # the attempts of this time are counted
        assert 3 <= broadcaster.redis.failures <= 14, "every 0.05 s it would be 40"
        await broadcaster.aclose()

    run(scenario())


def test_the_stream_is_trimmed_by_length(shared: RedisServer, stream: str) -> None:
    """It has no more than the docs say, however much is written."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream, history=200) as broadcaster:
            for n in range(2000):
                await broadcaster.broadcast("tick", {"n": n})
            await written(broadcaster)

    run(scenario())
    assert 200 <= shared.ask("XLEN", stream) <= 300
    assert numbers(shared, stream)[-200:] == list(range(1800, 2000))


def test_small_events_are_read_in_long_pages(shared: RedisServer, stream: str) -> None:
    """Their number doubles from page to page."""

    async def scenario() -> None:
        with shared.client() as redis:
            for n in range(3000):
                redis.xadd(stream, {"type": "tick", "data": json.dumps({"n": n})})
        async with broadcasting(shared.url, stream) as broadcaster:
            await broadcaster.ready()
            assert broadcaster.exchange.reader.follower.pages.count == 1024 and broadcaster.redis.read == 3000

    run(scenario())


def test_a_writers_number_that_was_evicted_does_no_harm(shared: RedisServer, stream: str) -> None:
    """What is written goes on where it was, once and in order."""

    async def scenario() -> None:
        async with broadcasting(shared.url, stream) as broadcaster:
            for n in range(50):
                await broadcaster.broadcast("tick", {"n": n})
                if not n % 10:
                    await written(broadcaster)
                    (key,) = shared.ask("KEYS", f"{{{stream}}}:writer:*")
                    assert 0 < shared.ask("TTL", key) <= 86400
                    shared.ask("DEL", key)
            await written(broadcaster)

    run(scenario())
    assert numbers(shared, stream) == list(range(50))


def test_subscribing_from_threads_while_the_ring_is_filled(shared: RedisServer, stream: str) -> None:
    """The ring's filling looks at all subscriptions, and others come and go meanwhile."""

    def come_and_go(broadcasters: "list[RedisBroadcaster]", done: threading.Event) -> int:
        kept = []
        while not done.is_set():
            kept.append(broadcasters[-1].subscribe())
            if len(kept) > 500:
                kept.pop(0).close()
        return len(kept)

    async def scenario() -> None:
        done, made = threading.Event(), [RedisBroadcaster(shared.url, stream)]
        threads = [asyncio.ensure_future(asyncio.to_thread(come_and_go, made, done)) for _ in range(3)]
        try:
            for _ in range(30):
                await made[-1].ready()
                made.append(RedisBroadcaster(shared.url, stream))
        finally:
            done.set()
        assert all(await asyncio.gather(*threads))
        for broadcaster in made:
            await broadcaster.aclose()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run(scenario())
    finally:
        sys.setswitchinterval(before)


def test_a_connection_that_breaks_neither_loses_nor_doubles(tmp_path: Path) -> None:
    """Again and again, while batches are being written and the writer cannot know which of them Redis has taken."""
    with RedisServer(tmp_path) as server:
        stop = threading.Event()

        def cut() -> None:
            with server.client() as redis:
                while not stop.wait(0.003):
                    redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        async def scenario() -> None:
            async with broadcasting(server.url, history=100_000, longest_pause=0.001) as broadcaster:
                for n in range(20_000):
                    await broadcaster.broadcast("tick", {"n": n, "text": "x" * 200})
                    if not n % 100:
                        await asyncio.sleep(0.005)
                await written(broadcaster)
                assert broadcaster.redis.failures > 20, "nothing was broken"

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            run(scenario(), 60)
        finally:
            stop.set()
            cutter.join()
        assert numbers(server) == list(range(20_000))


@pytest.mark.slow
def test_a_redis_that_closes_idle_connections_is_not_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer drops its own before, so that the next event neither waits nor counts as a failure; the reader's is never idle."""
    assert RedisWriter.IDLE == 60
    monkeypatch.setattr(RedisWriter, "IDLE", 0.2)
    with RedisServer(tmp_path, lines=("timeout 1",)) as server:

        async def scenario() -> None:
            async with broadcasting(server.url, **FAST) as broadcaster:
                client = broadcaster.subscribe()
                for n in range(2):
                    await broadcaster.broadcast("tick", {"n": n})
                    assert (await take(client, 1))[0].json() == {"n": n}
                    await asyncio.sleep(3)  # Redis closes what is idle for a second
                connections(server, 2)
                assert not broadcaster.redis.failures

        run(scenario())


def test_an_event_that_is_too_large_for_redis_is_told_and_holds_up_nobody(tmp_path: Path) -> None:
    """If `buffer_bytes` is what Redis takes."""
    with RedisServer(tmp_path, lines=("proto-max-bulk-len 1mb",)) as server:

        async def scenario() -> None:
            async with broadcasting(server.url, buffer_bytes=1 << 20, **FAST) as broadcaster:
                client = broadcaster.subscribe()
                await broadcaster.broadcast("large", {"text": "x" * (1 << 20)})
                await broadcaster.broadcast("small", {})
                assert [(e.type, e.json()) for e in await take(client, 2)] == [("gap", {"missed": 1}), ("small", {})]
                assert broadcaster.redis.lost == 1 and not broadcaster.redis.failures

        run(scenario())


def test_a_batch_that_redis_gets_to_late_is_not_written_twice(tmp_path: Path) -> None:
    """Redis hangs with a batch in its hands, the writer gives it up and sends it again, several times; then all are executed."""
    with RedisServer(tmp_path) as server:

        async def scenario() -> None:
            async with broadcasting(server.url, timeout=0.2, longest_pause=0.05) as broadcaster:
                await broadcaster.broadcast("tick", {"n": 0})
                await written(broadcaster)
                server.stop()
                for n in range(1, 50):
                    await broadcaster.broadcast("tick", {"n": n})
                await until(lambda: broadcaster.redis.failures >= 3)
                server.go_on()
                await written(broadcaster)
                await asyncio.sleep(0.2)  # what Redis had in its hands is executed too

        run(scenario())
        assert numbers(server) == list(range(50))


def test_a_redis_that_hangs_holds_up_no_broadcast(tmp_path: Path) -> None:
    """Thousands of calls, with an outbox that overflows, take no longer than they must; who looks on is not held up either."""
    with RedisServer(tmp_path) as server:

        async def scenario() -> None:
            async with broadcasting(server.url, buffer=1000, timeout=10.0) as broadcaster:
                client = broadcaster.subscribe()
                await broadcaster.broadcast("tick", {"n": 0})
                await take(client, 1)
                server.stop()
                slowest = 0.0
                for n in range(1, 5000):
                    start = time.monotonic()
                    await broadcaster.broadcast("tick", {"n": n})
                    slowest = max(slowest, time.monotonic() - start)
                assert slowest < 2 and broadcaster.redis.lost, "a busy machine is slow too, but Redis had ten seconds"
                server.go_on()
                events = await take(client, 1)
                while events[-1].data != '{"n":4999}':
                    events += await take(client, 1)
                (gap,) = [e for e in events if e.type == "gap"]
                assert gap.json() == {"missed": broadcaster.redis.lost} and gap.id
                assert len(events) - 1 + broadcaster.redis.lost == 4999

        run(scenario())


def test_what_is_dropped_is_said_everywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Redis is away for too long: the oldest go; a counter, the log, and an event for all clients, where it happened."""
    with RedisServer(tmp_path, appendonly=True) as server, contextlib.ExitStack() as stack:
        broadcaster, other = RedisBroadcaster(server.url, buffer=100, **FAST), RedisBroadcaster(server.url, **FAST)
        served, elsewhere = stack.enter_context(serve(broadcaster)), stack.enter_context(serve(other))
        clients = [stack.enter_context(Client(s.port)) for s in (served, elsewhere)]
        elsewhere.call(other.ready())  # a client that comes before that may miss what is broadcast meanwhile
        served.broadcast_many(10)
        for client in clients:
            client.until(10)
        served.call(written(broadcaster))  # Redis has said so, too
        server.kill()
        served.broadcast_many(1000, start=10)
        lost, waiting = broadcaster.redis.lost, broadcaster.redis.waiting
        assert lost + waiting == 1000 and 100 <= waiting <= 356
        assert "was dropped" in caplog.text
        server.start()
        for client in clients:
            events = client.until(10 + waiting + 1)
            (at,) = [n for n, e in enumerate(events) if e.type == "gap"]
            assert events[at].json() == {"missed": lost}
            assert events[at + 1].json()["n"] - events[at - 1].json()["n"] - 1 == lost
            assert events[-1].json()["n"] == 1009
            with Client(elsewhere.port, Last_Event_ID=events[at - 1].id) as back:
                assert back.until()[0].type == "gap", "who comes back learns of it too"


def test_who_comes_while_redis_is_away_waits(tmp_path: Path) -> None:
    """The response begins at once, and comments break the silence.

    When Redis is there, events come; what was broadcast meanwhile too.
    """
    server = RedisServer(tmp_path)
    broadcaster = RedisBroadcaster(server.url, heartbeat=0.2, **FAST)
    with serve(broadcaster) as served, Client(served.port) as client:
        while len(client.parser.comments) < 3:
            assert client.read()
        assert client.parser.retry and not client.parser.events
        served.broadcast("early", n=1)
        with server:
            assert [e.type for e in client.until()] == ["early"]
            with Client(served.port) as late:
                served.broadcast("t")
                assert [e.type for e in late.until()] == ["t"]
        assert broadcaster.counters.clients <= 2


def test_a_stuck_client_delays_nobody(shared: RedisServer, stream: str) -> None:
    """It learns what it missed; the other has everything."""
    broadcaster = RedisBroadcaster(shared.url, stream, history=500)
    with serve(broadcaster) as served, Client(served.port) as stuck, Client(served.port) as client:
        served.wait_for(2)
        for start in range(0, 5000, 100):
            served.broadcast_many(100, start=start, text="x" * 2000)
            client.until(start + 100)
        assert [e.json()["n"] for e in client.parser.events] == list(range(5000))
        served.broadcast("last")
        events = stuck.until(type="last", limit=30)
        missed = sum(e.json()["missed"] for e in events if e.type == "gap")
        assert missed and missed + sum(e.type == "tick" for e in events) == 5000


# Closing


def test_closing_writes_what_waits(shared: RedisServer, stream: str) -> None:
    """Also when `close` is called, from any thread; afterwards no connection is left, and an event is counted as lost."""

    async def scenario() -> None:
        broadcaster = RedisBroadcaster(shared.url, stream)
        follower = broadcaster.subscribe()
        for n in range(1000):
            await broadcaster.broadcast("tick", {"n": n})
        await asyncio.to_thread(broadcaster.close)
        await broadcaster.aclose()
        assert broadcaster.redis[:3] == (0, 1000, 0)
        await broadcaster.broadcast("late", {})
        assert broadcaster.redis.lost == 1
        assert len([e async for e in follower]) <= 1000
        assert ended(broadcaster)

    before = shared.ask("CLIENT", "LIST").strip().count("\n") + 1
    run(scenario())
    assert numbers(shared, stream) == list(range(1000))
    connections(shared, before)


def test_closing_while_redis_is_away_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Within its time, also while Redis hangs; what was not written is counted and said."""
    with RedisServer(tmp_path) as server:

        async def scenario() -> None:
            broadcaster = RedisBroadcaster(server.url, **FAST)
            broadcaster.CLOSING = 0.3
            await broadcaster.broadcast("t", {})
            await written(broadcaster)
            server.stop()
            for _ in range(10):
                await broadcaster.broadcast("t", {})
            await asyncio.wait_for(broadcaster.aclose(), 10)
            assert broadcaster.redis[:3] == (0, 1, 10) and ended(broadcaster)
            with pytest.raises(RedisAwayError, match="it is closed"):
                await broadcaster.ready()

        run(scenario())
    assert "10 events" in caplog.text


def test_closing_while_redis_hangs_behind_tls_ends(tmp_path: Path) -> None:
    """Within its time too, though to end TLS takes an answer; nothing waits to be written."""
    with RedisServer(tmp_path, tls=True) as server:

        async def scenario() -> None:
            broadcaster = RedisBroadcaster(server.url, timeout=25)
            broadcaster.CLOSING = 0.3
            broadcaster.subscribe()
            await broadcaster.broadcast("t", {})
            await written(broadcaster)
            await broadcaster.ready()
            server.stop()
            await asyncio.wait_for(broadcaster.aclose(), 10)
            assert broadcaster.redis[:3] == (0, 1, 0) and ended(broadcaster)

        run(scenario())


def test_a_loop_that_ends_without_closing_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither task nor connection, whatever was going on; what waits is said. Often, since a cancellation can come at any moment."""
    with RedisServer(tmp_path) as server:
        for n in range(30):

            async def scenario(turns: int) -> None:
                broadcaster = RedisBroadcaster(server.url, f"s{turns}")
                broadcaster.subscribe()
                await broadcaster.broadcast("t", {})
                for _ in range(turns):
                    await asyncio.sleep(0)

            start = time.monotonic()
            asyncio.run(scenario(n))
            assert time.monotonic() - start < 4
        connections(server, 1)
    assert "the loop has ended" in caplog.text


# Secrets, TLS, rights

PASSWORD = "p4ss%/:@#?word"


def test_the_password_is_shown_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in a repr, a log, an error or its traceback, whether it is right or wrong, with Redis there or away."""
    caplog.set_level(logging.DEBUG)
    shown: "list[str]" = []
    with RedisServer(tmp_path, password="the-right-one") as server:
        for password in (PASSWORD, "the-right-one", PASSWORD):
            url = f"redis://:{quote(password, safe='')}@127.0.0.1:{server.port}"

            async def scenario(given: Any) -> None:
                broadcaster = RedisBroadcaster(given, **FAST)
                try:
                    await broadcaster.ready(1)
                    shown.append("ready")
                except RedisAwayError as e:
                    assert "AuthenticationError" in str(e) or "Connect" in str(e)
                    shown.extend((str(e), repr(e), repr(e.__dict__), repr(e.__cause__), repr(e.__context__)))
                await broadcaster.broadcast("t", {})
                client = broadcaster.exchange.writer.link.client()
                shown.extend((repr(broadcaster), str(broadcaster), repr(vars(broadcaster)), repr(client), repr(client.connection_pool)))
                shown.append(repr(client.connection_pool.connection_kwargs))
                exchange = broadcaster.exchange
                parts = (exchange.writer, exchange.writer.link, exchange.reader, exchange.reader.link)
                shown.extend(repr(vars(part)) for part in parts)
                broadcaster.CLOSING = 0.1
                await broadcaster.aclose()

            run(scenario(url))
            run(scenario(Secret(url)))
            if password == "the-right-one":
                server.kill()
    text = "\n".join([*shown, caplog.text])
    assert "ready" in shown and "redis://:***@127.0.0.1" in text
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "the-right-one"):
        assert secret not in text


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=3, max_size=12), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_shown_url_has_no_password(password: str, quoted: bool) -> None:
    """However it is written, right or wrong: what is shown is a URL without it, or an error without it."""
    password = f"Xy{password}zQ"
    url = f"redis://user:{quote(password, safe='') if quoted else password}@somewhere:6379/1"
    try:
        shown = shown_url(url)
        assert shown == "redis://user:***@somewhere:6379/1"
    except RedisUrlError as e:
        assert not quoted
        shown = str(e) + repr(e)
    assert "Xy" not in shown and "zQ" not in shown


def test_a_url_that_cannot_be_used_is_refused() -> None:
    """When the broadcaster is made, by a named error, which shows nothing of it."""
    for url in (
        "http://h",
        "redis://h?username=xyzzy&foo=1",
        "redis://h?username=xyzzy&db=xyzzy",
        "redis://:xyzzy/w@h",
        "redis://:xyzzy@h?foo=1",
        "redis://:xyzzy@h?db=x",
        "redis://u:xyzzy#@h",
    ):
        with pytest.raises(RedisUrlError) as caught:
            RedisBroadcaster(url)
        assert "xyzzy" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ConfigError, match="stream"):
        RedisBroadcaster(stream="")


def test_tls_and_a_password(tmp_path: Path) -> None:
    """`rediss://` with a certificate of its own; without knowing that certificate, nothing is sent."""
    with RedisServer(tmp_path, tls=True, password="s3cret") as server:

        async def scenario() -> None:
            async with broadcasting(server.url) as broadcaster:
                await broadcaster.ready()
                client = broadcaster.subscribe()
                await broadcaster.broadcast("t", {"n": 1})
                assert (await take(client, 1))[0].json() == {"n": 1}
            stranger = RedisBroadcaster(server.url.split("?")[0], longest_pause=0.1)
            with pytest.raises(RedisAwayError, match="(?i)certificate"):
                await stranger.ready(3)
            await stranger.aclose()

        run(scenario())


def test_an_acl_with_the_rights_that_the_docs_name(tmp_path: Path) -> None:
    """A user who may do no more can do all of it; one who may not write gets an error, and nothing is lost meanwhile."""
    (rights,) = re.findall(r"An ACL needs `([^`]+)`", _prose())
    user = f"user app on >pw resetchannels -@all {rights} ~{STREAM} ~{{{STREAM}}}:*"
    with RedisServer(tmp_path, lines=(user,)) as server:

        async def scenario() -> None:
            url = f"redis://app:pw@127.0.0.1:{server.port}"
            async with broadcasting(url, **FAST) as broadcaster:
                client = broadcaster.subscribe()
                await broadcaster.broadcast("t", {"n": 1})
                assert (await take(client, 1))[0].json() == {"n": 1} and not broadcaster.redis.failures
                server.ask("ACL", "SETUSER", "app", "-xadd")
                await broadcaster.broadcast("t", {"n": 2})
                await until(lambda: broadcaster.redis.away)
                server.ask("ACL", "SETUSER", "app", "+xadd")
                assert (await take(client, 1))[0].json() == {"n": 2}

        run(scenario())


@pytest.mark.parametrize("query", ["protocol=3", "decode_responses=yes", "protocol=2&retry_on_timeout=yes&health_check_interval=1", "db=1"])
def test_settings_in_the_url_do_no_harm(query: str, shared: RedisServer) -> None:
    """Those that would change what is read are laid over."""

    async def scenario() -> None:
        async with broadcasting(f"{shared.url}?{query}", f"url:{query}") as broadcaster:
            client = broadcaster.subscribe()
            await broadcaster.broadcast("t", {"n": 1})
            assert (await take(client, 1))[0].json() == {"n": 1}

    run(scenario())


def test_a_unix_socket(tmp_path: Path) -> None:
    """By `unix://`."""
    with RedisServer(tmp_path, lines=(f"unixsocket {tmp_path}/r.sock",)):

        async def scenario() -> None:
            async with broadcasting(f"unix://{tmp_path}/r.sock") as broadcaster:
                client = broadcaster.subscribe()
                await broadcaster.broadcast("t", {"n": 1})
                assert (await take(client, 1))[0].json() == {"n": 1}

        run(scenario())


# The package


def test_without_redis_the_module_is_there_and_the_class_says_what_is_missing() -> None:
    """Importing needs the standard library only; making the object names the extra."""
    code = (
        "import cjm_worker_protocols.integrations.redis as r\n"
        "try: r.RedisBroadcaster('redis://:pw@h')\n"
        "except r.RedisExtraError as e: print(e, isinstance(e, ImportError))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == f"{RedisExtraError('redis')} True", done.stderr
    assert "cjm-worker-protocols[redis]" in done.stdout


def _cells() -> "list[Any]":
    return list(nbformat.read(NBS / "integrations/redis/broadcaster.ipynb", 4).cells)  # type: ignore[no-untyped-call]


def _prose() -> str:
    return "\n".join(cell.source for cell in _cells() if cell.cell_type == "markdown")


@pytest.mark.slow
def test_the_code_that_the_docs_only_show_runs(tmp_path: Path) -> None:
    """The web app in several processes, the process with jobs (twice, at the same time), and the one that follows: as they stand."""
    app, jobs, follow = re.findall(r"```python\n(.*?)```", _prose(), re.DOTALL)
    (tmp_path / "web.py").write_text(app)
    with RedisServer(tmp_path / "redis") as server, contextlib.ExitStack() as stack:
        port, env = free_port(), {**os.environ, "REDIS_URL": server.url, "PYTHONPATH": str(ROOT)}

        def start(*command: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=tmp_path,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            stack.callback(process.communicate)
            stack.callback(lambda: process.poll() is None and os.killpg(process.pid, signal.SIGKILL))
            return process

        serving = start("-m", "uvicorn", "web:app", "--workers", "2", "--port", str(port), "--log-level", "warning")
        follower = start("-c", follow)
        wait_until(lambda: server.ask("CLIENT", "LIST").count("cmd=xread") == 3, 30)  # they follow the stream
        with contextlib.ExitStack() as clients:
            browsers = [clients.enter_context(Client(port)) for _ in range(4)]
            for browser in browsers:
                while not browser.parser.last_id:
                    assert browser.read()
            for manager in [start("-c", jobs) for _ in range(2)]:
                out, _ = manager.communicate(timeout=30)
                assert manager.returncode == 0, out
            for browser in browsers:
                events = [(e.json()["job_id"], e.type) for e in browser.until(2, "job:completed") if e.type.startswith("job:")]
                assert len(ids := {job_id for job_id, _ in events}) == 2
                for job_id in ids:
                    assert [t for j, t in events if j == job_id] == ["job:queued", "job:started", "job:completed"]
            assert follower.communicate(timeout=30)[0].strip() == next(j for j, t in events if t == "job:completed")
        serving.send_signal(signal.SIGTERM)
        out, _ = serving.communicate(timeout=15)
        assert serving.returncode in (0, -signal.SIGTERM), out


def test_hiredis_is_used() -> None:
    """The extra brings the parser that is written in C."""
    pytest.importorskip("hiredis")
    assert "hiredis" in importlib.import_module("redis.asyncio.connection").DefaultParser.__name__.lower()
