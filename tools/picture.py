"""Take the picture of the live page for the README, with Chromium, from jobs that really run: `python tools/picture.py`."""

import asyncio
import os
import shutil
import socket
import tempfile
from pathlib import Path

import uvicorn
from playwright.async_api import async_playwright

from cjm_worker_protocols import JobManager, WorkerConfig
from cjm_worker_protocols.plugins.speech import sample_recording
from cjm_worker_protocols.web import WorkersApp

PICTURE = Path(__file__).resolve().parents[1] / "nbs/page.png"


def summary(text: str) -> str:
    """Shorten a text."""
    import time

    time.sleep(60)
    return text[:80]


def scan(page: str) -> str:
    """Read a page."""
    raise FileNotFoundError(f"no such page: {page}")


async def fill(manager: JobManager) -> str:
    """Start jobs; gives the id of one whose words come now."""
    audio = "lecture.wav"
    shutil.copy(sample_recording(), audio)
    for plugin, name, parameters in (("speech", "interview.wav", {"audio": audio}), ("scan", "page-7.png", {"page": "page-7.png"})):
        job = await manager.start_job(plugin, params=parameters, metadata={"name": name}, owner="ada")
        await job.wait()
    waiting = await manager.start_job("summary", text="…", metadata={"name": "minutes"}, owner="bob")
    while waiting.status != "running":
        await asyncio.sleep(0.05)
    job = await manager.start_job("speech", audio=audio, metadata={"name": "lecture.wav"}, owner="ada")
    await manager.start_job("summary", text="…", metadata={"name": "abstract"}, owner="ada")
    return job.id


async def main() -> None:
    """Serve, look, and write the picture."""
    plugins = {"speech": "cjm_worker_protocols.plugins.speech:PocketSphinx", "summary": summary, "scan": scan}
    manager = JobManager("speech", "demo", plugins=plugins, worker_config=WorkerConfig(max_workers=2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(WorkersApp(manager, title="Speech lab"), log_level="error"))
        serving = asyncio.ensure_future(server.serve([listener]))
        async with async_playwright() as p:
            browser = await p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = await browser.new_page(viewport={"width": 1100, "height": 840}, device_scale_factor=1.5)
            await page.goto(f"http://127.0.0.1:{listener.getsockname()[1]}/")
            job = await fill(manager)
            await page.locator("tr.job", has_text="lecture.wav").locator("button.plain").click()
            while not await page.locator(".stream").count() or len(await page.inner_text(".stream")) < 60:
                await asyncio.sleep(0.1)
            await page.evaluate("scrollTo(0, 0)")
            await page.mouse.move(0, 0)
            await page.screenshot(path=PICTURE, full_page=True)
            await browser.close()
        await manager.cancel_job(job)
        server.should_exit = True
        await serving


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        asyncio.run(main())
