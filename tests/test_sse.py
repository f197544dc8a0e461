"""Server-sent events over real connections: under Starlette, FastAPI and FastHTML, served by uvicorn."""

import asyncio
import contextlib
import enum
import inspect
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from harness import finish, manager, nothing_left, run, said_json, script, until  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[dev]'")
pytest.importorskip("fasthtml", reason="python-fasthtml is not installed: pip install -e '.[dev]'")

from sse_kit import APPS, PATHS, Client, InProcess, OverAsgi, Parser, free_port, serve, starlette_app, wait_until_served  # noqa: E402

from cjm_worker_protocols import JobManager  # noqa: E402
from cjm_worker_protocols.conformance import check  # noqa: E402
from cjm_worker_protocols.core.errors import ConfigError  # noqa: E402
from cjm_worker_protocols.core.jobs import Job  # noqa: E402
from cjm_worker_protocols.extensions.protocols import EventBroadcasterProtocol  # noqa: E402
from cjm_worker_protocols.integrations.sse import (  # noqa: E402
    AuthorizeError,
    BroadcastLoopError,
    EventDataError,
    EventMarkError,
    EventTypeError,
    SSEBroadcaster,
    UnsupportedScopeError,
    encode_event,
)
from cjm_worker_protocols.integrations.sse.client import JoinedReads, StreamClient  # noqa: E402
from cjm_worker_protocols.integrations.sse.delivery import Delivery, SlowClients  # noqa: E402
from cjm_worker_protocols.integrations.sse.format import EventRenderer  # noqa: E402

each_app = pytest.mark.parametrize("name", sorted(APPS))
TYPE = st.text(min_size=1).filter(lambda t: not set(t) & set("\r\n\0"))
TEXT = st.text(st.one_of(st.sampled_from("\r\n\0: \u2028\ufeffa"), st.characters(codec="utf-8")))


# The format


@given(st.lists(st.tuples(TYPE, TEXT)), st.integers(1, 7))
@settings(max_examples=200, deadline=None)
def test_what_is_encoded_is_what_is_parsed(events: "list[tuple[str, str]]", cut: int) -> None:
    """By the rules of the standard each event comes as it is; line ends in its data come as LF, and it may be cut anywhere."""
    encodable = [(t, d) for t, d in events if (t + d).encode(errors="ignore").decode() == t + d]
    stream = b"".join(b"id: %d\n" % n + encode_event(t, d) for n, (t, d) in enumerate(encodable))
    parser = Parser()
    for at in range(0, len(stream), cut):
        parser.feed(stream[at : at + cut])
    want = [(t, d.replace("\r\n", "\n").replace("\r", "\n"), str(n)) for n, (t, d) in enumerate(encodable)]
    assert [tuple(e) for e in parser.events] == want


@pytest.mark.parametrize("event_type", ["a\nb", "a\rb", "a\0b", "\n", "", "\ud800", None, 7])
def test_a_type_that_would_forge_is_refused(event_type: Any) -> None:
    """CR, LF and NUL in a type, no type, half a surrogate pair: an error, and the ring is as it was."""
    broadcaster = SSEBroadcaster()
    before = broadcaster.last_event_id
    with pytest.raises(EventTypeError):
        run(broadcaster.broadcast(event_type, {}))
    assert broadcaster.last_event_id == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1}, b"x"])
def test_data_that_are_no_json_are_refused(value: Any) -> None:
    """NaN and infinity as well: no browser could read them."""
    broadcaster = SSEBroadcaster()
    for broadcast in (lambda: run(broadcaster.broadcast("t", {"v": value})), lambda: broadcaster.broadcast_from_thread("t", {"v": value})):
        with pytest.raises(EventDataError, match="'t'"):
            broadcast()


def test_an_event_whose_topic_or_key_cannot_be_used_is_refused() -> None:
    """It would end the stream of every client that comes to it, again and again; so the caller gets an error, from a thread too."""
    broadcaster = SSEBroadcaster(topic=lambda t, d: d.get("topic"), key=lambda t, d: d.get("key"))
    with serve(broadcaster) as served, Client(served.port, "/events?topic=a") as client:
        served.wait_for(1)
        for data in ({"topic": 7}, {"topic": ["a"]}, {"key": ["progress", "j1"]}, {"key": {}}):
            with pytest.raises(EventMarkError, match=next(iter(data))):
                served.broadcast("t", **data)
            with pytest.raises(EventMarkError, match="expected"):
                broadcaster.broadcast_from_thread("t", data)
        served.broadcast("ok", topic="a", key=("progress", "j1"))
        assert [e.type for e in client.until()] == ["ok"]


def test_a_type_may_be_a_member_of_an_enum() -> None:
    """It goes as the text that it is, and not as its name."""

    class Happened(str, enum.Enum):
        STARTED = "job:started"

    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served, Client(served.port, "/events?topic=job:started") as client:
        served.wait_for(1)
        served.broadcast(Happened.STARTED)
        assert [e.type for e in client.until()] == ["job:started"]


def test_what_is_rendered_must_be_text() -> None:
    """Else the repr of an object would go to browsers."""
    with pytest.raises(EventDataError, match="got a dict"):
        SSEBroadcaster(render=lambda t, d: d).broadcast_from_thread("t", {})  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "setting",
    [
        {"history": 0},
        {"heartbeat": -1},
        {"retry": "1"},
        {"on_gap": "ignore"},
        {"send_timeout": float("nan")},
        {"history": 1.5},
        {"retry": float("inf")},
    ],
)
def test_settings_that_cannot_work_are_refused(setting: "dict[str, Any]") -> None:
    """With what would have been right."""
    with pytest.raises(ConfigError, match=next(iter(setting))):
        SSEBroadcaster(**setting)


# Connecting


