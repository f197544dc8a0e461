"""The live page in headless Chromium: start, stream, cancel, retry, keys, a dead worker, a lost server, and what axe-core finds."""

import asyncio
import base64
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from harness import nothing_left  # noqa: F401

from cjm_worker_protocols import JobManager, WorkerConfig, report_progress

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install -e '.[dev]'")

from web_kit import TOKEN, serving  # noqa: E402

from cjm_worker_protocols.web import Access, WorkersApp  # noqa: E402
from cjm_worker_protocols.web import app as web_app  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
STATIC = Path(str(web_app.__file__)).parent / "static"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
EVIL = "<img src=x onerror=alert(1)>"


def speak(words: int = 5, pause: float = 0.05, language: Literal["en", "de"] = "en") -> Any:
    """Say some words."""
    for n in range(words):
        time.sleep(pause)
        report_progress((n + 1) / words, f"{EVIL} {n + 1} of {words}")
        yield f"word{n}"
    return {"words": words, "text": EVIL}


def spin() -> None:
    """Never end."""
    report_progress(0.5, "half")
    while True:
        time.sleep(1)


def fail() -> None:
    """Fail."""
    raise ValueError(EVIL)


def picture() -> bytes:
    """One red pixel."""
    start, data = "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de", "789c63f8cfc0000003010100c9fe92ef"
    return bytes.fromhex(f"{start}0000000c49444154{data}0000000049454e44ae426082")


def anything(text: str, times: int = 1, **more: Any) -> "dict[str, Any]":
    """Give back what it got."""
    return {"text": text, "times": times, **more}


def size(audio: Path) -> int:
    """Count the bytes of a file."""
    logging.getLogger("mine").warning("counting")
    return audio.stat().st_size


PLUGINS = (speak, spin, fail, picture, anything, size)


def make() -> JobManager:
    """A manager of two workers."""
    config = WorkerConfig(max_workers=2, standby=False, grace_timeout=1.0)
    return JobManager("pages", "tests", plugins={plugin.__name__: plugin for plugin in PLUGINS}, worker_config=config)


@asynccontextmanager
async def browser() -> Any:
    """A Chromium that reaches only this machine."""
    async with playwright.async_playwright() as p:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = await p.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield chromium
        finally:
            await chromium.close()


@asynccontextmanager
async def page_of(manager: JobManager, prefix: str = "/", settings: "dict[str, Any] | None" = None, **options: Any) -> Any:
    """The page of a manager in a browser; it may ask no other host. In the end the manager is shut down."""
    app = WorkersApp(manager, **(settings or {}))
    async with manager, serving(app if prefix == "/" else mounted(app, prefix.rstrip("/")), prefix) as client, browser() as chromium:
        context = await chromium.new_context(viewport=options.pop("viewport", {"width": 1200, "height": 900}), **options)
        page = await context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.set_default_timeout(20_000)
        await page.goto(str(client.base_url))
        page.client = client
        yield page
        assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in page.asked), page.asked


async def until(page: Any, expression: str, limit: float = 20) -> None:
    """Wait until an expression is true; the page's policy does not let Playwright's own wait evaluate it there."""
    deadline = time.monotonic() + limit
    while not await page.evaluate(expression):
        assert time.monotonic() < deadline, (expression, await page.inner_text("body"), page.complaints)
        await asyncio.sleep(0.05)


async def live(page: Any) -> Any:
    """Wait until the page follows the events and has its jobs."""
    await until(page, "document.getElementById('live').dataset.state === 'live' && workersPage.loaded")
    await page.wait_for_selector("#start-form button.main", state="attached")
    return page


async def row(page: Any, text: str, n: int = 0) -> Any:
    """Wait for a row of the table of jobs that has this text."""
    found = page.locator("#jobs-table tr.job").filter(has_text=text).nth(n)
    await found.wait_for()
    return found


async def run(page: Any, plugin: str) -> None:
    """Start a job by the form."""
    await page.select_option("select[name=plugin]", plugin)
    await page.click("#start-form button.main")


