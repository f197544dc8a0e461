"""What the tests of the live page share: plugins, a page in headless Chromium, and how to wait for what it shows."""

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from web_kit import serving

from cjm_worker_protocols import JobManager, WorkerConfig, report_progress
from cjm_worker_protocols.web import WorkersApp

playwright = pytest.importorskip("playwright.async_api", reason="playwright is not installed: pip install -e '.[dev]'")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
EVIL = "<img src=x onerror=alert(1)>"
WAIT = (
    60  # Seconds after which something that the page does not show is a failure: several browsers may share a processor
)


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
    start, data = (
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de",
        "789c63f8cfc0000003010100c9fe92ef",
    )
    return bytes.fromhex(f"{start}0000000c49444154{data}0000000049454e44ae426082")


def anything(text: str, times: int = 1, **more: Any) -> "dict[str, Any]":
    """Give back what it got."""
    return {"text": text, "times": times, **more}


def size(audio: Path) -> int:
    """Count the bytes of a file."""
    logging.getLogger("mine").warning("counting")
    return audio.stat().st_size


class Gated:
    """Takes long to load: until the file exists that the environment names."""

    def load(self, config: "dict[str, Any]") -> None:
        """Wait."""
        while not os.path.exists(os.environ["GATE"]):
            time.sleep(0.05)

    def run(self) -> None:
        """Return nothing."""


PLUGINS = {plugin.__name__: plugin for plugin in (speak, spin, fail, picture, anything, size, Gated)}


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    """A Chromium that reaches only this machine."""
    async with playwright.async_playwright() as p:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = await p.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield chromium
        finally:
            await chromium.close()


@asynccontextmanager
async def page_at(url: str, **options: Any) -> AsyncIterator[Any]:
    """A page in a browser. It may ask no other host; `complaints` is what its console says."""
    async with browser() as chromium:
        page = await chromium.new_page(viewport={"width": options.pop("width", 1200), "height": 900}, **options)
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on(
            "console",
            lambda message: page.complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.set_default_timeout(WAIT * 1000)
        await page.goto(url)
        yield page
        assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in page.asked), page.asked


@asynccontextmanager
async def live_page(
    plugins: "dict[str, Any]" = PLUGINS,
    prefix: str = "/",
    env: "dict[str, str] | None" = None,
    width: int = 1200,
    scheme: str = "light",
    **settings: Any,
) -> AsyncIterator[Any]:
    """A page that follows the jobs of `page.manager`, which has two workers. It must have nothing to complain of."""
    config = WorkerConfig(max_workers=2, standby=False, grace_timeout=1.0, env=env or {})
    manager = JobManager("pages", "tests", plugins=plugins, worker_config=config)
    app: Any = WorkersApp(manager, **settings)
    if prefix != "/":
        app = Starlette(routes=[Mount(prefix.rstrip("/"), app)])
    async with (
        manager,
        serving(app, prefix) as client,
        page_at(str(client.base_url), width=width, color_scheme=scheme) as page,
    ):
        page.manager = manager
        if "token" not in settings:
            await live(page)
        yield page
        assert not [text for text in page.complaints if "net::" not in text]  # a stream that breaks is opened again


async def until(page: Any, expression: str) -> None:
    """Wait until an expression is true; the page's policy does not let Playwright's own wait evaluate it there."""
    deadline = time.monotonic() + WAIT
    while not await page.evaluate(expression):
        assert time.monotonic() < deadline, (expression, await page.inner_text("body"), page.complaints)
        await asyncio.sleep(0.05)


async def live(page: Any) -> None:
    """Wait until the page follows the events, and has its jobs and plugins."""
    await until(page, "document.getElementById('live').dataset.state === 'live' && workersPage.loaded")
    await page.wait_for_selector("#start-form > *", state="attached")


async def row(page: Any, text: str) -> Any:
    """Wait for a row of the table of jobs that has this text."""
    found = page.locator("#jobs-table tr.job").filter(has_text=text).first
    await found.wait_for()
    return found


async def run(page: Any, plugin: str) -> None:
    """Start a job by the form."""
    await page.select_option("select[name=plugin]", plugin)
    await page.click("#start-form button.main")