@each_app
def test_a_client_connects_and_hears(name: str) -> None:
    """Headers, the beginning of the stream at once, and events with type, data and ids that count."""
    broadcaster = SSEBroadcaster(retry=2.5)
    with serve(broadcaster, APPS[name](broadcaster)) as served, Client(served.port, PATHS[name]) as client:
        while client.parser.retry is None:
            assert client.read()
        assert client.status == 200 and client.headers["content-type"].startswith("text/event-stream")
        assert client.headers["x-accel-buffering"] == "no" and "no-store" in client.headers["cache-control"]
        assert "connection" not in client.headers
        assert client.parser.retry == 2500 and client.parser.comments
        served.broadcast("job:started", job_id="j1", text="naïve\nlines")
        served.broadcast("job:completed", job_id="j1")
        first, second = client.until(2)
        assert (first.type, first.json()) == ("job:started", {"job_id": "j1", "text": "naïve\nlines"})
        epoch, number = first.id.rsplit("-", 1)
        assert second.id == f"{epoch}-{int(number) + 1}" == broadcaster.last_event_id


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_every_engine_of_uvicorn(http: str, loop: str) -> None:
    """Both of uvicorn's parsers, and uvloop, stream, notice a client that leaves, and abort one that is stuck."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    broadcaster = SSEBroadcaster(send_timeout=0.5)
    with serve(broadcaster, http=http, loop=loop) as served:
        with Client(served.port) as client:
            served.broadcast("t", n=1)
            assert client.until()[0].json() == {"n": 1}
        served.wait_for(0)
        with Client(served.port):
            served.wait_for(1)
            for _ in range(100):
                served.broadcast_many(10, text="x" * 20000)
            served.wait_for(0, 15)


def test_other_methods_and_scopes() -> None:
    """HEAD gives the headers, POST is refused, and what is not HTTP raises a named error."""
    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served:
        with Client(served.port, method="HEAD") as client:
            assert client.status == 200 and client.headers["content-type"].startswith("text/event-stream")
        with Client(served.port, method="POST", content_length="0") as client:
            assert client.status == 405 and client.headers["allow"] == "GET, HEAD"
        assert broadcaster.counters.clients == 0
    with pytest.raises(UnsupportedScopeError, match="websocket"):
        run(broadcaster({"type": "websocket"}, None, None))  # type: ignore[arg-type]


def test_nothing_on_the_way_holds_the_beginning_back() -> None:
    """The first bytes come at once through a middleware that compresses, which holds the headers until then; and so do events."""
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware

    broadcaster = SSEBroadcaster()
    everything = Middleware(GZipMiddleware, minimum_size=1, exclude_content_types=())
    app = starlette_app(broadcaster, everything)
    with serve(broadcaster, app) as served, Client(served.port, accept_encoding="gzip") as client:
        assert client.headers["content-encoding"] == "gzip"
        unzip, text = zlib.decompressobj(16 + zlib.MAX_WBITS), b""
        while b"retry" not in text:
            assert client.body or client.read()
            text, client.body = text + unzip.decompress(client.body), b""
        served.broadcast("t", n=1)
        while b'{"n":1}' not in text:
            assert client.read()
            text, client.body = text + unzip.decompress(client.body), b""


def test_who_may_read_from_another_origin_is_the_apps_matter() -> None:
    """The middleware for it works on a stream as on any response, and without it nothing is allowed."""
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware

    broadcaster = SSEBroadcaster()
    app = starlette_app(broadcaster, Middleware(CORSMiddleware, allow_origins=["https://page.example"]))
    with serve(broadcaster, app) as served, Client(served.port, origin="https://page.example") as client:
        assert client.headers["access-control-allow-origin"] == "https://page.example"
        served.broadcast("t")
        client.until()
    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served, Client(served.port, origin="https://page.example") as client:
        assert "access-control-allow-origin" not in client.headers


def test_under_a_middleware_that_hides_the_connection() -> None:
    """BaseHTTPMiddleware passes events on, and a client that leaves is noticed below it too."""
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    broadcaster = SSEBroadcaster()
    app = starlette_app(broadcaster, Middleware(BaseHTTPMiddleware, dispatch=dispatch))
    with serve(broadcaster, app) as served:
        with Client(served.port) as client, Client(served.port) as other:
            served.wait_for(2)
            served.broadcast("t", n=1)
            assert client.until() and other.until()
            client.sock.close()
            served.wait_for(1)
        served.wait_for(0)


def test_silence_is_broken_by_comments() -> None:
    """When nothing happens a comment comes, again and again, every 15 s unless one wants it otherwise; it is no event."""
    assert inspect.signature(SSEBroadcaster).parameters["heartbeat"].default == 15
    broadcaster = SSEBroadcaster(heartbeat=0.2)
    with serve(broadcaster) as served, Client(served.port) as client:
        before = len(client.parser.comments)
        end = time.monotonic() + 10
        while len(client.parser.comments) < before + 3:
            assert client.read() and time.monotonic() < end
        assert client.parser.events == []
        served.broadcast("t")
        client.until()


# Coming back


def test_who_comes_back_misses_nothing() -> None:
    """By the header, by the query, and when there was no event before the connection was lost."""
    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served:
        with Client(served.port) as client:
            while not client.parser.last_id:
                assert client.read()
            start = client.parser.last_id
        served.broadcast_many(10)
        with Client(served.port, Last_Event_ID=start) as client:
            assert [e.json()["n"] for e in client.until(10)] == list(range(10))
            middle = client.parser.events[4].id
        with Client(served.port, f"/events?last_event_id={middle}") as client:
            assert [e.json()["n"] for e in client.until(5)] == list(range(5, 10))
        assert broadcaster.counters.replayed == 15
        with Client(served.port, f"/events?last_event_id={start}", Last_Event_ID=middle) as client:
            assert client.until(5)[0].json() == {"n": 5}, "the header is newer than the page's address"
        with Client(served.port) as client:
            served.broadcast("new")
            assert [e.type for e in client.until()] == ["new"], "without an id a client begins now"


@pytest.mark.parametrize("asked", ["00000000-3", "nonsense", "ünï-\x01", "old"])
def test_an_id_that_is_too_old_or_of_another_epoch_gets_a_reset(asked: str) -> None:
    """Once, with the id that was asked for; after it events go on, and their ids can be asked for."""
    broadcaster = SSEBroadcaster(history=5)
    with serve(broadcaster) as served:
        old = broadcaster.last_event_id
        served.broadcast_many(10)
        asked = old if asked == "old" else asked
        with Client(served.port, f"/events?last_event_id={quote(asked)}") as client:
            assert [(e.type, e.json()) for e in client.until()] == [("reset", {"last_event_id": asked})]
            assert client.parser.last_id == broadcaster.last_event_id
            served.broadcast("next")
            assert [e.type for e in client.until(2)] == ["reset", "next"]


def test_a_client_of_quiet_topics_can_come_back_after_many_events_of_others() -> None:
    """Its heartbeats tell it where it is."""
    broadcaster = SSEBroadcaster(history=10, heartbeat=0.2)
    with serve(broadcaster) as served:
        with Client(served.port, "/events?topic=quiet") as client:
            served.broadcast_many(100, "loud")
            while client.parser.last_id != broadcaster.last_event_id:
                assert client.read()
        served.broadcast("quiet", n=1)
        with Client(served.port, "/events?topic=quiet", Last_Event_ID=client.parser.last_id) as client:
            assert [(e.type, e.json()) for e in client.until()] == [("quiet", {"n": 1})]


# Who may have what


def test_a_client_may_ask_for_topics() -> None:
    """It gets the events that have one of them; an event without a topic goes only to clients that asked for none."""
    broadcaster = SSEBroadcaster(topic=lambda event_type, data: data.get("job_id"))
    with serve(broadcaster) as served, Client(served.port, "/events?topic=j1&topic=j3") as client, Client(served.port) as other:
        served.wait_for(2)
        for job_id in ("j1", "j2", "j3", None):
            served.broadcast("t", job_id=job_id)
        served.broadcast("t", job_id="j1", last=True)
        assert [e.json()["job_id"] for e in client.until(3)] == ["j1", "j3", "j1"]
        assert len(other.until(5)) == 5


def test_an_empty_topic_is_no_topic() -> None:
    """A page that fills in nothing gets nothing, and not everything."""
    broadcaster = SSEBroadcaster(topic=lambda event_type, data: data.get("job_id"))
    with serve(broadcaster) as served, Client(served.port, "/events?topic=") as client:
        served.wait_for(1)
        for job_id in ("j1", None, "j2", ""):
            served.broadcast("t", job_id=job_id)
        assert [e.json()["job_id"] for e in client.until(1)] == [""]


def test_an_app_says_who_may_have_what() -> None:
    """The hook refuses, allows all, or allows some topics, of which a client may ask for fewer but not for others; it may be async."""

    async def authorize(scope: Any) -> Any:
        user = dict(scope["headers"]).get(b"x-user", b"").decode()
        return {"": False, "unknown": None, "root": True}.get(user, {user, "all"})

    broadcaster = SSEBroadcaster(authorize=authorize, topic=lambda event_type, data: data["for"])

    def refused(path: str, **headers: str) -> int:
        with Client(served.port, path, **headers) as client:
            return client.status

    with serve(broadcaster) as served:
        assert refused("/events") == refused("/events", X_User="unknown") == refused("/events?topic=bob", X_User="ann") == 403
        with (
            Client(served.port, X_User="ann") as ann,
            Client(served.port, "/events?topic=all", X_User="ann") as few,
            Client(served.port, X_User="root") as root,
        ):
            served.wait_for(3)
            for who in ("bob", "ann", "all"):
                served.broadcast("t", **{"for": who})
            assert [e.json()["for"] for e in root.until(3)] == ["bob", "ann", "all"]
            assert [e.json()["for"] for e in ann.until(2)] == ["ann", "all"]
            assert [e.json()["for"] for e in few.until(1)] == ["all"]


def test_events_may_be_rendered_as_html() -> None:
    """With lines of their own, as htmx wants them."""
    broadcaster = SSEBroadcaster(render=lambda event_type, data: f"<p>\n{data['n']}\r\n</p>")
    with serve(broadcaster) as served, Client(served.port) as client:
        served.wait_for(1)
        served.broadcast("page", n=1)
        assert client.until()[0].data == "<p>\n1\n</p>"

# Fails closed


async def as_user(broadcaster: Any, user: "str | None", **query: str) -> OverAsgi:
    """A client of somebody who is logged in, or not."""
    client = OverAsgi()
    client.size = -100_000  # its socket takes all that comes here
    session = {"user": user} if user else {}
    scope = {"type": "http", "method": "GET", "query_string": urlencode(query).encode(), "headers": [], "session": session}
    client.task = asyncio.ensure_future(broadcaster(scope, client.receive, client.send))
    while client.parser.retry is None and not client.task.done():
        await asyncio.sleep(0)
    return client


async def test_each_user_sees_the_events_of_their_own_jobs() -> None:
    """With a real manager and the recipe of the docs, also by replay; an admin sees all.

    Not those of others or of workers, and none without a user.
    """
    from contextvars import ContextVar

    user: ContextVar[str] = ContextVar("user")

    class UserJobs(JobManager):
        def create_job(self, plugin_id: str, /, **parameters: Any) -> Job:
            job = super().create_job(plugin_id, **parameters)
            if owner := user.get(""):
                job.metadata["user"] = owner
            return job

    def user_of_job(event_type: str, data: "dict[str, Any]") -> "str | None":
        job = manager.get_job(data.get("job_id", ""))
        return job.metadata.get("user") if job else None

    def authorize(scope: Any) -> Any:
        name = scope["session"].get("user")
        return True if name == "root" else {name}

    broadcaster = SSEBroadcaster(topic=user_of_job, authorize=authorize)
    begin = broadcaster.last_event_id
    names = ("ann", "bob", "eve", "root")
    clients = {name: await as_user(broadcaster, name) for name in names}
    jobs: "dict[str, Job]" = {}
    async with UserJobs("text", "demo", plugins={"echo": "sample_plugins:echo"}, event_broadcaster=broadcaster) as manager:
        for name in ("ann", "bob", ""):
            user.set(name)
            jobs[name] = await manager.start_job("echo", x=f"secret of {name}")
            await jobs[name]
    clients |= {f"{name} again": await as_user(broadcaster, name, last_event_id=begin) for name in names}
    await asyncio.sleep(0.05)  # what is sent has come by then, and what must not be sent, too
    for who, client in clients.items():
        got, name = client.received(), who.split()[0]
        seen = {data.get("job_id") for _, data in got}
        if name == "root":
            assert seen >= {job.id for job in jobs.values()} and "worker:started" in [t for t, _ in got]
        else:
            assert seen == ({jobs[name].id} if name in jobs else set()), (who, got)
            assert not got or [t for t, _ in got][-1] == "job:completed"
        await client.close()


@pytest.mark.parametrize("topic", [None, "", "b"])
async def test_a_client_of_topics_gets_no_other_event(topic: "str | None") -> None:
    """Whether it asked for topics or may have no more; at once, behind a key, by replay, and in the process."""
    broadcaster = SSEBroadcaster(
        topic=lambda t, d: d["topic"],
        key=lambda t, d: d["topic"],
        authorize=lambda scope: {"a"} if scope["session"] else True,
    )
    begin = broadcaster.last_event_id
    clients = [await as_user(broadcaster, "ann"), await as_user(broadcaster, None, topic="a")]
    inside = broadcaster.subscribe(topics={"a"})
    for n, its_topic in enumerate((topic, "a", topic)):
        await broadcaster.broadcast("t", {"n": n, "topic": its_topic})
    clients += [await as_user(broadcaster, "ann", last_event_id=begin), await as_user(broadcaster, None, topic="a", last_event_id="0")]
    await asyncio.sleep(0.05)  # what is sent has come by then, and what must not be sent, too
    for client in clients:
        assert [data["n"] for _, data in client.received()] == [1]
        await client.close()
    assert [event.json()["n"] for event in inside.take()] == [1]


@pytest.mark.parametrize("answer", [False, None, "", set(), [], 0, {None}, {""}, [None, ""]])
async def test_who_is_allowed_nothing_is_refused(answer: Any) -> None:
    """Somebody who is not logged in often shows up as `{None}`, or as an empty text."""
    broadcaster = SSEBroadcaster(authorize=lambda scope: answer, topic=lambda t, d: None)
    statuses: "list[int]" = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    await broadcaster(dict(SCOPE), None, send)  # type: ignore[arg-type]
    assert statuses[0] == 403 and not broadcaster.counters.clients


@pytest.mark.parametrize("answer", [7, {7}, object(), LookupError("of the session")])
async def test_an_answer_that_is_none_is_an_error_and_no_stream(answer: Any) -> None:
    """What `authorize` raises, and what it should not return, ends the request before anything is sent."""

    def authorize(scope: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def send(message: Any) -> None:
        raise AssertionError(message)

    with pytest.raises((AuthorizeError, LookupError)):
        await SSEBroadcaster(authorize=authorize)(dict(SCOPE), None, send)  # type: ignore[arg-type]


async def test_who_has_missed_something_learns_of_it_whatever_its_topics() -> None:
    """`gap` and `reset` are for every client."""
    broadcaster = SSEBroadcaster(history=2, topic=lambda t, d: d.get("topic"))
    slow, old = broadcaster.subscribe(topics={"a"}), broadcaster.subscribe(topics={"a"}, last_event_id="another-7")
    for _ in range(3):
        await broadcaster.broadcast("t", {})
    assert [event.type for event in slow.take()] == ["gap"]
    assert [event.type for event in old.take()] == ["reset", "gap"]


# Names that are taken


@pytest.mark.parametrize("event_type", ["error", "open", "gap", "reset"])
async def test_a_reserved_type_is_refused(event_type: str) -> None:
    """It means something else to `EventSource`, or to the page; from a thread and from a manager too, and as a member of an enum."""

    class Happened(str, enum.Enum):
        THIS = event_type

    broadcaster = SSEBroadcaster(render=lambda t, d: "never asked")
    for name in (event_type, Happened.THIS):
        with pytest.raises(EventTypeError):
            await broadcaster.broadcast(name, {})
        with pytest.raises(EventTypeError):
            broadcaster.broadcast_from_thread(name, {})
    async with manager("echo", event_broadcaster=broadcaster) as workers:
        await workers.broadcast_event(event_type, {})
    assert workers.integration_errors["event_broadcaster.broadcast"] == 1
    assert event_type not in [event.type for event in broadcaster.subscribe(last_event_id="0").take()]


@pytest.mark.parametrize("event_type", ["message", "Error", "upload:error", "gaps"])
async def test_other_types_are_not_reserved(event_type: str) -> None:
    """`message` is what `onmessage` gets, and a prefix makes a name of one's own."""
    broadcaster = SSEBroadcaster()
    client = broadcaster.subscribe()
    await broadcaster.broadcast(event_type, {})
    assert [event.type for event in client.take()] == [event_type]


