"""A real browser: `EventSource` in headless Chromium hears, loses its server, connects again, and misses nothing."""

import asyncio
import json
import re
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Iterator

import nbformat
import pytest
from harness import nothing_left, said_json, script, wait_until  # noqa: F401

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[dev]'")

from redis_kit import REDIS, RedisServer  # noqa: E402
from repo import NBS  # noqa: E402
from sse_kit import APPS, free_port, wait_until_served  # noqa: E402

from cjm_worker_protocols.integrations.redis import RedisBroadcaster  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium"),
]

PAGE = """<!doctype html><title>live</title><script>
window.got = []; window.opened = 0
const source = new EventSource("/events")
source.onopen = () => { window.opened++ }
for (const type of ["tick", "reset", "gap"]) source.addEventListener(type, e => got.push([e.type, e.data, e.lastEventId]))
</script>"""

# A broadcaster that stays while its server comes and goes, as behind a proxy that loses its backend for a while.
SERVER = """
import asyncio, json, sys
sys.path.insert(0, {tests!r})
from sse_kit import APPS
from cjm_worker_protocols.integrations.sse import SSEBroadcaster
from starlette.responses import HTMLResponse
import uvicorn

broadcaster = SSEBroadcaster(retry=0.2)
page = sys.argv[2]
if sys.argv[1] == "starlette":
    from starlette.applications import Starlette
    from starlette.routing import Route
    app = Starlette(routes=[Route("/", lambda request: HTMLResponse(page)), Route("/events", broadcaster)])
else:
    app = APPS[sys.argv[1]](broadcaster)
    app.router.routes.insert(0, __import__("starlette.routing").routing.Route("/", lambda request: HTMLResponse(page)))

async def main():
    loop = asyncio.get_running_loop()
    server = serving = None
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        if order == "start":
            server = uvicorn.Server(uvicorn.Config(app, port={port}, log_level="error"))
            serving = asyncio.ensure_future(server._serve())
            while not server.started: await asyncio.sleep(0.01)
        elif order == "lose":
            server.should_exit = True
            while not serving.done(): # the page may be back before the server has stopped listening, and uvicorn waits for open streams
                for connection in list(server.server_state.connections): connection.transport.abort()
                await asyncio.sleep(0.01)
            await serving
        else:
            for n in range(*order): await broadcaster.broadcast("tick", dict(n=n, text="naïve\\nlines"))
        print(json.dumps(broadcaster.counters.clients), flush=True)

asyncio.run(main())
"""


@pytest.fixture
def browser(nothing_left: None) -> "Iterator[Any]":
    """Debian's Chromium, which reaches nothing but this machine."""
    args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    args.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.mark.parametrize("name", sorted(APPS))
def test_a_browser_that_loses_its_server_misses_nothing(name: str, browser: Any, tmp_path: Path) -> None:
    """Events before, while the server is away, and after: each once, in order. The same after a second loss, before any new event."""
    port = free_port()
    source = SERVER.format(tests=str(Path(__file__).parent), port=port)
    with script(tmp_path / "server.py", source, name, PAGE) as process:

        def order(what: Any) -> int:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()
            return int(said_json(process))

        order("start")
        page = browser.new_page()
        strangers: "list[str]" = []
        page.on("request", lambda request: strangers.append(request.url) if f"//127.0.0.1:{port}/" not in request.url else None)
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("opened == 1")
        for loss in range(2):
            order("lose")
            order([loss * 20, loss * 20 + 10])
            order("start")
            page.wait_for_function(f"opened == {loss + 2}", timeout=20000)
            order([loss * 20 + 10, loss * 20 + 20])
            page.wait_for_function(f"got.length == {loss * 20 + 20}", timeout=20000)
        got = page.evaluate("got")
        assert [type for type, _, _ in got] == ["tick"] * 40
        assert [json.loads(data) for _, data, _ in got] == [{"n": n, "text": "naïve\nlines"} for n in range(40)]
        assert [int(event_id.rsplit("-", 1)[1]) for _, _, event_id in got] == list(range(1, 41))
        assert not strangers
        page.close()


def test_a_browser_is_told_when_the_server_is_another(browser: Any, tmp_path: Path) -> None:
    """After a real restart the page gets `reset`, since the server cannot know what it has missed, and then goes on."""
    port = free_port()
    source = SERVER.format(tests=str(Path(__file__).parent), port=port)

    def order(process: "subprocess.Popen[str]", what: Any) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        said_json(process)

    with script(tmp_path / "first.py", source, "starlette", PAGE) as process:
        order(process, "start")
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("opened == 1")
        order(process, [0, 3])
        page.wait_for_function("got.length == 3")
    with script(tmp_path / "second.py", source, "starlette", PAGE) as process:
        order(process, "start")
        page.wait_for_function("opened == 2", timeout=20000)
        order(process, [3, 4])
        page.wait_for_function("got.length == 5", timeout=20000)
        assert [type for type, _, _ in page.evaluate("got")] == ["tick", "tick", "tick", "reset", "tick"]
        page.close()


