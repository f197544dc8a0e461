"""A manager over HTTP: what each endpoint answers, to whom, and under which frameworks, on a real server."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import manager
from sse_kit import fastapi_app, fasthtml_app
from web_kit import TOKEN, problem, served, serving

from cjm_worker_protocols.core.errors import ConfigError
from cjm_worker_protocols.web import Access, AccessTypeError, WorkersApp


def shout(text: str) -> str:
    """A plugin that answers at once."""
    return text.upper()


def count(to: int, pause: float = 0.0) -> Any:
    """A plugin that streams."""
    import time

    from cjm_worker_protocols import report_progress

    for n in range(to):
        report_progress((n + 1) / to, f"step {n}")
        yield n
        time.sleep(pause)
    return {"counted": to}


def spin() -> None:
    """A plugin that never ends."""
    while True:
        pass


def fail(text: str) -> None:
    """A plugin that raises."""
    raise ValueError(text)


def look(image: Path, note: str = "") -> str:
    """A plugin that takes a file."""
    return image.read_text() if isinstance(image, Path) else f"not a path: {image}"


def by_user(scope: Any) -> "Access | None":
    """Who a request says it is: `root` sees all."""
    user = dict(scope["headers"]).get(b"x-user", b"").decode()
    sees = "all" if user == "root" else "own"
    return Access(user, sees) if user else None


@asynccontextmanager
async def api(*plugins: Any, settings: "dict[str, Any] | None" = None, **options: Any) -> Any:
    """A manager and a client of its app."""
    async with manager(*plugins, **(settings or {})) as running, serving(WorkersApp(running, **options)) as client:
        yield running, client


async def test_a_job_from_start_to_result() -> None:
    """202 with its address at once; the job shows its end and its result later; `wait=true` answers with the end."""
    async with api(shout) as (_, client):
        answer = await client.post("api/jobs", json={"plugin_id": "shout", "params": {"text": "hi"}, "priority": 3})
        assert answer.status_code == 202 and answer.json()["priority"] == 3
        found = await client.get(answer.headers["location"])
        assert found.json()["id"] == answer.json()["id"]
        ended = await client.ended(answer.json()["id"])
        assert (ended["status"], ended["result"], ended["result_type"]["kind"]) == ("completed", "HI", "json")
        answer = await client.post("api/jobs?wait=true", json={"plugin_id": "shout", "params": {"text": "you"}})
        assert answer.status_code == 200 and answer.json()["result"] == "YOU"


async def test_waiting_ends_with_the_time_whatever_the_job_does() -> None:
    """202 after `wait_timeout`; a failed job is 200 as well, with its error; a cancelled one too."""
    async with api(spin, fail) as (_, client):
        answer = await client.post("api/jobs?wait=true&wait_timeout=0.05", json={"plugin_id": "spin"})
        assert answer.status_code == 202 and answer.json()["status"] in ("pending", "running")
        cancelled = await client.post(f"api/jobs/{answer.json()['id']}/cancel", json={})
        assert cancelled.status_code == 200 and cancelled.json()["status"] == "cancelled"
        assert problem(await client.post(f"api/jobs/{answer.json()['id']}/cancel", json={})) == (409, "ended", None)
        failed = await client.post("api/jobs?wait=true", json={"plugin_id": "fail", "params": {"text": "no"}})
        assert failed.status_code == 200 and failed.json()["error"]["category"] == "exception"
        assert "ValueError" in failed.json()["error"]["traceback"]


async def test_a_retry_is_another_job() -> None:
    """It has the same parameters, and says which job it repeats."""
    async with api(fail) as (_, client):
        old = await client.start("fail", "?wait=true", text="no")
        answer = await client.post(f"api/jobs/{old['id']}/retry", json={})
        assert answer.status_code == 202 and answer.json()["retried_from"] == old["id"] != answer.json()["id"]
        again = await client.ended(answer.json()["id"])
        assert again["params"] == old["params"] and again["status"] == "failed"


@pytest.mark.slow
async def test_jobs_are_listed_newest_first_and_filtered() -> None:
    """By status and plugin, in pages; and counted."""
    async with api(shout, fail) as (_, client):
        made = [(await client.start("shout", "?wait=true", text=str(n)))["id"] for n in range(5)]
        bad = (await client.start("fail", "?wait=true", text="no"))["id"]
        everything = (await client.get("api/jobs")).json()
        assert [job["id"] for job in everything["jobs"]] == [bad, *made[::-1]] and everything["next"] is None
        assert everything["counts"]["completed"] == 5 and everything["counts"]["failed"] == 1
        page = (await client.get("api/jobs?plugin_id=shout&limit=2")).json()
        assert [job["id"] for job in page["jobs"]] == [made[4], made[3]] and page["next"] == made[3]
        page = (await client.get(f"api/jobs?plugin_id=shout&limit=2&before={page['next']}")).json()
        assert [job["id"] for job in page["jobs"]] == [made[2], made[1]]
        assert [job["id"] for job in (await client.get("api/jobs?status=failed")).json()["jobs"]] == [bad]
        for query, field in (("status=other&before=unknown", "status"), ("limit=1.5", "limit"), ("limit=0", "limit")):
            assert problem(await client.get(f"api/jobs?{query}")) == (422, "invalid", field)


@pytest.mark.parametrize(
    "body, expected",
    [
        ({}, (422, "invalid", "plugin_id")),
        ({"plugin_id": "nothing"}, (422, "unknown-plugin", "plugin_id")),
        ({"plugin_id": "shout", "params": 1}, (422, "invalid", "params")),
        ({"plugin_id": "shout", "priority": "high"}, (422, "invalid", "priority")),
        ({"plugin_id": "shout", "timeout": -1}, (422, "invalid", "timeout")),
        ({"plugin_id": "shout", "retries": 1.5}, (422, "invalid", "retries")),
        ({"plugin_id": "shout", "owner": "root"}, (422, "invalid", "owner")),
        ({"plugin_id": "look", "params": {"image": "/etc/passwd"}}, (422, "invalid", "params.image")),
        ([], (400, "malformed", None)),
    ],
)
async def test_a_wrong_request_names_its_field(body: Any, expected: Any) -> None:
    """No job exists afterwards."""
    async with api(shout, look) as (running, client):
        assert problem(await client.post("api/jobs", json=body)) == expected
        assert not running.jobs


async def test_plugins_have_parameters() -> None:
    """Those of functions of this process; the manager gets no worker for that."""
    async with api(shout, look) as (running, client):
        plugins = {plugin["id"]: plugin for plugin in (await client.get("api/plugins")).json()["plugins"]}
        image, note = plugins["look"]["parameters"]
        assert (image["name"], image["required"], image["schema"]) == ("image", True, {"type": "string", "format": "path"})
        assert (note["name"], note["required"], note["default"]) == ("note", False, "")
        assert plugins["shout"]["description"] == "A plugin that answers at once."
        assert not running.jobs


async def test_a_request_asks_the_registry_for_its_plugin_alone() -> None:
    """`POST /api/jobs` does not list the category; `GET /api/plugins` does."""
    asked: "list[str]" = []

    class Registry:
        def get_plugins_by_category(self, category: Any) -> Any:
            asked.append("category")
            return [{"id": "shout"}]

        def get_plugin(self, plugin_id: str) -> Any:
            asked.append(plugin_id)
            return {"id": "shout"} if plugin_id == "shout" else None

        def load_plugin_config(self, plugin_id: str) -> "dict[str, Any]":
            return {}

    async with api(shout, settings={"plugin_registry": Registry()}) as (_, client):
        assert (await client.start("shout", "?wait=true", text="hi"))["result"] == "HI"
        assert set(asked) == {"shout"}
        assert [plugin["parameters"][0]["name"] for plugin in (await client.get("api/plugins")).json()["plugins"]] == ["text"]
        assert asked[-1] == "category"
        unknown = await client.post("api/jobs", json={"plugin_id": "shuot"})
        assert problem(unknown) == (422, "unknown-plugin", "plugin_id")


async def test_workers_are_measured() -> None:
    """Memory is in bytes."""
    async with api(shout) as (_, client):
        await client.start("shout", "?wait=true", text="hi")
        found = (await client.get("api/workers")).json()
        assert [worker["status"] for worker in found["workers"]] == ["idle"]
        assert found["workers"][0]["memory"] > 1 << 20 and found["memory_limit"] > found["workers"][0]["memory"]


async def test_a_page_gets_what_changes_and_only_then() -> None:
    """Jobs and workers as they are; chunks of the job that it has open; nothing is listened to before."""
    async with api(count) as (running, client):
        async with client.events("api/events") as events:
            job = await client.start("count", to=3)
            seen = [event async for event in until(events, job["id"], "completed")]
            assert {"job", "worker"} <= {event.type for event in seen} and "chunk" not in {event.type for event in seen}
        job = await client.start("count", to=20, pause=0.02)
        async with client.events(f"api/events?job={job['id']}") as events:
            seen = [event async for event in until(events, job["id"], "completed")]
            kept = (await client.get(f"api/jobs/{job['id']}/chunks?start=5")).json()
        assert kept == {"first": 5, "stop": 20, "chunks": list(range(5, 20))}
        heard = [event.data["index"] for event in seen if event.type == "chunk"]
        assert heard == list(range(heard[0], 20))


async def until(events: Any, job_id: str, status: str) -> Any:
    """Events up to that with which a job has a status."""
    async for event in events:
        yield event
        if event.type == "job" and event.data["id"] == job_id and event.data["status"] == status:
            return


async def test_a_page_that_comes_back_misses_nothing() -> None:
    """With the id of its last event it gets what came since; with an id of another server, `reset`."""
    async with api(shout) as (_, client):
        async with client.events("api/events") as events:
            first = await client.start("shout", text="a")
            last = [event async for event in until(events, first["id"], "completed")][-1]
        second = await client.start("shout", "?wait=true", text="b")
        async with client.events("api/events", **{"last-event-id": last.id}) as events:
            assert [e async for e in until(events, second["id"], "completed")][-1].data["id"] == second["id"]
        async with client.events("api/events?last_event_id=other-7") as events:
            assert (await events.__anext__()).type == "reset"


async def test_people_see_their_own_jobs() -> None:
    """A foreign job is 404 for everything; `sees="all"` has all of it; workers are not for everyone."""
    async with api(shout, authorize=by_user) as (_, client):
        alice, bob, root = ({"x-user": name} for name in ("alice", "bob", "root"))
        answer = await client.post("api/jobs?wait=true", json={"plugin_id": "shout", "params": {"text": "a"}}, headers=alice)
        job = answer.json()
        assert job["owner"] == "alice" and "params" not in job
        for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry"), ("GET", "/chunks")):
            answer = await client.request(method, f"api/jobs/{job['id']}{path}", headers={**bob, "content-type": "application/json"})
            assert problem(answer) == (404, "not-found", None)
        assert (await client.get("api/jobs", headers=bob)).json()["counts"]["completed"] == 0
        assert (await client.get(f"api/jobs/{job['id']}", headers=root)).json()["params"] == {"text": "a"}
        assert problem(await client.get("api/workers", headers=bob)) == (403, "forbidden", None)
        assert problem(await client.get("api/jobs")) == (403, "forbidden", None)
        assert (await client.get(f"api/events?job={job['id']}", headers=bob)).status_code == 404


@pytest.mark.slow
async def test_what_is_allowed_is_asked() -> None:
    """`may` names what a client may do."""
    async with api(shout, authorize=lambda scope: Access("alice", may=("start",))) as (_, client):
        job = await client.start("shout", "?wait=true", text="a")
        assert problem(await client.post(f"api/jobs/{job['id']}/retry", json={})) == (403, "forbidden", None)


@pytest.mark.parametrize("answer", [True, "alice", ("alice", "all"), Access("a", "every"), Access(7), Access("\ud800")])  # type: ignore[arg-type]
async def test_a_wrong_answer_of_authorize_opens_nothing(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is 500, and the log has the reason."""
    async with api(shout, authorize=lambda scope: answer) as (_, client):
        assert problem(await client.get("api/jobs")) == (500, "internal", None)
    assert any(record.exc_info and record.exc_info[0] is AccessTypeError for record in caplog.records)


