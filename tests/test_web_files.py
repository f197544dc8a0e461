"""What comes and goes with a job over HTTP: uploads, results, streams, logs, metrics, and the document that describes it all."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from harness import until
from test_web import api, by_user, count, look, shout, spin
from web_kit import problem

from cjm_worker_protocols.core.jobs import Job
from cjm_worker_protocols.web import app as web_app
from cjm_worker_protocols.web import documents as web_documents
from cjm_worker_protocols.web import results as web_results
from cjm_worker_protocols.web import uploads as web_uploads
from cjm_worker_protocols.web.documents import BLOCK, INLINE, ResultViews, encode_json, job_details, json_blocks, json_parts, room_after
from cjm_worker_protocols.web.files import SAFE, with_safe_headers
from cjm_worker_protocols.web.streams import OpenRequests


PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


def give(what: str) -> Any:
    """A plugin whose result is of the kind that is asked for."""
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp(prefix="cjm-test-"))
    (folder / "a b.svg").write_text("<svg onload='alert(1)'>")
    values = {"png": b"\x89PNG\r\n\x1a\n" + b"\0" * 20, "bytes": b"<script>", "object": {1, 2}, "nan": float("nan"), "nothing": None}
    values |= {"file": folder / "a b.svg", "passwd": Path("/etc/passwd"), "gone": folder / "no.txt", "text": "</script>"}
    return values[what]


def several(images: "list[Path]", options: "dict[str, Any] | None" = None) -> Any:
    """A plugin that takes files."""
    return [image.read_text() for image in images], options


def talk(lines: int) -> None:
    """A plugin that logs."""
    import logging

    for n in range(lines):
        logging.getLogger("talk").warning("line %d", n)
    print("printed")


async def test_uploads_become_paths_and_go_with_the_job() -> None:
    """One file is a path, several are a list; their names are kept; the folder goes when the job is forgotten; a retry has them too."""
    async with api(look, several) as (running, client):
        form = {"plugin_id": "look", "params": json.dumps({"note": "n"}), "priority": "2"}
        files: "list[Any]" = [("image", ("../../talk one.txt", b"content", "text/plain"))]
        answer = await client.post("api/jobs?wait=true", data=form, files=files, headers=SAME)
        job = answer.json()
        assert answer.status_code == 200 and job["result"] == "content" and job["priority"] == 2
        assert job["metadata"]["files"] == {"image": ["talk_one.txt"]}
        path = running.get_job(job["id"]).params["image"]
        assert path.name == "talk_one.txt" and path.parents[1].stat().st_mode & 0o777 == 0o700
        again = (await client.post(f"api/jobs/{job['id']}/retry", json={})).json()
        assert (await client.ended(again["id"]))["result"] == "content"
        files = [("images", ("a.txt", b"a")), ("images", ("a.txt", b"b"))]
        answer = await client.post("api/jobs?wait=true", data={"plugin_id": "several"}, files=files, headers=SAME)
        assert answer.json()["result"] == [["a", "b"], None]
        running.clear_completed_jobs()
        await until(lambda: not path.exists())


SAME = {"sec-fetch-site": "same-origin"}


async def test_uploads_are_bounded_and_forms_are_checked() -> None:
    """Too large is 413, no form is 400, a field that is no JSON is 422; nothing of them is kept."""
    async with api(look, max_upload=10_000) as (running, client):
        big: "list[Any]" = [("image", ("a.txt", b"x" * 20_000))]
        assert problem(await client.post("api/jobs", data={"plugin_id": "look"}, files=big, headers=SAME)) == (413, "too-large", None)
        small: "list[Any]" = [("image", ("a.txt", b"x"))]
        answer = await client.post("api/jobs", data={"plugin_id": "look", "params": "{"}, files=small, headers=SAME)
        assert problem(answer) == (422, "invalid", "params")
        broken = {"content-type": "multipart/form-data; boundary=x", **SAME}
        assert problem(await client.post("api/jobs", content=b"--y\r\n", headers=broken))[0] in (400, 422)
        assert problem(await client.post("api/jobs", content=b" " * (1 << 21), headers={"content-type": "application/json"}))[0] == 413
        assert not running.jobs


def form(client: httpx.AsyncClient, go_on: asyncio.Event, user: str, length: "int | None" = None) -> "asyncio.Task[httpx.Response]":
    """Begin to send a form, without saying how long it is unless that is given, and end it when the event is set."""
    parts = [b'--x\r\ncontent-disposition: form-data; name="image"; filename="a.txt"\r\n\r\nsound', b"\r\n--x--\r\n"]

    async def body() -> Any:
        yield parts[0]
        await go_on.wait()
        yield parts[1]

    headers = {"content-type": "multipart/form-data; boundary=x", "x-user": user, **SAME}
    if length is not None:
        headers["content-length"] = str(sum(map(len, parts)))
    return asyncio.ensure_future(client.post("api/jobs", content=body(), headers=headers))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> "list[OpenRequests]":
    """What counts the open requests of the apps that a test makes; that with 8 for each client counts forms."""
    made: "list[OpenRequests]" = []

    def make(*limits: Any) -> OpenRequests:
        made.append(OpenRequests(*limits))
        return made[-1]

    monkeypatch.setattr(web_app, "OpenRequests", make)
    return made


async def test_forms_that_are_read_at_the_same_time_are_bounded(counted: "list[OpenRequests]") -> None:
    """In bytes for each client and for all, as large as they may become, and in number; when they are read, others find room."""
    go_on, whole = asyncio.Event(), asyncio.Event()
    whole.set()
    async with api(look, max_upload=10_000, authorize=by_user) as (_, client):
        (reading,) = [one for one in counted if one.each == 8]
        begun = [form(client, go_on, user) for user in ("alice", "alice", "bob")]
        await until(lambda: reading.open == 3)
        refused = await form(client, whole, "alice")
        assert problem(refused) == (429, "busy", None) and refused.headers["retry-after"]
        begun.append(form(client, go_on, "bob"))
        await until(lambda: reading.open == 4)
        refused = await form(client, whole, "carol")
        assert problem(refused) == (503, "busy", None) and refused.headers["retry-after"]
        go_on.set()
        assert {(await one).status_code for one in begun} == {422} and not reading.open  # a form without a plugin
        go_on.clear()
        begun = [form(client, go_on, "alice", 1) for _ in range(reading.each)]
        await until(lambda: reading.open == reading.each)
        assert problem(await form(client, whole, "alice", 1)) == (429, "busy", None)
        go_on.set()
        assert {(await one).status_code for one in begun} == {422}


async def test_a_form_that_comes_too_slowly_ends(monkeypatch: pytest.MonkeyPatch, counted: "list[OpenRequests]") -> None:
    """With 408, so that it does not take the room of others for ever."""
    monkeypatch.setattr(web_uploads, "PATIENCE", 0.1)
    async with api(look, authorize=by_user) as (_, client):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = "POST /api/jobs HTTP/1.1", "Host: localhost", "X-User: alice", "Sec-Fetch-Site: same-origin", "Content-Length: 99"
        writer.write("\r\n".join([*head, "Content-Type: multipart/form-data; boundary=x", "", "--x"]).encode())
        answer = (await asyncio.wait_for(reader.read(), 15)).decode()  # the server ends the connection
        writer.close()
        assert answer.startswith("HTTP/1.1 408 ") and "#slow" in answer and not any(one.open for one in counted)


def large(what: str) -> Any:
    """A plugin with a large result."""
    values = {"numbers": {"all": list(range(500_000)), "none": []}, "text": "é" * 3_000_000, "nested": [["a" * 70_000, {"b": None}]] * 50}
    return values[what] if what in values else [*range(500_000), {1, 2}]


class AttrDict(dict):  # type: ignore[type-arg]
    """A dict whose items are attributes; one that it lacks is None."""

    __getattr__ = dict.get


async def test_results_that_are_odd_are_seen_at_once() -> None:
    """A dict that has every attribute is no file, and a list that holds itself is looked at once, not at each of a thousand levels."""
    around: "list[Any]" = []
    around.append(around)
    for result, kind in ((AttrDict(a=1), "json"), (around, "object"), (Path, "object")):
        job = Job("odd", AttrDict(values=AttrDict(a=1)))
        job.result, job.status, begun = result, "completed", time.process_time()
        view = await ResultViews().of(job)
        assert view.kind == kind and json.loads(job_details(job, view, True))["params"] == {"values": {"a": 1}}
        assert time.process_time() - begun < 1.5


def nested(value: Any, levels: int) -> Any:
    """A list that holds a list that holds a list."""
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(nested(list(range(200_000)), 800), id="deep"),
        pytest.param([10**4299 + n for n in range(300)], id="long numbers"),
        pytest.param({"a": ["é" * 3_000_000, {"b": "a" * 3_000_000}]}, id="texts within"),
        pytest.param({f"key {n}": {"n": n, "x": n / 3} for n in range(50_000)}, id="records"),
    ],
)
async def test_no_block_of_a_large_result_takes_long(value: Any) -> None:
    """However deep it is and whatever it holds: all is made, in blocks that are small, in about the time that encoding takes at best."""
    job = Job("odd")
    job.result, job.status, begun = value, "completed", time.process_time()
    view = await ResultViews().of(job)
    blocks = [block async for block in json_blocks(value)]
    assert time.process_time() - begun < 5
    assert "".join(blocks) == encode_json(value) and view.size == sum(map(len, blocks)) and not view.text
    assert max(map(len, blocks)) <= 13 * BLOCK and len(blocks) > 10


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@settings(max_examples=40)
@given(st.recursive(SIMPLE, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner)))
def test_json_in_parts_is_the_same(value: Any) -> None:
    """As at once, wherever it is parted."""
    for size in (1, 10, 40, 200):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(web_documents, "BLOCK", size)
            assert "".join(json_parts(value)) == encode_json(value)


def test_numbers_that_take_long_to_write_are_not_short() -> None:
    """The time for a number's decimals grows by their square; a result of them is made in blocks, though its JSON is not long."""
    assert room_after([10**4299] * 100) < 0 <= room_after([10**100] * 3000)
    assert len(encode_json([10**4299] * 100)) < INLINE


