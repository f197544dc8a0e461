"""What a hostile page, user or neighbour may try over HTTP: one test for each attack."""

import asyncio
import json
import os
import signal
import socket
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from harness import manager, script, until
from sse_kit import free_port, wait_until_served
from test_web import api, by_user, count, look, shout, spin
from web_kit import TOKEN, Client, problem, serving

from cjm_worker_protocols.core.errors import ConfigError
from cjm_worker_protocols.integrations.store import SQLiteJobStore
from cjm_worker_protocols.web import Access, WorkersApp
from cjm_worker_protocols.web.plugins import check_params, names_path
from cjm_worker_protocols.web.problems import Problem
from cjm_worker_protocols.worker.describe import parameters_of

HERE = [(b"host", b"localhost:8000")]
JSON = (b"content-type", b"application/json")


async def ask(
    app: Any, method: str = "GET", path: str = "/api/jobs", body: bytes = b"{}", headers: Any = (), host: bool = True, **scope: Any
) -> "tuple[int, dict[bytes, bytes], bytes]":
    """What an app answers to one request, as a server would pass it on; `scope` overrides what the server says."""
    given = [*(HERE if host else ()), *headers]
    asked = {"type": "http", "method": method, "path": path, "query_string": b"", "scheme": "http", "http_version": "1.1"}
    asked |= {"root_path": "", "headers": given, "client": ("127.0.0.1", 5000), **scope}
    sent: "list[Any]" = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(asked, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture
def app() -> WorkersApp:
    """An app with default settings; no job runs in these tests."""
    return WorkersApp(manager(shout))


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b"evil.example"],
        [b"localhost.evil.example"],
        [b"localhost@evil.example"],
        [b"evil.example:80@localhost"],
        [b"localhost", b"evil.example"],
        [b"localhost:8000 evil"],
        [b"[::1].evil.example"],
        [b"localhost:"],
        [b""],
        [b"\xff"],
    ],
)
async def test_dns_rebinding(app: WorkersApp, hosts: "list[bytes]") -> None:
    """A page whose name points to this machine sends its own name, however it is dressed up; the page itself is not served to it either."""
    for path in ("/api/jobs", "/"):
        assert (await ask(app, path=path, host=False, headers=[(b"host", host) for host in hosts]))[0] == 421