# From the oldest


@pytest.mark.parametrize("asked", ["0", "0-0"])
@pytest.mark.parametrize("events", [0, 3, 10])
def test_zero_is_the_oldest_event_that_is_kept(asked: str, events: int) -> None:
    """By header, by query and in the process; also when older ones are gone, and without a `reset` or a `gap`."""
    broadcaster = SSEBroadcaster(history=5)
    with serve(broadcaster) as served:
        served.broadcast_many(events)
        want = list(range(events))[-5:]
        with Client(served.port, f"/events?last_event_id={asked}") as by_query, Client(served.port, Last_Event_ID=asked) as by_header:
            served.wait_for(2)
            assert [event.json()["n"] for event in broadcaster.subscribe(last_event_id=asked).take()] == want
            for client in (by_query, by_header):
                client.until(len(want))
            served.broadcast("last", n=99)
            for client in (by_query, by_header):
                assert [e.json()["n"] for e in client.until(type="last")] == [*want, 99]


# What an app renders


async def test_a_render_that_returns_none_leaves_the_event_out() -> None:
    """Neither clients nor the ids know of it; a manager counts no error."""
    broadcaster = SSEBroadcaster(render=lambda t, d: None if t.startswith("worker:") else json.dumps(d), topic=lambda t, d: d["job_id"])
    async with manager("echo", event_broadcaster=broadcaster) as workers:
        await (await workers.start_job("echo", x=1))
    assert not workers.integration_errors
    types = [event.type for event in broadcaster.subscribe(last_event_id="0").take()]
    assert types and {t.split(":")[0] for t in types} == {"job"} and broadcaster.last_event_id.endswith(f"-{len(types)}")