async def test_values_that_no_json_holds_have_none_in_parts() -> None:
    """Such as one that holds itself within something large, and one nested too deep."""
    around: "dict[str, Any]" = {"a": list(range(20_000))}
    around["b"] = {"around": around}
    for wrong in (around, nested("a" * 2 * BLOCK, 1100), [*range(20_000), {1}]):
        with pytest.raises((ValueError, TypeError)):
            "".join(json_parts(wrong))


async def test_a_large_result_leaves_the_loop_to_others() -> None:
    """Its job says how large it is, once counted, and `/result` sends it; in the meantime the loop turns again and again."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with api(large) as (running, client):
        for what in ("numbers", "text", "nested"):
            job = running.get_job((await client.start("large", "?wait=true", what=what))["id"])
            expected = json.dumps(job.result, separators=(",", ":"))
            assert len(expected) > 1 << 20
            turning = asyncio.ensure_future(turn())
            turns = 0
            sent = await client.get(f"api/jobs/{job.id}/result")
            turning.cancel()
            assert sent.text == expected and sent.headers["content-length"] == str(len(expected)) and turns > 10
            shown = (await client.get(f"api/jobs/{job.id}")).json()
            assert shown["result"] is None and (shown["result_type"]["kind"], shown["result_type"]["size"]) == ("json", len(expected))
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(web_results, "json_blocks")
            head = await client.head(f"api/jobs/{job.id}/result")
        assert head.headers.items() == sent.headers.items() - {("date", sent.headers["date"])} | {("date", head.headers["date"])}
        job = await client.start("large", "?wait=true", what="a set within")
        assert job["result_type"] == {"kind": "object", "type": "list", "size": 0, "media_type": None}
        assert problem(await client.get(f"api/jobs/{job['id']}/result"))[:2] == (406, "not-json")


@pytest.mark.parametrize(
    "what, kind, disposition",
    [
        ("png", "image/png", "inline"),
        ("bytes", "application/octet-stream", "attachment"),
        ("file", "application/octet-stream", "attachment"),
        ("text", "application/json", None),
        ("nothing", "application/json", None),
    ],
)
async def test_results_come_as_what_they_are(what: str, kind: str, disposition: "str | None", results: Any) -> None:
    """Only four kinds of images are shown by browsers; everything has `nosniff` and a policy that runs nothing."""
    answer = results[what]
    assert answer.status_code == 200 and answer.headers["content-type"] == kind
    assert answer.headers["x-content-type-options"] == "nosniff" and "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers.get("content-disposition", "").partition(";")[0] == (disposition or "")


def test_results_that_cannot_be_sent_say_why(results: Any) -> None:
    """What JSON cannot hold has its type and the size of its repr; a file elsewhere, or gone, is 404."""
    assert problem(results["object"])[:2] == (406, "not-json") and results["object"].json()["result"] == {"type": "set", "size": 6}
    assert problem(results["nan"])[:2] == (406, "not-json")
    for what in ("passwd", "gone"):
        assert problem(results[what])[:2] == (404, "no-result")
    assert problem(results["running"])[:2] == (409, "no-result")


@pytest.fixture(scope="module")
def results() -> "dict[str, httpx.Response]":
    """The answers for results of each kind."""

    async def ask() -> "dict[str, httpx.Response]":
        found = {}
        async with api(give, spin) as (_, client):
            for what in ("png", "bytes", "object", "nan", "nothing", "file", "passwd", "gone", "text"):
                job = await client.start("give", "?wait=true", what=what)
                assert job["status"] == "completed", job
                found[what] = await client.get(f"api/jobs/{job['id']}/result")
            job = await client.start("spin")
            found["running"] = await client.get(f"api/jobs/{job['id']}/result")
        return found

    return asyncio.run(ask())


async def test_a_stream_from_the_first_chunk_to_the_end() -> None:
    """Each chunk once, in order; at last the job; a client that comes back continues; after the end it gets 204 and stays away."""
    async with api(count) as (running, client):
        job = await client.start("count", to=30, pause=0.005)
        async with client.events(f"api/jobs/{job['id']}/stream") as events:
            seen = [event async for event in events]
        assert [event.data for event in seen[:-1]] == list(range(30)) and {event.type for event in seen[:-1]} == {"chunk"}
        assert (seen[-1].type, seen[-1].data["result"], seen[-1].id) == ("end", {"counted": 30}, "end")
        path = f"api/jobs/{job['id']}/stream"
        async with client.events(path, **{"last-event-id": seen[24].id}) as events:
            assert [event.data async for event in events][:-1] == [25, 26, 27, 28, 29]
        assert (await client.get(path, headers={"last-event-id": "end"})).status_code == 204
        assert problem(await client.get(path, headers={"last-event-id": "-5"})) == (422, "invalid", "Last-Event-ID")
        assert (await client.head(path)).status_code == 200


async def test_chunks_that_are_gone_are_counted() -> None:
    """The stream says how many it has lost, and goes on."""
    async with api(count, settings={"stream_buffer": 5}) as (running, client):
        job = await client.start("count", "?wait=true", to=600)
        async with client.events(f"api/jobs/{job['id']}/stream") as events:
            seen = [event async for event in events]
        assert seen[0].type == "gap" and seen[0].data["missed"] + len(seen) - 2 == 600
        assert seen[-2].data == 599


async def test_a_client_that_leaves_frees_the_worker() -> None:
    """With `cancel_on_disconnect`, and only then."""
    async with api(spin) as (running, client):
        for cancels in (True, False):
            query = f"?wait=true&cancel_on_disconnect={str(cancels).lower()}"
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"api/jobs{query}", json={"plugin_id": "spin"}, timeout=httpx.Timeout(10, read=0.5))
            job = running.get_all_jobs()[-1]
            if cancels:
                await asyncio.wait_for(job.wait(), 10)
                assert job.status == "cancelled"
            else:
                assert not job.done


@pytest.mark.slow
async def test_streams_of_a_client_are_limited() -> None:
    """The seventeenth is refused; one that leaves makes room."""
    async with api(spin) as (running, client):
        job = await client.start("spin")
        path = f"api/jobs/{job['id']}/stream"
        opened = [client.events(path) for _ in range(16)]
        for stream in opened:
            await stream.__aenter__()
        assert problem(await client.get(path)) == (429, "busy", None)
        assert problem(await client.get("api/events")) == (429, "busy", None)
        await opened.pop().__aexit__(None, None, None)

        async def there_is_room() -> bool:
            return (await client.head(path)).status_code == 200

        await until(there_is_room)
        for stream in opened:
            await stream.__aexit__(None, None, None)


async def test_requests_of_a_client_that_wait_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than the limit starts its job, and is answered with 202 at once; a request that ends makes room."""
    monkeypatch.setattr(web_app, "OpenRequests", lambda stop, *limits: OpenRequests(stop, 1, 1))
    async with api(spin) as (running, client):
        waiting = asyncio.ensure_future(client.post("api/jobs?wait=true", json={"plugin_id": "spin"}))
        await until(lambda: running.jobs)
        while (answer := await client.post("api/jobs?wait=true&wait_timeout=1", json={"plugin_id": "spin"})).elapsed.total_seconds() > 1:
            await asyncio.sleep(0)  # the first did not wait yet
        assert answer.status_code == 202 and answer.json()["id"] in running.jobs
        await running.cancel_job(next(iter(running.jobs)))
        assert (await waiting).json()["status"] == "cancelled"
        answer = await client.post("api/jobs?wait=true&wait_timeout=0.1", json={"plugin_id": "spin"})
        assert answer.status_code == 202 and answer.elapsed.total_seconds() >= 0.1