async def test_a_token_is_asked_of_everyone() -> None:
    """As a bearer token, or as the cookie that a page gets for it; the page itself is for all; the probes say nothing more."""
    async with api(shout, token=TOKEN) as (_, client):
        assert problem(await client.get("api/jobs")) == (401, "unauthorized", None)
        assert (await client.get("api/jobs", headers={"authorization": f"Bearer {TOKEN}"})).status_code == 200
        assert problem(await client.get("api/jobs", headers={"authorization": "Bearer wrong"})) == (401, "unauthorized", None)
        assert (await client.get("")).status_code == 200 and (await client.get("healthz")).text == "ok"
        assert problem(await client.post("api/login", json={"token": "wrong"}))[0] == 401
        answer = await client.post("api/login", json={"token": TOKEN})
        cookie = answer.headers["set-cookie"]
        assert answer.status_code == 204 and TOKEN not in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert (await client.get("api/jobs")).status_code == 200


def test_without_the_extra_the_package_says_how_to_get_it() -> None:
    """The package alone can be imported, and only names that it has need the extra."""
    code = """
import sys
class Hidden:
    def find_spec(name, *more):
        if name == "starlette": raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden)
import cjm_worker_protocols.web as web
assert not hasattr(web, "Nothing")
try: from cjm_worker_protocols.web import WorkersApp
except ImportError as e: print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'cjm-worker-protocols[web]'" in done.stdout, done.stderr


def test_settings_that_cannot_work() -> None:
    """Each raises ConfigError."""
    running = manager(shout)
    for wrong in ({"token": "short"}, {"token": TOKEN, "authorize": by_user}, {"allowed_hosts": "localhost"}):
        with pytest.raises(ConfigError):
            WorkersApp(running, **wrong)


def starlette_app(inner: Any) -> Any:
    """Mounted in Starlette."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    return Starlette(routes=[Mount("/workers", inner)])