class Mute(Exception):
    """Its text raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_function_of_the_app_may_raise_anything() -> None:
    """Also what has no text becomes an error that names the event."""

    def render(event_type: str, data: "dict[str, Any]") -> str:
        raise Mute

    with pytest.raises(EventDataError, match="'t'.*Mute"):
        EventRenderer(render).render("t", {})



@pytest.mark.parametrize("setting", ["render", "topic", "key"])
async def test_what_a_function_of_the_app_raises_names_the_event(setting: str) -> None:
    """The event is not sent, its type and the error are named, and the cause is chained; other events go on."""

    def job_id(event_type: str, data: "dict[str, Any]") -> Any:
        return str(data["job_id"])

    broadcaster = SSEBroadcaster(**{setting: job_id})  # type: ignore[arg-type]
    with pytest.raises(EventDataError) as caught:
        await broadcaster.broadcast("worker:started", {"pid": 7})
    assert "worker:started" in str(caught.value) and "KeyError" in str(caught.value) and isinstance(caught.value.__cause__, KeyError)
    await broadcaster.broadcast("job:started", {"job_id": "j1"})
    assert [event.type for event in broadcaster.subscribe(last_event_id="0").take()] == ["job:started"]


# Floods


def test_only_so_many_streams_are_open_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """The next client gets 503 and a time to come back; when one leaves there is room; the log does not have a line for each."""
    broadcaster = SSEBroadcaster(max_clients=3)
    with serve(broadcaster) as served:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(served.port)) for _ in range(3)]
            for _ in range(12):
                with Client(served.port) as refused:
                    assert refused.status == 503 and "retry-after" in refused.headers
            assert broadcaster.counters.refused == 12 and broadcaster.counters.clients == 3
            served.broadcast("t")
            for client in clients:
                client.until()
        served.wait_for(0)
        with Client(served.port) as client:
            assert client.status == 200
    assert len([r for r in caplog.records if "503" in r.getMessage()]) == 2


def test_clients_that_do_not_read_hold_a_limited_number_of_bytes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Also in the buffers of connections. Those that have waited longest are aborted, and one that reads has everything."""
    monkeypatch.setattr(SlowClients, "WAITING", 1 << 20)
    broadcaster = SSEBroadcaster(history_bytes=1 << 20)
    with serve(broadcaster) as served, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(Client(served.port))
        reading = stack.enter_context(Client(served.port))
        served.wait_for(101)
        tracemalloc.start()
        for n in range(60):
            served.broadcast("large", n=n, text="x" * 200_000)
            assert reading.until(1, limit=30)[0].json()["n"] == n
            reading.body = b""
            reading.parser.events.clear()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 25 << 20, most  # since Python 3.12, a loop holds the whole of an event of which a client has read a part
        assert broadcaster.counters.clients <= 1 + 6 and broadcaster.counters.aborted >= 94
    assert 1 <= len([r for r in caplog.records if "aborting" in r.getMessage()]) <= 3


async def test_one_large_event_is_not_too_much_for_a_single_slow_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would come back for the same event, again and again."""
    monkeypatch.setattr(SlowClients, "WAITING", 1000)
    broadcaster = SSEBroadcaster()
    client = await OverAsgi.connect(broadcaster)
    for _ in range(3):
        await broadcaster.broadcast("large", {"text": "x" * 2000})
        await asyncio.sleep(0.01)  # the client reads nothing meanwhile
    while len(client.received()) < 3:
        await asyncio.sleep(0)
    assert not broadcaster.counters.aborted
    await client.close()


async def test_a_turn_of_the_loop_begins_only_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other code has its turn between, no client is passed over, and many broadcasts in a row wait for all of them to have had theirs."""
    monkeypatch.setattr(Delivery, "TURN", 100_000)
    turn, opened, written = 0, 0, list[int]()

    async def ticking() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    async def send(message: Any) -> None:
        nonlocal opened
        opened += b"retry" in message.get("body", b"")
        if b"event: large" in message.get("body", b""):
            written.append(turn)

    broadcaster, left, ticks = SSEBroadcaster(history=20), asyncio.Event(), asyncio.ensure_future(ticking())
    streams = [asyncio.ensure_future(streamed(broadcaster, send, left.wait)) for _ in range(50)]
    while opened < 50:
        await asyncio.sleep(0)
    for n in range(100):
        await broadcaster.broadcast("large", {"n": n, "text": "x" * 40_000})
    while broadcaster.counters.sent + broadcaster.counters.dropped < 50 * 100:
        await asyncio.sleep(0)
    assert broadcaster.counters.dropped == 0
    assert max(written.count(n) for n in set(written)) <= 4, "40 KB each"
    ticks.cancel()
    left.set()
    await asyncio.gather(*streams)


# Before the server stops

STOPPING = """
import asyncio, json, sys, time
from contextlib import asynccontextmanager
sys.path.insert(0, {tests!r})
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.integrations.sse import SSEBroadcaster
from cjm_worker_protocols.integrations.sse.app import ServerStop
from starlette.applications import Starlette
from starlette.routing import Route
import uvicorn

def endless(): time.sleep(600)

broadcaster = SSEBroadcaster(before_stop={before_stop})
ServerStop.STOPPING = 1.0
manager = JobManager("text", "demo", plugins={{"endless": endless}}, event_broadcaster=broadcaster)

@asynccontextmanager
async def lifespan(app):
    async with manager:
        await manager.start_job("endless")
        yield

app = Starlette(routes=[Route("/events", broadcaster)], lifespan=lifespan)
uvicorn.run(app, port=int(sys.argv[1]), log_level="critical")
"""


@pytest.mark.parametrize(
    "before_stop, hears",
    [("lambda: manager.shutdown()", True), ("lambda: 1 / 0", False), ("lambda: asyncio.sleep(60)", False)],
)
def test_browsers_hear_the_end_of_jobs_before_their_streams_end(before_stop: str, hears: bool, tmp_path: Path) -> None:
    """On SIGTERM the manager is shut down first, then streams end; what goes wrong there does not keep the server."""
    port = free_port()
    source = STOPPING.format(tests=str(Path(__file__).parent), before_stop=before_stop)
    with script(tmp_path / "stopping.py", source, str(port)) as process:
        wait_until_served(port, 20)
        with Client(port, "/events?last_event_id=0") as client:
            client.until(type="job:started")
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            client.until_end(10)
            assert ("job:cancelled" in [e.type for e in client.parser.events]) == hears
            finish(process, 15)
            assert time.monotonic() - start < 10