PROXIED = """
import json, sys, threading
from cjm_worker_protocols.integrations.sse import SSEBroadcaster
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
import uvicorn

broadcaster, away = SSEBroadcaster(retry=0.2), False

class Proxy:  # the answers of a proxy whose server may be away
    async def __call__(self, scope, receive, send):
        if not away: return await broadcaster(scope, receive, send)
        print(json.dumps("refused"), flush=True)
        await Response("bad gateway", 502)(scope, receive, send)

def orders():
    global away
    for line in sys.stdin:
        if (order := json.loads(line)) == "away": away = True; broadcaster.server.stop.hear()
        elif order == "back": away, broadcaster.server.stop.LINGER = False, 0.0
        else: broadcaster.broadcast_from_thread("job:progress", {"n": order})

threading.Thread(target=orders, daemon=True).start()
page = sys.argv[2]
app = Starlette(routes=[Route("/", lambda request: HTMLResponse(page)), Route("/events", Proxy())])
uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""


def test_the_page_that_the_docs_show_comes_back_after_a_502_too(browser: Any, tmp_path: Path) -> None:
    """A browser alone would give up for good; the few lines make it miss nothing."""
    text = "\n".join(cell.source for cell in nbformat.read(NBS / "howto/live_events_in_production.ipynb", 4).cells)  # type: ignore[no-untyped-call]
    (code,) = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    port = free_port()
    page_text = f"<!doctype html><script>const got = []; const show = e => got.push([e.type, e.data]); {code}</script>"
    with script(tmp_path / "proxied.py", PROXIED, str(port), page_text) as process:

        def order(what: Any) -> None:
            assert process.stdin is not None
            process.stdin.write(json.dumps(what) + "\n")
            process.stdin.flush()

        wait_until_served(port, 20)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        while not page.evaluate("got.length"):
            order(0)
            time.sleep(0.1)
        first = page.evaluate("got.length")
        order("away")
        assert said_json(process) == "refused"
        order(1)
        order("back")
        page.wait_for_function("got.some(([type, data]) => data == '{\"n\":1}')", timeout=20000)
        order(2)
        page.wait_for_function("got.some(([type, data]) => data == '{\"n\":2}')", timeout=20000)
        got = page.evaluate("got")
        assert len(got) >= first and got[-2:] == [["job:progress", '{"n":1}'], ["job:progress", '{"n":2}']]
        assert {type for type, _ in got} == {"job:progress"}
        page.close()


# Over Redis

WEB = """
import sys
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from cjm_worker_protocols.integrations.redis import RedisBroadcaster
import uvicorn

broadcaster = RedisBroadcaster(sys.argv[1], retry=0.2, timeout=0.5, longest_pause=0.1)
page = sys.argv[3]
app = Starlette(routes=[Route("/", lambda request: HTMLResponse(page)), Route("/events", broadcaster)])
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


@pytest.mark.skipif(REDIS is None, reason="redis-server is not installed: apt-get install redis-server")
def test_a_browser_misses_nothing_over_redis(browser: Any, tmp_path: Path) -> None:
    """Its web process is killed by kill -9 and another takes its port, and then Redis is killed too.

    Events come once, in order, with no reset.
    """
    port, ticks = free_port(), iter(range(1000))
    with RedisServer(tmp_path / "redis", appendonly=True) as redis, ExitStack() as stack:

        def broadcast(count: int) -> None:
            async def main() -> None:
                broadcaster = RedisBroadcaster(redis.url)
                for _ in range(count):
                    await broadcaster.broadcast("tick", {"n": next(ticks)})
                await broadcaster.aclose()

            thread = threading.Thread(target=asyncio.run, args=(main(),))  # on this one Playwright has a loop
            thread.start()
            thread.join()

        def start(name: str) -> "subprocess.Popen[str]":
            return stack.enter_context(script(tmp_path / f"{name}.py", WEB, redis.url, str(port), PAGE))

        first = start("first")
        wait_until_served(port, 20)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_function("opened == 1")
        wait_until(lambda: "cmd=xread" in redis.ask("CLIENT", "LIST"))
        broadcast(10)
        page.wait_for_function("got.length == 10", timeout=20000)
        first.kill()
        first.wait()
        broadcast(10)
        start("second")
        page.wait_for_function("got.length == 20", timeout=20000)
        redis.restart()
        broadcast(10)
        page.wait_for_function("got.length == 30", timeout=20000)
        got = page.evaluate("got")
        assert [type for type, _, _ in got] == ["tick"] * 30
        assert [json.loads(data)["n"] for _, data, _ in got] == list(range(30))
        assert [event_id for _, _, event_id in got] == [event_id for event_id, _ in redis.events()]
        page.close()