@pytest.mark.slow
async def test_log_lines_are_for_those_who_may_see_them() -> None:
    """A bounded number for each job, with time and level."""
    async with api(talk, authorize=by_user) as (_, client):
        answer = await client.post("api/jobs?wait=true", json={"plugin_id": "talk", "params": {"lines": 250}}, headers={"x-user": "alice"})
        assert "log" not in answer.json()
        log = (await client.get(f"api/jobs/{answer.json()['id']}", headers={"x-user": "root"})).json()["log"]
        assert 0 < len(log) <= 200 and log[-1]["level"] == "WARNING" and "line 249" in {line["text"] for line in log}
    async with api(talk, authorize=by_user, show_details=True) as (_, client):
        answer = await client.post("api/jobs?wait=true", json={"plugin_id": "talk", "params": {"lines": 3}}, headers={"x-user": "alice"})
        assert [line["text"] for line in answer.json()["log"]][:3] == ["line 0", "line 1", "line 2"]


@pytest.mark.slow
async def test_metrics_are_what_prometheus_reads() -> None:
    """prometheus_client parses them; they are for those who see all."""
    parser = pytest.importorskip("prometheus_client.parser")
    async with api(shout, authorize=by_user) as (_, client):
        root = {"x-user": "root"}
        await client.post("api/jobs?wait=true", json={"plugin_id": "shout", "params": {"text": "hi"}}, headers=root)
        answer = await client.get("metrics", headers=root)
        families = {family.name: family for family in parser.text_string_to_metric_families(answer.text)}
        (ended,) = families["cjm_jobs_ended"].samples
        assert (ended.labels, ended.value) == ({"status": "completed"}, 1) and families["cjm_ready"].samples[0].value == 1
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert problem(await client.get("metrics", headers={"x-user": "alice"})) == (403, "forbidden", None)