# Slow clients


def test_a_stuck_client_delays_nobody_and_costs_nothing() -> None:
    """20,000 events go to a client while another takes none; it is not their queue that grows, and the stuck one learns what it missed."""
    import psutil

    broadcaster = SSEBroadcaster(history=500)
    with serve(broadcaster) as served, Client(served.port) as stuck, Client(served.port) as client:
        served.wait_for(2)
        text = "x" * 500
        for start in range(0, 4000, 100):
            served.broadcast_many(100, start=start, text=text)
            client.until(start + 100)
        before = psutil.Process().memory_info().rss
        client.parser.events.clear()
        for start in range(4000, 20000, 100):
            served.broadcast_many(100, start=start, text=text)
            got = client.until(100)
            assert [e.json()["n"] for e in got] == list(range(start, start + 100))
            client.parser.events.clear()
            client.body = b""
        assert psutil.Process().memory_info().rss - before < 16 << 20
        served.broadcast("last")
        events = stuck.until(type="last", limit=30)
        gaps = [n for n, e in enumerate(events) if e.type == "gap"]
        assert gaps
        missed = sum(events[n].json()["missed"] for n in gaps)
        assert missed + len(events) - len(gaps) == 20001
        numbers = [e.json()["n"] for e in events if e.type == "tick"]
        assert numbers == sorted(set(numbers))
        before_gap, after_gap = events[gaps[0] - 1].json()["n"], events[gaps[0] + 1].json()["n"]
        assert after_gap - before_gap - 1 == events[gaps[0]].json()["missed"], "the gap is where it says, and as wide"
        assert broadcaster.counters.dropped == missed and broadcaster.counters.high_water >= 500


def test_a_stuck_client_may_be_sent_away_instead() -> None:
    """With `disconnect` a stream that has missed events ends, and who comes back gets a reset."""
    broadcaster = SSEBroadcaster(history=50, on_gap="disconnect")
    with serve(broadcaster) as served, Client(served.port) as stuck:
        served.wait_for(1)
        for start in range(0, 2000, 100):
            served.broadcast_many(100, start=start, text="x" * 10000)
        stuck.until_end(20)
        served.wait_for(0)
        assert "gap" not in [e.type for e in stuck.parser.events]
        with Client(served.port, Last_Event_ID=stuck.parser.last_id) as again:
            assert again.until()[0].type == "reset"


def test_a_client_that_takes_nothing_is_put_out() -> None:
    """After the time that one write may take, its connection is aborted, and nothing of it is left in the server."""
    broadcaster = SSEBroadcaster(send_timeout=0.5)
    with serve(broadcaster) as served, Client(served.port) as stuck, Client(served.port) as client:
        served.wait_for(2)
        for n in range(1, 101):
            served.broadcast_many(10, text="x" * 20000)
            client.until(10 * n)
        served.wait_for(1, 15)
        served.broadcast("last")
        client.until(type="last", limit=30)
        stuck.until_end()
        assert "last" not in [e.type for e in stuck.parser.events]


def test_only_the_newest_of_a_key_is_sent_to_who_is_behind() -> None:
    """Progress that is out of date is left out; the order of what is sent, and all else, stays."""

    def key(event_type: str, data: "dict[str, Any]") -> Any:
        return data["job_id"] if event_type == "progress" else None

    broadcaster = SSEBroadcaster(key=key)
    with serve(broadcaster) as served, Client(served.port) as client:
        served.wait_for(1)

        async def at_once() -> None:
            for n in range(3):
                for job_id in ("a", "b"):
                    await broadcaster.broadcast("progress", {"job_id": job_id, "n": n})
                await broadcaster.broadcast("log", {"n": n})

        served.call(at_once())
        got = [(e.type, e.json().get("job_id"), e.json()["n"]) for e in client.until(5)]
        assert got == [("log", None, 0), ("log", None, 1), ("progress", "a", 2), ("progress", "b", 2), ("log", None, 2)]


def test_what_many_clients_get_is_made_once_and_each_gets_it_in_one_write() -> None:
    """An event is rendered once; all that lies behind a client's place goes in one message; the counters count each client."""
    rendered: "list[int]" = []

    def render(event_type: str, data: "dict[str, Any]") -> str:
        rendered.append(data["n"])
        return json.dumps(data)

    async def scenario() -> None:
        broadcaster = SSEBroadcaster(render=render)
        bodies: "list[list[bytes]]" = [[] for _ in range(3)]
        left = asyncio.Event()

        async def receive() -> "dict[str, Any]":
            await left.wait()
            return {"type": "http.disconnect"}

        def sender(mine: "list[bytes]") -> Any:
            async def send(message: Any) -> None:
                if message["type"] == "http.response.body":
                    mine.append(message["body"])

            return send

        scope = {"type": "http", "method": "GET", "query_string": b"", "headers": []}
        tasks = [asyncio.ensure_future(broadcaster(dict(scope), receive, sender(mine))) for mine in bodies]
        while not all(bodies):
            await asyncio.sleep(0)
        for n in range(10):
            await broadcaster.broadcast("t", {"n": n})
        while not all(len(mine) > 1 for mine in bodies):
            await asyncio.sleep(0)
        assert broadcaster.counters[:2] == (3, 30)
        left.set()
        await asyncio.wait(tasks)
        assert rendered == list(range(10))
        for mine in bodies:
            first, events = mine[:2]
            assert events.count(b"event: t") == 10 and mine[2:] in ([], [b""])
            assert events is bodies[0][1], "not even the bytes are copied"

    run(scenario())


# A server that lets a `send` wait

SCOPE = {"type": "http", "method": "GET", "query_string": b"", "headers": []}


async def streamed(broadcaster: SSEBroadcaster, send: Any, after: Any) -> BaseException | None:
    """A stream through some `send`, whose client leaves when `after` is done; how the app ended."""

    async def receive() -> "dict[str, Any]":
        await after()
        return {"type": "http.disconnect"}

    (ended,) = await asyncio.wait_for(asyncio.gather(broadcaster(dict(SCOPE), receive, send), return_exceptions=True), 20)
    return ended


@pytest.mark.parametrize("factory", [None, *(name for name in dir(asyncio) if name == "eager_task_factory")])  # from Python 3.12 on
@pytest.mark.parametrize("waits", [0, 1, 3])
def test_a_send_runs_in_one_task_and_in_the_context_of_the_request(waits: int, factory: "str | None") -> None:
    """However often it has to wait, so that the timeouts and the context variables of a middleware work.

    Another client does not see them.
    """
    from contextvars import ContextVar

    mine: ContextVar[str] = ContextVar("mine", default="no request")
    sent: "list[tuple[bytes, str]]" = []

    def sender(name: str) -> Any:
        async def send(message: Any) -> None:
            task, token = asyncio.current_task(), mine.set(f"{mine.get()} sending")
            for _ in range(waits):
                await asyncio.sleep(0.001)
                assert task is not None and asyncio.current_task() is task
            await asyncio.wait_for(asyncio.sleep(0), 5)
            assert mine.get() == f"{name} sending"
            mine.reset(token)
            sent.append((message.get("body", b""), name))

        return send

    def came(name: str) -> int:
        return b"".join(body for body, who in sent if who == name).count(b"data: ")

    async def request(name: str, left: asyncio.Event) -> None:
        mine.set(name)
        assert await streamed(broadcaster, sender(name), left.wait) is None

    async def scenario() -> None:
        if factory:
            asyncio.get_running_loop().set_task_factory(getattr(asyncio, factory))
        before, left = asyncio.all_tasks(), asyncio.Event()
        requests = asyncio.gather(request("a", left), request("b", left))
        await until(lambda: broadcaster.counters.clients == 2)
        for n in range(5):
            await broadcaster.broadcast("t", {"n": n})
            await until(lambda: came("a") == came("b") == n + 1)
        left.set()
        await requests
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    broadcaster = SSEBroadcaster()
    run(scenario())
    assert came("a") == came("b") == 5