def behind_a_proxy(inner: Any) -> Any:
    """Behind a proxy that strips a prefix, which the server knows as its root path."""
    inside = starlette_app(inner)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope = {**scope, "root_path": "/outside", "path": f"/outside{scope['path']}"}
        await inside(scope, receive, send)

    return app


@pytest.mark.slow
@pytest.mark.parametrize(
    "mounted",
    [starlette_app, partial(fastapi_app, path="/workers"), partial(fasthtml_app, path="/workers"), behind_a_proxy],
    ids=["starlette_app", "fastapi_app", "fasthtml_app", "behind_a_proxy"],
)
async def test_under_a_path_of_a_framework(mounted: Any) -> None:
    """The page, the API and `Location` work below the path; the path without its slash leads to the page."""
    async with manager(shout) as running, serving(mounted(WorkersApp(running)), "/workers/") as client:
        answer = await client.post("api/jobs", json={"plugin_id": "shout", "params": {"text": "hi"}})
        where = "/outside/workers" if mounted is behind_a_proxy else "/workers"
        assert answer.headers["location"] == f"{where}/api/jobs/{answer.json()['id']}"
        assert (await client.ended(answer.json()["id"]))["result"] == "HI"
        page = await client.get("")
        assert page.status_code == 200 and "<title>" in page.text and "unsafe" not in page.headers["content-security-policy"]
        bare = await client.get(str(client.base_url).rstrip("/"), follow_redirects=False)
        assert bare.status_code in (307, 308) and bare.headers["location"].endswith("/workers/")
        assert problem(await client.get("api/nothing")) == (404, "not-found", None)