@pytest.mark.slow
async def test_the_openapi_document_is_valid() -> None:
    """By a validator; and each answer of the API has the form that it promises."""
    validator = pytest.importorskip("openapi_spec_validator")
    jsonschema = pytest.importorskip("jsonschema")
    async with api(count, spin) as (running, client):
        document = (await client.get("api/openapi.json")).json()
        validator.validate(document)
        done, open_job = await client.start("count", "?wait=true", to=2), await client.start("spin")
        asked = {
            "/api/jobs": "api/jobs",
            "/api/jobs/{id}": f"api/jobs/{done['id']}",
            "/api/workers": "api/workers",
            "/api/plugins": "api/plugins",
        }
        for path, url in asked.items():
            schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate((await client.get(url)).json(), {**schema, "components": document["components"]})
        assert set(document["paths"]["/api/jobs/{id}/cancel"]) == {"post"} and open_job["status"] in ("pending", "running")


async def test_headers_of_a_response_stay_beside_the_safe_ones() -> None:
    """Two of one name, as two cookies, both; and its own in place of a safe one."""
    sent = []

    async def send(message: "dict[str, Any]") -> None:
        sent.append(message)

    own = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"content-security-policy", b"default-src 'self'")]
    await with_safe_headers(send)({"type": "http.response.start", "status": 200, "headers": own})
    headers = sent[0]["headers"]
    assert headers[:3] == own and {name for name, _ in headers} == {b"set-cookie", *SAFE} and len(headers) == 2 + len(SAFE)