@pytest.mark.parametrize("waits", [False, True])
def test_what_a_send_raises_ends_the_app_with_it(waits: bool) -> None:
    """But for an `OSError`, with which a server says that the client has left; other clients do not hear of it."""

    begun: "list[str]" = []

    def sender(error: Exception) -> Any:
        async def send(message: Any) -> None:
            begun.append(message["type"])
            if waits:
                await asyncio.sleep(0)
            if b"event" in message.get("body", b""):
                raise error

        return send

    async def scenario() -> None:
        broadcaster, error = SSEBroadcaster(), LookupError("of the server")
        other = await OverAsgi.connect(broadcaster)
        for_ever = asyncio.Event().wait
        bad = [asyncio.ensure_future(streamed(broadcaster, sender(e), for_ever)) for e in (error, BrokenPipeError())]
        await until(lambda: begun.count("http.response.body") == 2)  # both have a place in the log, so that the event is for them
        await broadcaster.broadcast("t", {})
        assert [await b for b in bad] == [error, None]
        assert len(other.received()) == 1 and broadcaster.counters.clients == 1
        await other.close()

    run(scenario())


def two_events_to(broadcaster: SSEBroadcaster, clients: "list[type[OverAsgi]]") -> "list[tuple[bool, int]]":
    """Broadcast twice, the first time interrupted, on a loop that goes on as a notebook's does.

    Return whether each client was aborted, and how many events it has.
    """

    async def connect() -> "list[OverAsgi]":
        return [await kind.connect(broadcaster) for kind in clients]

    async def broadcast() -> None:
        await broadcaster.broadcast("t", {})
        await asyncio.sleep(0.05)  # the loop is interrupted amid this, or sends to all

    async def leave() -> None:
        for client in connected:
            await client.close()

    loop = asyncio.new_event_loop()
    try:
        connected = loop.run_until_complete(connect())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(broadcast())
        loop.run_until_complete(broadcast())
        loop.run_until_complete(asyncio.sleep(2 * StreamClient.GRACE))  # an aborted client has ended by then
        found = [(client.task.done(), len(client.received())) for client in connected]
        loop.run_until_complete(leave())
    finally:
        loop.close()
    return found


def test_an_interrupt_amid_the_sending_costs_nobody_an_event() -> None:
    """A client that was not sent the event is aborted, to come back for it."""
    interrupts = [KeyboardInterrupt]

    class Clumsy(OverAsgi):
        async def send(self, message: Any) -> None:
            if b"event: t" in message.get("body", b"") and interrupts:
                raise interrupts.pop()
            await super().send(message)

    assert two_events_to(SSEBroadcaster(), [OverAsgi, Clumsy, OverAsgi]) == [(False, 2), (True, 0), (True, 0)]


def test_an_interrupt_amid_the_preparing_costs_nobody_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that had not been sent the event by then are aborted, to come back for it."""
    calls: "list[int]" = []
    read = JoinedReads.read

    def clumsy(self: JoinedReads, position: int, topics: Any) -> Any:
        calls.append(position)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, position, topics)

    monkeypatch.setattr(JoinedReads, "read", clumsy)
    assert two_events_to(SSEBroadcaster(), [OverAsgi] * 4) == [(False, 2), (False, 2), (True, 0), (False, 2)]


def test_who_cancels_all_tasks_stops_no_stream_that_goes_on() -> None:
    """In the very turn in which an event is sent: all clients have it."""

    async def scenario() -> None:
        broadcaster = SSEBroadcaster()
        clients = [await OverAsgi.connect(broadcaster) for _ in range(4)]
        await broadcaster.broadcast("t", {})
        (sending,) = (task for task in asyncio.all_tasks() if "SendTask" in repr(task.get_coro()))
        sending.cancel()  # as one of all
        await until(lambda: all(client.received() for client in clients))
        assert [len(client.received()) for client in clients] == [1, 1, 1, 1]
        for client in clients:
            await client.close()

    run(scenario())


def test_a_send_that_waits_is_told_when_the_client_leaves() -> None:
    """It is cancelled, may clean up, and has ended before the app has; a stream that waits keeps no other waiting."""
    heard: "list[str]" = []

    async def send(message: Any) -> None:
        if b"event" in message.get("body", b""):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                heard.append("cancelled")
                raise

    async def scenario() -> None:
        broadcaster = SSEBroadcaster()
        other, left = await OverAsgi.connect(broadcaster), asyncio.Event()
        stuck = asyncio.ensure_future(streamed(broadcaster, send, left.wait))
        await until(lambda: broadcaster.counters.clients == 2)
        for count in range(1, 4):
            await broadcaster.broadcast("t", {})
            await until(lambda: len(other.received()) == count)
        left.set()
        assert await stuck is None and heard == ["cancelled"]
        await other.close()

    run(scenario())


def test_a_send_that_is_left_as_soon_as_it_waits_is_told_too() -> None:
    """The client leaves before the task that is to wait has begun to."""
    heard: "list[str]" = []

    async def scenario() -> None:
        broadcaster, left = SSEBroadcaster(), asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                left.set()
                try:
                    await asyncio.sleep(60)
                finally:
                    heard.append("cancelled")

        assert await streamed(broadcaster, send, left.wait) is None
        assert heard == ["cancelled"]

    run(scenario())


def test_a_send_need_not_be_a_coroutine_function() -> None:
    """The standard only says that what it gives can be awaited."""
    bodies: "list[bytes]" = []

    async def scenario() -> None:
        def send(message: Any) -> Any:
            bodies.append(message.get("body", b""))
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

        broadcaster, left = SSEBroadcaster(), asyncio.Event()
        stream = asyncio.ensure_future(streamed(broadcaster, send, left.wait))
        await until(lambda: len(bodies) == 2)
        await broadcaster.broadcast("t", {})
        await until(lambda: len(bodies) > 2)
        left.set()
        assert await stream is None

    run(scenario())
    assert b"retry" in bodies[1] and b"event: t" in bodies[2]


# Loops and threads


def test_a_forked_process_has_ids_of_its_own() -> None:
    """An id of one is unknown to the other, so that a client that meets the other gets a reset and not the events of the other."""
    code = """
import asyncio, json, os
from cjm_worker_protocols.integrations.sse import SSEBroadcaster
broadcaster = SSEBroadcaster()
broadcaster.broadcast_from_thread("before", {})
read, write = os.pipe()
parent = os.fork() != 0
async def main():
    await broadcaster.broadcast("t", {})
    if not parent: return os.write(write, broadcaster.last_event_id.encode())
    os.wait()
    other = os.read(read, 100).decode()
    seen = [event.type for event in broadcaster.subscribe(last_event_id=other).take()]
    print(json.dumps([*seen, other.endswith("-1"), broadcaster.last_event_id[-2:]]))
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=30)
    assert done.returncode == 0 and json.loads(done.stdout) == ["reset", True, "-2"], done.stderr


def test_broadcast_on_another_loop_is_an_error() -> None:
    """It says what to call instead; on the loop of the clients it goes on."""
    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served, Client(served.port) as client:
        served.wait_for(1)
        with pytest.raises(BroadcastLoopError, match="broadcast_from_thread"):
            asyncio.run(broadcaster.broadcast("t", {}))
        served.broadcast("t")
        assert len(client.until()) == 1