def mounted(app: Any, path: str) -> Any:
    """An app below a path."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    return Starlette(routes=[Mount(path, app)])


# The files


def test_the_files_are_small_and_nothing_is_inline() -> None:
    """At most 60 kB in all; the policy forbids inline scripts and styles, and the page has none; nothing names another host."""
    files = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
    assert sum(len(text.encode()) for text in files.values()) <= 60_000
    html = files["index.html"]
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", html)
    for name, text in files.items():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|outerHTML|insertAdjacentHTML|\beval\(", text), name


# At work


@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_a_job_from_the_form_to_its_result() -> None:
    """The stream comes while it runs; the result is a tree; texts of plugins are never HTML; the address names the job."""
    async with page_of(make(), "/deep/workers/", {"title": "My page"}) as page:
        await live(page)
        assert await page.title() == "My page" and "curl" in await page.inner_text("#no-jobs")
        await page.select_option("select[name=plugin]", "speak")
        await page.fill("input[name=words]", "40")
        await page.click("#start-form button.main")
        await until(page, "document.querySelector('.stream')?.textContent.includes('word3')")
        assert "word39" not in await page.inner_text(".stream")
        running = await row(page, "speak")
        assert EVIL in await running.inner_text() and "%" in await running.inner_text()
        await page.wait_for_selector("tr.job.completed")
        await page.wait_for_selector(".detail .tree")
        assert (await page.inner_text(".stream")).split() == [f"word{n}" for n in range(40)]
        assert "words: 40" in await page.inner_text(".detail") and await page.locator(".detail img").count() == 0
        assert "done" in await page.inner_text("#announce") and "#job=" in page.url
        assert [await page.inner_text(f"#counters .{status} b") for status in ("running", "completed")] == ["0", "1"]
        await page.reload()
        await live(page)
        await page.wait_for_selector(".detail .tree")  # the address names it
        assert (await page.inner_text(".stream")).split()[-1] == "word39" and not page.complaints



@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_cancel_retry_and_a_killed_worker() -> None:
    """By mouse and by key; a worker that is killed is shown, and so is its job; a failure shows its traceback."""
    manager = make()
    async with page_of(manager) as page:
        await live(page)
        await run(page, "spin")
        await page.wait_for_selector("tr.job.running")
        await page.click("tr.job.running td.actions button")
        await page.wait_for_selector("tr.job.cancelled")
        await page.keyboard.press("Escape")
        await page.keyboard.press("k")
        await page.keyboard.press("r")  # a new job, which opens
        await page.wait_for_selector("tr.job.running")
        assert "retry of" in await page.inner_text(".detail")
        (job,) = [job for job in manager.get_all_jobs() if job.status == "running"]
        os.kill(job.worker_pid, signal.SIGKILL)
        failed = await row(page, "killed by SIGKILL")
        assert "failed" in await failed.inner_text()
        killed = page.locator("#workers-table tr.failed", has_text=str(job.worker_pid))
        await killed.wait_for()
        assert "signal 9" in await killed.inner_text()
        await run(page, "fail")
        await page.wait_for_selector(".detail details pre", state="attached")
        assert "ValueError" in await page.inner_text(".detail") and not page.complaints



@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_everything_by_keyboard() -> None:
    """Search, filter, move, open, close, new job, help; the focus is never lost."""
    manager = make()
    async with page_of(manager) as page:
        await live(page)
        for text in ("alpha", "beta"):
            await (await manager.start_job("anything", text=text, metadata={"name": text}))
        with pytest.raises(RuntimeError):
            await (await manager.start_job("fail"))
        await row(page, "alpha")
        keys = page.keyboard
        await keys.press("/")
        await keys.type("alp")
        await until(page, "document.querySelectorAll('tr.job').length === 1")
        await page.fill("#search", "")
        await keys.press("Escape")
        await keys.press("4")
        await until(page, "document.querySelectorAll('tr.job').length === 1 && document.querySelector('tr.failed')")
        assert await page.get_attribute("#counters button:nth-child(4)", "aria-pressed") == "true"
        await keys.press("4")
        await row(page, "beta")
        for _ in range(2):
            await keys.press("j")
        await keys.press("Enter")
        await page.wait_for_selector(".detail .tree")
        assert "beta" in await page.inner_text(".detail")
        await keys.press("Escape")
        await page.wait_for_selector(".detail", state="detached")
        assert await page.evaluate("document.activeElement.closest('tr').textContent.includes('beta')")
        await keys.press("?")
        await page.wait_for_selector("dialog[open]")
        await keys.press("Escape")
        await keys.press("n")
        assert await page.evaluate("document.activeElement.name") == "plugin"
        await keys.press("Escape")
        assert not page.complaints



@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_a_server_that_goes_and_comes_back() -> None:
    """The page says since when it is not live, reconnects by itself, and shows what it missed."""
    import socket

    import uvicorn

    manager = make()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    async def start() -> Any:
        config = uvicorn.Config(WorkersApp(manager), port=port, log_config=None, lifespan="off", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        task = asyncio.ensure_future(server._serve())
        while not server.started:
            await asyncio.sleep(0.01)
        return server, task

    server, task = await start()
    async with manager, browser() as chromium:
        page = await chromium.new_page()
        page.complaints = []
        await page.goto(f"http://127.0.0.1:{port}/")
        await live(page)
        await (await manager.start_job("anything", text="a", metadata={"name": "before"}))
        await row(page, "before")
        server.should_exit = True
        await task
        await until(page, "document.getElementById('live').dataset.state === 'offline'")
        assert "offline since" in await page.inner_text("#live") and await page.locator(".stale").count() == 1
        await (await manager.start_job("anything", text="b", metadata={"name": "meanwhile"}))
        server, task = await start()
        await until(page, "document.getElementById('live').dataset.state === 'live'")
        await row(page, "meanwhile")
        await row(page, "before")
        await page.close()
        server.should_exit = True
        await task


@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_the_token_is_in_no_address() -> None:
    """It comes in the fragment, or is typed; then a cookie stands for it."""
    async with page_of(make(), settings={"token": TOKEN}) as page:
        await page.wait_for_selector("#login:not([hidden])")
        await page.fill("#token", "wrong" * 5)
        await page.click("#login button")
        await until(page, "document.getElementById('live').textContent.includes('not signed in')")
        await page.goto(f"{page.client.base_url}#token={TOKEN}")
        await page.reload()
        await live(page)
        assert TOKEN not in page.url and not [url for url in page.asked if TOKEN in url.partition("#")[0]]
        assert TOKEN not in await page.content() and "cjm_workers" not in await page.evaluate("document.cookie")
        await page.reload()
        await live(page)



@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_what_a_client_may_not_do_is_not_offered() -> None:
    """Own jobs only, no workers, no form, no buttons."""
    manager = make()
    async with page_of(manager, settings={"authorize": lambda scope: Access("ada", may=())}) as page:
        await manager.start_job("spin", owner="ada")
        await manager.start_job("spin", owner="bob")
        await page.wait_for_selector("tr.job.running")
        assert await page.locator("tr.job").count() == 1 and await page.locator("tr.job button:not(.plain)").count() == 0
        assert not await page.is_visible("#start") and not await page.is_visible("#workers")
        assert "ada" in await page.inner_text("#host")



DROP = """([name, text]) => {
    const data = new DataTransfer()
    data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name))
    for (const type of ["dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true}))
}"""


@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_a_dropped_recording_becomes_words() -> None:
    """Live: partial words come while it is transcribed; the job has the file's name; what it logged is shown."""
    pytest.importorskip("pocketsphinx")
    from cjm_worker_protocols.plugins.speech import sample_recording

    recording = sample_recording()
    plugins = {"speech": "cjm_worker_protocols.plugins.speech:PocketSphinx"}
    async with page_of(JobManager("pages", "tests", plugins=plugins, worker_config=WorkerConfig(standby=False))) as page:
        await live(page)
        await until(page, "document.querySelector('input[type=file]') !== null")
        await page.evaluate(DROP, [recording.name, base64.b64encode(recording.read_bytes()).decode()])
        await until(page, "document.querySelector('.stream')?.textContent.length > 10", 60)
        assert await page.locator("tr.job.running").count() == 1
        await page.wait_for_selector("tr.job.completed", timeout=60_000)
        assert recording.name in await page.inner_text("tr.job")
        assert "the model is loaded once and then it answers many questions" in await page.inner_text(".stream")
        assert not page.complaints


@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_files_images_and_log_lines() -> None:
    """A file goes with the form; an image is shown; the log of a job is in its details."""
    async with page_of(make()) as page:
        await live(page)
        await page.select_option("select[name=plugin]", "size")
        await page.set_input_files("input[type=file]", {"name": "a b.bin", "mimeType": "text/plain", "buffer": b"12345"})
        await page.click("#start-form button.main")
        await page.wait_for_selector("tr.job.completed")
        await until(page, "/result\\n?5/.test(document.querySelector('.detail')?.innerText || '')")
        await until(page, "document.querySelector('.detail').innerText.includes('WARNING counting')")
        await run(page, "picture")
        await page.wait_for_selector(".detail img")
        await until(page, "document.querySelector('.detail img').naturalWidth === 1")
        assert not page.complaints


# How it looks and how fast it is


@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(120)
@pytest.mark.parametrize("width, scheme", [(360, "light"), (1200, "dark")])
async def test_axe_finds_nothing_and_nothing_scrolls_sideways(width: int, scheme: str) -> None:
    """With running, waiting, failed and ended jobs, one open, the form and the help."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("axe-playwright-python is not installed: pip install -e '.[dev]'")
    axe = (Path(found.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")
    manager = make()
    async with page_of(manager, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:

        async def clean(state: str) -> None:
            await page.evaluate(axe + "; void 0")
            script = "async () => (await axe.run()).violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 200))])"
            assert not (violations := await page.evaluate(script)), (state, json.dumps(violations, indent=1))
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), state

        await live(page)
        await clean("empty")
        for plugin in ("spin", "spin", "spin"):
            await manager.start_job(plugin, metadata={"name": "a long name of a recording " * 3})
        await page.wait_for_selector("tr.job.pending")
        await page.wait_for_selector("tr.job.running")
        await page.click("tr.job.running td.status button")
        await page.wait_for_selector(".detail dl")
        await clean("open")
        for job in manager.get_all_jobs():
            await manager.cancel_job(job.id)
        with pytest.raises(RuntimeError):
            await (await manager.start_job("fail"))
        await page.click("tr.job.failed td.status button")
        await page.wait_for_selector(".detail details", state="attached")
        if width < 700:
            await page.click("#workers summary")
            await page.click("#start-toggle")
        for plugin in ("speak", "anything"):
            await page.select_option("select[name=plugin]", plugin)
            await clean(f"form of {plugin}")
        await page.evaluate("document.getElementById('help').showModal()")
        await clean("help")



@pytest.mark.slow
@needs_chromium
@pytest.mark.limit(90)
async def test_twenty_changes_of_a_thousand_jobs_take_little_script() -> None:
    """At most 20 ms of script, once the page is warm."""
    manager = make()
    async with page_of(manager) as page:
        await live(page)
        times = await page.evaluate(
            """() => {
            const now = new Date().toISOString(), none = {message: "", waiting_for: "", completed_at: null, metadata: {}, error: null}
            const made = {plugin_id: "speak", status: "running", progress: 0, attempts: 1, created_at: now, started_at: now, ...none}
            const job = n => ({id: `job-${n}`, ...made})
            for (let n = 0; n < 1000; n++) workersPage.receive(job(n))
            workersPage.draw()
            const took = []
            for (let round = 1; round <= 30; round++) {
                const began = performance.now()
                for (let n = 0; n < 20; n++) workersPage.receive({...job(980 + n), progress: round / 30, message: `${round} of 30`})
                workersPage.draw()
                took.push(performance.now() - began)
            }
            return [took, document.querySelectorAll("tr.job").length]
        }"""
        )
        took, rows = times
        assert rows == 100 and sorted(took[5:])[len(took[5:]) // 2] <= 20, took
        assert "30 of 30" in await (await row(page, "job-999")).inner_text()
        places = await page.evaluate(
            """() => {
            const job = (n, status, position) => ({...workersPage.jobs.get("job-1"), id: `next-${n}`, status, position})
            for (const n of [1, 2, 3]) workersPage.receive(job(n, "pending", n))
            workersPage.receive(job(4, "pending", 2))  // of a higher priority
            workersPage.receive(job(1, "running", null))
            workersPage.draw()
            return [4, 2, 3].map(n => workersPage.rows.get(`next-${n}`).what.textContent)
        }"""
        )
        assert places == ["1st in line", "2nd in line", "3rd in line"]