@pytest.mark.parametrize(
    "headers",
    [
        [(b"sec-fetch-site", b"cross-site"), JSON],
        [(b"sec-fetch-site", b"same-site"), JSON],
        [(b"sec-fetch-site", b"none"), JSON],
        [(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate"), JSON],
        [(b"origin", b"null"), JSON],
        [(b"origin", b"http://localhost:3000"), JSON],
        [(b"origin", b"https://localhost:8000"), JSON],
        [(b"origin", b"http://localhost:8000.evil.example"), JSON],
        [(b"content-type", b"text/plain")],
        [(b"content-type", b"text/plain; application/json")],
        [(b"content-type", b"application/x-www-form-urlencoded")],
        [(b"content-type", b"multipart/form-data; boundary=x")],
        [],
        [(b"authorization", b"Bearer guess"), (b"sec-fetch-site", b"cross-site"), JSON],
    ],
)
async def test_requests_of_other_pages(app: WorkersApp, headers: Any) -> None:
    """A form or a script of another origin starts, cancels and retries nothing, whatever of its headers it controls."""
    body = b'{"plugin_id": "shout", "params": {"text": "hi"}}'
    for path in ("/api/jobs", "/api/jobs/1/cancel", "/api/jobs/1/retry"):
        status, _, answer = await ask(app, "POST", path, body, headers)
        assert status == 403 and b"cross-origin" in answer
    assert not app.manager.jobs


async def test_reading_from_other_pages(app: WorkersApp) -> None:
    """An image, a script or an EventSource of another page gets nothing; no CORS header ever invites one; a link may lead here."""
    for path in ("/api/jobs", "/api/events", "/static/index.html"):
        assert (await ask(app, path=path, headers=[(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"no-cors")]))[0] == 403
    status, headers, _ = await ask(app, "OPTIONS", headers=[(b"origin", b"http://evil"), (b"access-control-request-method", b"POST")])
    assert status in (403, 405) and not [name for name in headers if name.startswith(b"access-control")]
    status, headers, _ = await ask(app, path="/", headers=[(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-mode", b"navigate")])
    assert status == 200 and b"frame-ancestors 'none'" in headers[b"content-security-policy"] and headers[b"x-frame-options"] == b"DENY"


@pytest.mark.parametrize("name", [b"forwarded", b"via", b"x-forwarded-for", b"X-Forwarded-Proto", b"x-real-ip"])
async def test_a_proxy_on_this_machine(app: WorkersApp, name: bytes) -> None:
    """What came through a proxy is not of this machine, whatever the header says."""
    assert (await ask(app, headers=[(name, b"127.0.0.1")]))[0] == 403


@pytest.mark.parametrize("client", [None, ("10.0.0.7", 1), ("127.0.0.1.evil", 1), ("", 0), ("0.0.0.0", 1), ("::ffff:10.0.0.7", 1)])
async def test_clients_that_are_not_here(app: WorkersApp, client: Any) -> None:
    """Another address, none at all, or one that only looks like loopback."""
    assert (await ask(app, client=client))[0] == 403
    assert (await ask(app, client=("::ffff:127.0.0.1", 1)))[0] == 200


async def test_forwarded_addresses_that_the_server_believes() -> None:
    """uvicorn replaces the client's address by what a proxy on this machine says: that is not loopback either."""
    async with api(shout) as (_, client):
        assert problem(await client.get("api/jobs", headers={"x-forwarded-for": "127.0.0.1"})) == (403, "forbidden", None)


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/%00", "/../../etc/passwd", "//evil.example/", "/static"],
)
async def test_paths_that_leave_the_folder(app: WorkersApp, path: str) -> None:
    """The page's files are known by name; no path reaches the file system, and none leads elsewhere."""
    status, headers, body = await ask(app, path=path)
    assert status == 404 and b"location" not in headers and b"root:" not in body


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"plugin_id": "shout", "priority": ' + b"9" * 5000 + b"}",
        b'{"plugin_id": "shout", "timeout": NaN}',
        b'{"plugin_id": "shout", "timeout": 1e999}',
        b'{"plugin_id": "shout", "timeout": true}',
        b'{"plugin_id": "shout", "params": {"text": "x"}, "__class__": "Job"}',
        b'{"plugin_id": "shout", "metadata": {"a": 1}}',
        b'{"plugin_id": "shout\\u0000"}',
        b'{"plugin_id": {"$ref": "shout"}}',
        b'{"plugin_id": "shout", "priority": ' + b"9" * 20 + b', "params": {"text": "x"}}',
        b"\x80\x04K\x01.",
    ],
)
async def test_bodies_that_break_parsers(app: WorkersApp, body: bytes) -> None:
    """Deep, huge, strange or pickled: a problem that names what is wrong, and no job."""
    status, headers, answer = await ask(app, "POST", "/api/jobs", body, [JSON])
    assert status in (400, 422) and headers[b"content-type"] == b"application/problem+json" and json.loads(answer)["detail"]
    assert not app.manager.jobs


async def test_headers_that_are_too_large(app: WorkersApp) -> None:
    """More than 32 KiB in one or in many are refused, also in the address."""
    assert (await ask(app, headers=[(b"x-a", b"a" * 40_000)]))[0] == 431
    assert (await ask(app, headers=[(b"x-%d" % n, b"a") for n in range(8000)]))[0] == 431
    assert (await ask(app, query_string=b"before=" + b"a" * 40_000))[0] == (await ask(app, path="/" + "a" * 40_000))[0] == 431
    assert (await ask(app, query_string=b"a=1&" * 1000))[0] == 400


async def test_cookies_that_are_guessed() -> None:
    """The cookie of another port or path, a broken one, the token itself, a wrong bearer token with the right cookie: nothing."""
    app = WorkersApp(manager(shout), token=TOKEN)
    status, headers, _ = await ask(app, "POST", "/api/login", json.dumps({"token": TOKEN}).encode(), [JSON])
    name, _, value = headers[b"set-cookie"].partition(b";")[0].partition(b"=")
    assert status == 204 and (await ask(app, headers=[(b"cookie", name + b"=" + value)]))[0] == 200
    wrong = [b"=".join((name, TOKEN.encode())), name + b"=", b"cjm_workers_8001_" + name[-8:] + b"=" + value, b"a=b; =; ;;\x80", b'"' * 50]
    for cookie in wrong:
        assert (await ask(app, headers=[(b"cookie", cookie)]))[0] == 401
    assert (await ask(app, headers=[(b"cookie", name + b"=" + value)], root_path="/other", path="/other/api/jobs"))[0] == 401
    both = [(b"cookie", name + b"=" + value), (b"authorization", b"Bearer wrong-wrong-wrong")]
    assert (await ask(app, headers=both))[0] == 401
    assert (await ask(app, query_string=b"token=" + TOKEN.encode()))[0] == 401
    assert (await ask(app, "POST", "/api/login", b'{"token": ["' + TOKEN.encode() + b'"]}', [JSON]))[0] == 401
    assert (await ask(app, "POST", "/api/login", b"x" * 5000, [JSON]))[0] == 413
    assert (await ask(app, host=False, headers=[(b"host", b"localhost:99999"), (b"cookie", name + b"=" + value)]))[0] == 401


@pytest.mark.parametrize("text", [b"\\" * 30_000, b'\\"' * 15_000, b"\\101" * 7_500, b'"; a="' * 5_000])
async def test_cookies_that_take_long_to_read(text: bytes) -> None:
    """One that the standard library reads in seconds (CVE-2024-7592) stops nothing: 30 KB are refused in milliseconds."""
    app = WorkersApp(manager(shout), token=TOKEN)
    began = time.thread_time()
    assert (await ask(app, headers=[(b"cookie", b'a="' + text + b'"')]))[0] == 401
    assert time.thread_time() - began < 0.5


LOGGED = """
import logging, os, sys, uvicorn
from cjm_worker_protocols import JobManager
from cjm_worker_protocols.web import WorkersApp

def shout(text: str) -> str:
    logging.getLogger("plugin").warning("shouting")
    return text.upper()

class Broken(JobManager):
    async def start_job(self, plugin_id, /, **options):
        if plugin_id == "broken": raise RuntimeError("it fails")
        return await super().start_job(plugin_id, **options)

logging.basicConfig(level=logging.DEBUG)
app = WorkersApp(Broken("test", "tests", plugins={"shout": shout}), token=os.environ["TOKEN"])
uvicorn.run(app, port=int(sys.argv[1]), log_level="trace", log_config=None, access_log=True)
"""


@pytest.mark.limit(60)
async def test_the_token_is_in_no_log_and_in_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done with it, right or wrong: uvicorn's access log, every log at the lowest level, answers and problem documents.

    What stands for it, the cookie, is in none either, but for the header that sets it."""
    monkeypatch.setenv("TOKEN", TOKEN)
    port = free_port()
    with script(tmp_path / "logged.py", LOGGED, str(port)) as process:
        await asyncio.to_thread(wait_until_served, port, 20)
        async with Client(base_url=f"http://127.0.0.1:{port}/", timeout=15) as client:
            job, broken = {"plugin_id": "shout", "params": {"text": "hi"}}, {"plugin_id": "broken"}
            bearer, basic = {"authorization": f"Bearer {TOKEN}"}, {"authorization": f"Basic {TOKEN}", "content-type": "application/json"}
            near = {"authorization": f"Bearer {TOKEN}x"}
            answers = [await client.get("static/index.html"), await client.get("api"), await client.get("api", headers=near)]
            for body in (json.dumps({"token": TOKEN + "x"}), f'{{"token": "{TOKEN}', json.dumps([TOKEN]), json.dumps({"token": [TOKEN]})):
                answers.append(await client.post("api/login", content=body, headers=basic))
            answers.append(await client.post("api/jobs?wait=true", json={**job, "nonsense": 1}, headers=bearer))
            answers.append(await client.post("api/jobs", json=broken, headers=bearer))
            login = await client.post("api/login", json={"token": TOKEN})
            secret = login.headers["set-cookie"].partition(";")[0].partition("=")[2]
            answers.append(await client.post("api/jobs?wait=true", json=job))  # by the cookie
            for path in ("", "api", "api/jobs", "api/plugins", "api/workers", "metrics", "api/openapi.json"):
                answers.append(await client.get(path))
            codes = [401, 401, 401, 400, 400, 401, 422, 500, 200]
            assert [answer.status_code for answer in answers[1:10]] == codes and answers[9].json()["result"] == "HI"
        process.send_signal(signal.SIGTERM)
        log = "".join(await asyncio.to_thread(process.communicate))
    assert "POST /api/login" in log and "it fails" in log and "shouting" in log and "TRACE" in log
    said = [log, *(answer.text for answer in answers), *(str(answer.headers) for answer in answers), login.text]
    assert not [text for text in said if TOKEN in text or secret in text]


async def test_an_authorize_that_fails_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is in the log, and not in the answer."""

    async def broken(scope: Any) -> Any:
        raise RuntimeError("the password of the database is swordfish")

    app = WorkersApp(manager(shout), authorize=broken)
    for path in ("/api/jobs", "/", "/metrics", "/api/openapi.json"):
        status, _, body = await ask(app, path=path)
        assert status == 500 and b"swordfish" not in body
    assert "swordfish" in caplog.text


async def test_what_an_answer_leaves_to_the_log_is_there(caplog: pytest.LogCaptureFixture) -> None:
    """The words of a registry are in the log, and in the answer only for those who see all."""

    class Registry:
        def fail(self, _: Any) -> Any:
            raise OSError("/srv/private is gone")

        get_plugins_by_category = get_plugin = load_plugin_config = fail

    body = {"plugin_id": "shout", "params": {"text": "hi"}}
    async with api(shout, settings={"plugin_registry": Registry()}, authorize=by_user) as (_, client):
        for user, seen in (("alice", False), ("root", True)):
            caplog.clear()
            answer = await client.post("api/jobs", json=body, headers={"x-user": user})
            assert problem(answer)[:2] == (503, "unavailable") and ("private" in answer.text) is seen
            assert "private" in caplog.text


async def test_why_a_plugin_cannot_be_used_is_not_for_everyone() -> None:
    """A registry's reason may name folders of the server: those who see only their own jobs get none."""

    class Registry:
        def get_plugins_by_category(self, _: Any) -> Any:
            return [{"id": "shout", "problem": "/srv/private is gone"}]

    async with api(shout, settings={"plugin_registry": Registry()}, authorize=by_user) as (_, client):
        for user, seen in (("alice", False), ("root", True)):
            (plugin,) = (await client.get("api/plugins", headers={"x-user": user})).json()["plugins"]
            assert plugin["problem"] and ("private" in plugin["problem"]) is seen


async def test_probes_say_nothing_more() -> None:
    """They are open to everyone, and have two answers."""
    app = WorkersApp(manager(shout), authorize=lambda scope: None)
    for path in ("/healthz", "/readyz"):
        assert (await ask(app, path=path, client=("10.0.0.7", 1), host=False))[::2] == (200, b"ok")


async def test_topics_of_others() -> None:
    """A stream is not widened by `?topic=`: what is not one's own is refused."""
    app = WorkersApp(manager(shout), authorize=lambda scope: Access("alice"))
    for topic in (b"all", b"owner:bob", b"owner:", b"job:1", b"log:1"):
        assert (await ask(app, path="/api/events", query_string=b"topic=" + topic))[0] == 403


async def test_a_user_named_like_something_else() -> None:
    """No name of a user is a topic of others; a user without a name owns nothing."""
    for user in ("all", "job:1", "owner:bob", "", None):
        app = WorkersApp(manager(shout), authorize=lambda scope, user=user: Access(user))
        assert json.loads((await ask(app))[2])["counts"]["completed"] == 0
        assert (await ask(app, path="/api/workers"))[0] == 403
        assert (await ask(app, path="/api/events", query_string=b"topic=all"))[0] == 403


async def test_jobs_of_others_in_every_endpoint() -> None:
    """A foreign job, and one without an owner, look as if they did not exist: also their results, streams, chunks and files."""
    async with api(count, authorize=by_user) as (running, client):
        alice, bob = {"x-user": "alice"}, {"x-user": "bob"}
        mine = (await client.post("api/jobs?wait=true", json={"plugin_id": "count", "params": {"to": 1}}, headers=alice)).json()
        loose = await running.start_job("count", to=1)
        for job_id in (mine["id"], loose.id, "unknown"):
            answers = [await client.get(f"api/jobs/{job_id}{part}", headers=bob) for part in ("", "/result", "/stream", "/chunks")]
            answers += [await client.post(f"api/jobs/{job_id}/{verb}", json={}, headers=bob) for verb in ("cancel", "retry")]
            answers.append(await client.get(f"api/events?job={job_id}", headers=bob))
            assert {(problem(answer), answer.json()["detail"]) for answer in answers} == {
                ((404, "not-found", None), "No such job, or no longer kept.")
            }


async def test_a_list_that_begins_behind_a_job_of_another() -> None:
    """`before` with the id of a foreign job is as with an unknown one: empty, also where the client has older jobs."""
    alice, root = {"x-user": "alice"}, {"x-user": "root"}
    async with api(shout, authorize=by_user) as (running, client):
        mine = await running.start_job("shout", text="a", owner="alice")
        theirs = await running.start_job("shout", text="b", owner="bob")
        last = await running.start_job("shout", text="c", owner="alice")

        async def before(job_id: str, user: Any) -> "list[str]":
            return [job["id"] for job in (await client.get(f"api/jobs?before={job_id}", headers=user)).json()["jobs"]]

        assert await before(theirs.id, alice) == await before("unknown", alice) == []
        assert await before(last.id, alice) == [mine.id] == await before(theirs.id, root)


@pytest.mark.parametrize(
    "params, field",
    [
        ({"image": "/etc/passwd"}, "params.image"),
        ({"image": "allowed/../secret.txt"}, "params.image"),
        ({"image": "allowed/link"}, "params.image"),
        ({"image": "allowed/../../../../etc/passwd"}, "params.image"),
        ({"image": "\0"}, "params.image"),
        ({"image": "x" * 5000}, "params.image"),
        ({"image": ["/etc/passwd"]}, "params.image[0]"),
        ({"image": {"a": "/etc/passwd"}}, "params.image.a"),
    ],
)
async def test_files_of_the_server(tmp_path: Path, params: Any, field: str) -> None:
    """No JSON names a file outside `allow_paths`, neither by `..`, nor by a link, nor within a list."""
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "secret.txt")
    value = params["image"]
    full = {"image": str(tmp_path / value) if isinstance(value, str) and value.startswith("allowed") else value}
    app = WorkersApp(manager(look), allow_paths=[tmp_path / "allowed"])
    status, _, body = await ask(app, "POST", "/api/jobs", json.dumps({"plugin_id": "look", "params": full}).encode(), [JSON])
    assert (status, json.loads(body)["field"]) == (422, field) and not app.manager.jobs


def loose(anything: Any = None, many: list = [], named: dict = {}, texts: "list[str]" = []) -> None:  # type: ignore[type-arg]  # noqa: B006
    """A plugin that does not say what it takes."""


@pytest.mark.parametrize("text", ["/etc/passwd", "../../etc/passwd", "a/../../b", "..", "~root/x", " /etc/passwd", "FILE:///etc/passwd"])
async def test_files_of_the_server_in_what_is_not_declared(text: str) -> None:
    """No path in a parameter without an annotation, nor in a bare `list` or `dict`; what is declared as text is text."""
    app = WorkersApp(manager(loose))

    async def status(**params: Any) -> int:
        return (await ask(app, "POST", "/api/jobs", json.dumps({"plugin_id": "loose", "params": params}).encode(), [JSON]))[0]

    for params in ({"anything": text}, {"anything": {"a": [text]}}, {"many": ["a", text]}, {"named": {"a": text}}):
        assert await status(**params) == 422 and not app.manager.jobs, params
    assert check_params({"texts": [text]}, parameters_of(loose), ()) == {"texts": [text]}


async def test_half_of_a_surrogate_pair_beside_a_store(tmp_path: Path) -> None:
    """What no store can write is a wrong field, or an unknown job or plugin, and never a fault of the store; parameters may have it."""
    half = "\ud800"
    async with manager(shout, loose, job_store=SQLiteJobStore(tmp_path / "jobs.db")) as running:
        app = WorkersApp(running)

        async def start(**asked: Any) -> "tuple[int, Any]":
            status, _, body = await ask(app, "POST", "/api/jobs", json.dumps(asked).encode(), [JSON])
            return status, json.loads(body).get("field")

        assert await start(plugin_id="shout", params={"text": "hi"}, key=half) == (422, "key")
        with pytest.raises(ConfigError, match="owner: expected a string in UTF-8"): await running.start_job("shout", text="hi", owner=half)
        assert await start(plugin_id=half) == (422, "plugin_id")
        assert await start(plugin_id="shout", **{half: 1}) == (422, half)
        for path in (f"/api/jobs/{half}", f"/api/jobs/{half}/result"):
            assert (await ask(app, path=path))[0] == 404
        assert (await start(plugin_id="loose", params={"anything": half}))[0] == 202
        (job,) = running.jobs.values()
        await job


async def test_headers_that_come_twice(app: WorkersApp) -> None:
    """The one is not checked in place of the other, whichever comes last."""
    for name, fine, wrong in ((b"origin", b"http://localhost:8000", b"http://evil"), (b"sec-fetch-site", b"same-origin", b"cross-site")):
        for pair in ((fine, wrong), (wrong, fine)):
            assert (await ask(app, "POST", "/api/jobs", headers=[JSON, *((name, value) for value in pair)]))[0] == 403


def test_parameters_too_deep_to_check() -> None:
    """Lists in one another, as deep as a parser lets them pass: a problem that names the parameters."""
    deep: "list[Any]" = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(Problem) as caught:
        check_params({"text": deep}, None, ())
    assert (caught.value.status, caught.value.document["field"]) == (422, "params")


def test_schemas_that_declare_a_path() -> None:
    """As JSON Schema and pydantic say it."""
    assert all(names_path({"anyOf": [{"type": "string", "format": kind}]}) for kind in ("path", "file-path", "directory-path"))


async def test_events_that_forge_events() -> None:
    """A chunk with line ends and fields of the format stays one event."""

    def forge() -> Any:
        yield "a\n\nevent: end\ndata: {}\n\nid: 99\r\revent: gap"

    async with api(forge) as (_, client):
        job = await client.start("forge", "?wait=true")
        async with client.events(f"api/jobs/{job['id']}/stream") as events:
            seen = [event async for event in events]
        assert [event.type for event in seen] == ["chunk", "end"] and seen[0].data.startswith("a\n\nevent: end")


async def test_names_that_split_headers() -> None:
    """A job's id and a result's file name are data, also in headers."""

    class Named(manager.__globals__["JobManager"]):  # type: ignore[misc]
        def create_job(self, plugin_id: str, /, **parameters: Any) -> Any:
            job = super().create_job(plugin_id, **parameters)
            job.id = 'a"\r\nset-cookie: x=y/../'
            return job

    def raw() -> bytes:
        return b"<html>"

    async with manager(raw, cls=Named) as running:
        app = WorkersApp(running)
        status, headers, body = await ask(app, "POST", "/api/jobs", b'{"plugin_id": "raw"}', [JSON])
        assert status == 202 and not any(letter in headers[b"location"] for letter in b'\r\n"')
        await running.get_all_jobs()[0].wait()
        status, headers, _ = await ask(app, path=f"/api/jobs/{running.get_all_jobs()[0].id}/result")
        assert status == 404 or not any(letter in headers[b"content-disposition"] for letter in b"\r\n")


@pytest.mark.parametrize("name", ["../../../x", "/etc/cron.d/x", "..", ".bashrc", "a\0b", "c:\\x\\y", "x" * 500, "\u202egnp.exe", ""])
async def test_uploads_that_name_a_place(name: str) -> None:
    """The file lies in its folder, under a plain name, whatever the client calls it."""
    from cjm_worker_protocols.web.uploads import safe_name

    found = safe_name(name)
    assert found and Path(found).name == found and not found.startswith(".") and len(found) <= 100 and found.isascii()


async def test_forms_with_too_many_parts() -> None:
    """A hundred files, and as many fields, are the most."""
    part = b'--x\r\ncontent-disposition: form-data; name="a%d"%b\r\n\r\n1\r\n'
    app, kind = WorkersApp(manager(look)), (b"content-type", b"multipart/form-data; boundary=x")
    for name in (b'; filename="f"', b""):
        body = b"".join(part % (n, name) for n in range(101)) + b"--x--\r\n"
        assert (await ask(app, "POST", "/api/jobs", body, [kind, (b"sec-fetch-site", b"same-origin")]))[0] == 400


@pytest.mark.parametrize(
    "charset, more, expected",
    [
        (b"undefined", b"", 400),
        (b"punycode", b"", 400),
        (b"utf-8", b"a: b\r\n" * 100_000, 400),
        (b"utf-8", b"a: " + b"b" * 100_000, 400),
        (b"utf-8", b'content-disposition: form-data; name="params"\r\n\r\n{"text": NaN}', 422),
        (b"utf-8", b'content-disposition: form-data; name="params"\r\n\r\n{"text": "%b"}' % (b"x" * (1 << 20)), 400),
    ],
)
async def test_forms_that_break_parsers(charset: bytes, more: bytes, expected: int) -> None:
    """An unknown charset, headers that do not end, a field of a megabyte, or text that is not JSON: a problem, and no job."""
    app = WorkersApp(manager(shout))
    body = b'--x\r\ncontent-disposition: form-data; name="plugin_id"\r\n\r\nshout\xff_\r\n--x\r\n' + more + b"\r\n--x--\r\n"
    headers = [(b"content-type", b"multipart/form-data; boundary=x; charset=" + charset), (b"sec-fetch-site", b"same-origin")]
    status, _, answer = await ask(app, "POST", "/api/jobs", body, headers)
    assert status == expected and json.loads(answer)["detail"] and not app.manager.jobs


async def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds neither memory nor the plugin for longer than its time."""
    from cjm_worker_protocols.web.streams import SteadySend

    monkeypatch.setattr(SteadySend, "TIMEOUT", 0.3)
    monkeypatch.setattr(SteadySend, "HEARTBEAT", 0.3)

    def flood() -> Any:
        while True:
            yield "x" * 10_000

    async with api(flood) as (running, client):
        job = await client.start("flood")
        with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.sendall(f"GET /api/jobs/{job['id']}/stream HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())

            async def streams(count: int) -> bool:
                return f"streams {count}" in (await client.get("metrics")).text

            await until(lambda: streams(1))
            await until(lambda: streams(0))
        assert (await client.post(f"api/jobs/{job['id']}/cancel", json={})).status_code == 200


async def test_websockets_are_closed(app: WorkersApp) -> None:
    """There are none."""
    sent: "list[Any]" = []

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "websocket", "path": "/api/jobs", "headers": HERE}, None, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


@asynccontextmanager
async def raw_request(app: Any, request: bytes) -> Any:
    """The first line of the answer to bytes as they are."""
    async with serving(app) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(request)
        yield await asyncio.wait_for(reader.readline(), 10)
        writer.close()


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET http://evil.example/api/jobs HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        b"GET /api/jobs HTTP/1.0\r\n\r\n",
        b"GET /api/jobs HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n",
    ],
)
async def test_request_lines_that_hide_their_host(app: WorkersApp, request_line: bytes) -> None:
    """An absolute target, HTTP/1.0 without a host, two hosts."""
    async with raw_request(app, request_line) as answer:
        assert answer.split()[1] in (b"421", b"400")


async def test_what_a_plugin_says_is_not_for_everyone() -> None:
    """Tracebacks, stderr and parameters are only in the documents of those who may see details."""

    def secretive(word: str) -> None:
        raise ValueError("it failed")

    async with api(secretive, spin, authorize=by_user) as (_, client):
        body = {"plugin_id": "secretive", "params": {"word": "swordfish"}}
        answer = await client.post("api/jobs?wait=true", json=body, headers={"x-user": "alice"})
        listed = await client.get("api/jobs", headers={"x-user": "alice"})
        for text in (answer.text, listed.text):
            assert "swordfish" not in text and "traceback" not in text and "stderr" not in text
        assert "swordfish" in (await client.get(f"api/jobs/{answer.json()['id']}", headers={"x-user": "root"})).text


async def test_a_plugin_that_returns_any_path(tmp_path: Path) -> None:
    """It gives away neither the uploads of another job nor a file elsewhere; a pipe without a writer stops nothing."""

    def give(where: str) -> Path:
        return Path(where)

    async with api(look, give) as (running, client):
        files: "list[Any]" = [("image", ("a.txt", b"content"))]
        same = {"sec-fetch-site": "same-origin"}
        first = (await client.post("api/jobs?wait=true", data={"plugin_id": "look"}, files=files, headers=same)).json()
        upload = str(running.get_job(first["id"]).params["image"])
        os.mkfifo(tmp_path / "pipe")
        for where in (upload, "/etc/passwd", "/proc/self/environ", str(tmp_path / "pipe"), str(tmp_path)):
            job = await client.start("give", "?wait=true", where=where)
            assert job["result_type"]["kind"] == "file"
            assert problem(await client.get(f"api/jobs/{job['id']}/result"))[:2] == (404, "no-result")