def test_a_loop_that_is_closed_makes_way_for_another() -> None:
    """What was broadcast before the server started does no harm, and a broadcaster can be served again."""
    broadcaster = SSEBroadcaster()
    for n in range(2):
        asyncio.run(broadcaster.broadcast("t", {"n": n}))
    assert broadcaster.last_event_id.endswith("-2")
    with serve(broadcaster) as served, Client(served.port) as client:
        served.wait_for(1)
        served.broadcast("t", n=2)
        assert client.until()[0].json() == {"n": 2}


def test_broadcast_from_threads_wakes_the_clients() -> None:
    """Each thread's events come all, in its order, while the loop has nothing else to do."""
    broadcaster = SSEBroadcaster()
    broadcaster.broadcast_from_thread("early", {})
    with serve(broadcaster) as served, Client(served.port) as client:
        served.wait_for(1)
        time.sleep(0.1)  # the loop sleeps
        broadcaster.broadcast_from_thread("one", {})
        assert client.until(limit=2)[0].type == "one"

        def work(who: int) -> None:
            for n in range(200):
                broadcaster.broadcast_from_thread("t", {"who": who, "n": n})

        threads = [threading.Thread(target=work, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = [e.json() for e in client.until(801) if e.type == "t"]
        for who in range(4):
            assert [e["n"] for e in events if e["who"] == who] == list(range(200))
        numbers = [int(e.id.rsplit("-", 1)[1]) for e in client.parser.events]
        assert numbers == list(range(numbers[0], numbers[0] + 801))
    broadcaster.broadcast_from_thread("late", {})


def test_leaving_is_noticed_at_once() -> None:
    """100 clients come and go, some by a reset; none is kept."""
    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served:
        clients = [Client(served.port) for _ in range(100)]
        served.wait_for(100)
        for n, client in enumerate(clients):
            if n % 2:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sock.close()
        served.wait_for(0)
        served.call(asyncio.sleep(0.05))  # the last steps of those that left
        served.broadcast("t")


# In the process


def test_code_in_the_process_iterates() -> None:
    """`subscribe` gives what a browser gets: from now or after an id, of some topics, until it or the broadcaster is closed."""

    async def scenario() -> None:
        broadcaster = SSEBroadcaster(history=10)
        start = broadcaster.last_event_id
        now, some = broadcaster.subscribe(), broadcaster.subscribe(topics={"b"})
        for n in range(3):
            await broadcaster.broadcast("ab"[n % 2], {"n": n})
        assert [(await now.__anext__()).json()["n"] for _ in range(3)] == [0, 1, 2]
        assert [e.type for e in some.take()] == ["b"]
        again = broadcaster.subscribe(last_event_id=start)
        assert [e.json()["n"] for e in again.take()] == [0, 1, 2]
        waiting = asyncio.ensure_future(now.__anext__())
        await asyncio.sleep(0)
        await broadcaster.broadcast("c", {})
        assert (await asyncio.wait_for(waiting, 5)).type == "c"
        for n in range(25):
            await broadcaster.broadcast("late", {"n": n})
        event = await now.__anext__()
        assert (event.type, event.json()) == ("gap", {"missed": 15}) and (await now.__anext__()).json() == {"n": 15}
        assert (await broadcaster.subscribe(last_event_id=start).__anext__()).type == "reset"
        assert [e.type for e in some.take()] == ["gap"], "what topics they had is unknown"
        waiting = asyncio.ensure_future(some.__anext__())
        await asyncio.sleep(0)
        some.close()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, 5)
        broadcaster.close()
        assert [e.json()["n"] async for e in now] == list(range(16, 25)), "what is there can still be read"

    run(scenario())


def test_one_topic_need_not_be_in_a_list() -> None:
    """A text is one topic, and not its letters."""

    async def scenario() -> None:
        broadcaster = SSEBroadcaster()
        client = broadcaster.subscribe(topics="job:started")
        for event_type in ("job:started", "j"):
            await broadcaster.broadcast(event_type, {})
        assert [e.type for e in client.take()] == ["job:started"]

    run(scenario())


def test_who_is_always_behind_keeps_the_loop_from_nothing() -> None:
    """A thread broadcasts faster than its follower iterates, which therefore never waits."""

    async def scenario() -> int:
        broadcaster, turns, end = SSEBroadcaster(), 0, time.monotonic() + 1
        subscription = broadcaster.subscribe()

        def flood() -> None:
            while time.monotonic() < end:
                broadcaster.broadcast_from_thread("t", {})

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        thread, task = threading.Thread(target=flood), asyncio.ensure_future(other())
        thread.start()
        async for _ in subscription:
            if time.monotonic() > end - 0.2:
                break
        task.cancel()
        await asyncio.to_thread(thread.join)
        return turns

    assert run(scenario()) > 10


def test_a_thread_that_is_faster_than_the_first_wait_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subscription looks, finds nothing, and waits; what a thread does in between wakes it."""

    async def scenario() -> "list[str]":
        broadcaster = SSEBroadcaster()
        wait = broadcaster.log.notifier.wait

        def late() -> Any:
            thread = threading.Thread(target=between, args=(broadcaster,))
            thread.start()
            thread.join()
            return wait()

        monkeypatch.setattr(broadcaster.log.notifier, "wait", late)
        return [e.type async for e in broadcaster.subscribe()]

    def closing(broadcaster: SSEBroadcaster) -> None:
        broadcaster.close()

    def telling(broadcaster: SSEBroadcaster) -> None:
        if not broadcaster.counters.sent and broadcaster.last_event_id.endswith("-0"):
            return broadcaster.broadcast_from_thread("t", {})
        broadcaster.close()

    between = closing
    assert run(asyncio.wait_for(scenario(), 10)) == []
    between = telling
    assert run(asyncio.wait_for(scenario(), 10)) == ["t"]


def test_a_subscription_in_another_loop_is_an_error() -> None:
    """As is everything else away from the loop of the clients."""
    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served, Client(served.port):
        served.wait_for(1)

        async def elsewhere() -> None:
            await broadcaster.subscribe().__anext__()

        with pytest.raises(BroadcastLoopError, match="async for"):
            asyncio.run(elsewhere())


def test_a_stream_in_another_loop_is_no_empty_response() -> None:
    """The request fails before a status was sent, so a browser does not take it for a stream."""
    broadcaster, loop = SSEBroadcaster(), asyncio.new_event_loop()
    loop.run_until_complete(broadcaster.broadcast("t", {}))
    with serve(broadcaster, log_level="critical") as served, Client(served.port) as client:
        assert client.status == 500
    loop.close()


def test_close_ends_everything() -> None:
    """Open streams end properly, at once, and new ones too; broadcasting goes on without clients."""
    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served, Client(served.port) as client, Client(served.port) as stuck:
        served.wait_for(2)
        for _ in range(100):
            served.broadcast_many(10, text="x" * 20000)
        client.until(1000, limit=30)
        broadcaster.close()
        client.until_end(5)
        served.wait_for(0)
        stuck.until_end(10)
        served.broadcast("t")
        with Client(served.port) as late:
            late.until_end(5)
            assert late.parser.retry and not late.parser.events


# The contract


@pytest.mark.parametrize("probe", [InProcess, OverAsgi.connect])
def test_the_conformance_kit_finds_nothing(probe: Any) -> None:
    """Every check passes: no finding, no waiver, nothing that could not be observed."""
    report = check(SSEBroadcaster, "events", probe=probe)
    assert report.counts["passed"] == len(report.outcomes), str(report)


def test_it_is_a_broadcaster_for_a_manager() -> None:
    """A real job's events reach a real client, in order, with all of their data."""
    broadcaster = SSEBroadcaster()
    assert isinstance(broadcaster, EventBroadcasterProtocol)

    async def scenario() -> None:
        from uvicorn import Config, Server

        port = free_port()
        server = Server(Config(starlette_app(broadcaster), port=port, log_level="error"))
        serving = asyncio.ensure_future(server.serve())
        await until(lambda: server.started)
        client = await asyncio.to_thread(Client, port)
        async with manager("progress", event_broadcaster=broadcaster) as workers:
            job = await workers.start_job("progress", steps=4)
            await job
            events = await asyncio.to_thread(client.until, 1, "job:completed")
        types = [e.type for e in events if e.type.startswith("job:")]
        assert "job:progress" in types
        assert types[0] == "job:queued" and types[-1] == "job:completed"
        assert {e.json()["job_id"] for e in events if e.type.startswith("job:")} == {job.id}
        client.sock.close()
        broadcaster.close()
        server.should_exit = True
        await serving

    run(scenario())


# The end of the server

SERVER = """
import json, logging, signal, sys, threading, time
sys.path.insert(0, {tests!r})
from sse_kit import APPS
from cjm_worker_protocols.integrations.sse import SSEBroadcaster
import uvicorn

broadcaster = SSEBroadcaster()
app = APPS[{name!r}](broadcaster)
before = signal.getsignal(signal.SIGTERM)

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.mine = signal.getsignal(signal.SIGTERM)
        print(json.dumps("ready"), flush=True)
        threading.Thread(target=tell, args=(self,), daemon=True).start()

def tell(server):
    seen = 0
    while True:
        if broadcaster.counters.clients != seen:
            seen = broadcaster.counters.clients
            time.sleep(0.05)
            print(json.dumps([seen, signal.getsignal(signal.SIGTERM) == server.mine]), flush=True)
        if {flood} and seen: broadcaster.broadcast_from_thread("t", dict(text="x" * 20000))
        time.sleep(0.002)

Server(uvicorn.Config(app, port={port}, log_level="warning")).run()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@each_app
def test_a_signal_ends_open_streams_within_a_second(name: str, number: signal.Signals, tmp_path: Path) -> None:
    """The response is complete, uvicorn ends as it would without any stream, and while none is open its own handler is in place."""
    port = free_port()
    source = SERVER.format(tests=str(Path(__file__).parent), name=name, port=port, flood=False)
    with script(tmp_path / "server.py", source) as process:
        assert said_json(process) == "ready"
        with Client(port, PATHS[name]):
            assert said_json(process) == [1, False]
        assert said_json(process) == [0, True]
        with Client(port, PATHS[name]) as client:
            assert said_json(process) == [1, False]
            process.send_signal(number)
            start = time.monotonic()
            client.until_end(5)
            ended = time.monotonic() - start
            _, _, err = finish(process, 10)
            exited = time.monotonic() - start
        assert client.body and ended < 1 and exited < 4, (ended, exited)
        assert "ASGI" not in err, err


def test_a_signal_ends_a_stuck_stream_too(tmp_path: Path) -> None:
    """A client that takes nothing cannot keep the server from ending."""
    port = free_port()
    source = SERVER.format(tests=str(Path(__file__).parent), name="starlette", port=port, flood=True)
    with script(tmp_path / "server.py", source) as process:
        assert said_json(process) == "ready"
        with Client(port):
            assert said_json(process) == [1, False]
            time.sleep(2)  # the client's buffers are full
            process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            finish(process, 10)
            assert time.monotonic() - start < 4


ENDING = """
import asyncio, json, sys
from cjm_worker_protocols.integrations.sse import SSEBroadcaster
from starlette.applications import Starlette
from starlette.routing import Route
import uvicorn

async def authorize(scope):
    print(json.dumps("asked"), flush=True)
    await asyncio.sleep(1)
    return True

routes = [Route("/events", SSEBroadcaster(authorize=authorize)), Route("/others", SSEBroadcaster())]
uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), log_level="warning")
"""


@pytest.mark.parametrize("others", [False, True])
def test_a_stream_that_opens_after_the_signal_ends_too(others: bool, tmp_path: Path) -> None:
    """Its client was let in before, and still had to be authorized; also when the signal has just ended another broadcaster's streams."""
    port = free_port()
    with script(tmp_path / "server.py", ENDING, str(port)) as process, contextlib.ExitStack() as stack:
        wait_until_served(port, 20)
        if others:
            stack.enter_context(Client(port, "/others"))
        with socket.create_connection(("127.0.0.1", port), 10) as late:
            late.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert said_json(process) == "asked"
            process.send_signal(signal.SIGTERM)
            finish(process, 10)
            got = b""
            while data := late.recv(65536):
                got += data
        assert b"retry: " in got and got.endswith(b"\r\n0\r\n\r\n")