@pytest.mark.slow
async def test_run_alone_the_app_ends_its_manager() -> None:
    """The server's lifespan shuts the manager down, and its workers are gone."""
    running = manager(shout)
    async with serving(WorkersApp(running)) as client:
        await client.start("shout", "?wait=true", text="hi")
        (worker,) = running.workers
    assert not running.workers
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


async def test_serve_prints_its_address_and_ends_with_a_signal(tmp_path: Path) -> None:
    """The token is in the fragment; nothing else is said; Ctrl-C ends it with 130, an open stream or not."""
    async with served(tmp_path) as (process, url):
        base, _, token = url.partition("#token=")
        assert len(token) >= 24
        async with httpx.AsyncClient(base_url=base, headers={"authorization": f"Bearer {token}"}) as client:
            body = {"plugin_id": "shout", "params": {"text": "hi"}}
            assert (await client.post("api/jobs?wait=true", json=body)).json()["result"] == "HI"
            async with client.stream("GET", "api/events", timeout=15) as stream:
                process.send_signal(signal.SIGINT)
                async for _ in stream.aiter_bytes():
                    pass
        assert await asyncio.wait_for(process.wait(), 20) == 128 + signal.SIGINT
        assert (await process.stderr.read()) == b""


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0"), ("--host", "0.0.0.0", "--no-token"), ("--token", "short")])
async def test_serve_refuses_what_is_not_safe(tmp_path: Path, arguments: "tuple[str, ...]") -> None:
    """Another host demands a token of one's own; a token has a length: exit 2."""
    async with served(tmp_path, *arguments) as (process, url):
        assert not url and await asyncio.wait_for(process.wait(), 20) == 2