LIMITED = """
import sys
from cjm_worker_protocols.integrations.sse import SSEBroadcaster
import uvicorn

uvicorn.run(SSEBroadcaster(), port=int(sys.argv[1]), log_level="critical", limit_max_requests=1, timeout_graceful_shutdown=1)
"""


def test_a_server_that_ends_by_itself_ends_as_the_docs_say(tmp_path: Path) -> None:
    """After so many requests, while a stream is still open. Its client can tell, and would come back."""
    port = free_port()
    with script(tmp_path / "server.py", LIMITED, str(port)) as process:
        wait_until_served(port, 20)
        with Client(port) as client:
            Client(port, method="HEAD").sock.close()
            client.until_end(10)
            finish(process, 10)


@pytest.mark.parametrize("how", ["close", "signal"])
def test_what_was_broadcast_before_the_end_still_comes(how: str) -> None:
    """Also when it is more than one write takes, whether it is `close` or a signal that ends the streams."""
    broadcaster = SSEBroadcaster()
    with serve(broadcaster) as served, Client(served.port) as client:
        served.wait_for(1)

        async def last() -> None:
            for n in range(60):
                broadcaster.broadcast_from_thread("tick", {"n": n, "text": "x" * 10000})
            await broadcaster.broadcast("job:completed", {})
            (broadcaster.close if how == "close" else broadcaster.server.stop.hear)()

        served.call(last())
        client.until_end()
        assert [e.type for e in client.parser.events] == ["tick"] * 60 + ["job:completed"]


def test_a_stream_that_is_sent_away_counts_nothing_as_sent() -> None:
    """Behind a gap nothing goes, not even when the broadcaster is closed in the same moment: it would hide the gap from who comes back."""
    broadcaster = SSEBroadcaster(history=4, on_gap="disconnect")
    with serve(broadcaster) as served, Client(served.port) as client:
        served.wait_for(1)

        async def many() -> None:
            for n in range(10):
                broadcaster.broadcast_from_thread("tick", {"n": n})
            broadcaster.close()

        served.call(many())
        client.until_end()
        assert not client.parser.events and broadcaster.counters[1:3] == (0, 6)


def test_where_nobody_handles_a_signal_none_is_set() -> None:
    """In a script or a notebook kernel SIGTERM and Ctrl-C do what they did."""

    async def scenario() -> None:
        before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
        broadcaster = SSEBroadcaster()
        client = await OverAsgi.connect(broadcaster)
        now = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
        await client.close()
        assert now[0] is before[0] and [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray, if it was used before, has a handler of its own
    try:
        run(scenario())
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_module_needs_the_standard_library_only() -> None:
    """Neither Starlette nor uvicorn is imported."""
    code = "import sys, cjm_worker_protocols.integrations.sse; print(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    command = [sys.executable, "-S", "-c", "import json\n" + code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert not set(json.loads(done.stdout)) & {"starlette", "uvicorn", "anyio", "fasthtml", "fastapi"}
